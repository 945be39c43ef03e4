# cython: language_level=3, freethreading_compatible=True
# A compiled caller of dropfast, as somebody outside the project would write one.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from dropfast.cython_api cimport FLOAT32, Mask, apply, dropout, packed, threshold


def rows_and_columns(const float[:, ::1] x, float[:, ::1] out, bint shared, double rate, uint64_t key, uint32_t draw):
    with nogil:
        dropout(&x[0, 0], &out[0, 0], x.shape[0], x.shape[1], shared, rate, key, draw)


def rows_and_columns_of_doubles(const double[:, ::1] x, double[:, ::1] out, bint shared, double rate, uint64_t key,
                                uint32_t draw):
    with nogil:
        dropout(&x[0, 0], &out[0, 0], x.shape[0], x.shape[1], shared, rate, key, draw)


def nowhere(int64_t rows, int64_t columns, double rate, uint64_t key):
    """No address that could be read or written."""
    with nogil:
        dropout(<const float *>NULL, <float *>NULL, rows, columns, False, rate, key, 0)


def window_of_a_line(const float[:] x, float[:] out, uint64_t start, double rate, uint64_t key, uint32_t draw):
    """Any strides, and an index that begins anywhere."""
    cdef int64_t shape = x.shape[0], stride = 1, x_stride = x.strides[0], out_stride = out.strides[0]
    cdef Mask mask = Mask(key, threshold(rate), start, draw, 1, &shape, &stride)
    with nogil:
        apply(&mask, FLOAT32, &x[0], &x_stride, &out[0], &out_stride)


def bits(unsigned char[::1] out, int64_t n, double rate, uint64_t key, uint32_t draw):
    cdef int64_t stride = 1
    cdef Mask mask = Mask(key, threshold(rate), 0, draw, 1, &n, &stride)
    with nogil:
        packed(&mask, &out[0])
