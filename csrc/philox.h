// Philox4x32-10 for the planes of stream v1, on vectors.
//
// Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11; the constants are theirs.
//
// One call gives plane k of a block: counter (block low, block high, draw, k). Each 64-bit lane works on one block and
// holds a 32-bit word in its low half; the high half is whatever the multiply left there, which the next multiply
// ignores. So a round is two multiplies, two shifts and four xors, with no repacking.
//
// The planes of a block differ in the last counter word alone, and it takes three rounds until that word has reached
// everything: what it has not reached yet is computed once per block (Blocks), not once per plane.
#pragma once

#include "simd.h"

namespace dropfast {
namespace DROPFAST_ISA {
namespace {

constexpr int kRounds = 10;

// What goes on between the rounds of a plane: each is a chain of multiplies that leaves the loads and stores idle.
constexpr int kPauses = 8;  // of a plane; the n-th calls meanwhile(n)
struct Nothing {
  void operator()(int) const {}
};

// The part of rounds 1 to 3 that is the same for every plane of a block.
struct Blocks {
  u64v word2_round1, word2_round2, word0_round3, word1_round3;
};

class Philox {
 public:
  Philox(uint64_t key, uint32_t draw) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int r = 0; r < kRounds; ++r) {
      key0_[r] = splat64(k0);
      key1_[r] = splat64(k1);
      k0 += 0x9e3779b9;  // W0, the golden ratio
      k1 += 0xbb67ae85;  // W1, sqrt(3) - 1
    }
    const uint64_t product = uint64_t{kMultiplier1} * draw;
    word0_round1_ = splat64(product >> 32) ^ key0_[0];
    word0_round2_ = splat64((uint32_t)product) ^ key0_[1];
  }

  Blocks prepare(u64v block) const {
    Blocks b;
    u64v product = multiply0(block);
    b.word2_round1 = (product >> 32) ^ key1_[0];
    const u64v word3 = product;
    product = multiply0(word0_round1_ ^ (block >> 32));
    b.word2_round2 = product ^ key1_[2];  // the last word of round 2, met by the key of round 3
    product = multiply1((product >> 32) ^ word3 ^ key1_[1]);
    b.word0_round3 = (product >> 32) ^ key0_[2];
    b.word1_round3 = product;
    return b;
  }

  // Plane k: words 1:0 of each block's 128 bits in low, words 3:2 in high. Several vectors of blocks go side by side,
  // for the multiplies of one chain hide the latency of the others.
  template <int N, class Meanwhile = Nothing>
  inline __attribute__((always_inline)) void plane(const Blocks (&b)[N], int k, u64v (&low)[N], u64v (&high)[N],
                                                   Meanwhile&& meanwhile = Nothing()) const {
    u64v w0[N], w1[N], w2[N], w3[N];
    for (int n = 0; n < N; ++n) {
      const u64v round2 = multiply1(b[n].word2_round1 ^ splat64((uint32_t)k));
      const u64v round3 = multiply0((round2 >> 32) ^ word0_round2_);
      w0[n] = b[n].word0_round3 ^ round2;
      w1[n] = b[n].word1_round3;
      w2[n] = (round3 >> 32) ^ b[n].word2_round2;
      w3[n] = round3;
    }
    meanwhile(0);
#pragma GCC unroll 10
    for (int r = 3; r < kRounds - 1; ++r) {
      for (int n = 0; n < N; ++n) {
        const u64v product0 = multiply0(w0[n]), product1 = multiply1(w2[n]);
        w0[n] = (product1 >> 32) ^ w1[n] ^ key0_[r];
        w1[n] = product1;
        w2[n] = (product0 >> 32) ^ w3[n] ^ key1_[r];
        w3[n] = product0;
      }
      meanwhile(r - 2);
    }
    for (int n = 0; n < N; ++n) {  // the last round: both halves of a lane count from here on
      const u64v product0 = multiply0(w0[n]), product1 = multiply1(w2[n]);
      low[n] = swap_halves(product1) ^ (w1[n] & 0xffffffffu) ^ key0_[kRounds - 1];
      high[n] = swap_halves(product0) ^ (w3[n] & 0xffffffffu) ^ key1_[kRounds - 1];
    }
    meanwhile(kPauses - 1);
  }

 private:
  static constexpr uint32_t kMultiplier0 = 0xd2511f53, kMultiplier1 = 0xcd9e8d57;  // M0 and M1
  static u64v multiply0(u64v word) { return mul_low(word, splat64(kMultiplier0)); }
  static u64v multiply1(u64v word) { return mul_low(word, splat64(kMultiplier1)); }

  u64v key0_[kRounds], key1_[kRounds];
  u64v word0_round1_, word0_round2_;  // their parts that do not depend on the block
};

}  // namespace
}  // namespace DROPFAST_ISA
}  // namespace dropfast
