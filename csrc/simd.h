// The vectors of one instruction set: what differs between instruction sets is in this file and, for 16-bit floats, in
// half.h.
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
typedef uint8_t u8v __attribute__((vector_size(kBytes)));
typedef float f32v __attribute__((vector_size(kBytes)));
typedef double f64v __attribute__((vector_size(kBytes)));

// What a select that goes on alone works on. With AVX-512 that is half a vector: 0.96 instead of 0.94 of np.copyto with
// a shared mask, but in the pauses of a draw, 0.60 instead of 0.55 at rate 0.1 with whole ones (Zen 4, 1024x1024
// float32).
constexpr int kSelectBytes = kBytes == 64 ? 32 : kBytes;
typedef float f32s __attribute__((vector_size(kSelectBytes)));
typedef double f64s __attribute__((vector_size(kSelectBytes)));

// 16-bit floats, as many as a vector has float32; and float16, where there are instructions that convert so many.
typedef uint16_t h16v __attribute__((vector_size(kBytes / 2)));
#if defined(__F16C__)
typedef h16v f16v;
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

// ---- the first n elements of a vector, fewer than it has, and nothing behind them

#if defined(__AVX512F__)
template <class V>
inline V load_first(const void* p, int64_t n) {
  const uint64_t bytes = (uint64_t{1} << n * sizeof V{}[0]) - 1;
  if constexpr (sizeof(V) == 64) {
    return (V)_mm512_maskz_loadu_epi8(bytes, p);
  } else {
    return (V)_mm256_maskz_loadu_epi8((__mmask32)bytes, p);
  }
}
template <class V>
inline void store_first(void* p, V v, int64_t n) {
  const uint64_t bytes = (uint64_t{1} << n * sizeof v[0]) - 1;
  if constexpr (sizeof(V) == 64) {
    _mm512_mask_storeu_epi8(p, bytes, (__m512i)v);
  } else {
    _mm256_mask_storeu_epi8(p, (__mmask32)bytes, (__m256i)v);
  }
}
#else
template <class V>
inline V load_first(const void* p, int64_t n) {
  V v = {};
  memcpy(&v, p, (size_t)n * sizeof v[0]);
  return v;
}
template <class V>
inline void store_first(void* p, V v, int64_t n) {
  memcpy(p, &v, (size_t)n * sizeof v[0]);
}
#endif

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

// ---- select by mask bits: lane l of group j stays if bit j * lanes + l of w is set, else all its bits become 0

#if defined(__AVX512F__)
inline u8v keep_lanes(u8v y, uint64_t w, int) { return (u8v)_mm512_maskz_mov_epi8(w, (__m512i)y); }
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
inline u8v keep_lanes(u8v y, uint64_t w, int j) {
  u64v parts, bits;
  for (int lane = 0; lane < kLanes64; ++lane) {
    parts[lane] = (w >> (kBytes * j + 8 * lane) & 0xff) * 0x0101010101010101;
    const uint8_t bit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    bits[lane] = load<uint64_t>(bit);
  }
  return (u8v)(((u8v)parts & (u8v)bits) == (u8v)bits) & y;
}
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

// The other way round: bit l is set where lane l is not 0.
inline uint64_t nonzero_lanes(u8v y) {
#if defined(__AVX512F__)
  return _mm512_test_epi8_mask((__m512i)y, (__m512i)y);
#elif defined(__AVX2__)
  return (uint32_t)~_mm256_movemask_epi8(_mm256_cmpeq_epi8((__m256i)y, __m256i{}));
#elif defined(__SSE2__)
  return 0xffff ^ (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8((__m128i)y, __m128i{}));
#else
  uint64_t bits = 0;
  for (int lane = 0; lane < kLanes64; ++lane) {
    uint64_t eight = ((u64v)y)[lane];
    if (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__) eight = __builtin_bswap64(eight);
    // The top bit of each byte that is not 0, and then all of them side by side.
    const uint64_t ones = (((eight & 0x7f7f7f7f7f7f7f7f) + 0x7f7f7f7f7f7f7f7f) | eight) >> 7 & 0x0101010101010101;
    bits |= ones * 0x0102040810204080 >> 56 << (8 * lane);
  }
  return bits;
#endif
}

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

}  // namespace
}  // namespace DROPFAST_ISA
}  // namespace dropfast
