// PyTorch's operators for dropout, over its stable ABI. Its C functions are declared here and looked up in the library
// that is loaded (dropfast/torch/_abi.py), so that no header of PyTorch is needed and one binary is for all
// versions. What these kernels do not take goes to the same operators in Python.
#include "torch_ops.h"

#include <pybind11/pybind11.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <utility>

#include "engine.h"

namespace py = pybind11;

namespace dropfast {
namespace {

// ---- PyTorch's functions

using Value = uint64_t;  // an argument or a result of an operator: a number's bits, or a pointer that its owner frees
using Kernel = void (*)(Value* stack, uint64_t inputs, uint64_t outputs);
struct Handle;  // of a tensor
struct List;
struct Library;

constexpr uint64_t kAbi = uint64_t{2} << 56 | uint64_t{13} << 48;  // the version of PyTorch that this is written for

// Those that return an int return 0, or else what went wrong is in torch_exception_get_what_without_backtrace().
#define DROPFAST_TORCH_FUNCTIONS(X)                                                                              \
  X(int, aoti_torch_library_init_impl, const char*, const char*, const char*, uint32_t, Library**)               \
  X(int, torch_library_impl, Library*, const char*, Kernel, uint64_t)                                            \
  X(int, aoti_torch_delete_library_object, Library*)                                                             \
  X(int, torch_call_dispatcher, const char*, const char*, Value*, uint64_t)                                      \
  X(const char*, torch_exception_get_what_without_backtrace)                                                     \
  X(int, torch_new_stable_ivalue, Value**)                                                                       \
  X(int, torch_delete_stable_ivalue, Value*)                                                                     \
  X(int, aoti_torch_new_tensor_handle, Handle*, Handle**)                                                        \
  X(int, aoti_torch_delete_tensor_object, Handle*)                                                               \
  X(int, aoti_torch_create_tensor_from_blob, void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t,   \
    int32_t, int32_t, Handle**)                                                                                  \
  X(int, aoti_torch_empty_strided, int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle**) \
  X(int, aoti_torch_cpu_randint_low_out, Handle*, int64_t, int64_t, const int64_t*, int64_t)                     \
  X(int, aoti_torch_copy_, Handle*, Handle*, int32_t)                                                            \
  X(int, torch_get_const_data_ptr, Handle*, const void**)                                                        \
  X(int, torch_get_mutable_data_ptr, Handle*, void**)                                                            \
  X(int, aoti_torch_get_numel, Handle*, int64_t*)                                                                \
  X(int, aoti_torch_get_dim, Handle*, int64_t*)                                                                  \
  X(int, aoti_torch_get_sizes, Handle*, int64_t**)                                                               \
  X(int, aoti_torch_get_strides, Handle*, int64_t**)                                                             \
  X(int, aoti_torch_get_dtype, Handle*, int32_t*)                                                                \
  X(int, torch_list_size, List*, size_t*)                                                                        \
  X(int, torch_list_get_item, List*, size_t, Value*)                                                             \
  X(int, torch_delete_list, List*)                                                                               \
  X(int32_t, aoti_torch_device_type_cpu)                                                                         \
  X(int32_t, aoti_torch_dtype_float16)                                                                           \
  X(int32_t, aoti_torch_dtype_bfloat16)                                                                          \
  X(int32_t, aoti_torch_dtype_float32)                                                                           \
  X(int32_t, aoti_torch_dtype_float64)                                                                           \
  X(int32_t, aoti_torch_dtype_int64)                                                                             \
  X(int32_t, aoti_torch_dtype_bool)

#define DROPFAST_DECLARE(Result, name, ...) Result (*name)(__VA_ARGS__);
struct {
  DROPFAST_TORCH_FUNCTIONS(DROPFAST_DECLARE)
} torch;
#undef DROPFAST_DECLARE

// PyTorch makes a code of every error. One of Python's own goes on as what it was, as PyTorch's checkpoints end by one,
// and Ctrl-C is one: it is still there where hooks of saved tensors and modes raise it, and _abi.py keeps it where our
// kernels in Python do.
bool errors_pass;  // see use_torch_functions

void check(int error) {
  if (!error) return;
  if (errors_pass) {
    const py::gil_scoped_acquire acquire;
    if (!PyErr_Occurred()) {
      const py::object raised = py::module_::import("dropfast.torch._abi").attr("take_raised")();
      if (!raised.is_none()) PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(raised.ptr())), raised.ptr());
    }
    if (PyErr_Occurred()) throw py::error_already_set();
  }
  throw std::runtime_error(torch.torch_exception_get_what_without_backtrace());
}

// ---- tensors and other values

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(Value owned) : handle_(reinterpret_cast<Handle*>(owned)) {}
  Tensor(Tensor&& other) : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_) torch.aoti_torch_delete_tensor_object(handle_);
  }

  Handle* get() const { return handle_; }
  Handle** receive() { return &handle_; }
  Value release() { return reinterpret_cast<Value>(std::exchange(handle_, nullptr)); }
  Value copy() const {
    Handle* copy;
    check(torch.aoti_torch_new_tensor_handle(handle_, &copy));
    return reinterpret_cast<Value>(copy);
  }

  template <class T>
  T property(int (*get)(Handle*, T*)) const {
    T value;
    check(get(handle_, &value));
    return value;
  }
  int64_t ndim() const { return property(torch.aoti_torch_get_dim); }
  int64_t numel() const { return property(torch.aoti_torch_get_numel); }
  const int64_t* sizes() const { return property(torch.aoti_torch_get_sizes); }
  const int64_t* strides() const { return property(torch.aoti_torch_get_strides); }
  int32_t dtype() const { return property(torch.aoti_torch_get_dtype); }
  const void* data() const { return property(torch.torch_get_const_data_ptr); }
  void* mutable_data() const { return property(torch.torch_get_mutable_data_ptr); }

 private:
  Handle* handle_ = nullptr;
};

// The numbers of a list, which is freed.
std::vector<int64_t> numbers_of(Value owned) {
  const std::unique_ptr<List, int (*)(List*)> list(reinterpret_cast<List*>(owned), torch.torch_delete_list);
  size_t n;
  check(torch.torch_list_size(list.get(), &n));
  std::vector<int64_t> numbers(n);
  for (size_t i = 0; i < n; ++i) {
    Value number;
    check(torch.torch_list_get_item(list.get(), i, &number));
    numbers[i] = (int64_t)number;
  }
  return numbers;
}

double as_double(Value value) {
  double number;
  memcpy(&number, &value, sizeof number);
  return number;
}

Value as_value(double number) {
  Value value;
  memcpy(&value, &number, sizeof value);
  return value;
}

// What stands for `true` where an operator takes a bool or None.
Value optional_true() {
  Value* value;
  check(torch.torch_new_stable_ivalue(&value));
  *value = 1;
  return reinterpret_cast<Value>(value);
}

void call(const char* name, Value* stack) { check(torch.torch_call_dispatcher(name, "", stack, kAbi)); }

// ---- what the kernels have in common

// dropfast_dtype, or -1.
int dtype_code(int32_t dtype) {
  static const int32_t codes[4] = {torch.aoti_torch_dtype_float16(), torch.aoti_torch_dtype_bfloat16(),
                                   torch.aoti_torch_dtype_float32(), torch.aoti_torch_dtype_float64()};
  const int32_t* found = std::find(codes, codes + 4, dtype);
  return found == codes + 4 ? -1 : (int)(found - codes);
}

bool same_layout(const Tensor& a, const Tensor& b) {
  const int64_t n = a.ndim();
  return n == b.ndim() && std::equal(a.sizes(), a.sizes() + n, b.sizes()) &&
         std::equal(a.strides(), a.strides() + n, b.strides());
}

// Whether the elements fill a piece of memory, in some order of the axes.
bool is_dense(const Tensor& x) {
  std::pair<int64_t, int64_t> axes[DROPFAST_MAX_NDIM];  // stride and length
  const int64_t n = x.ndim();
  int64_t expected = 1;
  bool in_order = true;
  for (int64_t d = n; d-- > 0; expected *= x.sizes()[d]) {
    axes[d] = {x.strides()[d], x.sizes()[d]};
    in_order &= x.sizes()[d] == 1 || x.strides()[d] == expected;
  }
  if (in_order) return true;
  std::sort(axes, axes + n);
  expected = 1;
  for (int64_t d = 0; d < n; ++d) {
    if (axes[d].second == 1) continue;
    if (axes[d].first != expected) return false;
    expected *= axes[d].second;
  }
  return true;
}

Tensor empty_as(const Tensor& layout, int32_t dtype) {
  Tensor tensor;
  check(torch.aoti_torch_empty_strided(layout.ndim(), layout.sizes(), layout.strides(), dtype,
                                       torch.aoti_torch_device_type_cpu(), 0, tensor.receive()));
  return tensor;
}

Tensor empty_like(const Tensor& x) {
  if (is_dense(x)) return empty_as(x, x.dtype());
  Value stack[6] = {x.copy()};  // dtype, layout, device, pin_memory and memory_format are None
  call("aten::empty_like", stack);
  return Tensor(stack[0]);
}

Tensor copy_as(const Tensor& layout, const Tensor& x) {
  Tensor copy = empty_as(layout, x.dtype());
  check(torch.aoti_torch_copy_(copy.get(), x.get(), 0));
  return copy;
}

// The number that dropfast.torch._operators.new_key draws from PyTorch's default generator.
uint64_t new_key() {
  int64_t key;
  Tensor tensor;
  check(torch.aoti_torch_create_tensor_from_blob(&key, 0, nullptr, nullptr, 0, torch.aoti_torch_dtype_int64(),
                                                 torch.aoti_torch_device_type_cpu(), 0, tensor.receive()));
  check(torch.aoti_torch_cpu_randint_low_out(tensor.get(), INT64_MIN, INT64_MAX, nullptr, 0));
  return (uint64_t)key;
}

// Whether the engine takes a tensor.
bool is_ours(const Tensor& x) { return dtype_code(x.dtype()) >= 0 && x.numel() > 0 && x.ndim() <= DROPFAST_MAX_NDIM; }

// The strides of a tensor in bytes.
struct Bytes {
  Bytes(const Tensor& x, int64_t item_size) {
    const int64_t ndim = x.ndim(), *in_items = x.strides();
    std::transform(in_items, in_items + ndim, strides, [=](int64_t n) { return n * item_size; });
  }
  int64_t strides[DROPFAST_MAX_NDIM];
};

// Drops with a new key; returns the result and the mask in a byte an element, which lies in memory as the result does.
std::pair<Tensor, Tensor> drop(const Tensor& x, uint64_t threshold) {
  const int64_t ndim = x.ndim(), *shape = x.sizes();
  const int code = dtype_code(x.dtype());
  Tensor out = empty_like(x), kept = empty_as(out, torch.aoti_torch_dtype_bool());
  int64_t strides[DROPFAST_MAX_NDIM], stride = 1;
  for (int64_t d = ndim; d-- > 0; stride *= shape[d]) strides[d] = stride;
  const dropfast_mask mask = {new_key(), threshold, 0, 0, (int32_t)ndim, shape, strides};
  apply_and_keep(&mask, (dropfast_dtype)code, x.data(), Bytes(x, kItemSize[code]).strides, out.mutable_data(),
                 Bytes(out, kItemSize[code]).strides, kept.mutable_data(), out.strides());
  return {std::move(out), std::move(kept)};
}

// ---- the kernels

int64_t large;  // see use_torch_functions

// Whether a tensor has few elements, and has them in memory: those of compilers have none.
bool is_small(const Tensor& x) {
  int64_t n;  // an error where it is a symbol
  const void* data;
  return torch.aoti_torch_get_numel(x.get(), &n) == 0 && n < large &&
         torch.torch_get_const_data_ptr(x.get(), &data) == 0 && data;
}

// dropout(Tensor input, float p, bool train) -> Tensor, and dropout_
template <bool kInPlace>
void dropout(Value* stack, uint64_t, uint64_t) {
  Tensor input(stack[0]);
  const double p = as_double(stack[1]);
  if (!(p >= 0 && p <= 1)) {
    char message[100];
    snprintf(message, sizeof message, "dropout probability has to be between 0 and 1, but got %g", p);
    throw std::runtime_error(message);
  }
  if (!(stack[2] & 1) || p == 0) {
    stack[0] = input.release();
    return;
  }
  if (!is_small(input)) {
    stack[0] = input.release();
    return call(kInPlace ? "dropfast::any_dropout_" : "dropfast::any_dropout", stack);
  }
  // From what is drawn, so that PyTorch computes the scale of the gradient from it.
  Value drawn[3] = {input.copy(), as_value((double)threshold(p) * 0x1p-32), optional_true()};
  call("aten::native_dropout", drawn);
  const Tensor kept(drawn[1]);
  stack[0] = drawn[0];
  if (!kInPlace) return;
  Value copied[3] = {input.copy(), drawn[0], 0};
  call("aten::copy_", copied);
  stack[0] = copied[0];
}

// native_dropout(Tensor input, float p, bool? train) -> (Tensor, Tensor)
void native_dropout(Value* stack, uint64_t, uint64_t) {
  Tensor input(stack[0]);
  auto* train = reinterpret_cast<Value*>(stack[2]);
  const double p = as_double(stack[1]);
  if (!is_ours(input) || !(p >= 0 && p <= 1) || (train && !(*train & 1))) {
    stack[0] = input.release();
    return call("dropfast::any_native_dropout", stack);
  }
  if (train) check(torch.torch_delete_stable_ivalue(train));
  auto [out, kept] = drop(input, threshold(p));
  stack[0] = out.release();
  stack[1] = kept.release();
}

// _fused_dropout(Tensor self, float p, Generator? generator=None) -> (Tensor, Tensor), where p is of being kept
void fused_dropout(Value* stack, uint64_t, uint64_t) {
  const Tensor input(stack[0]);
  if (!is_ours(input) || stack[2]) throw std::runtime_error("_fused_dropout is for dropfast.torch alone on the CPU");
  auto [out, kept] = drop(input, threshold(1 - as_double(stack[1])));
  stack[0] = out.release();
  stack[1] = kept.release();
}

// native_dropout_backward(Tensor grad_output, Tensor mask, float scale) -> Tensor, and _masked_scale
void native_dropout_backward(Value* stack, uint64_t, uint64_t) {
  Tensor grad(stack[0]), kept(stack[1]);
  const int64_t ndim = grad.ndim();
  if (!is_ours(grad) || kept.dtype() != torch.aoti_torch_dtype_bool() || kept.ndim() != ndim ||
      !std::equal(grad.sizes(), grad.sizes() + ndim, kept.sizes()) || !(is_dense(grad) || is_dense(kept))) {
    stack[0] = grad.release();
    stack[1] = kept.release();
    return call("dropfast::any_native_dropout_backward", stack);
  }
  const auto code = (dropfast_dtype)dtype_code(grad.dtype());
  if (!is_dense(grad)) grad = copy_as(kept, grad);
  if (!same_layout(grad, kept)) kept = copy_as(grad, kept);
  Tensor out = empty_as(grad, grad.dtype());
  select(code, grad.data(), out.mutable_data(), grad.numel(), (const uint8_t*)kept.data(), as_double(stack[2]));
  stack[0] = out.release();
}

// dropfast::new_state(Tensor input) -> Tensor
void new_state(Value* stack, uint64_t, uint64_t) {
  Tensor input(stack[0]);
  if (input.numel() == 0) {  // it stands for one on another device
    stack[0] = input.release();
    return call("dropfast::any_new_state", stack);
  }
  const int64_t length = 3, stride = 1;
  Tensor state;
  check(torch.aoti_torch_empty_strided(1, &length, &stride, torch.aoti_torch_dtype_int64(),
                                       torch.aoti_torch_device_type_cpu(), 0, state.receive()));
  auto* numbers = static_cast<int64_t*>(state.mutable_data());
  numbers[0] = (int64_t)new_key();
  numbers[1] = numbers[2] = 0;
  stack[0] = state.release();
}

// Whether tensors may have tangents, which graphs do not know.
bool is_forward_ad_on() {
  const py::gil_scoped_acquire acquire;
  return py::module_::import("dropfast.torch._private").attr("is_forward_ad_on")().cast<bool>();
}

// dropfast::apply_in_graph(Tensor input, Tensor state, SymInt[] strides, int threshold) -> Tensor
void apply_in_graph(Value* stack, uint64_t, uint64_t) {
  Tensor input(stack[0]), state(stack[1]);
  if (!is_ours(input) || input.numel() > kSlabElements || state.ndim() != 1 || *state.strides() != 1 ||
      is_forward_ad_on()) {
    stack[0] = input.release();
    stack[1] = state.release();
    return call("dropfast::any_apply", stack);
  }
  const std::vector<int64_t> strides = numbers_of(stack[2]);
  const int64_t ndim = input.ndim();
  if ((int64_t)strides.size() != ndim) throw std::invalid_argument("strides must be one for each axis of input");
  const int code = dtype_code(input.dtype());
  const auto* numbers = static_cast<const int64_t*>(state.data());
  const dropfast_mask mask = {(uint64_t)numbers[0], (uint64_t)stack[3], (uint64_t)numbers[2], (uint32_t)numbers[1],
                              (int32_t)ndim,        input.sizes(),      strides.data()};
  Tensor out = empty_like(input);
  apply(&mask, (dropfast_dtype)code, input.data(), Bytes(input, kItemSize[code]).strides, out.mutable_data(),
        Bytes(out, kItemSize[code]).strides);
  stack[0] = out.release();
}

const std::pair<const char*, Kernel> kKernels[] = {
    {"dropout", dropout<false>},        {"dropout_", dropout<true>},
    {"native_dropout", native_dropout}, {"native_dropout_backward", native_dropout_backward},
    {"_fused_dropout", fused_dropout},  {"_masked_scale", native_dropout_backward},
    {"new_state", new_state},           {"apply_in_graph", apply_in_graph},
};

}  // namespace

// ---- for Python

#ifdef __MINGW32__  // PyTorch is built by MSVC, whose functions the exceptions of GCC's cannot pass through
const std::vector<const char*> torch_functions;
#else
#define DROPFAST_NAME(Result, name, ...) #name,
const std::vector<const char*> torch_functions = {DROPFAST_TORCH_FUNCTIONS(DROPFAST_NAME)};
#undef DROPFAST_NAME
#endif

// What PyTorch reads of it: a pointer to three objects and a string. It has been the same from pybind11 2.10 to 3.1.
const bool has_known_errors = PYBIND11_VERSION_MAJOR == 3 && PYBIND11_VERSION_MINOR <= 1 &&
                              sizeof(py::error_already_set) == sizeof(std::exception) + sizeof(std::shared_ptr<void>);

void use_torch_functions(const std::vector<uintptr_t>& addresses, int64_t large_numel, bool takes_our_errors) {
  if (addresses.size() * sizeof(uintptr_t) != sizeof torch) throw std::invalid_argument("an address for each function");
  memcpy(&torch, addresses.data(), sizeof torch);
  large = large_numel;
  errors_pass = takes_our_errors;
}

uintptr_t implement_in_torch(const std::string& name_space, const std::vector<std::string>& operators,
                             const std::string& dispatch_key) {
  Library* library;
  check(torch.aoti_torch_library_init_impl(name_space.c_str(), dispatch_key.c_str(), "dropfast", 0, &library));
  for (const auto& [name, kernel] : kKernels) {
    if (std::find(operators.begin(), operators.end(), name) == operators.end()) continue;
    check(torch.torch_library_impl(library, name, kernel, kAbi));
  }
  return reinterpret_cast<uintptr_t>(library);
}

void forget_in_torch(uintptr_t library) {
  check(torch.aoti_torch_delete_library_object(reinterpret_cast<Library*>(library)));
}

}  // namespace dropfast
