// The table that each instruction set fills in, and the list of tables. Between the draw and the select stand only
// bits: the draw never knows the dtype, the select never knows the generator.
#pragma once

#include <float.h>
#include <stdint.h>

namespace dropfast {

// A product is rounded once, to its type: float32 in a double is exact, but the x87 of 32-bit x86 (2) holds a double
// with 64 bits of mantissa and rounds it a second time when it is stored. There: -msse2 -mfpmath=sse.
static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 1, "doubles must be computed as doubles");

constexpr int kBlockBits = 128;    // stream v1: a Philox call gives one plane of 128 elements
constexpr int kBatchBlocks = 512;  // drawn at a time: 65,536 bits, whose 8 KiB and those still undecided fit L1
constexpr int kBatchBits = kBatchBlocks * kBlockBits;
constexpr int kSquares = 16;    // side by side, for transpose()
constexpr int kDrawGroup = 16;  // draw() reads and writes whole groups: arrays are padded to a multiple of this

struct Rows {
  int64_t n;
  int64_t x, out;  // bytes from one to the next
};

typedef void (*Select)(const void* x, void* out, int64_t n, const uint64_t* keep, int64_t first, double scale,
                       bool streaming, Rows rows);

typedef void (*Drop)(uint64_t key, uint32_t draw, uint64_t threshold, uint64_t index, const void* x, void* out,
                     int64_t n, double scale, bool streaming);

enum Move { kCompress, kExpand, kAdd };

typedef void (*Thin)(const void* from, void* to, int64_t n, const uint64_t* keep, int64_t left, const double* factor);

struct Kernels {
  // keep[2b], keep[2b + 1] = the 128 keep bits of blocks[b], for b < n <= kBatchBlocks, of the mask of key and draw
  // at the threshold. blocks and keep are padded to a multiple of kDrawGroup blocks, and the padding of blocks is
  // initialised.
  void (*draw)(uint64_t key, uint32_t draw, uint64_t threshold, const uint64_t* blocks, int n, uint64_t* keep);

  // out[i] = x[i] * scale where bit `first + i` of keep is set, else +0.0; by dropfast_dtype, for i < n, and in the
  // next row with the bits that follow. keep has one word behind its last bit. `streaming` stores past the caches.
  Select select[5];

  // The dropout of n elements side by side, whose bits are those of the mask's elements from `index` on.
  Drop drop[5];

  // By Move and dropfast_dtype, between n elements side by side and the `left` of them whose bits are set in keep, side
  // by side: to[0], to[1], ... = from[i] of these; or to[i] = from[0], from[1], ... at these and +0.0 elsewhere; both
  // times the factor if there is one. Or to[i] += factor * from[0], ... at these. The bits behind the n are 0.
  Thin thin[3][4];

  // The bits of n bytes, 1 where they are not 0, and 0 up to the end of a word.
  void (*bits_of_bytes)(const uint8_t* bytes, int64_t n, uint64_t* bits);

  // In 64 rows of kSquares words, of each of the first n squares of 64 x 64 bits that lie side by side: bit c of row r
  // becomes bit r of row c.
  void (*transpose)(uint64_t* rows, int n);

  // Makes streaming stores visible to other threads.
  void (*fence)();
};

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool supported;  // by the CPU that we run on
};

// All that were compiled, best first; count of them in *n.
const Isa* isas(int* n);

}  // namespace dropfast
