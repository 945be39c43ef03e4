// The Python door: takes arrays and a recipe apart, releases the GIL, calls the engine.
//
// It raises nothing about arrays. What apply() cannot take it leaves untouched and answers False, and
// dropfast/_checks.py finds the words.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "engine.h"
#include "kernels.h"
#include "thin.h"
#include "torch_ops.h"

namespace py = pybind11;

namespace dropfast {
namespace {

static_assert(sizeof(py::ssize_t) == sizeof(int64_t), "NumPy's shapes and strides are read in place");

constexpr int64_t kGilElements = 1 << 15;  // a call this big takes microseconds, and lets other Python threads run

// Without the GIL while it lives. Before Python 3.14 a daemon thread that wants the GIL back as the interpreter ends is
// ended by unwinding its stack, at the first destructor of which C++ ends the process; from 3.14 on it waits for ever,
// as here.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* const state_;
};

inline const int64_t* as_int64(const py::ssize_t* p) { return reinterpret_cast<const int64_t*>(p); }

// The recipe of a mask, as dropfast/_checks.py defines it: (shape, strides, start, key, draw, threshold).
class Recipe {
 public:
  explicit Recipe(const py::tuple& recipe) {
    const py::handle shape = recipe[0], strides = recipe[1];
    mask_.ndim = static_cast<int32_t>(integers(shape, shape_));
    if (integers(strides, strides_) != mask_.ndim) throw py::value_error("recipe: shape and strides differ in length");
    mask_.shape = shape_;
    mask_.strides = strides_;
    mask_.start = integer(recipe[2]);
    mask_.key = integer(recipe[3]);
    mask_.draw = static_cast<uint32_t>(integer(recipe[4]));
    mask_.threshold = integer(recipe[5]);
  }
  const dropfast_mask& mask() const { return mask_; }

 private:
  static uint64_t integer(py::handle h) {
    const uint64_t value = PyLong_AsUnsignedLongLong(h.ptr());
    if (value == ~uint64_t{0} && PyErr_Occurred()) throw py::error_already_set();
    return value;
  }

  static py::ssize_t integers(py::handle h, int64_t* to) {
    if (!PyTuple_Check(h.ptr()) || PyTuple_GET_SIZE(h.ptr()) > DROPFAST_MAX_NDIM) {
      throw py::value_error("recipe: shape and strides must be tuples of at most 64 integers");
    }
    const py::ssize_t n = PyTuple_GET_SIZE(h.ptr());
    for (py::ssize_t i = 0; i < n; ++i) to[i] = static_cast<int64_t>(integer(PyTuple_GET_ITEM(h.ptr(), i)));
    return n;
  }

  dropfast_mask mask_;
  int64_t shape_[DROPFAST_MAX_NDIM], strides_[DROPFAST_MAX_NDIM];
};

// ndarray itself, or memmap, which is one in a file. Other subclasses would lose what makes them one.
bool is_plain_array(py::handle h) {
  if (!py::isinstance<py::array>(h)) return false;
  return Py_TYPE(h.ptr()) == py::detail::npy_api::get().PyArray_Type_ ||
         py::type::handle_of(h).is(py::module_::import("numpy").attr("memmap"));
}

// dropfast_dtype, or -1.
int dtype_code(const py::dtype& dtype) {
  if (dtype.byteorder() != '=') return -1;
  switch (dtype.num()) {
    case 23:  // NPY_HALF
      return DROPFAST_FLOAT16;
    case 11:  // NPY_FLOAT
      return DROPFAST_FLOAT32;
    case 12:  // NPY_DOUBLE
      return DROPFAST_FLOAT64;
  }
  // ml_dtypes.bfloat16 gets its number at run time, so its scalar type has to name it.
  const py::object scalar = dtype.attr("type");
  const char* name = reinterpret_cast<PyTypeObject*>(scalar.ptr())->tp_name;
  return std::strcmp(name, "ml_dtypes.bfloat16") == 0 ? DROPFAST_BFLOAT16 : -1;
}

bool has_shape(const py::array& a, const dropfast_mask& mask) {
  return a.ndim() == mask.ndim && std::equal(mask.shape, mask.shape + mask.ndim, as_int64(a.shape()));
}

// Whether elements may share memory: an axis steps less far than the ones inside it reach.
bool overlaps_itself(const py::array& a) {
  if (a.flags() & py::array::c_style) return false;
  std::pair<py::ssize_t, py::ssize_t> steps[DROPFAST_MAX_NDIM];  // stride and length
  int n = 0;
  for (py::ssize_t d = 0; d < a.ndim(); ++d) {
    if (a.shape(d) > 1) steps[n++] = {std::abs(a.strides(d)), a.shape(d)};
  }
  std::sort(steps, steps + n);
  py::ssize_t reach = a.itemsize();
  for (int i = 0; i < n; ++i) {
    if (steps[i].first < reach) return true;
    reach += steps[i].first * (steps[i].second - 1);
  }
  return false;
}

// out is x itself, or shares no element with it.
bool may_write(const py::array& x, const py::array& out) {
  const auto extent = [](const py::array& a, const char** low, const char** high) {
    *low = static_cast<const char*>(a.data());
    *high = *low + a.itemsize();
    for (py::ssize_t d = 0; d < a.ndim(); ++d) {
      (a.strides(d) < 0 ? *low : *high) += (a.shape(d) - 1) * a.strides(d);
    }
  };
  const char *x_low, *x_high, *out_low, *out_high;
  extent(x, &x_low, &x_high);
  extent(out, &out_low, &out_high);
  if (x_high <= out_low || out_high <= x_low) return true;
  bool same = x.data() == out.data();
  for (py::ssize_t d = 0; d < x.ndim(); ++d) same &= x.strides(d) == out.strides(d) || x.shape(d) == 1;
  return same || !py::module_::import("dropfast._checks").attr("share_memory")(x, out).cast<bool>();
}

// Python's answer to the signals that came meanwhile: KeyboardInterrupt for Ctrl-C.
void look_at_signals() {
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Applies a mask to a big array slab by slab of its longest axis, so that Ctrl-C does not have to wait for the end.
void apply_in_slabs(const dropfast_mask& mask, dropfast_dtype dtype, const char* x, const int64_t* x_strides, char* out,
                    const int64_t* out_strides, int64_t size) {
  if (size <= kSlabElements) {
    {
      const WithoutGil release;
      apply(&mask, dtype, x, x_strides, out, out_strides);
    }
    return look_at_signals();
  }
  int64_t shape[DROPFAST_MAX_NDIM];
  std::copy(mask.shape, mask.shape + mask.ndim, shape);
  const auto d = std::max_element(shape, shape + mask.ndim) - shape;
  const int64_t length = shape[d], step = std::max<int64_t>(1, kSlabElements / (size / length));
  dropfast_mask slab = mask;
  slab.shape = shape;
  for (int64_t begin = 0; begin < length; begin += step) {
    shape[d] = std::min(step, length - begin);
    apply_in_slabs(slab, dtype, x + begin * x_strides[d], x_strides, out + begin * out_strides[d], out_strides,
                   size / length * shape[d]);
    slab.start += static_cast<uint64_t>(step) * static_cast<uint64_t>(mask.strides[d]);
  }
}

// The mask that is to lie beside out: a byte for each element, in its place.
void* bytes_beside(const py::array& out, py::handle kept_object) {
  const auto kept = py::reinterpret_borrow<py::array>(kept_object);
  bool beside = kept.dtype().num() == 0 /* NPY_BOOL */ && kept.writeable() && kept.ndim() == out.ndim();
  for (py::ssize_t d = 0; beside && d < out.ndim(); ++d) {
    beside = kept.shape(d) == out.shape(d) && (out.shape(d) == 1 || kept.strides(d) * out.itemsize() == out.strides(d));
  }
  if (!beside) throw py::value_error("apply: kept must be a writable array of booleans that lies as out does");
  return const_cast<void*>(kept.data());
}

bool apply_to_arrays(py::handle x_object, py::handle out_object, const py::tuple& recipe, py::handle kept_object) {
  if (!is_plain_array(x_object) || !is_plain_array(out_object)) return false;
  const auto x = py::reinterpret_borrow<py::array>(x_object), out = py::reinterpret_borrow<py::array>(out_object);
  const Recipe with(recipe);
  const int dtype = dtype_code(x.dtype());
  if (dtype < 0 || dtype_code(out.dtype()) != dtype || !has_shape(x, with.mask()) || !has_shape(out, with.mask())) {
    return false;
  }
  if (x.size() == 0) return out.writeable();
  if (!out.writeable() || overlaps_itself(out) || !may_write(x, out)) return false;

  const auto code = static_cast<dropfast_dtype>(dtype);
  const auto* from = static_cast<const char*>(x.data());
  auto* to = static_cast<char*>(const_cast<void*>(out.data()));
  const int64_t *x_strides = as_int64(x.strides()), *out_strides = as_int64(out.strides());
  if (!kept_object.is_none()) {
    void* kept = bytes_beside(out, kept_object);
    int64_t kept_strides[DROPFAST_MAX_NDIM];
    for (py::ssize_t d = 0; d < out.ndim(); ++d) kept_strides[d] = out_strides[d] / out.itemsize();
    const WithoutGil release;
    apply_and_keep(&with.mask(), code, from, x_strides, to, out_strides, kept, kept_strides);
  } else if (x.size() < kGilElements) {
    apply(&with.mask(), code, from, x_strides, to, out_strides);
  } else {
    apply_in_slabs(with.mask(), code, from, x_strides, to, out_strides, x.size());
  }
  return true;
}

void packed_to_array(const py::array_t<uint8_t>& out, const py::tuple& recipe) {
  const Recipe with(recipe);
  int64_t size = 1;
  for (int d = 0; d < with.mask().ndim; ++d) {
    if (__builtin_mul_overflow(size, with.mask().shape[d], &size)) throw py::value_error("packed: too many elements");
  }
  if (out.ndim() != 1 || out.size() != size / 8 + (size % 8 > 0) || !out.writeable() ||
      (out.flags() & py::array::c_style) == 0) {
    throw py::value_error("packed: out must be a writable, contiguous uint8 array of ceil(size / 8) bytes");
  }
  uint8_t* to = const_cast<uint8_t*>(out.data());
  const WithoutGil release;
  packed(&with.mask(), to, [] {
    const py::gil_scoped_acquire acquire;
    look_at_signals();
  });
}

Move move_of(const std::string& name) {
  if (name == "compress") return kCompress;
  if (name == "expand") return kExpand;
  if (name == "add") return kAdd;
  throw py::value_error("thin: no such move");
}

// Python has found the arrays legal; what would be read or written in the wrong place is refused here nevertheless.
void thin_arrays(const std::string& name, const py::array& wide, const py::array& compact, const py::dict& along,
                 const py::object& factor) {
  const Move move = move_of(name);
  const int dtype = dtype_code(wide.dtype());
  const auto n = static_cast<int>(wide.ndim());
  bool fits = dtype >= 0 && dtype_code(compact.dtype()) == dtype && compact.ndim() == n;
  ThinAxis axes[DROPFAST_MAX_NDIM];
  for (int d = 0; fits && d < n; ++d) {
    axes[d] = {wide.shape(d), wide.strides(d), compact.strides(d), nullptr};
    if (along.contains(d)) {
      const py::object kept_there = along[py::int_(d)], bits_object = kept_there.attr("bits");
      const auto bits = py::reinterpret_borrow<py::array>(bits_object);
      fits = py::isinstance<py::array_t<uint8_t>>(bits_object) && bits.ndim() == 1 &&
             bits.size() == (wide.shape(d) + 7) / 8 && (bits.flags() & py::array::c_style) != 0;
      if (fits) axes[d].bits = static_cast<const uint8_t*>(bits.data());
    }
    fits = fits && kept(axes[d]) == compact.shape(d);
  }
  if (!fits || !(move == kCompress ? compact : wide).writeable()) {
    throw py::value_error("thin: the arrays do not fit each other");
  }
  const double number = factor.is_none() ? 0 : factor.cast<double>();
  const double* const times = factor.is_none() ? nullptr : &number;
  if (move == kAdd && !times) throw py::value_error("thin: add needs a factor");
  const auto code = static_cast<dropfast_dtype>(dtype);
  void *const wide_data = const_cast<void*>(wide.data()), *const compact_data = const_cast<void*>(compact.data());
  if (wide.size() < kGilElements) return thin(move, code, wide_data, compact_data, axes, n, times);
  const WithoutGil release;
  thin(move, code, wide_data, compact_data, axes, n, times, [] {
    const py::gil_scoped_acquire acquire;
    look_at_signals();
  });
}

const dropfast_api kApi = {DROPFAST_API_VERSION, threshold, apply,
                           [](const dropfast_mask* mask, uint8_t* out) { packed(mask, out); }};

}  // namespace
}  // namespace dropfast

PYBIND11_MODULE(_native, m, py::mod_gil_not_used(), py::multiple_interpreters::per_interpreter_gil()) {
  using namespace dropfast;
  m.doc() = "dropfast's compiled backend; see dropfast/_native.pyi.";
  m.def("apply", apply_to_arrays, py::arg("x"), py::arg("out"), py::arg("recipe"), py::arg("kept") = py::none());
  m.def("packed", packed_to_array, py::arg("out").noconvert(), py::arg("recipe"));
  m.def("thin", thin_arrays, py::arg("move"), py::arg("wide").noconvert(), py::arg("compact").noconvert(),
        py::arg("kept"), py::arg("factor"));
  m.def("isas", [] {
    int n;
    const Isa* list = isas(&n);
    py::list names;
    for (int i = 0; i < n; ++i) {
      if (list[i].supported) names.append(list[i].name);
    }
    return py::tuple(names);
  });
  m.def("isa", current_isa);
  m.def("use_isa", use_isa, py::arg("name"));
  m.def("openmp", has_openmp);
  m.def("threading", threading);
  m.def("max_threads", max_threads);
  m.def("limit_threads", limit_threads, py::arg("n"));
  m.def("set_pool_threads", set_pool_threads, py::arg("n"));
  m.attr("torch_functions") = py::tuple(py::cast(torch_functions));
  m.attr("has_known_errors") = has_known_errors;
  m.def("use_torch_functions", use_torch_functions, py::arg("addresses"), py::arg("large"),
        py::arg("takes_our_errors"));
  m.def("implement_in_torch", implement_in_torch, py::arg("name_space"), py::arg("operators"), py::arg("dispatch_key"));
  m.def("forget_in_torch", forget_in_torch, py::arg("library"));
  m.attr("_C_API") = py::capsule(&kApi, "dropfast._native._C_API");
}
