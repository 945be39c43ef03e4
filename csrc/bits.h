// Strings of bits, in words of 64, the first bit the lowest.
#pragma once

#include <stdint.h>

#include <algorithm>

namespace dropfast {

inline uint64_t low_bits(int64_t n) { return n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0}; }

inline bool bit_at(const uint64_t* bits, int64_t i) { return bits[i >> 6] >> (i & 63) & 1; }

// Puts the n bits of `from` that begin at bit `first` to bit `at` of `to`, which is 0 from there on. `from` has one
// word behind its last bit.
inline void append_bits(uint64_t* to, int64_t at, const uint64_t* from, int64_t first, int64_t n) {
  const auto word_of = [](const uint64_t* w, int64_t shift) { return w[0] >> shift | w[1] << 1 << (63 - shift); };
  if ((at & 63) == 0) {  // whole words, as most are
    const uint64_t* word = from + (first >> 6);
    const int64_t words = n >> 6, shift = first & 63;
    for (int64_t i = 0; i < words; ++i) to[(at >> 6) + i] = word_of(word + i, shift);
    at += 64 * words;
    first += 64 * words;
    n -= 64 * words;
  }
  while (n > 0) {
    const int64_t count = std::min(n, 64 - (at & 63));
    to[at >> 6] |= (word_of(from + (first >> 6), first & 63) & low_bits(count)) << (at & 63);
    at += count;
    first += count;
    n -= count;
  }
}

}  // namespace dropfast
