// 16-bit floats: widened to float32, multiplied, and rounded to nearest even once.
#pragma once

#include "simd.h"

namespace dropfast {
namespace DROPFAST_ISA {
namespace {

// ---- float16

#if defined(__AVX512F__)
inline f32v floats_of_f16(h16v h) { return (f32v)_mm512_cvtph_ps((__m256i)h); }
inline h16v f16_of_floats(f32v x) { return (h16v)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
inline f16v scale_f16(f16v h, float scale) { return f16_of_floats(floats_of_f16(h) * scale); }
#elif defined(__F16C__)
inline f32v floats_of_f16(h16v h) { return (f32v)_mm256_cvtph_ps((__m128i)h); }
inline h16v f16_of_floats(f32v x) { return (h16v)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
inline f16v scale_f16(f16v h, float scale) { return f16_of_floats(floats_of_f16(h) * scale); }
#elif defined(DROPFAST_NEON)
inline f32v floats_of_f16(h16v h) { return (f32v)vcvt_f32_f16((float16x4_t)h); }
inline h16v f16_of_floats(f32v x) { return (h16v)vcvt_f16_f32((float32x4_t)x); }
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

inline f32v floats_of_f16(h16v h) { return widen_f16(__builtin_convertvector(h, u32v)); }
inline h16v f16_of_floats(f32v x) { return __builtin_convertvector(narrow_f16(x), h16v); }

inline f16v scale_f16(f16v h, float scale) {
  const u32v pairs = (u32v)h;
  return (u16v)(narrow_f16(widen_f16(pairs & 0xffff) * scale) | narrow_f16(widen_f16(pairs >> 16) * scale) << 16);
}
#endif

// ---- bfloat16

inline f32v floats_of_bf16(h16v h) { return (f32v)(__builtin_convertvector(h, u32v) << 16); }

// A NaN that comes of what was widened has a lower half of 0: nothing carries.
inline h16v bf16_of_floats(f32v x) {
  const u32v u = (u32v)x;
  return __builtin_convertvector((u + 0x7fff + (u >> 16 & 1)) >> 16, h16v);
}

// ---- bfloat16, two in each 32-bit lane

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
  return upper + (average(lower, (upper & splat16(1)) | splat16(0x7ffe)) >> splat16(15));
}

}  // namespace
}  // namespace DROPFAST_ISA
}  // namespace dropfast
