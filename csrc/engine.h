// What the doors (module.cpp, and through its capsule cython_api) call.
#pragma once

#include "dropfast.h"
#include "kernels.h"

namespace dropfast {

constexpr int64_t kItemSize[5] = {2, 2, 4, 8, 1};  // by dropfast_dtype

constexpr int64_t kSlabElements = 1 << 25;  // at most some tenths of a second: so long may Ctrl-C wait

uint64_t threshold(double rate);
void apply(const dropfast_mask* mask, dropfast_dtype dtype, const void* x, const int64_t* x_strides, void* out,
           const int64_t* out_strides);

// The same, and the mask beside it: kept, a byte an element with any strides, is 1 where kept and else 0.
void apply_and_keep(const dropfast_mask* mask, dropfast_dtype dtype, const void* x, const int64_t* x_strides, void* out,
                    const int64_t* out_strides, void* kept, const int64_t* kept_strides);

// n elements side by side, by a mask of a byte an element: out = x * scale where it is not 0, +0.0 elsewhere.
void select(dropfast_dtype dtype, const void* x, void* out, int64_t n, const uint8_t* kept, double scale);

// Calls `poll`, if given, every kSlabElements; it may throw.
void packed(const dropfast_mask* mask, uint8_t* out, void (*poll)() = nullptr);

const Kernels& kernels_in_use();
const char* current_isa();
bool use_isa(const char* name);  // false, and nothing changes, if this machine has no such kernels
bool has_openmp();
const char* threading();       // "openmp" or "pool", by which a big call from this thread would be divided
int max_threads();             // that it would use
void limit_threads(int n);     // for the whole process
void set_pool_threads(int n);  // so is this: without OpenMP, what omp_set_num_threads is with it

}  // namespace dropfast
