# cython: language_level=3, freethreading_compatible=True
"""The Cython API: what is declared in cython_api.pxd, with the kernels of dropfast._native.

The functions come from the extension's capsule, so they exist once in the process, and DROPFAST_ISA governs them too.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer

from dropfast import _native

cdef extern from "dropfast.h" nogil:
    enum: DROPFAST_API_VERSION
    ctypedef struct dropfast_mask:
        pass
    ctypedef enum dropfast_dtype:
        pass
    ctypedef struct dropfast_api:
        int32_t version
        uint64_t (*threshold)(double) noexcept nogil
        void (*apply)(const dropfast_mask *, dropfast_dtype, const void *, const int64_t *, void *,
                      const int64_t *) noexcept nogil
        void (*packed)(const dropfast_mask *, uint8_t *) noexcept nogil

cdef const dropfast_api *api = <const dropfast_api *> PyCapsule_GetPointer(_native._C_API, "dropfast._native._C_API")
if api.version != DROPFAST_API_VERSION or sizeof(Mask) != sizeof(dropfast_mask):
    raise ImportError("dropfast.cython_api and dropfast._native are of different versions")


cdef uint64_t threshold(double rate) noexcept nogil:
    return api.threshold(rate)


cdef void dropout(const floating *x, floating *out, int64_t rows, int64_t columns, bint shared, double rate,
                  uint64_t key, uint32_t draw) noexcept nogil:
    cdef int64_t[2] shape = [rows, columns]
    cdef int64_t[2] strides = [0 if shared else columns, 1]
    cdef int64_t[2] in_bytes = [columns * <int64_t> sizeof(floating), sizeof(floating)]
    cdef Mask mask = Mask(key, api.threshold(rate), 0, draw, 2, &shape[0], &strides[0])
    apply(&mask, FLOAT32 if floating is float else FLOAT64, x, in_bytes, out, in_bytes)


cdef void apply(const Mask *mask, DType dtype, const void *x, const int64_t *x_strides, void *out,
                const int64_t *out_strides) noexcept nogil:
    api.apply(<const dropfast_mask *> mask, <dropfast_dtype> <int> dtype, x, x_strides, out, out_strides)


cdef void packed(const Mask *mask, uint8_t *out) noexcept nogil:
    api.packed(<const dropfast_mask *> mask, out)
