// Thinned arrays: divides the work among threads, and finds what lies side by side in both arrays.
#include "thin.h"

#include <string.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "bits.h"
#include "engine.h"
#include "items.h"
#include "threads.h"

namespace dropfast {
namespace {

constexpr int64_t kShortRun = 64;       // shorter ones become longer: their bits are written out
constexpr int64_t kMostBits = 1 << 22;  // that are written out

// Elements that are not side by side are brought together, so many at a time: fewer where they are far apart, and only
// the next run makes use of the rest of their cache lines.
constexpr int64_t kItems = 512, kFarItems = 64, kFarBytes = 1024;

// The bits of an axis that has none, for so many positions: all are kept.
struct AllKept {
  explicit AllKept(int64_t n) {
    for (int64_t i = 0; i < n; i += 64) words[i / 64] = low_bits(n - i);
  }
  uint64_t words[kItems / 64 + 1] = {};  // and the word behind that a select may read
};

int64_t count_bits(const uint64_t* bits, int64_t n) {
  int64_t count = 0;
  for (; n >= 64; n -= 64) count += __builtin_popcountll(*bits++);
  return n > 0 ? count + __builtin_popcountll(*bits & low_bits(n)) : count;
}

struct Along {
  int64_t length, left;   // in the wide and in the compact array
  int64_t wide, compact;  // strides in bytes
  const uint64_t* bits;   // null where all is kept
};

// A wide and a compact array, the outermost axis first.
struct Pair {
  char *wide, *compact;
  Along axes[DROPFAST_MAX_NDIM];
  int n = 0;

  int64_t size() const {
    int64_t size = 1;
    for (int d = 0; d < n; ++d) size *= axes[d].length;
    return size;
  }

  // An axis is cut between words of its bits.
  int64_t unit(int d) const { return axes[d].bits ? 64 : 1; }
  int64_t units(int d) const { return (axes[d].length + unit(d) - 1) / unit(d); }

  // Takes away the first n positions of an axis, and returns them.
  Pair cut(int d, int64_t n) {
    Pair first = *this;
    Along &begin = first.axes[d], &rest = axes[d];
    begin.length = std::min(n, rest.length);
    begin.left = begin.bits ? count_bits(begin.bits, begin.length) : begin.length;
    wide += begin.length * rest.wide;
    compact += begin.left * rest.compact;
    rest.length -= begin.length;
    rest.left -= begin.left;
    if (rest.bits) rest.bits += begin.length / 64;
    return first;
  }
};

// ---- one piece on one thread

class Mover {
 public:
  Mover(Move move, dropfast_dtype dtype, const double* factor)
      : move_(move),
        kernel_(kernels_in_use().thin[move][dtype]),
        select_(kernels_in_use().select[dtype]),
        size_(kItemSize[dtype]),
        factor_(factor) {}

  void run(Pair pair) const {
    const int inner = pair.n - 1;
    const Along& run = pair.axes[inner];
    const bool is_far = std::max(std::abs(run.wide), std::abs(run.compact)) >= kFarBytes;
    while (inner > 0 && is_far && run.length > kFarItems) {
      const Pair part = pair.cut(inner, kFarItems);
      visit(part, 0, part.wide, part.compact);
    }
    visit(pair, 0, pair.wide, pair.compact);
  }

 private:
  bool side_by_side(const Along& axis) const { return axis.wide == size_ && axis.compact == size_; }

  void visit(const Pair& pair, int d, char* wide, char* compact) const {
    const Along& axis = pair.axes[d];
    if (d == pair.n - 1) return side_by_side(axis) ? move_run(axis, wide, compact) : move_items(axis, wide, compact);
    for (int64_t i = 0; i < axis.length; ++i, wide += axis.wide) {
      if (!axis.bits || bit_at(axis.bits, i)) {
        visit(pair, d + 1, wide, compact);
        compact += axis.compact;
      } else if (move_ == kExpand) {
        clear(pair, d + 1, wide);
      }
    }
  }

  void clear(const Pair& pair, int d, char* wide) const {
    const Along& axis = pair.axes[d];
    if (d == pair.n - 1 && axis.wide == size_) {
      memset(wide, 0, (size_t)(axis.length * size_));
      return;
    }
    for (int64_t i = 0; i < axis.length; ++i, wide += axis.wide) {
      d < pair.n - 1 ? clear(pair, d + 1, wide) : (void)memset(wide, 0, (size_t)size_);
    }
  }

  void move_run(const Along& run, char* wide, char* compact) const {
    if (run.bits) return call(wide, compact, run.length, run.bits, run.left);
    if (!factor_) {
      move_ == kCompress ? memcpy(compact, wide, (size_t)(run.length * size_))
                         : memcpy(wide, compact, (size_t)(run.length * size_));
      return;
    }
    for (int64_t i = 0; i < run.length; i += kItems) {
      const int64_t n = std::min(kItems, run.length - i);
      const AllKept all(n);
      if (move_ == kAdd) {
        call(wide + i * size_, compact + i * size_, n, all.words, n);
      } else {
        char *const w = wide + i * size_, *const c = compact + i * size_;
        select_(move_ == kCompress ? w : c, move_ == kCompress ? c : w, n, all.words, 0, *factor_, false, {1, 0, 0});
      }
    }
  }

  void call(char* wide, char* compact, int64_t n, const uint64_t* bits, int64_t left) const {
    move_ == kCompress ? kernel_(wide, compact, n, bits, left, factor_)
                       : kernel_(compact, wide, n, bits, left, factor_);
  }

  // Elements that lie apart in one of the arrays, through buffers.
  void move_items(const Along& axis, char* wide, char* compact) const {
    for (int64_t i = 0; i < axis.length; i += kItems) {
      const int64_t n = std::min(kItems, axis.length - i);
      const AllKept all(n);
      const uint64_t* const bits = axis.bits ? axis.bits + i / 64 : all.words;
      const int64_t left = count_bits(bits, n);
      char wide_items[kItems * 8], compact_items[kItems * 8];
      char* const w = axis.wide == size_ ? wide : wide_items;
      char* const c = axis.compact == size_ ? compact : compact_items;
      if (w != wide && move_ != kExpand) copy_items(w, size_, wide, axis.wide, n, size_);
      if (c != compact && move_ != kCompress) copy_items(c, size_, compact, axis.compact, left, size_);
      call(w, c, n, bits, left);
      if (w != wide && move_ != kCompress) copy_items(wide, axis.wide, w, size_, n, size_);
      if (c != compact && move_ == kCompress) copy_items(compact, axis.compact, c, size_, left, size_);
      wide += n * axis.wide;
      compact += left * axis.compact;
    }
  }

  const Move move_;
  const Thin kernel_;
  const Select select_;
  const int64_t size_;
  const double* const factor_;
};

// ---- arrangement

std::vector<uint64_t> words_of(const uint8_t* bytes, int64_t n) {
  std::vector<uint64_t> words((size_t)(n + 63) / 64);
  memcpy(words.data(), bytes, (size_t)(n + 7) / 8);
  if (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__) {
    for (uint64_t& word : words) word = __builtin_bswap64(word);
  }
  if (n % 64 > 0) words.back() &= low_bits(n % 64);
  return words;
}

// Axes as few as possible, in the order of memory, and the innermost lies side by side in both arrays if one does.
class Arrangement {
 public:
  Arrangement(Move move, int64_t size, char* wide, char* compact, const ThinAxis* axes, int n) {
    pair_.wide = wide;
    pair_.compact = compact;
    for (int d = 0; d < n; ++d) {
      const ThinAxis& axis = axes[d];
      const int64_t left = kept(axis);
      if (axis.length == 1 && left == 1) continue;
      if (left < axis.length) bits_.push_back(words_of(axis.bits, axis.length));
      pair_.axes[pair_.n++] = {axis.length, left, axis.wide, left > 1 ? axis.compact : size,
                               left < axis.length ? bits_.back().data() : nullptr};
    }
    if (pair_.n == 0) pair_.axes[pair_.n++] = {1, 1, size, size, nullptr};
    Along *const begin = pair_.axes, *const end = begin + pair_.n;
    std::stable_sort(begin, end, [](const Along& a, const Along& b) { return std::abs(a.wide) > std::abs(b.wide); });
    Along* inner = std::find_if(begin, end, [=](const Along& a) { return a.wide == size && a.compact == size; });
    if (inner == end) {
      inner =
          std::find_if(begin, end, [=](const Along& a) { return (move == kCompress ? a.compact : a.wide) == size; });
    }
    if (inner != end) std::rotate(inner, inner + 1, end);
    for (int d = pair_.n - 2; d >= 0; --d) join(d);
  }

  const Pair& pair() const { return pair_; }

 private:
  // Makes one axis of this and the one inside it, where it goes on as that ends.
  void join(int d) {
    Along &outer = pair_.axes[d], &inner = pair_.axes[d + 1];
    if (outer.wide != inner.length * inner.wide || outer.compact != inner.left * inner.compact) return;
    const int64_t length = outer.length * inner.length;
    const uint64_t* bits = nullptr;
    if (outer.bits || inner.bits) {
      if (inner.length >= kShortRun || length > kMostBits) return;
      const uint64_t of_inner = inner.bits ? *inner.bits : low_bits(inner.length);
      std::vector<uint64_t> words((size_t)(length + 63) / 64);
      BitWriter writer(words.data());
      for (int64_t i = 0; i < outer.length; ++i) {
        writer.put(!outer.bits || bit_at(outer.bits, i) ? of_inner : 0, inner.length);
      }
      writer.end();
      bits_.push_back(std::move(words));
      bits = bits_.back().data();
    }
    outer = {length, outer.left * inner.left, inner.wide, inner.compact, bits};
    std::copy(&inner + 1, pair_.axes + pair_.n--, &inner);
  }

  Pair pair_;
  std::vector<std::vector<uint64_t>> bits_;
};

// ---- division

// The axis to cut: the outermost with so many units, else the one with most.
int axis_to_cut(const Pair& pair, int64_t units) {
  int most = 0;
  for (int d = 0; d < pair.n; ++d) {
    if (pair.units(d) >= units) return d;
    if (pair.units(d) > pair.units(most)) most = d;
  }
  return most;
}

void on_threads(const Mover& mover, Pair pair) {
  const int team = max_threads();
  const int64_t wanted = std::min<int64_t>(team, pair.size() / kElementsPerThread);
  const int d = axis_to_cut(pair, 16 * wanted);
  const int64_t units = pair.units(d), threads = std::max<int64_t>(1, std::min(wanted, units));
  std::vector<Pair> pieces;
  for (int64_t t = 0; t < threads; ++t) {
    pieces.push_back(pair.cut(d, (units * (t + 1) / threads - units * t / threads) * pair.unit(d)));
  }
  run_parallel((int)threads, team, [&](int t) { mover.run(pieces[(size_t)t]); });
}

// Slab by slab, so that the caller may look around meanwhile.
void in_slabs(const Mover& mover, Pair pair, void (*poll)()) {
  const int64_t size = pair.size();
  if (size <= kSlabElements) {
    on_threads(mover, pair);
    if (poll) poll();
    return;
  }
  const int d = axis_to_cut(pair, 2 * size / kSlabElements);
  const int64_t a_unit = size / pair.axes[d].length * pair.unit(d);
  while (pair.axes[d].length > 0) {
    in_slabs(mover, pair.cut(d, std::max<int64_t>(1, kSlabElements / a_unit) * pair.unit(d)), poll);
  }
}

}  // namespace

int64_t kept(const ThinAxis& axis) {
  if (!axis.bits || axis.length == 0) return axis.length;
  const std::vector<uint64_t> words = words_of(axis.bits, axis.length);
  return count_bits(words.data(), axis.length);
}

void thin(Move move, dropfast_dtype dtype, void* wide, void* compact, const ThinAxis* axes, int n, const double* factor,
          void (*poll)()) {
  for (int d = 0; d < n; ++d) {
    if (axes[d].length == 0) return;
  }
  const Arrangement arranged(move, kItemSize[dtype], (char*)wide, (char*)compact, axes, n);
  in_slabs(Mover(move, dtype, factor), arranged.pair(), poll);
}

}  // namespace dropfast
