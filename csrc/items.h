// Elements that do not lie side by side.
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>

namespace dropfast {

// Copies n items of 1, 2, 4 or 8 bytes. Strides are in bytes.
inline void copy_items(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t n, int64_t item) {
  const auto copy = [=](auto size) {  // known to the compiler, or each item would be a call of memcpy
    const auto by = [=](int64_t to_stride, int64_t from_stride) __attribute__((always_inline)) {
      for (int64_t i = 0; i < n; ++i) memcpy(to + i * to_stride, from + i * from_stride, size);
    };
    // Where it knows the strides, too, whole vectors.
    if (to_stride == size && from_stride == size) return by(size, size);
    if (to_stride == size && from_stride == 2 * size) return by(size, 2 * size);
    if (to_stride == 2 * size && from_stride == size) return by(2 * size, size);
    if (to_stride == size && from_stride == -size) return by(size, -size);
    if (to_stride == -size && from_stride == size) return by(-size, size);
    by(to_stride, from_stride);
  };
  if (item == 1) copy(std::integral_constant<int64_t, 1>());
  if (item == 2) copy(std::integral_constant<int64_t, 2>());
  if (item == 4) copy(std::integral_constant<int64_t, 4>());
  if (item == 8) copy(std::integral_constant<int64_t, 8>());
}

}  // namespace dropfast
