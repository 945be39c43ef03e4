// Elements that lie in one order in x and in another in out: they are brought over first, and dropped where they are.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <cstdlib>

#include "batch.h"
#include "items.h"

namespace dropfast {

// The axis along which the elements of an array lie closest; `of` is its stride.
inline int closest(const Axis* axes, int n, int64_t Axis::* of) {
  int closest = 0;
  for (int d = 1; d < n; ++d) {
    if (std::abs(axes[d].*of) <= std::abs(axes[closest].*of)) closest = d;
  }
  return closest;
}

// What lies side by side in out is so far apart in x, from one end to the other, that no cache holds it all until the
// next of its elements are needed.
constexpr int64_t kFarApart = 1 << 19;

// Whether a piece of work, of elements of a size, is done sooner if they are moved first. Measured beside what Piece
// does, of np.copyto between the two (Zen 4, float32): Fortran order from C order 1.1 -> 0.5 and back 0.9 -> 0.3, from
// padded rows 2.6 -> 1.2, reversed rows of 32 to padded ones 2.2 -> 1.4; where it would not be far, 1.2 -> 1.7.
inline bool is_moved(const Axis* axes, int n, int64_t size) {
  if (n == 0) return false;
  const int inner = closest(axes, n, &Axis::out);
  const int64_t x = std::abs(axes[inner].x), out = std::abs(axes[inner].out);
  if (closest(axes, n, &Axis::x) != inner) return axes[inner].length * x > kFarApart;
  return out == size && axes[inner].x != axes[inner].out;
}

// Elements to move and to drop at a time: they are in L2 in between.
constexpr int64_t kMovedElements = 1 << 15;
// A run of bits is not cut below so many, for whole blocks are drawn.
constexpr int64_t kMovedRun = 4 * kBlockBits;

// Calls visit(axes, x, out, start) for parts of a piece of work that are no larger, cut where out has its largest
// steps.
template <class Visit>
void in_parts(Axis* axes, int n, const char* x, char* out, uint64_t start, const Visit& visit) {
  int64_t size = 1;
  Axis* cut = nullptr;
  for (Axis* axis = axes; axis < axes + n; ++axis) {
    size *= axis->length;
    const bool is_short = axis->length < 2 || (axis->mask == 1 && axis->length <= kMovedRun);
    if (!is_short && (!cut || std::abs(axis->out) > std::abs(cut->out))) cut = axis;
  }
  if (size <= kMovedElements || !cut) return visit(axes, x, out, start);
  const int64_t length = cut->length, unit = cut->mask == 1 ? kBlockBits : 1, half = length / 2 / unit * unit;
  cut->length = half;
  in_parts(axes, n, x, out, start, visit);
  cut->length = length - half;
  in_parts(axes, n, x + half * cut->x, out + half * cut->out, start + (uint64_t)half * (uint64_t)cut->mask, visit);
  cut->length = length;
}

// Copies elements, in tiles of cache lines' worth of x and of out, which meet in a buffer: from line to line in memory
// it may be so far that few of them fit the caches together.
inline void move(const Axis* axes, int n, const char* x, char* out, int64_t size) {
  constexpr int64_t kRows = 64, kColumns = 16, kAhead = 12;
  const int inner = closest(axes, n, &Axis::out), other = closest(axes, n, &Axis::x);
  const Axis row = axes[inner], column = other == inner ? Axis{1, 0, 0, 0} : axes[other];
  Axes rest;
  for (int d = 0; d < n; ++d) {
    if (d != inner && d != other) rest.add(axes[d]);
  }
  std::sort(rest.axes, rest.axes + rest.n,
            [](const Axis& a, const Axis& b) { return std::abs(a.out) > std::abs(b.out); });
  rest.for_each(x, out, 0, [&](const char* x, char* out, uint64_t) {
    if (column.length == 1) return copy_items(out, row.out, x, row.x, row.length, size);
    char tile[kColumns * kRows * 8];
    for (int64_t i = 0; i < row.length; i += kRows) {
      const int64_t rows = std::min(kRows, row.length - i);
      for (int64_t j = 0; j < column.length; j += kColumns) {
        const int64_t columns = std::min(kColumns, column.length - j);
        for (int64_t r = 0; r < rows; ++r) {
          __builtin_prefetch(x + (i + r + kAhead) * row.x + j * column.x);
          copy_items(tile + r * size, kRows * size, x + (i + r) * row.x + j * column.x, column.x, columns, size);
        }
        for (int64_t c = 0; c < columns; ++c) {
          copy_items(out + i * row.out + (j + c) * column.out, row.out, tile + c * kRows * size, size, rows, size);
        }
      }
    }
  });
}

}  // namespace dropfast
