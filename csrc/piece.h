// One piece of work on one thread: from an N-d mask to batches of blocks to draw, and contiguous runs of elements to
// select.
#pragma once

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <type_traits>

#include "bits.h"
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

constexpr int64_t kLongRun = 4096;   // from here on a run is drawn and selected in one
constexpr int64_t kLongRepeat = 64;  // from here on a bit's own elements are a run that is long enough

// Bits of short runs are put together, so that select gets a long one: at least as many as are worth it for one use.
constexpr int64_t kPatternBits = 16384, kShortPatternBits = 2048;

// Elements that are not side by side are brought together, so many at a time: fewer where they are far apart, and only
// the next run makes use of the rest of their cache lines.
constexpr int64_t kNearItems = 512, kFarItems = 32, kFarBytes = 256;

// Rows whose bits are transposed together, and bits of each: 64 KiB in all. Fewer than 8 rows are not worth it.
constexpr int64_t kFewestRows = 8, kTileRows = 64 * kSquares, kTileBits = 512;

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
//   across   the mask moves on, and the elements are contiguous, while those of a run are not: Fortran order, say. The
//            elements of several axes are rows that lie side by side
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
    int run = -1, repeat = -1;
    for (int d = 0; d < n; ++d) {
      if (axes[d].mask == 1) run = d;
      if (axes[d].mask == 0 && side_by_side(axes[d])) repeat = d;
    }
    if (repeat >= 0) repeat_ = axes[repeat].length;
    run_ = run >= 0 ? axes[run] : Axis{1, repeat_ * size_, repeat_ * size_, 1};
    contiguous_ = run_.x == repeat_ * size_ && run_.out == repeat_ * size_;
    bool taken[DROPFAST_MAX_NDIM] = {};
    if (!contiguous_) take_across(axes, n, taken);
    for (int d = 0; d < n; ++d) {
      if (d != run && d != repeat && !taken[d]) (axes[d].mask ? outer_[outer_n_++] : shared_[shared_n_++]) = axes[d];
    }
  }

  void apply(const char* x, char* out, uint64_t start) const {
    if (contiguous_ && repeat_ == 1 && shared_n_ == 0 && run_.length >= kLongRun) {
      for_each(outer_, outer_n_, x, out, start, [&](const char* x, char* out, uint64_t index) {
        drop_(mask_.key, mask_.draw, mask_.threshold, index, x, out, run_.length, scale_, streaming_);
      });
      if (streaming_) kernels_.fence();
      return;
    }
    if (rows_ > 1) {
      for_each(outer_, outer_n_, x, out, start, [&](const char* x, char* out, uint64_t index) {
        for (int64_t bit = 0; bit < run_.length; bit += kTileBits) apply_tiles(x, out, index, bit);
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
    Batch<decltype(use)> batch(kernels_, mask_, run_, contiguous_ ? kBatchBits : at_once(), use);
    for_each(outer_, outer_n_, x, out, start,
             [&](const char* x, char* out, uint64_t index) { batch.add(x, out, index); });
    batch.flush();
    if (streaming_) kernels_.fence();
  }

 private:
  bool side_by_side(const Axis& axis) const { return axis.x == size_ && axis.out == size_; }

  int64_t at_once() const {
    return std::max(std::abs(run_.x), std::abs(run_.out)) < kFarBytes ? kNearItems : kFarItems;
  }

  // Takes the axes along which elements lie side by side, the innermost first, if they are enough rows.
  void take_across(const Axis* axes, int n, bool* taken) {
    for (int d = n - 1; d >= 0; --d) {
      const int64_t step = rows_ * size_;
      if (taken[d] || axes[d].mask <= 1 || axes[d].x != step || axes[d].out != step) continue;
      taken[d] = true;
      across_[across_n_++] = axes[d];
      rows_ *= axes[d].length;
      d = n;  // once more: another may go on where this one ends
    }
    if (rows_ < kFewestRows) {
      std::fill(taken, taken + n, false);
      rows_ = 1;
    }
  }

  // All rows, for so many bits of the run. They are drawn row by row; what lies side by side are the rows, and so the
  // bits are transposed.
  void apply_tiles(const char* x, char* out, uint64_t index, int64_t bit) const {
    const int64_t bits = std::min(kTileBits, run_.length - bit), words = (bits + 63) / 64;
    x += bit * run_.x;
    out += bit * run_.out;
    index += (uint64_t)bit;

    // Bits 64 w to 64 w + 63 of row r are a word of line r % 64. Transposed, line c has bits 64 w + c of all rows, side
    // by side. Where the rows are no more than 64, the squares that lie side by side are those of all w.
    const int64_t step = rows_ > 64 ? 64 * kSquares : 1;  // from one w to the next
    uint64_t drawn[kTileBits * kSquares + 1];
    std::fill(drawn, drawn + 64 * kSquares + (words - 1) * step, 0);  // the last square may not be full
    uint64_t row[kTileBits / 64 + 1] = {};
    int64_t r = 0, at = 0;
    const auto keep_bits = [&](const char*, char*, const uint64_t* keep, int64_t first, int64_t n) {
      append_bits(row, at, keep, first, n);
      at += n;
      if (at < bits) return;
      uint64_t* to = drawn + r % 64 * kSquares + r / 64;
      for (int64_t w = 0; w < words; ++w) to[w * step] = row[w];
      std::fill(row, row + words, 0);
      at = 0;
      ++r;
    };
    const Axis run = {bits, 0, 0, 1};
    Batch<decltype(keep_bits)> batch(kernels_, mask_, run, kBatchBits, keep_bits);
    int64_t position[DROPFAST_MAX_NDIM] = {};  // along the axes across
    for (int64_t first = 0; first < rows_; first += kTileRows) {
      const int64_t rows = std::min(kTileRows, rows_ - first);
      for (int64_t i = 0; i < rows; ++i) {
        batch.add(nullptr, nullptr, index);
        for (int d = 0; d < across_n_; ++d) {
          index += (uint64_t)across_[d].mask;
          if (++position[d] < across_[d].length) break;
          index -= (uint64_t)across_[d].mask * (uint64_t)across_[d].length;
          position[d] = 0;
        }
      }
      batch.flush();
      r = 0;
      if (step == 1) {
        kernels_.transpose(drawn, (int)words);
      } else {
        for (int64_t w = 0; w < words; ++w) kernels_.transpose(drawn + w * step, (int)((rows + 63) / 64));
      }
      const auto column = [&](int64_t bit) { return drawn + bit % 64 * kSquares + bit / 64 * step; };
      use_columns(x + first * size_, out + first * size_, column, bits, rows);
    }
  }

  template <class Column>
  void use_columns(const char* x, char* out, const Column& column, int64_t bits, int64_t rows) const {
    const auto use = [&](int64_t bit, const uint64_t* keep, int64_t n) {
      for_each_shared(shared_n_, x + bit * run_.x, out + bit * run_.out,
                      [&](const char* x, char* out) { select(x, out, n, keep, 0); });
    };
    if (rows > 64 || run_.x != rows * size_ || run_.out != rows * size_) {
      for (int64_t bit = 0; bit < bits; ++bit) use(bit, column(bit), rows);
      return;
    }
    for (int64_t bit = 0; bit < bits; bit += 64) {  // short columns that lie behind each other are one
      const int64_t n = std::min<int64_t>(64, bits - bit);
      uint64_t joined[64 + 1] = {};
      for (int64_t c = 0; c < n; ++c) append_bits(joined, c * rows, column(bit + c), 0, rows);
      use(bit, joined, n * rows);
    }
  }

  template <class Visit>
  void for_each_shared(int n, const char* x, char* out, const Visit& visit) const {
    for_each(shared_, n, x, out, 0, [&](const char* x, char* out, uint64_t) { visit(x, out); });
  }

  void select(const char* x, char* out, int64_t n, const uint64_t* keep, int64_t first) const {
    select_(x, out, n, keep, first, scale_, streaming_);
  }

  void use_contiguous(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    // Short rows that lie behind each other are fewer, longer rows of the same bits over and over.
    if (shared_n_ > 0 && n == run_.length) {
      const Axis& rows = shared_[shared_n_ - 1];
      const int64_t length = std::clamp(rows.length * n / 8, kShortPatternBits, kPatternBits);
      const int64_t tiles = std::min(rows.length, length / n);
      if (tiles > 1 && rows.x == n * size_ && rows.out == n * size_) {
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

  // n <= at_once()
  void use_strided(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    if (repeat_ > 1) return use_long_repeats(x, out, keep, first, n);
    for_each_shared(shared_n_, x, out, [&](const char* x, char* out) {
      char buffer[kNearItems * 8];
      if (run_.out == size_) {
        copy_items(out, size_, x, run_.x, n);
        select_(out, out, n, keep, first, scale_, false);
      } else {
        if (run_.x != size_) {
          copy_items(buffer, size_, x, run_.x, n);
          x = buffer;
        }
        select_(x, buffer, n, keep, first, scale_, false);
        copy_items(out, run_.out, buffer, size_, n);
      }
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
  int64_t rows_ = 1;  // that lie side by side
  int outer_n_ = 0, shared_n_ = 0, across_n_ = 0;
  Axis outer_[DROPFAST_MAX_NDIM], shared_[DROPFAST_MAX_NDIM], across_[DROPFAST_MAX_NDIM];
};

}  // namespace dropfast
