// From an N-d mask to blocks to draw.
#pragma once

#include <stdint.h>

#include <algorithm>

#include "dropfast.h"
#include "kernels.h"

namespace dropfast {

struct Axis {
  int64_t length;
  int64_t x, out;  // strides in bytes
  int64_t mask;    // stride of the index in mask elements, 0 where shared
};

// Some axes, the outermost first.
struct Axes {
  Axis axes[DROPFAST_MAX_NDIM];
  int n = 0;

  void add(const Axis& axis) { axes[n++] = axis; }

  // Moves the innermost axis that `is` is true of to `to`, if there is one.
  template <class Is>
  bool take(const Is& is, Axis& to) {
    for (int d = n - 1; d >= 0; --d) {
      if (!is(axes[d])) continue;
      to = axes[d];
      std::copy(axes + d + 1, axes + n--, axes + d);
      return true;
    }
    return false;
  }

  // Calls visit(x, out, index) for every position of the axes, the last axis fastest.
  template <class Visit>
  void for_each(const char* x, char* out, uint64_t index, const Visit& visit, int d = 0) const {
    if (d == n) return visit(x, out, index);
    for (int64_t i = 0; i < axes[d].length; ++i) {
      for_each(x, out, index, visit, d + 1);
      x += axes[d].x;
      out += axes[d].out;
      index += (uint64_t)axes[d].mask;
    }
  }
};

constexpr int64_t kShortRun = kBatchBits / 32;  // what is left of a batch for its sake is little

// A part of a run of mask elements that follow each other: n of them, from `position` in the run on, whose bits are
// drawn at `first`. x and out are where the run begins.
struct Part {
  const char* x;
  char* out;
  int64_t position, first, n;
};

// Blocks that are drawn in one go, and the runs of elements that use their bits. The runs need not follow each other:
// short rows of a window fill a batch together, for a draw costs the same wherever its blocks lie.
template <class Use>
class Batch {
 public:
  Batch(const Kernels& kernels, const dropfast_mask& mask, const Use& use)
      : kernels_(kernels), mask_(mask), use_(use) {}

  // Sees to it that use(parts, how many, keep) is called with the run of `length` that begins at `index`: whole if it
  // is short, else in parts.
  void add(const char* x, char* out, uint64_t index, int64_t length) {
    for (int64_t position = 0; position < length;) {
      const uint64_t block = index / kBlockBits;
      const int slot = blocks_n_ > 0 && blocks_[blocks_n_ - 1] == block ? blocks_n_ - 1 : blocks_n_;
      const int64_t first = slot * kBlockBits + (int64_t)(index % kBlockBits);
      const int64_t n = std::min<int64_t>(length - position, kBatchBits - first);
      if (n <= 0 || (n < length && length <= kShortRun) || parts_n_ == kBatchBlocks) {
        flush();
        continue;
      }
      blocks_n_ = (int)((first + n - 1) / kBlockBits) + 1;
      for (int b = slot; b < blocks_n_; ++b) blocks_[b] = block + (uint64_t)(b - slot);
      parts_[parts_n_++] = {x, out, position, first, n};
      index += (uint64_t)n;
      position += n;
    }
  }

  void flush() {
    const int padded = (blocks_n_ + kDrawGroup - 1) / kDrawGroup * kDrawGroup;
    std::fill(blocks_ + blocks_n_, blocks_ + padded, 0);
    kernels_.draw(mask_.key, mask_.draw, mask_.threshold, blocks_, blocks_n_, keep_);
    keep_[2 * blocks_n_] = 0;  // the word behind the last bit, which select may read
    use_(parts_, parts_n_, keep_);
    blocks_n_ = parts_n_ = 0;
  }

 private:
  const Kernels& kernels_;
  const dropfast_mask& mask_;
  const Use& use_;
  int blocks_n_ = 0, parts_n_ = 0;
  uint64_t blocks_[kBatchBlocks];
  uint64_t keep_[2 * kBatchBlocks + 1];
  Part parts_[kBatchBlocks];
};

}  // namespace dropfast
