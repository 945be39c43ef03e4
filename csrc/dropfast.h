// The contract of dropfast's compiled core with everybody who calls it: the Python module, Cython, C and C++.
//
// A mask is a recipe, not an array. Element (i_0, i_1, ...) of x has the index
//
//     i = start + i_0 * strides[0] + i_1 * strides[1] + ...
//
// in the mask's whole shape; it is dropped if its 32-bit uniform U_i(key, draw) of stream v1 (docs/stream.md) is below
// the threshold. An axis with stride 0 is shared: its elements have one bit in common.
#ifndef DROPFAST_H_
#define DROPFAST_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DROPFAST_API_VERSION 1
#define DROPFAST_MAX_NDIM 64  // NumPy 2's limit (NPY_MAXDIMS)

typedef enum dropfast_dtype {
  DROPFAST_FLOAT16 = 0,
  DROPFAST_BFLOAT16 = 1,
  DROPFAST_FLOAT32 = 2,
  DROPFAST_FLOAT64 = 3,
  DROPFAST_BOOL = 4  // the mask itself: out, a byte an element, becomes 1 where kept; x, which may be out, is not used
} dropfast_dtype;

typedef struct dropfast_mask {
  uint64_t key;
  uint64_t threshold;  // round_half_even(rate * 2^32), in [0, 2^32]
  uint64_t start;      // index of the first element, in [0, 2^63)
  uint32_t draw;
  int32_t ndim;            // of x, in [0, DROPFAST_MAX_NDIM]
  const int64_t* shape;    // of x, in elements
  const int64_t* strides;  // of the index, in mask elements; 0 on shared axes
} dropfast_mask;

// What the capsule `dropfast._native._C_API` holds. The functions need no GIL, check nothing and never fail.
typedef struct dropfast_api {
  int32_t version;  // DROPFAST_API_VERSION

  // The threshold of a rate in [0, 1].
  uint64_t (*threshold)(double rate);

  // out = x * scale where kept, +0.0 where dropped. Strides of x and out are in bytes, of any sign, and need not be
  // aligned. out is x itself (in place) or does not overlap it.
  void (*apply)(const dropfast_mask* mask, dropfast_dtype dtype, const void* x, const int64_t* x_strides, void* out,
                const int64_t* out_strides);

  // The bits of the mask in C order, 1 = kept, little bit order; out holds ceil(size / 8) bytes.
  void (*packed)(const dropfast_mask* mask, uint8_t* out);
} dropfast_api;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // DROPFAST_H_
