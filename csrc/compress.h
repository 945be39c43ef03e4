// From elements that lie side by side to those of them whose bits are set, and back. In registers, and with stores of
// whole vectors: an instruction that compresses into memory is ten times slower (vcompressps, Zen 4).
#pragma once

#include "half.h"
#include "lanes.h"
#include "select.h"
#include "simd.h"

namespace dropfast {
namespace DROPFAST_ISA {
namespace {

// A dtype here: a vector of elements, which 16-bit floats fill by halves, and the lanes of 32 or 64 bits that change
// places.
template <class Half>
struct ThinHalf {
  typedef uint16_t Element, Bits;
  typedef float Scale;
  typedef h16v Vector;
  typedef u32v Lanes;
  static Lanes lanes(Vector x) { return __builtin_convertvector(x, Lanes); }
  static Vector vector(Lanes x) { return __builtin_convertvector(x, Vector); }
  static Vector scaled(Vector x, Scale scale) { return Half::narrow(Half::widen(x) * scale); }
  static Vector sum(Vector a, Vector b) { return Half::narrow(Half::widen(a) + Half::widen(b)); }
};
struct HalfOfFloat16 {
  static f32v widen(h16v x) { return floats_of_f16(x); }
  static h16v narrow(f32v x) { return f16_of_floats(x); }
};
struct HalfOfBFloat16 {
  static f32v widen(h16v x) { return floats_of_bf16(x); }
  static h16v narrow(f32v x) { return bf16_of_floats(x); }
};
template <class E, class B, class V, class L>
struct ThinWhole {
  typedef E Element, Scale;
  typedef B Bits;
  typedef V Vector;
  typedef L Lanes;
  static Lanes lanes(Vector x) { return (Lanes)x; }
  static Vector vector(Lanes x) { return (Vector)x; }
  static Vector scaled(Vector x, Scale scale) { return x * scale; }
  static Vector sum(Vector a, Vector b) { return a + b; }
};
typedef ThinHalf<HalfOfFloat16> ThinFloat16;
typedef ThinHalf<HalfOfBFloat16> ThinBFloat16;
typedef ThinWhole<float, uint32_t, f32v, u32v> ThinFloat32;
typedef ThinWhole<double, uint64_t, f64v, u64v> ThinFloat64;

// A group is as many elements as a word has bits. Of them so many vectors are loaded before the first is stored: all,
// or two where each needs an address in a table as well, and registers are few (1024x1024 float32, AVX2, Zen 4:
// compress 0.10 ms and expand 0.13 with two, 0.15 and 0.19 with eight).
constexpr int kWordBits = 64;
constexpr int kMostAtOnce = kBytes == 32 ? 2 : 8;
template <class D>
constexpr int kVectorsAtOnce = kWordBits / kLanes<D> < kMostAtOnce ? kWordBits / kLanes<D> : kMostAtOnce;
template <class D>
constexpr int kElementsAtOnce = kVectorsAtOnce<D> * kLanes<D>;

template <class D>
inline uint64_t lane_bits(uint64_t w, int vector) {
  return w >> (vector * kLanes<D>)&((1 << kLanes<D>)-1);
}

// Puts the elements whose bits are set to out, side by side. A whole vector is written beyond each vector's last one.
template <class D, bool kScaled>
inline __attribute__((always_inline)) void compress_group(const char* x, char* out, uint64_t w,
                                                          typename D::Scale scale) {
#pragma GCC unroll 2
  for (int part = 0; part < kWordBits; part += kElementsAtOnce<D>, w = w >> (kElementsAtOnce<D> - 1) >> 1) {
    typename D::Vector y[kVectorsAtOnce<D>];
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsAtOnce<D>; ++v) {
      y[v] = load<typename D::Vector>(x + part * kSize<D> + v * kVector<D>);
      if (kScaled) y[v] = D::scaled(y[v], scale);
    }
#if defined(DROPFAST_LANES_MOVE)
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsAtOnce<D>; ++v) {
      const uint64_t bits = lane_bits<D>(w, v);
      store(out, D::vector(compress_lanes(D::lanes(y[v]), bits)));
      out += (int64_t)__builtin_popcountll(bits) * kSize<D>;
    }
#else
    const char* from = (const char*)y;
    for (int l = 0; l < kElementsAtOnce<D>; ++l) {  // each where the next one overwrites it, unless it is kept
      memcpy(out, from + l * kSize<D>, kSize<D>);
      out += (w >> l & 1) * kSize<D>;
    }
#endif
  }
}

// Calls use(p, bits, y) for each vector of elements at out: p is where, and y has the elements from y on in the lanes
// whose bits are set, and 0 in the others. Then stores what that returns. A whole vector is read beyond each vector's
// last one.
template <class D, class Use>
inline __attribute__((always_inline)) void expand_group(const char* y, char* out, uint64_t w, const Use& use) {
#pragma GCC unroll 2
  for (int part = 0; part < kWordBits; part += kElementsAtOnce<D>, w = w >> (kElementsAtOnce<D> - 1) >> 1) {
    typename D::Vector expanded[kVectorsAtOnce<D>];
#if defined(DROPFAST_LANES_MOVE)
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsAtOnce<D>; ++v) {
      const uint64_t bits = lane_bits<D>(w, v);
      expanded[v] = D::vector(expand_lanes(D::lanes(load<typename D::Vector>(y)), bits));
      y += (int64_t)__builtin_popcountll(bits) * kSize<D>;
    }
#else
    char* to = (char*)expanded;
    for (int l = 0; l < kElementsAtOnce<D>; ++l) {
      const uint64_t bit = w >> l & 1;
      typename D::Bits element;
      memcpy(&element, y, sizeof element);
      element = (typename D::Bits)(element * bit);
      memcpy(to + l * kSize<D>, &element, sizeof element);
      y += bit * kSize<D>;
    }
#endif
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsAtOnce<D>; ++v) {
      char* p = out + part * kSize<D> + v * kVector<D>;
      store(p, use(p, lane_bits<D>(w, v), expanded[v]));
    }
  }
}

// Bits behind the n are 0. `left` of them are 1.
template <class D, bool kScaled>
void compress_run(const char* x, char* out, int64_t n, const uint64_t* keep, int64_t left, typename D::Scale scale) {
  char end[(kWordBits + 2 * kLanes<D>)*kSize<D>];  // of out: what is written there must not go beyond it
  char* out_end = nullptr;
  int64_t in_end = 0;
  for (; left > 0; n -= kWordBits, ++keep) {
    const int kept = count_bits(*keep);
    if (!out_end && kept + kLanes<D> > left) {
      out_end = out;
      in_end = left;
      out = end;
    }
    if (n >= kWordBits) {
      compress_group<D, kScaled>(x, out, *keep, scale);
    } else {
      char group[kWordBits * kSize<D>] = {};
      memcpy(group, x, (size_t)n * kSize<D>);
      compress_group<D, kScaled>(group, out, *keep, scale);
    }
    x += kWordBits * kSize<D>;
    out += kept * kSize<D>;
    left -= kept;
  }
  if (out_end) memcpy(out_end, end, (size_t)in_end * kSize<D>);
}

template <class D, class Use>
inline __attribute__((always_inline)) void expand_run(const char* y, char* out, int64_t n, const uint64_t* keep,
                                                      int64_t left, const Use& use) {
  char end[(kWordBits + 2 * kLanes<D>)*kSize<D>];  // of y: what is read there must not lie beyond it
  bool at_end = false;
  for (; n > 0; n -= kWordBits, ++keep) {
    const int kept = count_bits(*keep);
    if (!at_end && kept + kLanes<D> > left) {
      memset(end, 0, sizeof end);
      memcpy(end, y, (size_t)left * kSize<D>);
      y = end;
      at_end = true;
    }
    if (n >= kWordBits) {
      expand_group<D>(y, out, *keep, use);
    } else {
      char group[kWordBits * kSize<D>] = {};
      memcpy(group, out, (size_t)n * kSize<D>);
      expand_group<D>(y, group, *keep, use);
      memcpy(out, group, (size_t)n * kSize<D>);
    }
    out += kWordBits * kSize<D>;
    y += kept * kSize<D>;
    left -= kept;
  }
}

// ---- the table's

template <class D>
void compress(const void* x, void* out, int64_t n, const uint64_t* keep, int64_t left, const double* factor) {
  if (!factor) return compress_run<D, false>((const char*)x, (char*)out, n, keep, left, 0);
  compress_run<D, true>((const char*)x, (char*)out, n, keep, left, (typename D::Scale) * factor);
}

template <class D>
void expand(const void* y, void* out, int64_t n, const uint64_t* keep, int64_t left, const double* factor) {
  typedef typename D::Vector V;
  const auto as_it_is = [](const char*, uint64_t, V y) { return y; };
  if (!factor) return expand_run<D>((const char*)y, (char*)out, n, keep, left, as_it_is);
  const auto scale = (typename D::Scale) * factor;
  const auto scaled = [=](const char*, uint64_t, V y) { return D::scaled(y, scale); };
  expand_run<D>((const char*)y, (char*)out, n, keep, left, scaled);
}

template <class D>
void add(const void* g, void* w, int64_t n, const uint64_t* keep, int64_t left, const double* factor) {
  typedef typename D::Vector V;
  const auto alpha = (typename D::Scale) * factor;
  const auto sum = [=](const char* p, uint64_t bits, V g) {
    const V old = load<V>(p);
    return D::vector(choose_lanes(bits, D::lanes(D::sum(old, D::scaled(g, alpha))), D::lanes(old)));
  };
  expand_run<D>((const char*)g, (char*)w, n, keep, left, sum);
}

}  // namespace
}  // namespace DROPFAST_ISA
}  // namespace dropfast
