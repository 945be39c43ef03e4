// Strings of bits, in words of 64, the first bit the lowest.
#pragma once

#include <stdint.h>

#include <algorithm>

namespace dropfast {

inline uint64_t low_bits(int64_t n) { return n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0}; }

inline bool bit_at(const uint64_t* bits, int64_t i) { return bits[i >> 6] >> (i & 63) & 1; }

// The 64 bits from bit `first` on; if they end with a word, the one behind it is read as well.
inline uint64_t bits_from(const uint64_t* bits, int64_t first) {
  const uint64_t* word = bits + (first >> 6);
  const int64_t shift = first & 63;
  return word[0] >> shift | word[1] << 1 << (63 - shift);
}

// Writes a string, one piece after the other. The word that is not full yet is kept out of memory, where each piece
// would wait for the one before.
class BitWriter {
 public:
  explicit BitWriter(uint64_t* to) : to_(to) {}

  // The n <= 64 lowest bits of a word that has no others.
  void put(uint64_t bits, int64_t n) {
    word_ |= bits << filled_;
    filled_ += n;
    if (filled_ < 64) return;
    *to_++ = word_;
    filled_ -= 64;
    word_ = filled_ > 0 ? bits >> (n - filled_) : 0;
  }

  // The n bits of `from` that begin at bit `first`. `from` has one word behind its last bit.
  void put(const uint64_t* from, int64_t first, int64_t n) {
    for (; n >= 64; n -= 64, first += 64) {
      const uint64_t bits = bits_from(from, first);
      *to_++ = word_ | bits << filled_;
      word_ = bits >> 1 >> (63 - filled_);
    }
    if (n > 0) put(bits_from(from, first) & low_bits(n), n);
  }

  // Writes the last word, unless it has no bits.
  void end() {
    if (filled_ > 0) *to_ = word_;
  }

 private:
  uint64_t* to_;
  uint64_t word_ = 0;
  int64_t filled_ = 0;  // < 64
};

inline uint64_t reversed(uint64_t word) {
  const auto exchange = [&](int distance, uint64_t lower) {
    word = (word >> distance & lower) | (word & lower) << distance;
  };
  exchange(1, 0x5555555555555555);
  exchange(2, 0x3333333333333333);
  exchange(4, 0x0f0f0f0f0f0f0f0f);
  exchange(8, 0x00ff00ff00ff00ff);
  exchange(16, 0x0000ffff0000ffff);
  return word >> 32 | word << 32;
}

// The n bits of `from` that begin at bit `first`, the last one first. `from` has one word behind its last bit.
inline void reverse_bits(uint64_t* to, const uint64_t* from, int64_t first, int64_t n) {
  BitWriter writer(to);
  for (int64_t end = first + n; end > first; end -= 64) {
    const int64_t count = std::min<int64_t>(64, end - first);
    writer.put(reversed(bits_from(from, end - count)) >> (64 - count), count);
  }
  writer.end();
}

}  // namespace dropfast
