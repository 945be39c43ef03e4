// The select: elements times the scale where their bits are set, +0.0 elsewhere. It knows no generator.
#pragma once

#include "half.h"
#include "simd.h"

namespace dropfast {
namespace DROPFAST_ISA {
namespace {

// A dtype is an element, the type it is scaled in, and how a vector of it is scaled.
struct Float16 {
  typedef uint16_t Element;
  typedef float Scale;
  typedef f16v Vector;
  static f16v scaled(f16v x, float scale) { return scale_f16(x, scale); }
};
struct BFloat16 {
  typedef uint16_t Element;
  typedef float Scale;
  typedef u16v Vector;
  static u16v scaled(u16v x, float scale) { return scale_bf16(x, scale); }
};
template <class V>
struct Float32 {
  typedef float Element;
  typedef float Scale;
  typedef V Vector;
  static V scaled(V x, float scale) { return x * scale; }
};
template <class V>
struct Float64 {
  typedef double Element;
  typedef double Scale;
  typedef V Vector;
  static V scaled(V x, double scale) { return x * scale; }
};

// The mask itself, a byte an element.
struct Bool {
  typedef uint8_t Element;
  typedef float Scale;
  typedef u8v Vector;
  static u8v scaled(u8v, float) { return u8v{} + 1; }
};

template <class D>
constexpr int kSize = sizeof(typename D::Element);
template <class D>
constexpr int kVector = sizeof(typename D::Vector);
template <class D>
constexpr int kLanes = kVector<D> / kSize<D>;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// How many elements lie before the first address that is a multiple of a vector.
template <class D>
inline int64_t before_aligned(const char* out) {
  return (int64_t)(-(uintptr_t)out % kVector<D>) / kSize<D>;
}

// The 64 bits from `shift` on of a word and the one behind it.
inline uint64_t bits_of(const uint64_t* word, int shift) { return word[0] >> shift | word[1] << 1 << (63 - shift); }
inline uint64_t bits_at(const uint64_t* keep, int64_t bit) { return bits_of(keep + (bit >> 6), bit & 63); }

template <class D>
inline typename D::Vector one_vector(const char* x, typename D::Scale scale, uint64_t w, int j) {
  return keep_lanes(D::scaled(load<typename D::Vector>(x), scale), w, j);
}

// Fewer elements than a vector has; nothing outside of them is touched.
template <class D>
inline void part_of_vector(const char* x, char* out, int64_t n, const uint64_t* keep, int64_t first,
                           typename D::Scale scale) {
  typedef typename D::Vector V;
  store_first(out, keep_lanes(D::scaled(load_first<V>(x, n), scale), bits_at(keep, first), 0), n);
}

// Elements that are loaded before the first of them is stored: 8 vectors, and at least a word of bits. A store a little
// behind a load, modulo 4096 bytes, holds up the next load, which takes it for one from the same address.
template <class D>
constexpr int kGroup = 8 * kLanes<D> < 64 ? 64 : 8 * kLanes<D>;

template <class D, bool kStreaming, int kVectors = kGroup<D> / kLanes<D>>
inline __attribute__((always_inline)) void select_group(const char* x, char* out, typename D::Scale scale,
                                                        const uint64_t* word, int shift) {
  constexpr int kInWord = 64 / kLanes<D>, kAtOnce = kVectors < 8 ? kVectors : 8;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; v += kAtOnce) {
    typename D::Vector y[kAtOnce];
#pragma GCC unroll 8
    for (int j = 0; j < kAtOnce; ++j) {
      y[j] =
          one_vector<D>(x + (v + j) * kVector<D>, scale, bits_of(word + (v + j) / kInWord, shift), (v + j) % kInWord);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kAtOnce; ++j) {
      if (kStreaming) {
        stream(out + (v + j) * kVector<D>, y[j]);
      } else {
        store(out + (v + j) * kVector<D>, y[j]);
      }
    }
  }
}

// Groups of fewer vectors, each half of the one before, as far as elements i to n have room for them. Returns how far.
template <class D, int kVectors>
inline int64_t select_groups(const char* x, char* out, int64_t i, int64_t n, const uint64_t* keep, int64_t first,
                             typename D::Scale scale) {
  if constexpr (kVectors == 0) {
    return i;
  } else {
    if (i + kVectors * kLanes<D> <= n) {
      select_group<D, false, kVectors>(x + i * kSize<D>, out + i * kSize<D>, scale, keep + ((first + i) >> 6),
                                       (first + i) & 63);
      i += kVectors * kLanes<D>;
    }
    return select_groups<D, kVectors / 2>(x, out, i, n, keep, first, scale);
  }
}

// Whole vectors at aligned addresses of out, and one at either end wherever it lies. Elements that two of them have in
// common are stored twice, with the same value. In place both ends are therefore loaded before anything is stored;
// elsewhere the far one is not, for a line that no prefetcher expects holds up what comes behind it.
template <class D, bool kStreaming>
void select_run(const char* x, char* out, int64_t n, const uint64_t* keep, int64_t first, typename D::Scale scale) {
  constexpr int kStep = kLanes<D>;
  if (n < kStep) return part_of_vector<D>(x, out, n, keep, first, scale);
  const auto vector_at = [=](int64_t i) { return one_vector<D>(x + i * kSize<D>, scale, bits_at(keep, first + i), 0); };
  const auto head = vector_at(0);
  auto tail = head;
  if (x == out) tail = vector_at(n - kStep);
  const int64_t begin = before_aligned<D>(out);
  const uint64_t* word = keep + ((first + begin) >> 6);
  const int shift = (first + begin) & 63;
  int64_t i = begin;
  for (; i + kGroup<D> <= n; i += kGroup<D>, word += kGroup<D> / 64) {
    select_group<D, kStreaming>(x + i * kSize<D>, out + i * kSize<D>, scale, word, shift);
  }
  i = select_groups<D, kGroup<D> / kLanes<D> / 2>(x, out, i, n, keep, first, scale);
  if (i < n) {
    if (x != out) tail = vector_at(n - kStep);
    store(out + (n - kStep) * kSize<D>, tail);
  }
  if (begin > 0) store(out, head);
}

}  // namespace
}  // namespace DROPFAST_ISA
}  // namespace dropfast
