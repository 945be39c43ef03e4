// The vectors of one instruction set: everything in dropfast that differs between instruction sets is in this file.
//
// Arithmetic on these types is plain C++ (GCC's and Clang's vector extensions); what the compilers do not find by
// themselves is an intrinsic: the widening multiply, three shuffles, the select by mask bits, the streaming store and
// the half-precision conversions. No std templates here or in the other kernel headers: their inline functions would
// be merged by the linker across instruction sets, and an old CPU would run the AVX-512 copy. What is here is each
// object's own, and tests/symbols looks at the objects.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(DROPFAST_NEON)
#include <arm_neon.h>
#endif

namespace dropfast {
namespace DROPFAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes16 = kBytes / 2;
constexpr int kLanes32 = kBytes / 4;
constexpr int kLanes64 = kBytes / 8;

typedef uint64_t u64v __attribute__((vector_size(kBytes)));
typedef uint32_t u32v __attribute__((vector_size(kBytes)));
typedef int32_t i32v __attribute__((vector_size(kBytes)));
typedef uint16_t u16v __attribute__((vector_size(kBytes)));
typedef float f32v __attribute__((vector_size(kBytes)));
typedef double f64v __attribute__((vector_size(kBytes)));

// What a select that goes on alone works on. With AVX-512 that is half a vector: 0.96 instead of 0.94 of np.copyto with
// a shared mask, but in the pauses of a draw, 0.60 instead of 0.55 at rate 0.1 with whole ones (Zen 4, 1024x1024
// float32).
constexpr int kSelectBytes = kBytes == 64 ? 32 : kBytes;
typedef float f32s __attribute__((vector_size(kSelectBytes)));
typedef double f64s __attribute__((vector_size(kSelectBytes)));

// float16: where there are instructions that convert them, as many as a vector has float32.
#if defined(__F16C__)
typedef uint16_t f16v __attribute__((vector_size(kBytes / 2)));
#else
typedef u16v f16v;
#endif

inline u64v splat64(uint64_t s) { return u64v{} + s; }
inline u16v splat16(uint16_t s) { return u16v{} + s; }
inline u32v splat32(uint32_t s) { return u32v{} + s; }

template <class V>
inline V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void store(void* p, V v) {
  memcpy(p, &v, sizeof v);
}

// ---- widening multiply and shuffles of 64-bit lanes
//
// mul_low        the 64-bit product of the low halves
// swap_halves    (low, high) -> (high, low) in each lane
// zip_low, _high a and b interleaved, of the even and of the odd lanes
// zip_order      puts lanes where zip_low followed by zip_high brings them back into order
#if defined(__AVX512F__)
inline u64v mul_low(u64v a, u64v b) { return (u64v)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
inline u64v swap_halves(u64v a) { return (u64v)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_CDAB); }
inline u64v zip_low(u64v a, u64v b) { return (u64v)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b); }
inline u64v zip_high(u64v a, u64v b) { return (u64v)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b); }
inline u64v zip_order(u64v a) {
  return (u64v)_mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), (__m512i)a);
}
#elif defined(__AVX2__)
inline u64v mul_low(u64v a, u64v b) { return (u64v)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
inline u64v swap_halves(u64v a) { return (u64v)_mm256_shuffle_epi32((__m256i)a, 0xb1); }
inline u64v zip_low(u64v a, u64v b) { return (u64v)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b); }
inline u64v zip_high(u64v a, u64v b) { return (u64v)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b); }
inline u64v zip_order(u64v a) { return (u64v)_mm256_permute4x64_epi64((__m256i)a, 0xd8); }
#elif defined(__SSE2__)
inline u64v mul_low(u64v a, u64v b) { return (u64v)_mm_mul_epu32((__m128i)a, (__m128i)b); }
inline u64v swap_halves(u64v a) { return (u64v)_mm_shuffle_epi32((__m128i)a, 0xb1); }
inline u64v zip_low(u64v a, u64v b) { return (u64v)_mm_unpacklo_epi64((__m128i)a, (__m128i)b); }
inline u64v zip_high(u64v a, u64v b) { return (u64v)_mm_unpackhi_epi64((__m128i)a, (__m128i)b); }
inline u64v zip_order(u64v a) { return a; }
#else
#if defined(DROPFAST_NEON)
inline u64v mul_low(u64v a, u64v b) { return (u64v)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b)); }
#else
inline u64v mul_low(u64v a, u64v b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
#endif
inline u64v swap_halves(u64v a) { return (a >> 32) | (a << 32); }
inline u64v zip_low(u64v a, u64v b) { return u64v{a[0], b[0]}; }
inline u64v zip_high(u64v a, u64v b) { return u64v{a[1], b[1]}; }
inline u64v zip_order(u64v a) { return a; }
#endif

// ---- lists of 64-bit lanes

inline u64v lane_numbers() {
  u64v v{};
  for (int lane = 0; lane < kLanes64; ++lane) v[lane] = (uint64_t)lane;
  return v;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// By mask, the 32-bit halves of the lanes in it.
struct PackOrder {
  uint32_t halves[16][8] = {};
  constexpr PackOrder() {
    for (uint32_t mask = 0; mask < 16; ++mask) {
      int n = 0;
      for (uint32_t half = 0; half < 8; ++half) {
        if (mask >> (half / 2) & 1) halves[mask][n++] = half;
      }
    }
  }
};
constexpr PackOrder kPackOrder;
#endif

// Puts the lanes of v for which `where` is not 0 to p, one behind the other, and returns how many they are. A whole
// vector may be written.
inline int pack(uint64_t* p, u64v v, u64v where) {
#if defined(__AVX512F__)
  const __mmask8 mask = _mm512_test_epi64_mask((__m512i)where, (__m512i)where);
  store(p, (u64v)_mm512_maskz_compress_epi64(mask, (__m512i)v));
  return __builtin_popcount(mask);
#elif defined(__AVX2__)
  const int mask = 15 ^ _mm256_movemask_pd((__m256d)_mm256_cmpeq_epi64((__m256i)where, __m256i{}));
  store(p, (u64v)_mm256_permutevar8x32_epi32((__m256i)v, load<__m256i>(kPackOrder.halves[mask])));
  return __builtin_popcount((unsigned)mask);
#else
  int n = 0;
  for (int lane = 0; lane < kLanes64; ++lane) {
    p[n] = v[lane];
    n += where[lane] != 0;
  }
  return n;
#endif
}

// ---- select by mask bits: lane l of group j stays if bit j * lanes + l of w is set, else all its bits become 0

#if defined(__AVX512F__)
inline u16v keep_lanes(u16v y, uint64_t w, int j) {
  return (u16v)_mm512_maskz_mov_epi16((__mmask32)(w >> (32 * j)), (__m512i)y);
}
inline f16v keep_lanes(f16v y, uint64_t w, int j) {
  return (f16v)_mm256_maskz_mov_epi16((__mmask16)(w >> (16 * j)), (__m256i)y);
}
inline f32s keep_lanes(f32s y, uint64_t w, int j) {
  return (f32s)_mm256_maskz_mov_ps((__mmask8)(w >> (8 * j)), (__m256)y);
}
inline f64s keep_lanes(f64s y, uint64_t w, int j) {
  return (f64s)_mm256_maskz_mov_pd((__mmask8)(w >> (4 * j)), (__m256d)y);
}
inline f32v keep_lanes(f32v y, uint64_t w, int j) {
  return (f32v)_mm512_maskz_mov_ps((__mmask16)(w >> (16 * j)), (__m512)y);
}
inline f64v keep_lanes(f64v y, uint64_t w, int j) {
  return (f64v)_mm512_maskz_mov_pd((__mmask8)(w >> (8 * j)), (__m512d)y);
}
#else
#if defined(__AVX2__)
constexpr u16v kLaneBit16 = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
constexpr u32v kLaneBit32 = {1, 2, 4, 8, 16, 32, 64, 128};
constexpr u64v kLaneBit64 = {1, 2, 4, 8};
#else
constexpr u16v kLaneBit16 = {1, 2, 4, 8, 16, 32, 64, 128};
constexpr u32v kLaneBit32 = {1, 2, 4, 8};
constexpr u64v kLaneBit64 = {1, 2};
#endif
// Every lane gets all the bits of its part of w, and looks at its own; groups of one part share the broadcast.
inline u16v keep_lanes(u16v y, uint64_t w, int j) {
  const int shift = kLanes16 * j;
  const u16v bit = kLaneBit16 << splat16((uint16_t)(shift % 16));
  return (u16v)((splat16((uint16_t)(w >> (shift & 48))) & bit) == bit) & y;
}
#if defined(__F16C__)
inline f16v keep_lanes(f16v y, uint64_t w, int j) {
  const f16v bit = f16v{1, 2, 4, 8, 16, 32, 64, 128} << (f16v{} + (uint16_t)(8 * j % 16));
  return (f16v)(((f16v{} + (uint16_t)(w >> (8 * j & 48))) & bit) == bit) & y;
}
#endif
inline f32v keep_lanes(f32v y, uint64_t w, int j) {
  const int shift = kLanes32 * j;
  const u32v bit = kLaneBit32 << splat32((uint32_t)(shift % 32));
  return (f32v)((u32v)((splat32((uint32_t)(w >> (shift & 32))) & bit) == bit) & (u32v)y);
}
inline f64v keep_lanes(f64v y, uint64_t w, int j) {
  const u64v bit = kLaneBit64 << splat64((uint64_t)(kLanes64 * j));
  return (f64v)((u64v)((splat64(w) & bit) == bit) & (u64v)y);
}
#endif

// ---- streaming store: past the caches, which a large output would only empty of other data; p is aligned

template <class V>
inline void stream(void* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof v == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)v);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof v == 16) return _mm_stream_si128((__m128i*)p, (__m128i)v);
#endif
  store(p, v);
}

inline void stream_fence() {  // streaming stores are weakly ordered: other threads may look only after this
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// ---- 16-bit floats: widened to float32, multiplied, and rounded to nearest even once

#if defined(__AVX512F__)
inline f16v scale_f16(f16v h, float scale) {
  return (f16v)_mm512_cvtps_ph((__m512)((f32v)_mm512_cvtph_ps((__m256i)h) * scale), _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__)
inline f16v scale_f16(f16v h, float scale) {
  return (f16v)_mm256_cvtps_ph((__m256)((f32v)_mm256_cvtph_ps((__m128i)h) * scale), _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(DROPFAST_NEON)
inline f16v scale_f16(f16v h, float scale) {
  const f32v y0 = (f32v)vcvt_f32_f16(vget_low_f16((float16x8_t)h)) * scale;
  const f32v y1 = (f32v)vcvt_high_f32_f16((float16x8_t)h) * scale;
  return (u16v)vcvt_high_f16_f32(vcvt_f16_f32((float32x4_t)y0), (float32x4_t)y1);
}
#else
inline u32v choose(i32v mask, u32v a, u32v b) { return (a & (u32v)mask) | (b & ~(u32v)mask); }

// Of floats without their sign, as integers: SSE2 has signed comparisons only.
inline i32v above(u32v magnitude, int bits) { return (i32v)magnitude > bits; }

inline f32v widen_f16(u32v h) {  // in the low half of each lane
  const u32v magnitude = h & 0x7fff;
  // The exponent's bias goes from 15 to 127, and once more as far for inf and NaN, from 31 to 255.
  const u32v normal = (magnitude << 13) + (112u << 23);
  const u32v special = (normal + (112u << 23)) | ((u32v)above(magnitude, 0x7c00) & 0x400000);  // NaN becomes quiet
  // A subnormal m is (2^-14 + m * 2^-24) - 2^-14, exactly.
  const u32v tiny = (u32v)((f32v)((magnitude << 13) + (113u << 23)) - (f32v)splat32(113u << 23));
  const u32v finite = choose(above(magnitude, 0x3ff), normal, tiny);
  return (f32v)(choose(above(magnitude, 0x7bff), special, finite) | (h & 0x8000) << 16);
}

inline u32v narrow_f16(f32v x) {
  const u32v u = (u32v)x, magnitude = u & 0x7fffffff;
  // Round to nearest even at bit 13, which the exponent absorbs when the significand overflows.
  const u32v normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14 a half is a multiple of 2^-24: adding 0.5, whose last bit is 2^-24, lets the FPU round to it.
  const u32v tiny = (u32v)((f32v)magnitude + (f32v)splat32(126u << 23)) - (126u << 23);
  const u32v nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  const u32v finite = choose(above(magnitude, (113 << 23) - 1), normal, tiny);
  const u32v special = choose(above(magnitude, 0x7f800000), nan, splat32(0x7c00));
  return choose(above(magnitude, 0x477fefff), special, finite) | (u >> 16 & 0x8000);  // 65520 and up round to inf
}

inline f16v scale_f16(f16v h, float scale) {
  const u32v pairs = (u32v)h;
  return (u16v)(narrow_f16(widen_f16(pairs & 0xffff) * scale) | narrow_f16(widen_f16(pairs >> 16) * scale) << 16);
}
#endif

// The lower half of each 32-bit lane of a, and the upper one of b.
inline u16v join_halves(u32v a, u32v b) {
#if defined(__AVX512F__)
  return (u16v)_mm512_mask_mov_epi16((__m512i)a, 0xaaaaaaaa, (__m512i)b);
#elif defined(__AVX2__)
  return (u16v)_mm256_blend_epi16((__m256i)a, (__m256i)b, 0xaa);
#else
  return (u16v)((a & 0xffffu) | (b & 0xffff0000u));
#endif
}

inline u16v average(u16v a, u16v b) {  // rounded up
#if defined(__AVX512F__)
  return (u16v)_mm512_avg_epu16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (u16v)_mm256_avg_epu16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (u16v)_mm_avg_epu16((__m128i)a, (__m128i)b);
#elif defined(DROPFAST_NEON)
  return (u16v)vrhaddq_u16((uint16x8_t)a, (uint16x8_t)b);
#else
  return (a | b) - ((a ^ b) >> 1);
#endif
}

// The upper halves of the products, and 1 more where the lower half and 0x7fff, or 0x8000 if the upper one is odd,
// carry: that is the top bit of their average. NaN needs no care of its own: the lower half of one that was widened is
// 0.
inline u16v scale_bf16(u16v h, float scale) {
  const u32v pairs = (u32v)h;
  const u32v even = (u32v)((f32v)(pairs << 16) * scale), odd = (u32v)((f32v)(pairs & 0xffff0000u) * scale);
  const u16v upper = join_halves(even >> 16, odd), lower = join_halves(even, odd << 16);
  return upper + (average(lower, (upper & splat16(1)) + splat16(0x7ffe)) >> splat16(15));
}

}  // namespace
}  // namespace DROPFAST_ISA
}  // namespace dropfast
