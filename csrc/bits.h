// Strings and matrices of bits, in words of 64, the first bit the lowest.
#pragma once

#include <stdint.h>

#include <algorithm>

namespace dropfast {

inline uint64_t low_bits(int64_t n) { return n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0}; }

inline bool bit_at(const uint64_t* bits, int64_t i) { return bits[i >> 6] >> (i & 63) & 1; }

// Puts the n bits of `from` that begin at bit `first` to bit `at` of `to`, which is 0 from there on. `from` has one
// word behind its last bit.
inline void append_bits(uint64_t* to, int64_t at, const uint64_t* from, int64_t first, int64_t n) {
  while (n > 0) {
    const int64_t count = std::min(n, 64 - (at & 63)), shift = first & 63;
    const uint64_t* word = from + (first >> 6);
    to[at >> 6] |= ((word[0] >> shift | word[1] << 1 << (63 - shift)) & low_bits(count)) << (at & 63);
    at += count;
    first += count;
    n -= count;
  }
}

}  // namespace dropfast
