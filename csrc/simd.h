// The vectors of one instruction set: everything in dropfast that differs between instruction sets is in this file.
//
// Arithmetic on these types is plain C++ (GCC's and Clang's vector extensions); what the compilers do not find by
// themselves is an intrinsic: the widening multiply, three shuffles, the select by mask bits, the streaming store and
// the half-precision conversions. No std templates here or in the other kernel headers: their inline functions would
// be merged by the linker across instruction sets, and an old CPU would run the AVX-512 copy.
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

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes32 = kBytes / 4;
constexpr int kLanes64 = kBytes / 8;

typedef uint64_t u64v __attribute__((vector_size(kBytes)));
typedef uint32_t u32v __attribute__((vector_size(kBytes)));
typedef float f32v __attribute__((vector_size(kBytes)));
typedef double f64v __attribute__((vector_size(kBytes)));
typedef uint16_t u16h __attribute__((vector_size(kBytes / 2)));  // as many lanes as f32v

inline u64v splat64(uint64_t s) { return u64v{} + s; }
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
// maskz: the plain forms read an undefined vector in GCC's header, which warns (GCC bug 105593); the code is the same.
inline u64v mul_low(u64v a, u64v b) { return (u64v)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b); }
inline u64v swap_halves(u64v a) { return (u64v)_mm512_maskz_shuffle_epi32(0xffff, (__m512i)a, _MM_PERM_CDAB); }
inline u64v zip_low(u64v a, u64v b) { return (u64v)_mm512_maskz_unpacklo_epi64(0xff, (__m512i)a, (__m512i)b); }
inline u64v zip_high(u64v a, u64v b) { return (u64v)_mm512_maskz_unpackhi_epi64(0xff, (__m512i)a, (__m512i)b); }
inline u64v zip_order(u64v a) {
  return (u64v)_mm512_maskz_permutexvar_epi64(0xff, _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), (__m512i)a);
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

// ---- select by mask bits: lane l of group j stays if bit j * lanes + l of w is set, else it becomes +0.0

#if defined(__AVX512F__)
inline f32v keep_lanes(f32v y, uint64_t w, int j) {
  return (f32v)_mm512_maskz_mov_ps((__mmask16)(w >> (16 * j)), (__m512)y);
}
inline f64v keep_lanes(f64v y, uint64_t w, int j) {
  return (f64v)_mm512_maskz_mov_pd((__mmask8)(w >> (8 * j)), (__m512d)y);
}
#else
#if defined(__AVX2__)
constexpr u32v kLaneBit32 = {1, 2, 4, 8, 16, 32, 64, 128};
constexpr u64v kLaneBit64 = {1, 2, 4, 8};
#else
constexpr u32v kLaneBit32 = {1, 2, 4, 8};
constexpr u64v kLaneBit64 = {1, 2};
#endif
inline f32v keep_lanes(f32v y, uint64_t w, int j) {
  const int shift = kLanes32 * j;  // the half of w that holds the group is one broadcast for all its groups
  const u32v bit = kLaneBit32 << splat32(shift % 32);
  const u32v bits = splat32((uint32_t)(w >> (shift & 32))) & bit;
  return (f32v)((u32v)(bits == bit) & (u32v)y);
}
inline f64v keep_lanes(f64v y, uint64_t w, int j) {
  const u64v bit = kLaneBit64 << splat64(kLanes64 * j);
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
  if constexpr (sizeof v == 8) {
    long long s;
    memcpy(&s, &v, sizeof s);
    return _mm_stream_si64((long long*)p, s);
  }
#else
  store(p, v);
#endif
}

inline void stream_fence() {  // streaming stores are weakly ordered: other threads may look only after this
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// ---- half precision
#if defined(__AVX512F__)
inline f32v widen_f16(u16h h) { return (f32v)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h); }
inline u16h narrow_f16(f32v f) { return (u16h)_mm512_maskz_cvtps_ph(0xffff, (__m512)f, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__)
inline f32v widen_f16(u16h h) { return (f32v)_mm256_cvtph_ps((__m128i)h); }
inline u16h narrow_f16(f32v f) { return (u16h)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(DROPFAST_NEON)
inline f32v widen_f16(u16h h) { return (f32v)vcvt_f32_f16((float16x4_t)h); }
inline u16h narrow_f16(f32v f) { return (u16h)vcvt_f16_f32((float32x4_t)f); }
#else
inline u32v choose(u32v mask, u32v a, u32v b) { return (a & mask) | (b & ~mask); }

inline f32v widen_f16(u16h h) {
  const u32v u = __builtin_convertvector(h, u32v), magnitude = u & 0x7fff;
  // The exponent's bias goes from 15 to 127, and once more as far for inf and NaN, from 31 to 255.
  const u32v normal = (magnitude << 13) + (112u << 23);
  const u32v special = (normal + (112u << 23)) | ((u32v)(magnitude > 0x7c00) & 0x400000);  // NaN becomes quiet
  // A subnormal m is (2^-14 + m * 2^-24) - 2^-14, exactly.
  const f32v tiny = (f32v)((magnitude << 13) + (113u << 23)) - (f32v)splat32(113u << 23);
  u32v f = choose((u32v)(magnitude < 0x400), (u32v)tiny, normal);
  f = choose((u32v)(magnitude > 0x7bff), special, f);
  return (f32v)(f | (u & 0x8000) << 16);
}

inline u16h narrow_f16(f32v x) {
  const u32v u = (u32v)x, magnitude = u & 0x7fffffff;
  // Round to nearest even at bit 13, which the exponent absorbs when the significand overflows.
  const u32v normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14 a half is a multiple of 2^-24: adding 0.5, whose last bit is 2^-24, lets the FPU round to it.
  const u32v tiny = (u32v)((f32v)magnitude + (f32v)splat32(126u << 23)) - (126u << 23);
  const u32v nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  u32v h = choose((u32v)(magnitude < (113u << 23)), tiny, normal);
  h = choose((u32v)(magnitude >= 0x477ff000), splat32(0x7c00), h);  // 65520 and up round to inf
  h = choose((u32v)(magnitude > 0x7f800000), nan, h);
  return __builtin_convertvector(h | (u >> 16 & 0x8000), u16h);
}
#endif

inline f32v widen_bf16(u16h h) { return (f32v)(__builtin_convertvector(h, u32v) << 16); }

// Round to nearest even. NaN needs no care of its own: the low half of one that was widened is 0, so nothing carries.
inline u16h narrow_bf16(f32v f) {
  const u32v u = (u32v)f;
  return __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, u16h);
}

}  // namespace DROPFAST_ISA
}  // namespace dropfast
