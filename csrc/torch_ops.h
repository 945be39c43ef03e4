// PyTorch's operators for dropout: what module.cpp offers of torch_ops.cpp.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

namespace dropfast {

// The functions of PyTorch that are needed, and where they are: in this order, before anything else here is called.
// There are none where PyTorch could not use these kernels.
// Tensors of so many elements are large: the kernels of dropout leave them to Python, where nothing of a mask's size is
// kept for the backward pass. `takes_our_errors` says whether PyTorch's pybind11 has the error_already_set of ours, so
// that errors of Python's can pass through the kernels; without, they become RuntimeErrors.
extern const std::vector<const char*> torch_functions;
extern const bool has_known_errors;  // whether ours has that of all versions so far
void use_torch_functions(const std::vector<uintptr_t>& addresses, int64_t large_numel, bool takes_our_errors);

// Registers kernels for these operators of a namespace; returns what takes them back.
uintptr_t implement_in_torch(const std::string& name_space, const std::vector<std::string>& operators,
                             const std::string& dispatch_key);
void forget_in_torch(uintptr_t library);

}  // namespace dropfast
