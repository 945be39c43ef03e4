// The draw: which elements of given blocks are kept. It knows no dtype.
#pragma once

#include "kernels.h"
#include "lanes.h"
#include "philox.h"
#include "simd.h"

namespace dropfast {
namespace DROPFAST_ISA {
namespace {

// Vectors of blocks side by side, for the multiplies of one chain hide the latency of the others. Measured (Zen 4,
// drawn and selected in turn, AVX-512 and AVX2): 1, 3 and 4 are slower, by up to a fifth.
constexpr int kChains = 2;
constexpr int kBlocksAtOnce = kChains * kLanes64;
static_assert(kDrawGroup % kBlocksAtOnce == 0, "arrays are padded to kDrawGroup blocks");

// All blocks get the first 8 planes; then those with an undecided element go on, 3 planes at a time. A block is
// undecided after k planes with probability 1 - (1 - 2^-k)^128: 39 % at 8, 6 % at 11. Measured (Zen 4, rates 0.1 and
// 0.3, AVX-512 and AVX2): 9 instead of 8, or 2 or 4 instead of 3, are up to 4 % slower, 7 is up to 20 %.
constexpr int kPlanesForAll = 8;
constexpr int kPlanesAtOnce = 3;

// Below the lowest set bit of the threshold nothing can be smaller: rate 0.5 needs one plane, 0.25 two, 0 and 1 none.
inline int planes_needed(uint64_t threshold) { return threshold ? 32 - __builtin_ctzll(threshold) : 0; }
inline int planes_for_all(uint64_t threshold) {
  return planes_needed(threshold) < kPlanesForAll ? planes_needed(threshold) : kPlanesForAll;
}

// Bit k of the threshold, from the top, against plane k: an element is decided by the first bit that differs.
inline bool threshold_bit(uint64_t threshold, int k) { return threshold >> (31 - k) & 1; }

// The elements of vectors of blocks that are undecided, and those that are dropped.
struct Elements {
  u64v open_low[kChains], open_high[kChains], drop_low[kChains], drop_high[kChains];
};

// Decides what planes begin to end can. In the pauses it is meanwhile's turn.
template <class Meanwhile>
inline __attribute__((always_inline)) void decide(const Philox& philox, const Blocks (&blocks)[kChains],
                                                  uint64_t threshold, int begin, int end, Elements& e,
                                                  Meanwhile&& meanwhile) {
  u64v low[kChains], high[kChains];
  for (int k = begin; k < end; ++k) {
    philox.plane(blocks, k, low, high, meanwhile);
    if (threshold_bit(threshold, k)) {
      for (int c = 0; c < kChains; ++c) {
        e.drop_low[c] |= e.open_low[c] & ~low[c];
        e.drop_high[c] |= e.open_high[c] & ~high[c];
        e.open_low[c] &= low[c];
        e.open_high[c] &= high[c];
      }
    } else {
      for (int c = 0; c < kChains; ++c) {
        e.open_low[c] &= ~low[c];
        e.open_high[c] &= ~high[c];
      }
    }
  }
}

// Where the numbers of the blocks come from: a list, or they follow each other.
struct Listed {
  const uint64_t* blocks;
  u64v from(int b) const { return load<u64v>(blocks + b); }
};
struct Following {
  uint64_t first;
  u64v from(int b) const { return lane_numbers() + splat64(first + (uint64_t)b); }
};

// Blocks that have undecided elements: their numbers, their places among the blocks of the draw, and which elements
// these are.
struct Undecided {
  static constexpr int kRoom = kBatchBlocks + kBlocksAtOnce;
  int n = 0;
  uint64_t block[kRoom], place[kRoom], low[kRoom], high[kRoom];

  // Adds those of a vector that have some; writes a whole vector.
  void add(u64v blocks, u64v places, u64v open_low, u64v open_high) {
    const u64v open = open_low | open_high;
    pack(block + n, blocks, open);
    pack(place + n, places, open);
    pack(low + n, open_low, open);
    n += pack(high + n, open_high, open);
  }
};

// The first planes of n blocks. What is undecided then goes to `undecided`, if it is given.
template <class Numbers, class Meanwhile>
inline __attribute__((always_inline)) void draw_first(const Philox& philox, uint64_t threshold, const Numbers& numbers,
                                                      int n, uint64_t* keep, Undecided* undecided,
                                                      Meanwhile&& meanwhile) {
  const int planes = planes_for_all(threshold);
  for (int b = 0; b < n; b += kBlocksAtOnce) {
    Blocks blocks[kChains];
    Elements e;
    for (int c = 0; c < kChains; ++c) {
      blocks[c] = philox.prepare(zip_order(numbers.from(b + c * kLanes64)));
      e.open_low[c] = e.open_high[c] = ~u64v{};
      e.drop_low[c] = e.drop_high[c] = u64v{};
    }
    decide(philox, blocks, threshold, 0, planes, e, meanwhile);
    for (int c = 0; c < kChains; ++c) {
      const int at = b + c * kLanes64;
      store(keep + 2 * at, zip_low(~e.drop_low[c], ~e.drop_high[c]));
      store(keep + 2 * at + kLanes64, zip_high(~e.drop_low[c], ~e.drop_high[c]));
      if (undecided) {
        const u64v places = zip_order(lane_numbers() + splat64((uint64_t)at));
        const u64v real = (u64v)(places < splat64((uint64_t)n));  // not the padding
        undecided->add(zip_order(numbers.from(at)), places, e.open_low[c] & real, e.open_high[c] & real);
      }
    }
  }
}

// Planes begin to end of the blocks that have undecided elements; those that still have some remain.
void draw_more(const Philox& philox, uint64_t threshold, int begin, int end, uint64_t* keep, Undecided& undecided) {
  const int n = undecided.n;
  for (int c = 0; c < kChains; ++c) {  // padding: nothing is undecided there
    store(undecided.block + n + c * kLanes64, u64v{});
    store(undecided.low + n + c * kLanes64, u64v{});
    store(undecided.high + n + c * kLanes64, u64v{});
  }
  undecided.n = 0;
  for (int done = 0; done < n; done += kBlocksAtOnce) {
    u64v block[kChains];
    Blocks blocks[kChains];
    Elements e;
    uint64_t place[kBlocksAtOnce], drop_low[kBlocksAtOnce], drop_high[kBlocksAtOnce];
    memcpy(place, undecided.place + done, sizeof place);
    for (int c = 0; c < kChains; ++c) {
      const int at = done + c * kLanes64;
      block[c] = load<u64v>(undecided.block + at);
      blocks[c] = philox.prepare(block[c]);
      e.open_low[c] = load<u64v>(undecided.low + at);
      e.open_high[c] = load<u64v>(undecided.high + at);
      e.drop_low[c] = e.drop_high[c] = u64v{};
    }
    decide(philox, blocks, threshold, begin, end, e, Nothing());
    for (int c = 0; c < kChains; ++c) {
      store(drop_low + c * kLanes64, e.drop_low[c]);
      store(drop_high + c * kLanes64, e.drop_high[c]);
    }
    for (int j = 0; j < kBlocksAtOnce && done + j < n; ++j) {
      keep[2 * place[j]] &= ~drop_low[j];
      keep[2 * place[j] + 1] &= ~drop_high[j];
    }
    for (int c = 0; c < kChains; ++c) {
      undecided.add(block[c], load<u64v>(place + c * kLanes64), e.open_low[c], e.open_high[c]);
    }
  }
}

// See Kernels::draw. In the pauses of the first planes it is meanwhile's turn.
template <class Numbers, class Meanwhile>
inline __attribute__((always_inline)) void draw_blocks(const Philox& philox, uint64_t threshold, const Numbers& numbers,
                                                       int n, uint64_t* keep, Meanwhile&& meanwhile) {
  if (threshold == 0 || threshold >> 32) {  // rate 0 keeps all, rate 1 nothing
    for (int i = 0; i < 2 * n; ++i) keep[i] = threshold ? 0 : ~uint64_t{0};
    return;
  }
  const int planes = planes_needed(threshold);
  if (planes <= kPlanesForAll) return draw_first(philox, threshold, numbers, n, keep, nullptr, meanwhile);
  Undecided undecided;
  draw_first(philox, threshold, numbers, n, keep, &undecided, meanwhile);
  for (int k = kPlanesForAll; k < planes && undecided.n > 0; k += kPlanesAtOnce) {
    draw_more(philox, threshold, k, k + kPlanesAtOnce < planes ? k + kPlanesAtOnce : planes, keep, undecided);
  }
}

}  // namespace
}  // namespace DROPFAST_ISA
}  // namespace dropfast
