// One piece of work on one thread: from an N-d mask to runs of bits, and to contiguous elements to select by them.
#pragma once

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "batch.h"
#include "bits.h"
#include "dropfast.h"
#include "engine.h"
#include "items.h"
#include "kernels.h"

namespace dropfast {

inline double scale_of(uint64_t threshold) {
  return threshold >> 32 ? 0 : 0x1p32 / (double)((uint64_t{1} << 32) - threshold);
}

constexpr int64_t kLongRun = 4096;   // from here on a run is drawn and selected in one
constexpr int64_t kLongRepeat = 64;  // from here on a bit's own elements are a run that is long enough

// Bits of short runs are put together, so that select gets a long one: at least as many as are worth it for one use.
constexpr int64_t kPatternBits = 16384, kShortPatternBits = 2048;

// Elements that are not side by side are brought together, so many at a time. Where they are far apart, and only the
// next run makes use of the rest of their cache lines, it is its turn after fewer.
constexpr int64_t kItems = 512, kFarItems = 32, kFarBytes = 1024;

// Rows whose bits are transposed together, and bits of each: 64 KiB in all.
constexpr int64_t kTileRows = 64 * kSquares, kTileBits = 512;
constexpr int64_t kTileStep = 64 * kSquares + 8;  // a cache line more, or all words of a row would meet in one set
constexpr int64_t kFewestRows = 9;                // that are worth it; fewer are if they leave no gaps
constexpr int64_t kEnoughRows = 64;

constexpr Rows kOneRow = {1, 0, 0};

inline const auto kOnes = [] {
  std::array<uint64_t, kPatternBits / 64 + 1> words;
  words.fill(~uint64_t{0});
  return words;
}();

// kSpread[r][byte]: its bits, r apart.
inline const auto kSpread = [] {
  std::array<std::array<uint64_t, 256>, kFewestRows> spread{};
  for (size_t r = 1; r < kFewestRows; ++r) {
    for (size_t byte = 0; byte < 256; ++byte) {
      for (size_t j = 0; j < 8; ++j) spread[r][byte] |= (uint64_t)(byte >> j & 1) << (j * r);
    }
  }
  return spread;
}();

// The axes of a piece, by what a mask bit does there:
//   repeat   one bit for so many contiguous elements (1 but for spatial dropout)
//   run      one bit after the other
//   next     on they go where a short run ends, in another row of memory
//   across   the mask moves on, and the elements are contiguous, while those of a run are not: Fortran order, say. The
//            elements of several axes are rows that lie side by side
//   outer    the mask moves on: each position has a run of bits of its own
//   again    the same short run of bits for the elements right behind it
//   near     the same bit for an element that is nearer than that of the next bit
//   far      the same bits again, after all others
class Piece {
 public:
  Piece(const Kernels& kernels, const dropfast_mask& mask, dropfast_dtype dtype, const Axis* axes, int n,
        bool streaming)
      : kernels_(kernels),
        mask_(mask),
        select_(kernels.select[dtype]),
        drop_(kernels.drop[dtype]),
        size_(kItemSize[dtype]),
        scale_(scale_of(mask.threshold)),
        streaming_(streaming) {
    Axes rest;
    for (int d = 0; d < n; ++d) rest.add(axes[d].mask == 0 ? forwards(axes[d]) : axes[d]);
    Axis repeat;
    const auto is_repeat = [this](const Axis& axis) { return axis.mask == 0 && axis.x == size_ && axis.out == size_; };
    if (rest.take(is_repeat, repeat)) repeat_ = repeat.length;
    bytes_ = repeat_ * size_;
    run_ = {1, bytes_, bytes_, 1};
    rest.take([](const Axis& axis) { return axis.mask == 1; }, run_);
    contiguous_ = run_.x == bytes_ && run_.out == bytes_;
    reversed_ = run_.x == -size_ && run_.out == -size_;
    if (contiguous_ && repeat_ == 1) {
      const int64_t behind = run_.length * size_;
      rest.take([=](const Axis& axis) { return axis.mask == 0 && axis.x == behind && axis.out == behind; }, again_);
    } else if (run_.out != size_ && run_.x != size_ && !reversed_) {
      take_across(rest);
    }
    if (run_.length < kTileBits && again_.length == 1 && !(rows_ > 1 && rows_ < kFewestRows)) {
      rest.take([this](const Axis& axis) { return axis.mask == run_.length; }, next_);
    }
    for (int d = 0; d < rest.n; ++d) {
      const Axis& axis = rest.axes[d];
      const bool near = std::abs(axis.out) < std::abs(run_.out);
      (axis.mask != 0 ? outer_ : near ? near_ : far_).add(axis);
    }
  }

  void apply(const char* x, char* out, uint64_t start) const {
    x += x_begin_;
    out += out_begin_;
    if (contiguous_ && repeat_ == 1 && again_.length == 1 && far_.n == 0 && run_.length >= kLongRun) {
      outer_.for_each(x, out, start, [&](const char* x, char* out, uint64_t index) {
        drop_(mask_.key, mask_.draw, mask_.threshold, index, x, out, run_.length, scale_, streaming_);
      });
    } else if (rows_ > 1) {
      outer_.for_each(x, out, start, [&](const char* x, char* out, uint64_t index) { apply_tiles(x, out, index); });
    } else {
      const auto use = [this](const Part* parts, int n, const uint64_t* keep) { use_parts(parts, n, keep); };
      Batch<decltype(use)> batch(kernels_, mask_, use);
      outer_.for_each(x, out, start, [&](const char* x, char* out, uint64_t index) {
        batch.add(x, out, index, run_.length * next_.length);
      });
      batch.flush();
    }
    if (streaming_) kernels_.fence();
  }

 private:
  // A shared axis that goes backwards in both arrays, from its other end.
  Axis forwards(Axis axis) {
    if (axis.x >= 0 || axis.out >= 0) return axis;
    x_begin_ += (axis.length - 1) * axis.x;
    out_begin_ += (axis.length - 1) * axis.out;
    return {axis.length, -axis.x, -axis.out, 0};
  }

  // Takes the axes along which elements of out lie side by side, the innermost first, if they are enough rows.
  void take_across(Axes& from) {
    Axes rest = from;
    const auto goes_on = [this](const Axis& axis) {
      const bool makes_runs_longer = axis.mask == run_.length && run_.length < kTileBits;
      return axis.mask > 1 && axis.out == rows_ * bytes_ && (axis.x == axis.out || repeat_ == 1) &&
             !(makes_runs_longer && rows_ >= kEnoughRows);
    };
    for (Axis axis; rest.take(goes_on, axis);) {
      across_.add(axis);
      rows_ *= axis.length;
      gathered_ = gathered_ || axis.x != axis.out;
    }
    const int64_t dense = rows_ * size_;
    dense_ = repeat_ == 1 && !gathered_ && rows_ <= kTileRows / 2 && run_.x == dense && run_.out == dense;
    if (dense_ || rows_ >= kFewestRows) {
      from = rest;
    } else {
      across_.n = 0;
      rows_ = 1;
    }
  }

  // ---- rows across

  // All rows. They are drawn row by row; what lies side by side are the rows, and so the bits are transposed.
  void apply_tiles(const char* x, char* out, uint64_t index) const {
    // Bits 64 w to 64 w + 63 of row r are a word of line r % 64. Transposed, line c has bits 64 w + c of all rows, side
    // by side. Where the rows are no more than 64, the squares that lie side by side are those of all w.
    const bool low = rows_ <= 64;
    const int64_t step = low ? 1 : kTileStep;  // from one w to the next
    const int64_t length = run_.length * next_.length, at_once = low ? 64 * kSquares : kTileBits;
    uint64_t drawn[kTileBits / 64 * kTileStep];
    std::fill(drawn, drawn + (low ? kTileStep : kTileBits / 64 * kTileStep), 0);  // not all lines may have a row
    for (int64_t position = 0; position < length; position += at_once) {
      const int64_t bits = std::min(at_once, length - position), words = (bits + 63) / 64;
      int64_t r = 0;
      const auto keep_bits = [&](const Part* parts, int n, const uint64_t* keep) {  // of whole rows, as they are short
        for (int p = 0; p < n; ++p, ++r) {
          uint64_t* const to = drawn + r % 64 * kSquares + r / 64;
          for (int64_t w = 0; w < words; ++w) to[w * step] = bits_from(keep, parts[p].first + 64 * w);
        }
      };
      Batch<decltype(keep_bits)> batch(kernels_, mask_, keep_bits);
      for (int64_t first = 0; first < rows_; first += kTileRows) {
        const int64_t rows = std::min(kTileRows, rows_ - first);
        for (int64_t i = 0; i < rows; ++i) {
          batch.add(nullptr, nullptr, index + (uint64_t)position + across_index(first + i), bits);
        }
        batch.flush();
        r = 0;
        if (rows_ >= kFewestRows) {
          for (int64_t w = 0; w < words; w += low ? words : 1) {
            kernels_.transpose(drawn + w * step, (int)(low ? words : (rows + 63) / 64));
          }
        }
        const auto column = [&](int64_t bit) { return drawn + bit % 64 * kSquares + bit / 64 * step; };
        far_.for_each(x, out, 0, [&](const char* x, char* out, uint64_t) {
          use_tile(x, out, position, bits, first, rows, column);
        });
      }
    }
  }

  uint64_t across_index(int64_t row) const {
    uint64_t index = 0;
    for (int d = 0; d < across_.n; ++d) {
      index += (uint64_t)(row % across_.axes[d].length) * (uint64_t)across_.axes[d].mask;
      row /= across_.axes[d].length;
    }
    return index;
  }

  // column(i) has the bits of these rows at `position` + i of the run; where rows are too few, row r's are at line r.
  template <class Column>
  void use_tile(const char* x, char* out, int64_t position, int64_t bits, int64_t first, int64_t rows,
                const Column& column) const {
    const auto use_at = [&](int64_t i, const auto& use) {
      const int64_t next = (position + i) / run_.length, in_run = (position + i) % run_.length;
      near_.for_each(x + next * next_.x + in_run * run_.x, out + next * next_.out + in_run * run_.out, 0,
                     [&](const char* x, char* out, uint64_t) { use(x, out); });
    };
    if (dense_) {
      for (int64_t i = 0, columns; i < bits; i += columns) {
        columns = std::min(std::min(bits - i, run_.length - (position + i) % run_.length), kPatternBits / rows);
        uint64_t joined[kPatternBits / 64 + 1];
        BitWriter writer(joined);
        if (rows < kFewestRows) {
          interleave(writer, column(0), rows, columns);
        } else {
          for (int64_t c = 0; c < columns; ++c) {
            rows <= 64 ? writer.put(*column(i + c) & low_bits(rows), rows) : writer.put(column(i + c), 0, rows);
          }
        }
        writer.end();
        use_at(i, [&](const char* x, char* out) { select(x, out, columns * rows, joined, 0); });
      }
      return;
    }
    // In the order of memory.
    const int64_t step = std::abs(next_.out) < std::abs(run_.out) ? run_.length : 1;
    for (int64_t begin = 0; begin < std::min(step, bits); ++begin) {
      for (int64_t i = begin; i < bits; i += step) {
        use_at(i, [&](const char* x, char* out) { use_column(x, out, column(i), first, rows); });
      }
    }
  }

  // The bits of few rows, which begin kSquares words after each other.
  static void interleave(BitWriter& writer, const uint64_t* rows, int64_t n, int64_t columns) {
    const auto& spread = kSpread[(size_t)n];
    for (int64_t c = 0; c < columns; c += 64, ++rows) {
      for (int64_t shift = 0; shift < std::min<int64_t>(64, columns - c); shift += 8) {
        uint64_t bits = 0;
        for (int64_t r = 0; r < n; ++r) bits |= spread[rows[r * kSquares] >> shift & 0xff] << r;
        writer.put(bits, 8 * n);
      }
    }
  }

  void use_column(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t rows) const {
    out += first * bytes_;
    if (gathered_) {
      gather(x, out, first, rows);
      return select_(out, out, rows, keep, 0, scale_, false, kOneRow);
    }
    use_repeats(x + first * bytes_, out, keep, 0, rows);
  }

  void gather(const char* x, char* out, int64_t first, int64_t rows) const {
    const Axis& inner = across_.axes[0];
    while (rows > 0) {
      const int64_t place = first % inner.length, n = std::min(rows, inner.length - place);
      const char* from = x + place * inner.x;
      for (int64_t d = 1, row = first / inner.length; d < across_.n; row /= across_.axes[d++].length) {
        from += row % across_.axes[d].length * across_.axes[d].x;
      }
      copy_items(out, size_, from, inner.x, n, size_);
      out += n * size_;
      first += n;
      rows -= n;
    }
  }

  // ---- runs

  void use_parts(const Part* parts, int n, const uint64_t* keep) const {
    const bool is_far = std::max(std::abs(run_.x), std::abs(run_.out)) >= kFarBytes;
    const int64_t at_once = is_far && !contiguous_ ? kFarItems : kBatchBits;
    int64_t longest = 0;
    for (int p = 0; p < n; ++p) longest = std::max(longest, parts[p].n);
    far_.for_each(parts->x, parts->out, 0, [&](const char* x, char* out, uint64_t) {
      for (int64_t done = 0; done < longest; done += at_once) {
        for (const Part* part = parts; part < parts + n; ++part) {
          if (done >= part->n) continue;
          use_rows(x + (part->x - parts->x), out + (part->out - parts->out), part->position + done, keep,
                   part->first + done, std::min(at_once, part->n - done));
        }
      }
    });
  }

  void use_rows(const char* x, char* out, int64_t position, const uint64_t* keep, int64_t first, int64_t n) const {
    if (next_.length == 1) return use_run(x + position * run_.x, out + position * run_.out, keep, first, n);
    int64_t place = position % run_.length;
    x += position / run_.length * next_.x;
    out += position / run_.length * next_.out;
    while (n > 0) {
      if (contiguous_ && repeat_ == 1 && place == 0 && n >= run_.length) {
        const Rows rows = {n / run_.length, next_.x, next_.out};
        select(x, out, run_.length, keep, first, rows);
        x += rows.n * next_.x;
        out += rows.n * next_.out;
        first += rows.n * run_.length;
        n %= run_.length;
        continue;
      }
      const int64_t count = std::min(n, run_.length - place);
      use_run(x + place * run_.x, out + place * run_.out, keep, first, count);
      x += next_.x;
      out += next_.out;
      first += count;
      n -= count;
      place = 0;
    }
  }

  void use_run(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    if (again_.length > 1) {
      use_again(x, out, keep, first, n);
    } else if (contiguous_) {
      use_repeats(x, out, keep, first, n);
    } else if (repeat_ > 1) {
      near_.for_each(x, out, 0, [&](const char* x, char* out, uint64_t) { use_long_repeats(x, out, keep, first, n); });
    } else if (reversed_) {
      use_reversed(x, out, keep, first, n);
    } else {
      near_.for_each(x, out, 0, [&](const char* x, char* out, uint64_t) { use_strided(x, out, keep, first, n); });
    }
  }

  void select(const char* x, char* out, int64_t n, const uint64_t* keep, int64_t first, Rows rows = kOneRow) const {
    select_(x, out, n, keep, first, scale_, streaming_, rows);
  }

  void use_again(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    // Short rows that lie behind each other are fewer, longer rows of the same bits over and over.
    const int64_t length = std::clamp(again_.length * n / 8, kShortPatternBits, kPatternBits);
    const int64_t times = n == run_.length ? std::max<int64_t>(1, std::min(again_.length, length / n)) : 1;
    uint64_t pattern[kPatternBits / 64 + 1];
    if (times > 1) {
      BitWriter writer(pattern);
      for (int64_t t = 0; t < times; ++t) writer.put(keep, first, n);
      writer.end();
      keep = pattern;
      first = 0;
    }
    for (int64_t row = 0; row < again_.length; row += times) {
      select(x + row * again_.x, out + row * again_.out, std::min(times, again_.length - row) * n, keep, first);
    }
  }

  void use_repeats(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    if (repeat_ == 1) return select(x, out, n, keep, first);
    if (repeat_ >= kLongRepeat) return use_long_repeats(x, out, keep, first, n);
    const int64_t at_once = repeat_ <= 8 ? 8 : repeat_ <= 16 ? 4 : repeat_ <= 32 ? 2 : 1;
    for (int64_t done = 0; done < n;) {
      const int64_t count = std::min(n - done, kPatternBits / repeat_);
      uint64_t pattern[kPatternBits / 64 + 1];
      BitWriter writer(pattern);
      for (int64_t i = 0; i < count; i += at_once) {
        const uint64_t bits = bits_from(keep, first + done + i) & low_bits(std::min(at_once, count - i));
        writer.put(spread(bits, at_once) * low_bits(repeat_), std::min(at_once, count - i) * repeat_);
      }
      writer.end();
      select(x + done * bytes_, out + done * bytes_, count * repeat_, pattern, 0);
      done += count;
    }
  }

  // So many bits as far apart as their repeats need: times a string of ones, they are repeated.
  uint64_t spread(uint64_t bits, int64_t n) const {
    if (n == 8) return kSpread[(size_t)repeat_][bits];
    uint64_t spread = 0;
    for (int64_t i = 0; i < n; ++i) spread |= (bits >> i & 1) << (i * repeat_);
    return spread;
  }

  void use_long_repeats(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    const int64_t x_step = rows_ > 1 ? bytes_ : run_.x, out_step = rows_ > 1 ? bytes_ : run_.out;
    for (int64_t i = 0; i < n; ++i) use_one_bit(x + i * x_step, out + i * out_step, bit_at(keep, first + i));
  }

  void use_one_bit(const char* x, char* out, bool keep) const {
    if (!keep) {
      memset(out, 0, (size_t)bytes_);
      return;
    }
    for (int64_t i = 0; i < repeat_; i += kPatternBits) {
      select(x + i * size_, out + i * size_, std::min(kPatternBits, repeat_ - i), kOnes.data(), 0);
    }
  }

  void use_reversed(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    for (int64_t done = 0; done < n;) {
      const int64_t count = std::min(n - done, kPatternBits);
      uint64_t backwards[kPatternBits / 64 + 1];
      reverse_bits(backwards, keep, first + done, count);
      done += count;
      select(x - (done - 1) * size_, out - (done - 1) * size_, count, backwards, 0);
    }
  }

  void use_strided(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    for (int64_t done = 0; done < n; done += kItems) {
      const int64_t count = std::min(kItems, n - done);
      use_items(x + done * run_.x, out + done * run_.out, keep, first + done, count);
    }
  }

  void use_items(const char* x, char* out, const uint64_t* keep, int64_t first, int64_t n) const {
    char buffer[kItems * 8];
    if (run_.out == size_) {
      copy_items(out, size_, x, run_.x, n, size_);
      return select_(out, out, n, keep, first, scale_, false, kOneRow);
    }
    if (run_.x != size_) {
      copy_items(buffer, size_, x, run_.x, n, size_);
      x = buffer;
    }
    select_(x, buffer, n, keep, first, scale_, false, kOneRow);
    copy_items(out, run_.out, buffer, size_, n, size_);
  }

  const Kernels& kernels_;
  const dropfast_mask& mask_;
  const Select select_;
  const Drop drop_;
  const int64_t size_;
  const double scale_;
  const bool streaming_;
  int64_t x_begin_ = 0, out_begin_ = 0;
  int64_t repeat_ = 1, bytes_;  // of one mask bit
  Axis run_, next_ = {1, 0, 0, 0}, again_ = {1, 0, 0, 0};
  bool contiguous_, reversed_;
  int64_t rows_ = 1;       // that lie side by side in out
  bool gathered_ = false;  // do they not in x?
  bool dense_ = false;     // is one column of few rows right behind the other?
  Axes outer_, far_, near_, across_;
};

}  // namespace dropfast
