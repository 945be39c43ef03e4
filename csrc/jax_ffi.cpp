// The JAX door: the engine as a handler of XLA's foreign function interface. XLA calls it from its own threads, without
// Python; dropfast/jax/_primitive.py says what the operands are.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "dropfast.h"
#include "xla/ffi/api/ffi.h"

namespace py = pybind11;
namespace ffi = xla::ffi;

namespace {

const dropfast_api* api;  // of dropfast._native, so that the kernels exist once in the process

// The words of a mask: key, draw, threshold and start (the high word first), and then the offset along each axis.
constexpr size_t kWordsBeforeOffsets = 7;

uint64_t join(uint32_t high, uint32_t low) { return static_cast<uint64_t>(high) << 32 | low; }

int dtype_code(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::F16:
      return DROPFAST_FLOAT16;
    case ffi::BF16:
      return DROPFAST_BFLOAT16;
    case ffi::F32:
      return DROPFAST_FLOAT32;
    case ffi::F64:
      return DROPFAST_FLOAT64;
    default:
      return -1;
  }
}

// All axes of words but the last count masks. x and out have the same, and behind them those of a mask, all in C order.
ffi::Error apply(ffi::AnyBuffer x, ffi::Buffer<ffi::U32> words, ffi::Result<ffi::AnyBuffer> out,
                 ffi::Span<const int64_t> strides) {
  const size_t ndim = strides.size(), words_each = kWordsBeforeOffsets + ndim;
  const auto lengths = x.dimensions(), words_lengths = words.dimensions();
  const int dtype = dtype_code(x.element_type());
  if (dtype < 0 || ndim > DROPFAST_MAX_NDIM || lengths.size() + 1 != words_lengths.size() + ndim ||
      words_lengths.back() != static_cast<int64_t>(words_each)) {
    return ffi::Error::InvalidArgument("dropfast takes 16, 32 and 64 bit floats with at most 64 axes");
  }
  if (x.element_count() == 0) return ffi::Error::Success();

  const int64_t* shape = lengths.end() - ndim;
  int64_t bytes[DROPFAST_MAX_NDIM];
  int64_t bytes_each = static_cast<int64_t>(ffi::ByteWidth(x.element_type()));
  for (size_t d = ndim; d-- > 0;) {
    bytes[d] = bytes_each;
    bytes_each *= shape[d];
  }
  const auto* from = static_cast<const char*>(x.untyped_data());
  auto* to = static_cast<char*>(out->untyped_data());
  const uint32_t* end = words.typed_data() + words.element_count();
  for (const uint32_t* w = words.typed_data(); w != end; w += words_each, from += bytes_each, to += bytes_each) {
    dropfast_mask mask;
    mask.key = join(w[0], w[1]);
    mask.threshold = join(w[3], w[4]);
    mask.start = join(w[5], w[6]);
    for (size_t d = 0; d < ndim; ++d) mask.start += w[kWordsBeforeOffsets + d] * static_cast<uint64_t>(strides[d]);
    mask.draw = w[2];
    mask.ndim = static_cast<int32_t>(ndim);
    mask.shape = shape;
    mask.strides = strides.begin();
    api->apply(&mask, static_cast<dropfast_dtype>(dtype), from, bytes, to, bytes);
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER(handler, apply,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::Buffer<ffi::U32>>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<ffi::Span<const int64_t>>("strides"));

}  // namespace

PYBIND11_MODULE(_jax_ffi, m, py::mod_gil_not_used(), py::multiple_interpreters::per_interpreter_gil()) {
  m.doc() = "dropfast as a handler of XLA's foreign function interface; see dropfast/jax/_handler.py.";
  api = py::module_::import("dropfast._native").attr("_C_API").cast<py::capsule>();
  if (api->version != DROPFAST_API_VERSION) {
    throw py::import_error("dropfast._jax_ffi and dropfast._native are of different versions");
  }
  m.attr("handler") = py::capsule(reinterpret_cast<void*>(handler));
  m.attr("API_VERSION") = py::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}
