// Lanes that change places: some of a vector's side by side, and back.
#pragma once

#include "simd.h"

namespace dropfast {
namespace DROPFAST_ISA {
namespace {

inline int count_bits(uint64_t w) {
#if defined(__POPCNT__) || defined(__aarch64__)
  return __builtin_popcountll(w);
#else  // which would be a call into the compiler's library
  w -= w >> 1 & 0x5555555555555555;
  w = (w & 0x3333333333333333) + (w >> 2 & 0x3333333333333333);
  w = (w + (w >> 4)) & 0x0f0f0f0f0f0f0f0f;
  return (int)(w * 0x0101010101010101 >> 56);
#endif
}

// compress_lanes  the lanes whose bits are set, side by side from the first one on; the others are anything
// expand_lanes    the first lanes, in order, where the bits are set; the others are 0
#if defined(__AVX512F__)
#define DROPFAST_LANES_MOVE
inline u32v compress_lanes(u32v v, uint64_t bits) {
  return (u32v)_mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)v);
}
inline u64v compress_lanes(u64v v, uint64_t bits) {
  return (u64v)_mm512_maskz_compress_epi64((__mmask8)bits, (__m512i)v);
}
inline u32v expand_lanes(u32v v, uint64_t bits) { return (u32v)_mm512_maskz_expand_epi32((__mmask16)bits, (__m512i)v); }
inline u64v expand_lanes(u64v v, uint64_t bits) { return (u64v)_mm512_maskz_expand_epi64((__mmask8)bits, (__m512i)v); }
#elif defined(__AVX2__)
#define DROPFAST_LANES_MOVE
// By the bits, from which 32-bit lane each one comes.
constexpr uint32_t kNone = 0x80000000;
struct LaneOrders {
  uint32_t compress[256][8] = {}, expand[256][8] = {};
  constexpr LaneOrders() {
    for (uint32_t bits = 0; bits < 256; ++bits) {
      uint32_t n = 0;
      for (uint32_t lane = 0; lane < 8; ++lane) {
        expand[bits][lane] = bits >> lane & 1 ? n : kNone;
        if (bits >> lane & 1) compress[bits][n++] = lane;
      }
    }
  }
};
alignas(32) constexpr LaneOrders kOrders;

// The bits of the 32-bit halves of four lanes.
constexpr uint8_t kHalves[16] = {0x00, 0x03, 0x0c, 0x0f, 0x30, 0x33, 0x3c, 0x3f,
                                 0xc0, 0xc3, 0xcc, 0xcf, 0xf0, 0xf3, 0xfc, 0xff};

inline __m256i compressed(__m256i v, uint64_t bits) {
  return _mm256_permutevar8x32_epi32(v, load<__m256i>(kOrders.compress[bits]));
}
inline u32v compress_lanes(u32v v, uint64_t bits) { return (u32v)compressed((__m256i)v, bits); }
inline u64v compress_lanes(u64v v, uint64_t bits) { return (u64v)compressed((__m256i)v, kHalves[bits]); }
inline __m256i expanded(__m256i v, uint64_t bits) {
  const __m256i order = load<__m256i>(kOrders.expand[bits]);
  return _mm256_andnot_si256(_mm256_srai_epi32(order, 31), _mm256_permutevar8x32_epi32(v, order));
}
inline u32v expand_lanes(u32v v, uint64_t bits) { return (u32v)expanded((__m256i)v, bits); }
inline u64v expand_lanes(u64v v, uint64_t bits) { return (u64v)expanded((__m256i)v, kHalves[bits]); }
#endif

// Those of a where the bits are set, of b elsewhere.
inline u32v choose_lanes(uint64_t bits, u32v a, u32v b) { return b ^ (u32v)keep_lanes((f32v)(a ^ b), bits, 0); }
inline u64v choose_lanes(uint64_t bits, u64v a, u64v b) { return b ^ (u64v)keep_lanes((f64v)(a ^ b), bits, 0); }

inline u64v lane_numbers() {
  u64v v{};
  for (int lane = 0; lane < kLanes64; ++lane) v[lane] = (uint64_t)lane;
  return v;
}

// Puts the lanes of v for which `where` is not 0 to p, one behind the other, and returns how many they are. A whole
// vector may be written.
inline int pack(uint64_t* p, u64v v, u64v where) {
#if defined(DROPFAST_LANES_MOVE)
#if defined(__AVX512F__)
  const unsigned bits = _mm512_test_epi64_mask((__m512i)where, (__m512i)where);
#else
  const unsigned bits = 15u ^ (unsigned)_mm256_movemask_pd((__m256d)_mm256_cmpeq_epi64((__m256i)where, __m256i{}));
#endif
  store(p, compress_lanes(v, bits));
  return __builtin_popcount(bits);
#else
  int n = 0;
  for (int lane = 0; lane < kLanes64; ++lane) {
    p[n] = v[lane];
    n += where[lane] != 0;
  }
  return n;
#endif
}

}  // namespace
}  // namespace DROPFAST_ISA
}  // namespace dropfast
