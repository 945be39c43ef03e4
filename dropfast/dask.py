"""Dask: one mask over all chunks of an array, whatever the chunks are.

>>> import dask.array as da
>>> import dropfast.dask
>>> x = da.ones((4, 6), chunks=(2, 3), dtype="float32")
>>> dropfast.dask.dropout(x, 0.5, rng=0).compute()
array([[0., 2., 0., 2., 0., 2.],
       [2., 0., 0., 2., 0., 2.],
       [0., 0., 2., 2., 0., 2.],
       [2., 2., 2., 2., 0., 0.]], dtype=float32)
"""

from __future__ import annotations

from dropfast import _doors

_doors.need("dask")

import math
from collections.abc import Iterable
from typing import Any, SupportsIndex

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.layers import ArraySliceDep

from dropfast import _checks
from dropfast._checks import RateLike, RNGLike, SeedLike
from dropfast._mask import Mask

__all__ = ["apply", "dropout"]


def dropout(
    x: da.Array,
    rate: RateLike = 0.5,
    *,
    rng: RNGLike | SeedLike | None = None,
    shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
    noise_shape: Iterable[SupportsIndex | None] | None = None,
) -> da.Array:
    """Drop elements of a Dask array at random, and scale the kept ones so that the mean stays.

    Parameters
    ----------
    x : dask.array.Array
        float16, bfloat16 (of ml_dtypes), float32 or float64, in chunks of numpy.ndarray (no subclass) of known sizes.
    rate : float, default 0.5
        Probability that an element is dropped, in [0, 1], with a resolution of 2**-32.
    rng : None, int, sequence of ints, SeedSequence, BitGenerator, Generator or RandomState, optional
        Where the mask's key comes from, as in `dropfast.dropout`. It is drawn here and now, not when `x` is computed.
    shared_axes : int or tuple of ints, default ()
        Axes along which all elements share their fate, across all chunks. ``0`` drops the same units for the whole
        array.
    noise_shape : tuple of int or None, optional
        The same in TensorFlow's words: the shape of the mask, with 1 on shared axes and the full length, or None, on
        others. Give this or `shared_axes`.

    Returns
    -------
    dask.array.Array
        Lazy, with the shape, dtype and chunks of `x`: ``x * scale`` where kept, +0.0 where dropped.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range, and for unknown chunk sizes. Nothing is computed for that.

    See Also
    --------
    apply : with a mask of your own, which is also how a gradient gets the same mask.

    Notes
    -----
    The result is that of ``dropfast.dropout`` on the whole array with the same `rng`, bit for bit, for all chunks,
    schedulers and numbers of workers. A task that runs again, on another worker, say, gives the same block again.

    Examples
    --------
    >>> import dask.array as da
    >>> import dropfast.dask
    >>> x = da.ones((1000, 1000), chunks=(300, 250))
    >>> y = dropfast.dask.dropout(x, 0.5, rng=0)
    >>> z = dropfast.dask.dropout(x.rechunk((128, 512)), 0.5, rng=0)
    >>> bool((y == z).all())
    True
    """
    _check(x)
    return apply(Mask(x.shape, rate, rng=rng, shared_axes=shared_axes, noise_shape=noise_shape), x)


def apply(mask: Mask, x: da.Array) -> da.Array:
    """Apply a mask to a Dask array: the forward pass, and with the gradient for it the backward pass.

    Parameters
    ----------
    mask : dropfast.Mask
        Of the shape of `x`.
    x : dask.array.Array
        float16, bfloat16 (of ml_dtypes), float32 or float64, in chunks of numpy.ndarray (no subclass) of known sizes.

    Returns
    -------
    dask.array.Array
        Lazy, with the shape, dtype and chunks of `x`: ``x * scale`` where kept, +0.0 where dropped.

    Raises
    ------
    TypeError
        If `mask` is no mask, or `x` no Dask array, or one of other chunks or another dtype.
    ValueError
        If `x` has another shape than the mask, or unknown chunk sizes.

    Notes
    -----
    The result is that of ``mask.apply`` on the whole array, bit for bit: each chunk computes its own window of the
    mask. Equal masks of equal arrays are one array to Dask: their names are equal, and they are computed once.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import dropfast.dask
    >>> mask = dropfast.Mask((1000, 1000), 0.1, key=123)
    >>> y = dropfast.dask.apply(mask, da.ones(mask.shape, chunks=300))
    >>> np.array_equal(y.compute(), mask.apply(np.ones(mask.shape)))
    True
    """
    if not isinstance(mask, Mask):
        raise _checks.not_a_mask(mask)
    _check(x)
    if x.shape != mask.shape:
        raise _checks.wrong_shape(mask.shape, x.shape)
    axes = tuple(range(x.ndim))
    # `map_blocks` also tells a function where its block lies, but by a dictionary for each block, made when the graph
    # is: with 65,536 chunks that takes a hundred times as long. With `meta`, nothing is called on an empty dummy.
    y: da.Array = da.blockwise(
        _apply_window,
        axes,
        *(x, axes),
        *(ArraySliceDep(x.chunks), axes),
        mask=mask,
        token="dropout",
        meta=x._meta,
        align_arrays=False,
    )
    return y


def _apply_window(block: Any, where: tuple[slice, ...], mask: Mask) -> npt.NDArray[Any]:
    """Return what becomes of one block: the task that the workers run."""
    window = mask.window([part.start for part in where], [part.stop - part.start for part in where])
    return window.apply(np.asanyarray(block))  # a block of no axes may be a NumPy scalar


def _check(x: Any) -> None:
    """Raise what is wrong with an array for any mask; its metadata tells, nothing is computed."""
    if not isinstance(x, da.Array):
        raise TypeError(f"x must be a dask.array.Array, got {type(x).__name__}{_doors.hint(x)}")
    if type(x._meta) is not np.ndarray:
        raise TypeError(f"x must have chunks of numpy.ndarray itself, no subclass, got {type(x._meta).__name__}")
    if not _checks.takes(x.dtype):
        raise _checks.wrong_dtype(x.dtype)
    if any(math.isnan(n) for n in x.shape):
        raise ValueError(
            f"x must have known chunk sizes, got the shape {x.shape}; x.compute_chunk_sizes() finds them out"
        )
