// The kernels, in one text that is compiled once per instruction set (-DDROPFAST_ISA=avx2 ...).
#include "kernels.h"

#include "philox.h"
#include "simd.h"

namespace dropfast {
namespace DROPFAST_ISA {
namespace {

// ---- draw

// Vectors of blocks side by side: as many as the registers hold, of which AVX-512 has 32 and the others 16 (NEON's 32
// are 16 bytes each). By llvm-mca, 4 instead of 2 save 18 % of the cycles of a plane on Zen 4 and 24 % on Skylake-X.
// The last few blocks go by two, which take the latency of one: by four they took twice as long (Sapphire Rapids).
constexpr int kChains = kBytes == 64 ? 4 : 2;
constexpr int kFewChains = 2;
static_assert(kDrawGroup % (kChains * kLanes64) == 0, "arrays are padded to kDrawGroup blocks");

// How many of n blocks go by kChains.
inline int by_many(int n) {
  const int rest = n % (kChains * kLanes64);
  return kFewChains < kChains && rest <= kFewChains * kLanes64 ? n - rest : n;
}

// All blocks get the first 8 planes; then those with an undecided element go on, 3 planes at a time. A block is
// undecided after k planes with probability 1 - (1 - 2^-k)^128: 39 % at 8, 6 % at 11. Measured (AVX2, rate 0.1): 7, 9
// and 10 instead of 8, or 2 and 4 instead of 3, are as fast or up to an eighth slower.
constexpr int kPlanesForAll = 8;
constexpr int kPlanesAtOnce = 3;

// Bit k of the threshold, from the top, against plane k: an element is decided by the first bit that differs.
inline bool threshold_bit(uint64_t threshold, int k) { return threshold >> (31 - k) & 1; }

// The elements of a group of blocks that are undecided, and those that are dropped.
template <int N>
struct Elements {
  u64v open_low[N], open_high[N], drop_low[N], drop_high[N];
};

// Decides what planes begin to end can.
template <int N>
inline __attribute__((always_inline)) void decide(const Philox& philox, const Blocks (&group)[N], uint64_t threshold,
                                                  int begin, int end, Elements<N>& e) {
  u64v low[N], high[N];
  for (int k = begin; k < end; ++k) {
    philox.plane(group, k, low, high);
    if (threshold_bit(threshold, k)) {
      for (int c = 0; c < N; ++c) {
        e.drop_low[c] |= e.open_low[c] & ~low[c];
        e.drop_high[c] |= e.open_high[c] & ~high[c];
        e.open_low[c] &= low[c];
        e.open_high[c] &= high[c];
      }
    } else {
      for (int c = 0; c < N; ++c) {
        e.open_low[c] &= ~low[c];
        e.open_high[c] &= ~high[c];
      }
    }
  }
}

inline void store_blocks(uint64_t* p, u64v low, u64v high) {
  store(p, zip_low(low, high));
  store(p + kLanes64, zip_high(low, high));
}

// The first planes of blocks, by N vectors at a time.
template <int N>
void draw_first(const Philox& philox, uint64_t threshold, int planes, const uint64_t* blocks, int n, uint64_t* keep,
                uint64_t* undecided) {
  for (int b = 0; b < n; b += N * kLanes64) {
    Blocks group[N];
    Elements<N> e;
    for (int c = 0; c < N; ++c) {
      group[c] = philox.prepare(zip_order(load<u64v>(blocks + b + c * kLanes64)));
      e.open_low[c] = e.open_high[c] = ~u64v{};
      e.drop_low[c] = e.drop_high[c] = u64v{};
    }
    decide(philox, group, threshold, 0, planes, e);
    for (int c = 0; c < N; ++c) {
      const int at = 2 * (b + c * kLanes64);
      store_blocks(keep + at, ~e.drop_low[c], ~e.drop_high[c]);
      store_blocks(undecided + at, e.open_low[c], e.open_high[c]);
    }
  }
}

// Planes begin to end of the blocks with the numbers todo[0] to todo[n - 1], by N vectors at a time. Puts the numbers
// of those that still have an undecided element into `still`, which may be todo, and returns how many they are.
template <int N>
int draw_more(const Philox& philox, uint64_t threshold, int begin, int end, const uint64_t* blocks,
              const uint16_t* todo, int n, uint64_t* keep, uint64_t* undecided, uint16_t* still) {
  constexpr int kGroup = N * kLanes64;
  int left = 0;
  for (int done = 0; done < n; done += kGroup) {
    const int count = n - done < kGroup ? n - done : kGroup;
    uint64_t block[kGroup] = {}, open_low[kGroup] = {}, open_high[kGroup] = {}, drop_low[kGroup], drop_high[kGroup];
    for (int j = 0; j < count; ++j) {
      const uint16_t b = todo[done + j];
      block[j] = blocks[b];
      open_low[j] = undecided[2 * b];
      open_high[j] = undecided[2 * b + 1];
    }
    Blocks group[N];
    Elements<N> e;
    for (int c = 0; c < N; ++c) {
      group[c] = philox.prepare(load<u64v>(block + c * kLanes64));
      e.open_low[c] = load<u64v>(open_low + c * kLanes64);
      e.open_high[c] = load<u64v>(open_high + c * kLanes64);
      e.drop_low[c] = e.drop_high[c] = u64v{};
    }
    decide(philox, group, threshold, begin, end, e);
    for (int c = 0; c < N; ++c) {
      store(open_low + c * kLanes64, e.open_low[c]);
      store(open_high + c * kLanes64, e.open_high[c]);
      store(drop_low + c * kLanes64, e.drop_low[c]);
      store(drop_high + c * kLanes64, e.drop_high[c]);
    }
    for (int j = 0; j < count; ++j) {
      const uint16_t b = todo[done + j];
      keep[2 * b] &= ~drop_low[j];
      keep[2 * b + 1] &= ~drop_high[j];
      undecided[2 * b] = open_low[j];
      undecided[2 * b + 1] = open_high[j];
      still[left] = b;
      left += (open_low[j] | open_high[j]) != 0;
    }
  }
  return left;
}

void draw(uint64_t key, uint32_t draw, uint64_t threshold, const uint64_t* blocks, int n, uint64_t* keep) {
  if (threshold == 0 || threshold >> 32) {  // rate 0 keeps all, rate 1 nothing
    for (int i = 0; i < 2 * n; ++i) keep[i] = threshold ? 0 : ~uint64_t{0};
    return;
  }
  const Philox philox(key, draw);
  // Below the lowest set bit of the threshold nothing can be smaller: rate 0.5 needs one plane, 0.25 two.
  const int planes = 32 - __builtin_ctzll(threshold);
  const int planes_for_all = planes < kPlanesForAll ? planes : kPlanesForAll;
  uint64_t undecided[2 * kBatchBlocks];
  int many = by_many(n);
  draw_first<kChains>(philox, threshold, planes_for_all, blocks, many, keep, undecided);
  draw_first<kFewChains>(philox, threshold, planes_for_all, blocks + many, n - many, keep + 2 * many,
                         undecided + 2 * many);
  if (planes <= kPlanesForAll) return;

  uint16_t todo[kBatchBlocks];
  int left = 0;
  for (int b = 0; b < n; ++b) {
    todo[left] = (uint16_t)b;
    left += (undecided[2 * b] | undecided[2 * b + 1]) != 0;
  }
  for (int k = kPlanesForAll; k < planes && left > 0; k += kPlanesAtOnce) {
    const int end = k + kPlanesAtOnce < planes ? k + kPlanesAtOnce : planes;
    many = by_many(left);
    const int still = draw_more<kChains>(philox, threshold, k, end, blocks, todo, many, keep, undecided, todo);
    left = still + draw_more<kFewChains>(philox, threshold, k, end, blocks, todo + many, left - many, keep, undecided,
                                         todo + still);
  }
}

// ---- select

// A dtype is an element, the type it is scaled in, and how a vector of it is scaled.
struct Float16 {
  typedef uint16_t Element;
  typedef float Scale;
  typedef u16v Vector;
  static u16v scaled(u16v x, float scale) { return scale_f16(x, scale); }
};
struct BFloat16 {
  typedef uint16_t Element;
  typedef float Scale;
  typedef u16v Vector;
  static u16v scaled(u16v x, float scale) { return scale_bf16(x, scale); }
};
struct Float32 {
  typedef float Element;
  typedef float Scale;
  typedef f32v Vector;
  static f32v scaled(f32v x, float scale) { return x * scale; }
};
struct Float64 {
  typedef double Element;
  typedef double Scale;
  typedef f64v Vector;
  static f64v scaled(f64v x, double scale) { return x * scale; }
};

// The 64 bits from `bit` on.
inline uint64_t bits_at(const uint64_t* keep, int64_t bit) {
  const uint64_t* word = keep + (bit >> 6);
  const int shift = bit & 63;
  return word[0] >> shift | word[1] << 1 << (63 - shift);
}

template <class D>
inline typename D::Vector one_vector(const void* x, typename D::Scale scale, uint64_t w, int j) {
  return keep_lanes(D::scaled(load<typename D::Vector>(x), scale), w, j);
}

// Fewer elements than a vector has: through a vector of their own, so that nothing outside x and out is touched.
template <class D>
inline void part_of_vector(const char* x, char* out, int64_t n, typename D::Scale scale, uint64_t w) {
  char buffer[kBytes] = {};
  memcpy(buffer, x, (size_t)n * sizeof(typename D::Element));
  store(buffer, one_vector<D>(buffer, scale, w, 0));
  memcpy(out, buffer, (size_t)n * sizeof(typename D::Element));
}

template <class D, bool kStreaming>
void select_run(const char* x, char* out, int64_t n, const uint64_t* keep, int64_t first, typename D::Scale scale) {
  constexpr int kSize = sizeof(typename D::Element), kLanes = kBytes / kSize;
  int64_t i = 0;
  if (kStreaming) {  // whole vectors only at aligned addresses
    i = (int64_t)(-(uintptr_t)out % kBytes / kSize);
    if (i > n) i = n;
    part_of_vector<D>(x, out, i, scale, bits_at(keep, first));
  }
  for (; i + 64 <= n; i += 64) {
    const uint64_t w = bits_at(keep, first + i);
    const char* from = x + i * kSize;
    char* to = out + i * kSize;
#pragma GCC unroll 32
    for (int j = 0; j < 64 / kLanes; ++j) {
      const typename D::Vector y = one_vector<D>(from + j * kBytes, scale, w, j);
      if (kStreaming) {
        stream(to + j * kBytes, y);
      } else {
        store(to + j * kBytes, y);
      }
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    store(out + i * kSize, one_vector<D>(x + i * kSize, scale, bits_at(keep, first + i), 0));
  }
  if (i < n) part_of_vector<D>(x + i * kSize, out + i * kSize, n - i, scale, bits_at(keep, first + i));
}

template <class D>
void select(const void* x, void* out, int64_t n, const uint64_t* keep, int64_t first, double scale, bool streaming) {
  const bool aligned = (uintptr_t)out % sizeof(typename D::Element) == 0;
  const auto run = streaming && aligned ? select_run<D, true> : select_run<D, false>;
  run((const char*)x, (char*)out, n, keep, first, (typename D::Scale)scale);
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {draw, {select<Float16>, select<BFloat16>, select<Float32>, select<Float64>}, stream_fence};

}  // namespace DROPFAST_ISA
}  // namespace dropfast
