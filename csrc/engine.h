// What the doors (module.cpp, and through its capsule cython_api) call.
#pragma once

#include "dropfast.h"

namespace dropfast {

uint64_t threshold(double rate);
void apply(const dropfast_mask* mask, dropfast_dtype dtype, const void* x, const int64_t* x_strides, void* out,
           const int64_t* out_strides);
void packed(const dropfast_mask* mask, uint8_t* out);

const char* current_isa();
bool use_isa(const char* name);  // false, and nothing changes, if this machine has no such kernels
bool has_openmp();
int max_threads();          // that a big call from this thread would use
void limit_threads(int n);  // for the whole process

}  // namespace dropfast
