"""A mask as a value: a few numbers that say which elements are dropped, wherever they are computed."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from dropfast import _backend, _checks
from dropfast._checks import Float, RateLike, RNGLike, SeedLike

_UNPACKED_AT_ONCE = 1 << 16  # bits: NumPy's temporary array stays in the caches, and Ctrl-C need not wait


class Mask:
    """A dropout mask as a recipe: nothing is drawn before it is used, and nothing is stored after.

    Whether an element is dropped is a pure function of (key, draw, the element's index, rate), the same for every
    thread count, instruction set, memory layout and backend: "stream v1" of docs/stream.md. So the backward pass
    applies the same mask again instead of keeping it, and a shard computes its own window of it.

    Parameters
    ----------
    shape : int or tuple of ints
        Shape of the arrays that the mask is for.
    rate : float, default 0.5
        Probability that an element is dropped, in [0, 1], with a resolution of 2**-32.
    key : int
        Which stream of masks, in [0, 2**64).
    rng : None, int, sequence of ints, SeedSequence, BitGenerator, Generator or RandomState
        Where the key comes from, as in `dropout`: the mask is the one that ``dropout(x, rate, rng=rng)`` applies. None,
        the system's entropy, has to be said: give just one of `key` and `rng`.
    draw : int, default 0
        Which mask of the stream, a count in [0, 2**32): 0 is the first one.
    shared_axes : int or tuple of ints, default ()
        Axes along which all elements have one bit in common. ``shared_axes=0`` drops the same units for a whole batch.
    noise_shape : tuple of int or None, optional
        The same in TensorFlow's words: the shape of the mask, with 1 on shared axes and the full length, or None, on
        others. Give this or `shared_axes`.

    Attributes
    ----------
    shape, rate, key, draw, shared_axes, noise_shape
        As given, with `shared_axes` and `noise_shape` as tuples of integers.
    scale : float
        What kept elements are multiplied by.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range. The message names it, what came and what is allowed.

    Notes
    -----
    Masks of one key and draw are nested: what rate 0.1 drops, rate 0.3 drops too. Masks are immutable, compare and
    hash by value, can be pickled, and are safe to use from many threads.

    References
    ----------
    .. [1] Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural
       networks from overfitting", JMLR 15, 2014.
    .. [2] Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11.

    Examples
    --------
    >>> import numpy as np
    >>> from dropfast import Mask
    >>> mask = Mask((2, 8), 0.5, key=7)
    >>> mask.apply(np.ones((2, 8), np.float32))
    array([[2., 0., 2., 2., 0., 2., 0., 0.],
           [0., 2., 0., 2., 2., 2., 2., 0.]], dtype=float32)
    >>> Mask((2, 8), 0.5, key=7, shared_axes=0).keep()
    array([[ True, False,  True,  True, False,  True, False, False]])
    >>> Mask((2, 8), 0.5, rng=0)  # that of dropout(x, 0.5, rng=0)
    Mask((2, 8), 0.5, key=11749869230777074271, draw=0)
    """

    __module__ = "dropfast"  # the name that pickles have for it
    __slots__ = ("_rate", "_recipe", "_shared_axes", "_window")

    _rate: float
    _recipe: _checks.Recipe
    _shared_axes: tuple[int, ...]
    _window: tuple[tuple[int, ...], tuple[int, ...]] | None  # a part's whole shape, and where it begins there

    @overload
    def __init__(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        rate: RateLike = 0.5,
        *,
        key: SupportsIndex,
        draw: SupportsIndex = 0,
        shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
        noise_shape: Iterable[SupportsIndex | None] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        rate: RateLike = 0.5,
        *,
        rng: RNGLike | SeedLike | None,
        draw: SupportsIndex = 0,
        shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
        noise_shape: Iterable[SupportsIndex | None] | None = None,
    ) -> None: ...
    def __init__(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        rate: RateLike = 0.5,
        *,
        key: Any = _checks.NOT_GIVEN,
        rng: Any = _checks.NOT_GIVEN,
        draw: SupportsIndex = 0,
        shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
        noise_shape: Iterable[SupportsIndex | None] | None = None,
    ) -> None:
        lengths = _checks.shape("shape", shape)
        self._rate = _checks.rate(rate)
        strides, self._shared_axes = _checks.sharing(lengths, shared_axes, noise_shape)
        self._window = None
        draw = _checks.unsigned("draw", draw, 32)
        key = _checks.key_or_new(key, rng)  # last, for what is refused draws nothing
        self._recipe = lengths, strides, 0, key, draw, _checks.threshold(self._rate)

    @classmethod
    def _of(
        cls,
        rate: float,
        shared_axes: tuple[int, ...],
        recipe: _checks.Recipe,
        window: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    ) -> Mask:
        """Return a mask from parts that are checked already."""
        mask = object.__new__(cls)
        mask._rate, mask._shared_axes, mask._recipe, mask._window = rate, shared_axes, recipe, window
        return mask

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the arrays that the mask is for."""
        return self._recipe[0]

    @property
    def rate(self) -> float:
        """Probability that an element is dropped."""
        return self._rate

    @property
    def key(self) -> int:
        """Which stream of masks."""
        return self._recipe[3]

    @property
    def draw(self) -> int:
        """Which mask of the stream."""
        return self._recipe[4]

    @property
    def shared_axes(self) -> tuple[int, ...]:
        """Axes along which all elements have one bit in common."""
        return self._shared_axes

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the mask itself: `shape` with 1 on the shared axes."""
        return tuple(1 if axis in self._shared_axes else n for axis, n in enumerate(self.shape))

    @property
    def scale(self) -> float:
        """What kept elements are multiplied by.

        That is ``2**32 / (2**32 - round(rate * 2**32))``, or 0 if none is kept.
        """
        return _checks.scale(self._recipe[5])

    def apply(self, x: npt.NDArray[Float], out: npt.NDArray[Float] | None = None) -> npt.NDArray[Float]:
        """Return `x` with this mask applied: the forward pass, and with the gradient for `x` the backward pass.

        Parameters
        ----------
        x : numpy.ndarray
            Of the mask's shape; float16, bfloat16 (of ml_dtypes), float32 or float64, in any memory layout. A memmap is
            taken too, other subclasses are not.
        out : numpy.ndarray, optional
            Where to write; of the shape and dtype of `x`. May be `x` itself, and must not overlap it otherwise.

        Returns
        -------
        numpy.ndarray
            `out`, or a new array: ``x * scale`` where kept, +0.0 where dropped.

        Raises
        ------
        TypeError
            If `x` or `out` is no array, or of a subclass, or has a dtype that is not allowed.
        ValueError
            If a shape does not fit, or `out` is read-only or overlaps `x` in part. Nothing has been written then.

        Notes
        -----
        Dropped elements are +0.0 whatever they were, NaN and inf too; a kept NaN stays NaN. 16-bit types are
        multiplied in float32 and rounded to nearest even once. The mask follows the index, so the result does not
        depend on the layout.

        Examples
        --------
        >>> import numpy as np
        >>> from dropfast import Mask
        >>> x = np.arange(6.0)
        >>> Mask(6, 0.5, key=1).apply(x, out=x) is x
        True
        """
        return _backend.apply(x, out, self._recipe)

    def keep(self) -> npt.NDArray[np.bool_]:
        """Return the mask as a boolean array.

        Returns
        -------
        numpy.ndarray
            Of booleans and the shape `noise_shape`: True where kept.

        Examples
        --------
        >>> from dropfast import Mask
        >>> Mask((3, 4), 0.25, key=0).keep()
        array([[ True, False,  True, False],
               [ True,  True,  True,  True],
               [ True,  True, False,  True]])
        """
        noise_shape = self.noise_shape
        keep = np.empty(math.prod(noise_shape), np.bool_)
        packed = self.packed()
        for first in range(0, keep.size, _UNPACKED_AT_ONCE):
            part = keep[first : first + _UNPACKED_AT_ONCE]
            part[:] = np.unpackbits(packed[first // 8 :][: (part.size + 7) // 8], count=part.size, bitorder="little")
        return keep.reshape(noise_shape)

    def packed(self) -> npt.NDArray[np.uint8]:
        """Return the mask with one bit an element of `noise_shape`, in C order, 1 where kept.

        Returns
        -------
        numpy.ndarray of uint8
            ``ceil(size / 8)`` bytes; element i is bit ``i % 8`` of byte ``i // 8`` (NumPy's ``bitorder="little"``),
            and unused bits are 0.

        Examples
        --------
        >>> from dropfast import Mask
        >>> Mask(64, 0.5, key=0).packed().tobytes().hex()
        'd5e827668dc569e1'
        """
        _, strides, start, key, draw, threshold = self._recipe
        noise_shape = self.noise_shape
        out = np.empty((math.prod(noise_shape) + 7) // 8, np.uint8)
        if out.size:
            _backend.active.packed(out, (noise_shape, strides, start, key, draw, threshold))
        return out

    def kept(self) -> npt.NDArray[np.intp]:
        """Return which indices are kept along the one axis that the mask varies along, in ascending order.

        Returns
        -------
        numpy.ndarray of intp
            Counted from the start of the mask, or of the window that it is.

        Raises
        ------
        ValueError
            If the mask varies along no axis, or along several. Axes of length 1 are none where another is longer.

        Examples
        --------
        >>> from dropfast import Mask
        >>> Mask((32, 8), 0.5, key=7, shared_axes=0).kept()
        array([0, 2, 3, 5])
        """
        _, (length, _, bits) = self._along()
        return np.flatnonzero(np.unpackbits(bits, count=length, bitorder="little"))

    def compress(self, x: npt.NDArray[Float], out: npt.NDArray[Float] | None = None) -> npt.NDArray[Float]:
        """Return what is kept of `x`, scaled, without what is dropped: smaller arrays, for smaller products.

        The same as ``numpy.compress(mask.keep().ravel(), mask.apply(x), axis)`` for the one axis that the mask varies
        along, bit for bit.

        Parameters
        ----------
        x : numpy.ndarray
            As in `apply`.
        out : numpy.ndarray, optional
            Where to write; of the dtype of `x`, and of its shape with ``len(mask.kept())`` on that axis. It must not
            overlap `x`.

        Returns
        -------
        numpy.ndarray
            `out`, or a new array in C order whose rows begin at multiples of 64 bytes, and so may have gaps between
            them. A row is all that lies side by side from that axis on, or from axis 1 on if that is axis 0.

        Raises
        ------
        TypeError
            If `x` or `out` is no array, or of a subclass, or has a dtype that is not allowed.
        ValueError
            If the mask varies along no axis, or along several; if a shape does not fit, or `out` is read-only or
            overlaps `x` or itself. Nothing has been written then.

        See Also
        --------
        expand : the way back, and with ``scaled=True`` the gradient.
        dropfast.thin.take : what is kept of weights.

        Examples
        --------
        >>> import numpy as np
        >>> from dropfast import Mask
        >>> mask = Mask((2, 8), 0.5, key=7, shared_axes=0)
        >>> mask.compress(np.arange(16.0).reshape(2, 8))
        array([[ 0.,  4.,  6., 10.],
               [16., 20., 22., 26.]])
        """
        axis, kept = self._along()
        _checks.floats("x", x)
        if x.shape != self.shape:
            raise _checks.wrong_shape(self.shape, x.shape)
        return _backend.compress("x", x, out, {axis: kept}, self.scale)

    def expand(
        self, y: npt.NDArray[Float], out: npt.NDArray[Float] | None = None, scaled: bool = False
    ) -> npt.NDArray[Float]:
        """Return an array of the mask's shape that has `y` where the mask keeps, and +0.0 where it drops.

        ``mask.expand(mask.compress(x))`` is ``mask.apply(x)`` bit for bit.

        Parameters
        ----------
        y : numpy.ndarray
            Of the shape that `compress` gives, and a dtype that `apply` takes.
        out : numpy.ndarray, optional
            Where to write; of the mask's shape and the dtype of `y`. It must not overlap `y`.
        scaled : bool, default False
            Whether to multiply by the mask's scale. ``mask.expand(dy, scaled=True)`` is the gradient for `x` of
            ``mask.compress(x)``, from the gradient `dy` for that.

        Returns
        -------
        numpy.ndarray
            `out`, or a new array in C order whose rows begin at multiples of 64 bytes, as in `compress`.

        Raises
        ------
        TypeError, ValueError
            As in `compress`.

        Examples
        --------
        >>> import numpy as np
        >>> from dropfast import Mask
        >>> mask = Mask((2, 8), 0.5, key=7, shared_axes=0)
        >>> mask.expand(np.ones((2, 4)))
        array([[1., 0., 1., 1., 0., 1., 0., 0.],
               [1., 0., 1., 1., 0., 1., 0., 0.]])
        """
        axis, kept = self._along()
        _checks.floats("y", y)
        shape = (*self.shape[:axis], kept.left, *self.shape[axis + 1 :])
        if y.shape != shape:
            raise _checks.wrong_compact_shape(shape, y.shape)
        if type(scaled) is not bool:
            raise TypeError(f"scaled must be a bool, got {scaled!r}")
        return _backend.expand("y", y, out, {axis: kept}, self.scale if scaled else None)

    def _along(self) -> tuple[int, _checks.Kept]:
        """Return the one axis that the mask varies along, and what it keeps there."""
        axis = _checks.one_axis(self.noise_shape, self._shared_axes)
        bits = self.packed()
        return axis, _checks.Kept(self.shape[axis], int.from_bytes(bits).bit_count(), bits)

    def window(
        self, start: SupportsIndex | Iterable[SupportsIndex], shape: SupportsIndex | Iterable[SupportsIndex]
    ) -> Mask:
        """Return the part of this mask that begins at `start`, as a mask: what one shard of an array computes.

        Parameters
        ----------
        start : int or tuple of ints
            First element of the window along each axis.
        shape : int or tuple of ints
            Its lengths. It must lie inside the mask.

        Returns
        -------
        Mask
            With the same bits that the whole mask has there.

        Examples
        --------
        >>> import numpy as np
        >>> from dropfast import Mask
        >>> mask, x = Mask((1024, 16), 0.5, key=3), np.ones((1024, 16))
        >>> shard = mask.window(start=(512, 0), shape=(256, 16)).apply(x[512:768])
        >>> np.array_equal(shard, mask.apply(x)[512:768])
        True
        """
        first, lengths = _checks.window(self.shape, start, shape)
        _, strides, index, key, draw, threshold = self._recipe
        index += sum(a * stride for a, stride in zip(first, strides, strict=True))
        whole, origin = self._whole_and_origin()
        origin = tuple(a + b for a, b in zip(origin, first, strict=True))
        window = None if lengths == whole else (whole, origin)
        return Mask._of(self._rate, self._shared_axes, (lengths, strides, index, key, draw, threshold), window)

    def _whole_and_origin(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._window or (self.shape, (0,) * len(self.shape))

    def _value(self) -> tuple[Any, ...]:
        whole, origin = self._whole_and_origin()
        return whole, self._rate, self.key, self.draw, self._shared_axes, origin, self.shape

    def __eq__(self, other: object) -> bool:
        return self._value() == other._value() if isinstance(other, Mask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value())

    def __reduce__(self) -> tuple[Any, ...]:
        # What `repr` shows: public names alone, so that a pickle of today means something to any dropfast to come.
        whole, rate, key, draw, shared_axes, origin, shape = self._value()
        make = functools.partial(Mask, whole, rate, key=key, draw=draw, shared_axes=shared_axes)
        return (operator.methodcaller("window", origin, shape), (make(),)) if self._window else (make, ())

    def __repr__(self) -> str:
        shared = f", shared_axes={self._shared_axes}" if self._shared_axes else ""
        whole, origin = self._whole_and_origin()
        part = f".window(start={origin}, shape={self.shape})" if self._window else ""
        return f"Mask({whole}, {self._rate!r}, key={self.key}, draw={self.draw}{shared}){part}"
