// All instruction sets of the machine that this runs on give the same bits: for machines without Python, emulators and
// cross-compiled builds. Prints a digest for each instruction set, the same on every machine, and returns 1 if they
// differ, from each other or from stream v1: from one known answer, and from the golden file if its path is given; or
// if thinned arrays are not what their elements are one by one.
//
//   c++ -std=c++17 -O2 -I csrc tests/cxx/isas_agree.cpp csrc/engine.cpp csrc/thin.cpp csrc/isa.cpp kernels_*.o
//   ./a.out tests/data/stream_v1.json
//
// with one object of csrc/kernels.cpp for each instruction set, and isa.cpp told of them, as CMakeLists.txt does.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "engine.h"
#include "kernels.h"
#include "thin.h"

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

// The elements of so many bytes from `begin` on, turned around on a big-endian machine: it computes with the same
// numbers as the others, and takes the digest of the same bytes.
void swap_if_big_endian(Bytes& bytes, int64_t begin, int64_t size) {
  if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) return;
  for (auto p = bytes.begin() + begin; bytes.end() - p >= size; p += size) std::reverse(p, p + size);
}

constexpr int kSize[4] = {2, 2, 4, 8};

// One array of rows x columns, with gaps between the rows; shared: 0 nothing, 1 the rows, 2 the columns.
Bytes run(int dtype, int64_t rows, int64_t columns, int shared, double rate, uint64_t start, int64_t skew,
          int64_t gap = 5) {
  const int64_t size = kSize[dtype], row = (columns + gap) * size;
  Bytes x = input((size_t)(rows * row)), out((size_t)(rows * row + 64), 0xa5);
  swap_if_big_endian(x, skew, size);
  const int64_t shape[2] = {rows, columns}, bytes[2] = {row, size};
  const int64_t strides[2] = {shared == 1 ? 0 : shared == 2 ? 1 : columns + 3, shared == 2 ? 0 : 1};
  const dropfast_mask mask = {0x0123456789abcdef, dropfast::threshold(rate), start, 7, 2, shape, strides};
  dropfast::apply(&mask, (dropfast_dtype)dtype, x.data() + skew, bytes, out.data() + skew, bytes);
  swap_if_big_endian(out, skew, size);
  return out;
}

Bytes run_contiguous(int dtype, int64_t n, double rate, uint64_t start) {
  const int64_t size = kSize[dtype], stride = 1;
  Bytes x = input((size_t)(n * size)), out((size_t)(n * size), 0xa5);
  swap_if_big_endian(x, 0, size);
  const dropfast_mask mask = {1, dropfast::threshold(rate), start, 2, 1, &n, &stride};
  dropfast::apply(&mask, (dropfast_dtype)dtype, x.data(), &size, out.data(), &size);
  swap_if_big_endian(out, 0, size);
  return out;
}

// Fortran order: the elements of a column lie side by side.
Bytes run_columns(int dtype, int64_t rows, int64_t columns, double rate, uint64_t start) {
  const int64_t size = kSize[dtype], shape[2] = {rows, columns}, strides[2] = {columns, 1};
  const int64_t bytes[2] = {size, rows * size};
  Bytes x = input((size_t)(rows * columns * size)), out((size_t)(rows * columns * size), 0xa5);
  swap_if_big_endian(x, 0, size);
  const dropfast_mask mask = {1, dropfast::threshold(rate), start, 2, 2, shape, strides};
  dropfast::apply(&mask, (dropfast_dtype)dtype, x.data(), bytes, out.data(), bytes);
  swap_if_big_endian(out, 0, size);
  return out;
}

// A layout of three axes: their order in memory, the outermost first, and whether all go backwards.
struct Layout {
  int order[3];
  bool reversed;
};

// samples x channels x places, from one layout to another, with short runs; `shared`: the samples.
Bytes run_layouts(int dtype, const int64_t (&shape)[3], const Layout& from, const Layout& to, bool shared,
                  double rate) {
  const int64_t size = kSize[dtype], places = shape[2], n = shape[0] * shape[1] * places;
  const int64_t strides[3] = {shared ? 0 : shape[1] * places, places, 1};
  Bytes x = input((size_t)(n * size)), out((size_t)(n * size), 0xa5);
  swap_if_big_endian(x, 0, size);
  const auto lay_out = [&](const Layout& layout, int64_t* bytes) {
    int64_t step = layout.reversed ? -size : size;
    for (int d = 2; d >= 0; --d) {
      bytes[layout.order[d]] = step;
      step *= shape[layout.order[d]];
    }
    return layout.reversed ? (n - 1) * size : 0;
  };
  int64_t x_bytes[3], out_bytes[3];
  const int64_t x_begin = lay_out(from, x_bytes), out_begin = lay_out(to, out_bytes);
  const dropfast_mask mask = {1, dropfast::threshold(rate), 77, 2, 3, shape, strides};
  dropfast::apply(&mask, (dropfast_dtype)dtype, x.data() + x_begin, x_bytes, out.data() + out_begin, out_bytes);
  swap_if_big_endian(out, 0, size);
  return out;
}

// What two masks keep of rows and columns, element by element, and what the engine makes of it: a part, the whole
// again, and a sum. Columns of the whole are `apart`.
bool thinned(int dtype, int64_t rows, int64_t columns, double rate, int64_t gap = 3, int64_t apart = 1) {
  const auto code = (dropfast_dtype)dtype;
  const int64_t size = kSize[dtype], stride = 1;
  Bytes bits[2];
  std::vector<int64_t> kept[2];
  for (int d = 0; d < 2; ++d) {
    const int64_t n = d == 0 ? rows : columns;
    bits[d].resize((size_t)(n + 7) / 8);
    const dropfast_mask mask = {7, dropfast::threshold(rate), 0, (uint32_t)d, 1, &n, &stride};
    dropfast::packed(&mask, bits[d].data());
    for (int64_t i = 0; i < n; ++i) {
      if (bits[d][(size_t)i / 8] >> i % 8 & 1) kept[d].push_back(i);
    }
  }
  const int64_t column = apart * size, row = columns * column + gap, part_row = (int64_t)kept[1].size() * size + gap;
  const dropfast::ThinAxis axes[2] = {{rows, row, part_row, bits[0].data()}, {columns, column, size, bits[1].data()}};
  const auto each = [&](const auto& use) {  // use(place in the whole, place in the part)
    for (size_t i = 0; i < kept[0].size(); ++i) {
      for (size_t j = 0; j < kept[1].size(); ++j) {
        use((size_t)(kept[0][i] * row + kept[1][j] * column), i * (size_t)part_row + j * (size_t)size);
      }
    }
  };
  const auto n = (size_t)size;
  const Bytes x = input((size_t)(rows * row));
  Bytes part((size_t)(rows * part_row + size), 0xa5), whole(x.size(), 0xa5), wanted_part = part, wanted = whole;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) std::memset(&wanted[(size_t)(i * row + j * column)], 0, n);
  }
  each([&](size_t at, size_t to) { std::memcpy(&wanted_part[to], &x[at], n); });
  each([&](size_t to, size_t at) { std::memcpy(&wanted[to], &wanted_part[at], n); });
  Bytes from = x;
  dropfast::thin(dropfast::kCompress, code, from.data(), part.data(), axes, 2, nullptr);
  dropfast::thin(dropfast::kExpand, code, whole.data(), part.data(), axes, 2, nullptr);
  if (from != x || part != wanted_part || whole != wanted) return false;

  // Once added to 0, a number stays what it is; without the top bit of its exponent it is one, and below 2. What is
  // dropped, -0.0, would become 0 if anything was added to it.
  const double one = 1;
  const size_t top = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? n - 1 : 0;
  std::fill(whole.begin(), whole.end(), 0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) whole[(size_t)(i * row + j * column) + top] = 0x80;
  }
  wanted = whole;
  each([&](size_t to, size_t at) {
    part[at + top] &= 0x3f;
    whole[to + top] = 0;
    std::memcpy(&wanted[to], &part[at], n);
  });
  dropfast::thin(dropfast::kAdd, code, whole.data(), part.data(), axes, 2, &one);
  return whole == wanted;
}

bool thinned_arrays() {
  bool right = true;
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (const double rate : {0.0, 0.2, 0.5, 0.9, 1.0}) {
      for (const int64_t columns : {1, 8, 63, 64, 65, 129, 1000}) right &= thinned(dtype, 9, columns, rate);
      right &= thinned(dtype, 70, 5, rate, 0);  // rows that are one run
      right &= thinned(dtype, 9, 700, rate, 1, 2) && thinned(dtype, 1, 700, rate, 1, 2);
    }
    right &= thinned(dtype, 700, 900, 0.5);  // several threads
  }
  return right;
}

uint64_t all_cases() {
  Bytes all;
  const auto add = [&](const Bytes& result) {
    const uint64_t hash = digest(result);
    for (int i = 0; i < 8; ++i) all.push_back((unsigned char)(hash >> 8 * i));
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
  add(run_contiguous(DROPFAST_FLOAT32, 140000, 0.3, (uint64_t{1} << 32) - 70000));
  add(run(DROPFAST_FLOAT32, 2, 140000, 1, 0.3, (uint64_t{1} << 32) - 70000, 0));       // more than a batch
  for (int dtype = 0; dtype < 4; ++dtype) add(run(dtype, 90, 100, 1, 0.3, 77, 0, 0));  // short rows without gaps
  for (int dtype = 0; dtype < 4; ++dtype) {
    add(run_columns(dtype, 130, 600, 0.5, 77));
    add(run_columns(dtype, 1100, 70, 0.1, (uint64_t{1} << 39) - 70));
    for (const int64_t rows : {2, 5, 8, 9, 64, 100}) add(run_columns(dtype, rows, 1300, 0.5, 77));
  }
  const Layout c_order = {{0, 1, 2}, false}, fortran = {{2, 1, 0}, false}, channels_last = {{0, 2, 1}, false};
  const Layout backwards = {{0, 1, 2}, true}, channels_first = {{1, 0, 2}, false};
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (const bool shared : {false, true}) {
      for (const Layout& to : {c_order, fortran, channels_last, backwards}) {
        for (const Layout& from : {fortran, channels_last, backwards, channels_first}) {
          add(run_layouts(dtype, {70, 9, 33}, from, to, shared, 0.5));
          add(run_layouts(dtype, {35, 300, 9}, from, to, shared, 0.1));
          add(run_layouts(dtype, {9, 3, 130}, from, to, shared, 0.1));
        }
      }
    }
  }
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

bool golden_rate(double rate, uint64_t threshold, double scale) {
  const int64_t n = 1, stride = 1, bytes = 8;
  const dropfast_mask mask = {0, dropfast::threshold(rate), 343460240, 0, 1, &n, &stride};  // U = 2^32 - 1, kept
  const double one = 1;
  double y;
  dropfast::apply(&mask, DROPFAST_FLOAT64, &one, &bytes, &y, &bytes);
  return mask.threshold == threshold && y == scale;
}

// All functions of the engine give the bits.
bool golden_mask(const dropfast_mask& mask, const char* expected) {
  const int64_t n = *mask.shape, bytes = 8;
  Bytes bits((size_t)(n + 7) / 8);
  dropfast::packed(&mask, bits.data());
  const std::vector<double> x((size_t)n, 1);
  std::vector<double> y((size_t)n);
  dropfast::apply(&mask, DROPFAST_FLOAT64, x.data(), &bytes, y.data(), &bytes);

  std::vector<double> beside((size_t)n), selected((size_t)n);
  Bytes kept((size_t)n, 0xa5);
  dropfast::apply_and_keep(&mask, DROPFAST_FLOAT64, x.data(), &bytes, beside.data(), &bytes, kept.data(), mask.strides);
  const double scale = 0x1p32 / (0x1p32 - (double)mask.threshold);
  dropfast::select(DROPFAST_FLOAT64, x.data(), selected.data(), n, kept.data(), scale);
  std::string hex;
  for (const unsigned char b : bits) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", b);
    hex += digits;
  }
  bool right = hex == expected;
  for (size_t i = 0; i < y.size(); ++i) {
    right &= kept[i] == (bits[i / 8] >> i % 8 & 1) && y[i] == (kept[i] ? scale : 0);
    right &= beside[i] == y[i] && selected[i] == y[i];
  }
  return right;
}

// The golden file has one case a line. Prints how many there are, and returns whether all are right.
bool golden(const char* path) {
  int right = 0, wrong = 0;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    double rate, scale;
    uint64_t threshold, key, start;
    uint32_t draw;
    int64_t n;
    const int64_t stride = 1;
    char packed[256];
    if (std::sscanf(line.c_str(), "{\"rate\": \"%la\", \"threshold\": %" SCNu64 ", \"scale\": \"%la\"", &rate,
                    &threshold, &scale) == 3) {
      ++(golden_rate(rate, threshold, scale) ? right : wrong);
    }
    if (std::sscanf(line.c_str(),
                    "{\"key\": %" SCNu64 ", \"draw\": %" SCNu32 ", \"start\": %" SCNu64
                    ", \"rate\": \"%la\", \"n\": %" SCNd64 ", \"packed\": \"%255[0-9a-f]",
                    &key, &draw, &start, &rate, &n, packed) == 6) {
      ++(golden_mask({key, dropfast::threshold(rate), start, draw, 1, &n, &stride}, packed) ? right : wrong);
    }
  }
  std::printf("  %d golden cases, %d wrong", right + wrong, wrong);
  return right > 0 && wrong == 0;
}

}  // namespace

int main(int argc, char** argv) {
  int n, failures = 0;
  const dropfast::Isa* list = dropfast::isas(&n);
  uint64_t first = 0;
  for (int i = 0; i < n; ++i) {
    if (!dropfast::use_isa(list[i].name)) {
      std::printf("%-8s not on this machine\n", list[i].name);
      continue;
    }
    const uint64_t hash = all_cases();
    if (first == 0) first = hash;
    std::printf("%-8s %016" PRIx64, list[i].name, hash);
    const bool same = hash == first, known = known_answer() && (argc < 2 || golden(argv[1])), thin = thinned_arrays();
    std::printf("%s%s%s\n", known ? "" : "  is not stream v1", same ? "" : "  differs", thin ? "" : "  does not thin");
    failures += !known + !same + !thin;
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
