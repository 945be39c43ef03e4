// All instruction sets of the machine that this runs on give the same bits: for machines without Python, emulators and
// cross-compiled builds. Prints a digest for each instruction set and returns 1 if they differ, from each other or from
// stream v1.
//
//   c++ -std=c++17 -O2 -I csrc tests/cxx/isas_agree.cpp csrc/engine.cpp csrc/isa.cpp kernels_*.o
//
// with one object of csrc/kernels.cpp for each instruction set, and isa.cpp told of them, as CMakeLists.txt does.
#include <cstdio>
#include <cstring>
#include <vector>

#include "engine.h"
#include "kernels.h"

namespace {

using Bytes = std::vector<unsigned char>;

uint64_t digest(const Bytes& bytes) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325;
  for (const unsigned char b : bytes) hash = (hash ^ b) * 0x100000001b3;
  return hash;
}

// Every bit pattern is a float of some kind: NaN, inf and subnormals come by themselves. Signalling NaNs are made quiet
// by the multiply on every instruction set.
Bytes input(size_t bytes) {
  Bytes x(bytes + 64);
  uint64_t state = 1;
  for (unsigned char& b : x) {
    state = state * 6364136223846793005 + 1442695040888963407;
    b = (unsigned char)(state >> 56);
  }
  return x;
}

constexpr int kSize[4] = {2, 2, 4, 8};

// One array of rows x columns, with gaps between the rows; shared: 0 nothing, 1 the rows, 2 the columns.
Bytes run(int dtype, int64_t rows, int64_t columns, int shared, double rate, uint64_t start, int64_t skew) {
  const int64_t size = kSize[dtype], row = (columns + 5) * size;
  const Bytes x = input((size_t)(rows * row));
  Bytes out((size_t)(rows * row + 64), 0xa5);
  const int64_t shape[2] = {rows, columns}, bytes[2] = {row, size};
  const int64_t strides[2] = {shared == 1 ? 0 : shared == 2 ? 1 : columns + 3, shared == 2 ? 0 : 1};
  const dropfast_mask mask = {0x0123456789abcdef, dropfast::threshold(rate), start, 7, 2, shape, strides};
  dropfast::apply(&mask, (dropfast_dtype)dtype, x.data() + skew, bytes, out.data() + skew, bytes);
  return out;
}

Bytes run_contiguous(int dtype, int64_t n, double rate, uint64_t start) {
  const int64_t size = kSize[dtype], stride = 1;
  const Bytes x = input((size_t)(n * size));
  Bytes out((size_t)(n * size), 0xa5);
  const dropfast_mask mask = {1, dropfast::threshold(rate), start, 2, 1, &n, &stride};
  dropfast::apply(&mask, (dropfast_dtype)dtype, x.data(), &size, out.data(), &size);
  return out;
}

uint64_t all_cases() {
  Bytes all;
  const auto add = [&](const Bytes& result) {
    const uint64_t hash = digest(result);
    const auto* p = reinterpret_cast<const unsigned char*>(&hash);
    all.insert(all.end(), p, p + sizeof hash);
  };
  const double rates[] = {0, 0x1p-32, 0.1, 0.25, 0.5, 0.7, 1 - 0x1p-32, 1};
  const uint64_t starts[] = {
      0, 1, 127, (uint64_t{1} << 31) - 3, (uint64_t{1} << 39) - 70, (uint64_t{1} << 63) - 300000};
  int64_t turn = 0;
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (const double rate : rates) {
      for (const int64_t columns : {1, 7, 16, 63, 64, 65, 129, 300, 2100}) {
        const int shared = (int)(turn % 3);
        add(run(dtype, 1 + turn % 5, columns, shared, rate, starts[turn % 6], kSize[dtype] == 2 ? turn % 3 : turn % 9));
        ++turn;
      }
      add(run_contiguous(dtype, 16384 + 128 * 3 + 5, rate, starts[turn % 6]));
    }
  }
  add(run_contiguous(DROPFAST_FLOAT32, (40 << 20) / 4, 0.5, 3));  // past the caches
  return digest(all);
}

bool known_answer() {  // docs/stream.md
  const int64_t n = 64, stride = 1;
  const dropfast_mask mask = {0x0123456789abcdef, dropfast::threshold(0.3), (uint64_t{1} << 40) + 5, 7, 1, &n, &stride};
  unsigned char bits[8];
  dropfast::packed(&mask, bits);
  const unsigned char expected[8] = {0xe7, 0xeb, 0x5f, 0xf4, 0x5e, 0x7a, 0xeb, 0x1f};
  return std::memcmp(bits, expected, sizeof bits) == 0;
}

}  // namespace

int main() {
  int n, failures = 0;
  const dropfast::Isa* list = dropfast::isas(&n);
  uint64_t first = 0;
  for (int i = 0; i < n; ++i) {
    if (!dropfast::use_isa(list[i].name)) {
      std::printf("%-8s not on this machine\n", list[i].name);
      continue;
    }
    const bool known = known_answer();
    const uint64_t hash = all_cases();
    if (first == 0) first = hash;
    std::printf("%-8s %016llx%s%s\n", list[i].name, (unsigned long long)hash, known ? "" : "  is not stream v1",
                hash == first ? "" : "  differs");
    failures += !known + (hash != first);
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
