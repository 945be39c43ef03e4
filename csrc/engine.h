// What the doors (module.cpp, and through its capsule cython_api) call.
#pragma once

#include "dropfast.h"

namespace dropfast {

constexpr int64_t kSlabElements = 1 << 25;  // at most some tenths of a second: so long may Ctrl-C wait

uint64_t threshold(double rate);
void apply(const dropfast_mask* mask, dropfast_dtype dtype, const void* x, const int64_t* x_strides, void* out,
           const int64_t* out_strides);

// Calls `poll`, if given, every kSlabElements; it may throw.
void packed(const dropfast_mask* mask, uint8_t* out, void (*poll)() = nullptr);

const char* current_isa();
bool use_isa(const char* name);  // false, and nothing changes, if this machine has no such kernels
bool has_openmp();
int max_threads();          // that a big call from this thread would use
void limit_threads(int n);  // for the whole process

}  // namespace dropfast
