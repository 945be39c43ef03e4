// The TensorFlow door: the engine as an operator, by TensorFlow's C interface for operators and kernels (its headers
// tensorflow/c/{tf_status,tf_tensor,ops,kernels}.h). The functions are looked up in the process when TensorFlow loads
// this library, so that it is built without TensorFlow, and once for all its versions. dropfast/tensorflow says what
// the operands are.
#include <dlfcn.h>

#include <cstdint>
#include <initializer_list>

#include "dropfast.h"

namespace {

// What TensorFlow's headers declare. The codes are those of its protocol buffers, which do not change.
struct TF_Status;
struct TF_Tensor;
struct TF_OpKernelContext;
struct TF_OpKernelConstruction;
struct TF_KernelBuilder;
struct TF_OpDefinitionBuilder;
struct TF_ShapeHandle;
struct TF_ShapeInferenceContext;
enum { TF_OK = 0, TF_INVALID_ARGUMENT = 3 };
enum { TF_FLOAT = 1, TF_DOUBLE = 2, TF_BFLOAT16 = 14, TF_HALF = 19 };

#define FUNCTIONS(X)                                                                                       \
  X(TF_Status*, TF_NewStatus, ())                                                                          \
  X(void, TF_DeleteStatus, (TF_Status*))                                                                   \
  X(void, TF_SetStatus, (TF_Status*, int, const char*))                                                    \
  X(int, TF_GetCode, (const TF_Status*))                                                                   \
  X(int, TF_TensorType, (const TF_Tensor*))                                                                \
  X(int, TF_NumDims, (const TF_Tensor*))                                                                   \
  X(int64_t, TF_Dim, (const TF_Tensor*, int))                                                              \
  X(void*, TF_TensorData, (const TF_Tensor*))                                                              \
  X(void, TF_DeleteTensor, (TF_Tensor*))                                                                   \
  X(void, TF_GetInput, (TF_OpKernelContext*, int, TF_Tensor**, TF_Status*))                                \
  X(TF_Tensor*, TF_ForwardInputOrAllocateOutput,                                                           \
    (TF_OpKernelContext*, const int*, int, int, const int64_t*, int, int*, TF_Status*))                    \
  X(void, TF_OpKernelContext_Failure, (TF_OpKernelContext*, TF_Status*))                                   \
  X(TF_KernelBuilder*, TF_NewKernelBuilder,                                                                \
    (const char*, const char*, void* (*)(TF_OpKernelConstruction*), void (*)(void*, TF_OpKernelContext*),  \
     void (*)(void*)))                                                                                     \
  X(void, TF_RegisterKernelBuilder, (const char*, TF_KernelBuilder*, TF_Status*))                          \
  X(TF_OpDefinitionBuilder*, TF_NewOpDefinitionBuilder, (const char*))                                     \
  X(void, TF_OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder*, const char*))                           \
  X(void, TF_OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder*, const char*))                          \
  X(void, TF_OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder*, const char*))                         \
  X(void, TF_OpDefinitionBuilderSetShapeInferenceFunction,                                                 \
    (TF_OpDefinitionBuilder*, void (*)(TF_ShapeInferenceContext*, TF_Status*)))                            \
  X(void, TF_RegisterOpDefinition, (TF_OpDefinitionBuilder*, TF_Status*))                                  \
  X(TF_ShapeHandle*, TF_NewShapeHandle, ())                                                                \
  X(void, TF_DeleteShapeHandle, (TF_ShapeHandle*))                                                         \
  X(void, TF_ShapeInferenceContextGetInput, (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*)) \
  X(void, TF_ShapeInferenceContextSetOutput, (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*))

#define DECLARE(result, name, arguments) result(*name) arguments;
FUNCTIONS(DECLARE)

// False if this process has no TensorFlow, or one without a function of these.
bool look_up_functions() {
  void* library = nullptr;
  for (const char* name : {"libtensorflow_framework.so.2", "libtensorflow_framework.2.dylib"}) {
    if (!library) library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
  }
  if (!library) return false;
#define LOOK_UP(result, name, arguments)                               \
  name = reinterpret_cast<result(*) arguments>(dlsym(library, #name)); \
  if (!name) return false;
  FUNCTIONS(LOOK_UP)
  return true;
}

constexpr const char* kName = "Dropfast>Dropout";
const dropfast_api* api;  // of dropfast._native, so that the kernels exist once in the process

// The words of a mask: key, draw, threshold and start, and then, unless x is the whole and shares no axis, the strides.
constexpr int kWordsBeforeStrides = 4;

int dtype_code(int type) {
  switch (type) {
    case TF_HALF:
      return DROPFAST_FLOAT16;
    case TF_BFLOAT16:
      return DROPFAST_BFLOAT16;
    case TF_FLOAT:
      return DROPFAST_FLOAT32;
    case TF_DOUBLE:
      return DROPFAST_FLOAT64;
    default:      // GCOV_EXCL_LINE - TensorFlow lets no other dtype come here
      return -1;  // GCOV_EXCL_LINE
  }
}

// Returns what is wrong with the operands, or null.
const char* mask_of(const TF_Tensor* x, const TF_Tensor* words, dropfast_mask* mask, int64_t* shape, int64_t* strides) {
  const int ndim = TF_NumDims(x);
  if (dtype_code(TF_TensorType(x)) < 0 || ndim > DROPFAST_MAX_NDIM) {
    return "dropfast takes 16, 32 and 64 bit floats with at most 64 axes";
  }
  const int64_t n = TF_NumDims(words) == 1 ? TF_Dim(words, 0) : 0;
  if (n != kWordsBeforeStrides && n != kWordsBeforeStrides + ndim) {
    return "dropfast takes the words of a mask, four and perhaps one for each axis";
  }
  const auto* word = static_cast<const uint64_t*>(TF_TensorData(words));
  uint64_t elements = 1;
  for (int d = ndim; d-- > 0;) {
    shape[d] = TF_Dim(x, d);
    strides[d] = static_cast<int64_t>(n == kWordsBeforeStrides ? elements : word[kWordsBeforeStrides + d]);
    elements *= static_cast<uint64_t>(shape[d]);
  }
  *mask = {word[0], word[2], word[3], static_cast<uint32_t>(word[1]), ndim, shape, strides};
  return nullptr;
}

void compute(void*, TF_OpKernelContext* context) {
  TF_Status* status = TF_NewStatus();
  TF_Tensor *x = nullptr, *words = nullptr, *y = nullptr;
  TF_GetInput(context, 0, &x, status);
  if (TF_GetCode(status) == TF_OK) TF_GetInput(context, 1, &words, status);
  if (TF_GetCode(status) == TF_OK) {
    dropfast_mask mask;
    int64_t shape[DROPFAST_MAX_NDIM], strides[DROPFAST_MAX_NDIM], bytes[DROPFAST_MAX_NDIM];
    if (const char* fault = mask_of(x, words, &mask, shape, strides)) {
      TF_SetStatus(status, TF_INVALID_ARGUMENT, fault);
    } else {
      const auto dtype = static_cast<dropfast_dtype>(dtype_code(TF_TensorType(x)));
      int64_t size = dtype == DROPFAST_FLOAT64 ? 8 : dtype == DROPFAST_FLOAT32 ? 4 : 2;
      for (int d = mask.ndim; d-- > 0; size *= shape[d]) bytes[d] = size;
      // The context keeps x where it is; but what is held here too could not become the memory of y.
      const void* from = TF_TensorData(x);
      TF_DeleteTensor(x);
      x = nullptr;
      const int candidate = 0;
      y = TF_ForwardInputOrAllocateOutput(context, &candidate, 1, 0, shape, mask.ndim, nullptr, status);
      if (TF_GetCode(status) == TF_OK && size) api->apply(&mask, dtype, from, bytes, TF_TensorData(y), bytes);
    }
  }
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  for (TF_Tensor* tensor : {x, words, y}) {
    if (tensor) TF_DeleteTensor(tensor);
  }
  TF_DeleteStatus(status);
}

void same_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  TF_DeleteShapeHandle(shape);
}

// While TensorFlow loads this library: what is registered then is what it knows the library to have.
[[maybe_unused]] const bool is_registered = [] {
  if (!look_up_functions()) return false;
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder(kName);
  TF_OpDefinitionBuilderAddInput(op, "x: T");
  TF_OpDefinitionBuilderAddInput(op, "words: int64");
  TF_OpDefinitionBuilderAddOutput(op, "y: T");
  TF_OpDefinitionBuilderAddAttr(op, "T: {half, bfloat16, float, double}");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, same_shape);
  TF_RegisterOpDefinition(op, status);
  if (TF_GetCode(status) == TF_OK) {
    TF_RegisterKernelBuilder(kName, TF_NewKernelBuilder(kName, "CPU", nullptr, compute, nullptr), status);
  }
  const bool done = TF_GetCode(status) == TF_OK;
  TF_DeleteStatus(status);
  return done;
}();

}  // namespace

// Gives the kernel what the capsule dropfast._native._C_API holds; before the operator is run.
extern "C" __attribute__((visibility("default"))) int dropfast_connect(const dropfast_api* native) {
  if (native->version != DROPFAST_API_VERSION) return 0;
  api = native;
  return 1;
}
