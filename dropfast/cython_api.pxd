# dropfast for compiled callers: `from dropfast.cython_api cimport apply, dropout, threshold, Mask`.
#
# The functions need no GIL, check nothing and give the same bits as the Python ones. A big call runs on as many threads
# as OpenMP gives the caller. No header and no library is needed to build against this file.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from cython cimport floating

cpdef enum DType:
    FLOAT16 = 0
    BFLOAT16 = 1
    FLOAT32 = 2
    FLOAT64 = 3

# Element (i_0, i_1, ...) has the index start + i_0 * strides[0] + ... in the mask's whole shape; a shared axis has
# stride 0.
cdef struct Mask:
    uint64_t key
    uint64_t threshold        # threshold(rate)
    uint64_t start            # in [0, 2**63)
    uint32_t draw
    int32_t ndim              # of x, in [0, 64]
    const int64_t *shape      # of x
    const int64_t *strides    # of the index, in mask elements

# The threshold of a rate in [0, 1].
cdef uint64_t threshold(double rate) noexcept nogil

# Dropout of a C-contiguous rows x columns array. `shared`: one mask of a row's length for all rows, which is
# shared_axes=0. out may be x.
cdef void dropout(const floating *x, floating *out, int64_t rows, int64_t columns, bint shared, double rate,
                  uint64_t key, uint32_t draw) noexcept nogil

# Any mask and any layout; strides of x and out in bytes. out is x or does not overlap it.
cdef void apply(const Mask *mask, DType dtype, const void *x, const int64_t *x_strides, void *out,
                const int64_t *out_strides) noexcept nogil

# The bits of the mask in C order, 1 = kept, little bit order, into ceil(size / 8) bytes.
cdef void packed(const Mask *mask, uint8_t *out) noexcept nogil
