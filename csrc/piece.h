// One piece of work on one thread: from an N-d mask to batches of blocks to draw, and contiguous runs of elements to
// select.
#pragma once

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <type_traits>

#include "dropfast.h"
#include "kernels.h"

namespace dropfast {

constexpr int kItemSize[4] = {2, 2, 4, 8};  // by dropfast_dtype

// ---- axes

struct Axis {
  int64_t length;
  int64_t x, out;  // strides in bytes
  int64_t mask;    // stride of the index in mask elements, 0 where shared
};

// Calls visit(x, out, index) for every position of the axes, the last axis fastest.
template <class Visit>
void for_each(const Axis* axes, int n, const char* x, char* out, uint64_t index, const Visit& visit) {
  if (n == 0) return visit(x, out, index);
  for (int64_t i = 0; i < axes->length; ++i) {
    for_each(axes + 1, n - 1, x, out, index, visit);
    x += axes->x;
    out += axes->out;
    index += (uint64_t)axes->mask;
  }
}

// ---- bits

inline uint64_t low_bits(int64_t n) { return n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0}; }

inline bool bit_at(const uint64_t* bits, int64_t i) { return bits[i >> 6] >> (i & 63) & 1; }

// Puts the n bits of `from` that begin at bit `first` to bit `at` of `to`, which is 0 from there on. `from` has one
// word behind its last bit.
inline void append_bits(uint64_t* to, int64_t at, const uint64_t* from, int64_t first, int64_t n) {
  while (n > 0) {
    const int64_t count = std::min(n, 64 - (at & 63)), shift = first & 63;
    const uint64_t* word = from + (first >> 6);
    to[at >> 6] |= ((word[0] >> shift | word[1] << 1 << (63 - shift)) & low_bits(count)) << (at & 63);
    at += count;
    first += count;
    n -= count;
  }
}

// Blocks that are drawn in one go, and the runs of elements that use their bits. The runs need not follow each other:
// short rows of a window fill a batch together, for a draw costs the same wherever its blocks lie.
template <class Use>
class Batch {
 public:
  // `run` is the axis of the mask elements that follow each other. So many of a run are used before it is the next
  // run's turn: `at_once`, for where the elements of a run are far apart in memory those of the next run are their
  // neighbours.
  Batch(const Kernels& kernels, const dropfast_mask& mask, const Axis& run, int64_t at_once, const Use& use)
      : kernels_(kernels), mask_(mask), run_(run), at_once_(at_once), use_(use) {}

  // Sees to it that use(x, out, keep, first, n) is called for the run that begins at `index`, whole or in pieces.
  void add(const char* x, char* out, uint64_t index) {
    for (int64_t left = run_.length; left > 0;) {
      const uint64_t block = index / kBlockBits;
      const int slot = blocks_n_ > 0 && blocks_[blocks_n_ - 1] == block ? blocks_n_ - 1 : blocks_n_;
      if (slot == kBatchBlocks || runs_n_ == kBatchBlocks) {
        flush();
        continue;
      }
      const int64_t first = slot * kBlockBits + (int64_t)(index % kBlockBits);
      const int64_t n = std::min<int64_t>(left, kBatchBits - first);
      blocks_n_ = (int)((first + n - 1) / kBlockBits) + 1;
      for (int b = slot; b < blocks_n_; ++b) blocks_[b] = block + (uint64_t)(b - slot);
      runs_[runs_n_++] = {x, out, first, n};
      x += n * run_.x;
      out += n * run_.out;
      index += (uint64_t)n;
      left -= n;
    }
  }

  void flush() {
    const int padded = (blocks_n_ + kDrawGroup - 1) / kDrawGroup * kDrawGroup;
    std::fill(blocks_ + blocks_n_, blocks_ + padded, 0);
    kernels_.draw(mask_.key, mask_.draw, mask_.threshold, blocks_, blocks_n_, keep_);
    keep_[2 * blocks_n_] = 0;  // the word behind the last bit, which select may read
    int64_t longest = 0;
    for (int r = 0; r < runs_n_; ++r) longest = std::max(longest, runs_[r].n);
    for (int64_t done = 0; done < longest; done += at_once_) {
      for (int r = 0; r < runs_n_; ++r) {
        const Run& run = runs_[r];
        if (done >= run.n) continue;
        use_(run.x + done * run_.x, run.out + done * run_.out, keep_, run.first + done,
             std::min(at_once_, run.n - done));
      }
    }
    blocks_n_ = runs_n_ = 0;
  }

 private:
  struct Run {
    const char* x;
    char* out;
    int64_t first, n;
  };
  const Kernels& kernels_;
  const dropfast_mask& mask_;
  const Axis& run_;
  const int64_t at_once_;
  const Use& use_;
  int blocks_n_ = 0, runs_n_ = 0;
  uint64_t blocks_[kBatchBlocks];
  uint64_t keep_[2 * kBatchBlocks + 1];
  Run runs_[kBatchBlocks];
};

// ---- a piece

constexpr int64_t kLongRun = 4096;       // from here on a run is drawn and selected in one
constexpr int64_t kPatternBits = 16384;  // bits of short runs, put together so that select gets a long one
constexpr int64_t kStridedItems = 32;    // elements that are not side by side, brought together at a time
constexpr int64_t kLongRepeat = 64;      // from here on a bit's own elements are a run that is long enough

inline const auto kOnes = [] {
  std::array<uint64_t, kPatternBits / 64 + 1> words;
  words.fill(~uint64_t{0});
  return words;
}();

// The axes of a piece, by what a mask bit does there:
//   outer    the mask moves on: each position has a run of bits of its own
//   shared   the same run of bits again
//   run      one bit after the other
//   repeat   one bit for so many contiguous elements (1 but for spatial dropout)
class Piece {
 public:
  Piece(const Kernels& kernels, const dropfast_mask& mask, dropfast_dtype dtype, const Axis* axes, int n,
        bool streaming)
      : kernels_(kernels),
        mask_(mask),
        select_(kernels.select[dtype]),
        drop_(kernels.drop[dtype]),
        size_(kItemSize[dtype]),
        scale_(mask.threshold >> 32 ? 0 : 0x1p32 / (double)((uint64_t{1} << 32) - mask.threshold)),
        streaming_(streaming) {
    if (n > 0 && axes[n - 1].mask == 0 && axes[n - 1].x == size_ && axes[n - 1].out == size_) {
      repeat_ = axes[--n].length;
    }
    run_ = {1, repeat_ * size_, repeat_ * size_, 1};
    int run = n - 1;
    while (run >= 0 && axes[run].mask == 0) --run;
    if (run >= 0 && axes[run].mask == 1) {
      run_ = axes[run];
    } else {
      run = -1;
    }
    for (int d = 0; d < n; ++d) {
      if (d != run) (axes[d].mask ? outer_[outer_n_++] : shared_[shared_n_++]) = axes[d];
    }
    contiguous_ = run_.x == repeat_ * size_ && run_.out == repeat_ * size_;
  }

  void apply(const char* x, char* out, uint64_t start) const {
    if (contiguous_ && repeat_ == 1 && shared_n_ == 0 && run_.length >= kLongRun) {
      for_each(outer_, outer_n_, x, out, start, [&](const char* x, char* out, uint64_t index) {
        drop_(mask_.key, mask_.draw, mask_.threshold, index, x, out, run_.length, scale_, streaming_);
      });
      if (streaming_) kernels_.fence();
      return;
    }
    const auto use = [this](const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) {
      if (!contiguous_) {
        use_strided(x, out, keep, first, n);
      } else if (repeat_ >= kLongRepeat) {
        use_long_repeats(x, out, keep, first, n);
      } else if (repeat_ > 1) {
        use_short_repeats(x, out, keep, first, n);
      } else {
        use_contiguous(x, out, keep, first, n);
      }
    };
    Batch<decltype(use)> batch(kernels_, mask_, run_, contiguous_ ? kBatchBits : kStridedItems, use);
    for_each(outer_, outer_n_, x, out, start,
             [&](const char* x, char* out, uint64_t index) { batch.add(x, out, index); });
    batch.flush();
    if (streaming_) kernels_.fence();
  }

 private:
  template <class Visit>
  void for_each_shared(int n, const char* x, char* out, const Visit& visit) const {
    for_each(shared_, n, x, out, 0, [&](const char* x, char* out, uint64_t) { visit(x, out); });
  }

  void select(const char* x, char* out, int64_t n, const uint64_t* keep, int64_t first) const {
    select_(x, out, n, keep, first, scale_, streaming_);
  }

  void use_contiguous(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    // Short rows that lie behind each other are fewer, longer rows of the same bits over and over.
    if (shared_n_ > 0 && n == run_.length && n < kPatternBits / 2) {
      const Axis& rows = shared_[shared_n_ - 1];
      if (rows.x == n * size_ && rows.out == n * size_) {
        const int64_t tiles = std::min(rows.length, kPatternBits / n);
        uint64_t pattern[kPatternBits / 64 + 1] = {};
        for (int64_t t = 0; t < tiles; ++t) append_bits(pattern, t * n, keep, first, n);
        return for_each_shared(shared_n_ - 1, x, out, [&](const char* x, char* out) {
          for (int64_t row = 0; row < rows.length; row += tiles) {
            const int64_t count = std::min(tiles, rows.length - row);
            select(x + row * rows.x, out + row * rows.out, count * n, pattern, 0);
          }
        });
      }
    }
    for_each_shared(shared_n_, x, out, [&](const char* x, char* out) { select(x, out, n, keep, first); });
  }

  void use_short_repeats(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    for (int64_t done = 0; done < n;) {
      const int64_t count = std::min(n - done, kPatternBits / repeat_);
      uint64_t pattern[kPatternBits / 64 + 1] = {};
      for (int64_t i = 0; i < count; ++i) {
        if (bit_at(keep, first + done + i)) append_bits(pattern, i * repeat_, kOnes.data(), 0, repeat_);
      }
      for_each_shared(shared_n_, x + done * run_.x, out + done * run_.out,
                      [&](const char* x, char* out) { select(x, out, count * repeat_, pattern, 0); });
      done += count;
    }
  }

  void use_long_repeats(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    for_each_shared(shared_n_, x, out, [&](const char* x, char* out) {
      for (int64_t i = 0; i < n; ++i) {
        use_one_bit(x + i * run_.x, out + i * run_.out, bit_at(keep, first + i));
      }
    });
  }

  void use_one_bit(const char* x, char* out, bool keep) const {
    if (!keep) {
      memset(out, 0, (size_t)(repeat_ * size_));
      return;
    }
    for (int64_t i = 0; i < repeat_; i += kPatternBits) {
      select(x + i * size_, out + i * size_, std::min(kPatternBits, repeat_ - i), kOnes.data(), 0);
    }
  }

  // n <= kStridedItems
  void use_strided(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    if (repeat_ > 1) return use_long_repeats(x, out, keep, first, n);
    for_each_shared(shared_n_, x, out, [&](const char* x, char* out) {
      char buffer[kStridedItems * 8];
      copy_items(buffer, size_, x, run_.x, n);
      select_(buffer, buffer, n, keep, first, scale_, false);
      copy_items(out, run_.out, buffer, size_, n);
    });
  }

  void copy_items(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t n) const {
    const auto copy = [&](auto size) {  // known to the compiler, or each item would be a call of memcpy
      for (int64_t i = 0; i < n; ++i) memcpy(to + i * to_stride, from + i * from_stride, size);
    };
    if (size_ == 2) copy(std::integral_constant<size_t, 2>());
    if (size_ == 4) copy(std::integral_constant<size_t, 4>());
    if (size_ == 8) copy(std::integral_constant<size_t, 8>());
  }

  const Kernels& kernels_;
  const dropfast_mask& mask_;
  const Select select_;
  const Drop drop_;
  const int64_t size_;
  const double scale_;
  const bool streaming_;
  int64_t repeat_ = 1;
  Axis run_;
  bool contiguous_;
  int outer_n_ = 0, shared_n_ = 0;
  Axis outer_[DROPFAST_MAX_NDIM], shared_[DROPFAST_MAX_NDIM];
};

}  // namespace dropfast
