"""The function and the layer: masks with a key that is drawn for you."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from dropfast import _backend, _checks
from dropfast._checks import Float, RateLike, RNGLike, SeedLike
from dropfast._mask import Mask


def dropout(
    x: npt.NDArray[Float],
    rate: RateLike = 0.5,
    *,
    shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
    noise_shape: Iterable[SupportsIndex | None] | None = None,
    rng: RNGLike | SeedLike | None = None,
    out: npt.NDArray[Float] | None = None,
) -> npt.NDArray[Float]:
    """Drop elements of `x` at random, and scale the kept ones so that the mean stays.

    Parameters
    ----------
    x : numpy.ndarray
        float16, bfloat16 (of ml_dtypes), float32 or float64, of any shape and in any memory layout. A memmap is taken
        too, other subclasses are not: ``numpy.asarray(x)`` makes an array of them.
    rate : float, default 0.5
        Probability that an element is dropped, in [0, 1], with a resolution of 2**-32.
    shared_axes : int or tuple of ints, default ()
        Axes along which all elements share their fate. ``0`` drops the same units for the whole batch.
    noise_shape : tuple of int or None, optional
        The same in TensorFlow's words: the shape of the mask, with 1 on shared axes and the full length, or None, on
        others. Give this or `shared_axes`.
    rng : None, int, sequence of ints, SeedSequence, BitGenerator, Generator or RandomState, optional
        Where the mask's key comes from: the next 64 bits of a bit generator, of that of `numpy.random.default_rng` for
        a seed, of the system's entropy for None (docs/stream.md, section 3). A generator moves on, so each call has a
        mask of its own; a seed gives the same mask each time.
    out : numpy.ndarray, optional
        Where to write; of the shape and dtype of `x`. May be `x` itself, and must not overlap it otherwise.

    Returns
    -------
    numpy.ndarray
        `out`, or a new array: ``x * scale`` where kept, +0.0 where dropped, with ``scale = 1 / (1 - rate)`` in effect.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range. The message names it, what came and what is allowed;
        nothing has been written then.

    See Also
    --------
    Mask : with a key of your own, for a backward pass, for shards.
    Dropout : a layer that counts its masks.

    Notes
    -----
    For a given key the result is the same bit for bit for every thread count, instruction set, memory layout and
    backend (stream v1, docs/stream.md). Dropped elements are +0.0 whatever they were, NaN and inf too.

    References
    ----------
    .. [1] Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural
       networks from overfitting", JMLR 15, 2014.

    Examples
    --------
    >>> import numpy as np
    >>> import dropfast
    >>> x = np.ones((2, 6), np.float32)
    >>> dropfast.dropout(x, 0.5, rng=0)
    array([[0., 2., 0., 2., 0., 2.],
           [2., 0., 0., 2., 0., 2.]], dtype=float32)
    >>> dropfast.dropout(x, 0.5, shared_axes=0, rng=0)
    array([[0., 2., 0., 2., 0., 2.],
           [0., 2., 0., 2., 0., 2.]], dtype=float32)
    """
    threshold = _checks.threshold(_checks.rate(rate))
    shape, strides = _checks.layout(x, shared_axes, noise_shape)
    return _backend.apply(x, out, (shape, strides, 0, _checks.new_key(rng), 0, threshold))


class Dropout:
    """A dropout layer: one key, and a new mask for each training call.

    Parameters
    ----------
    rate : float, default 0.5
        Probability that an element is dropped, in [0, 1].
    shared_axes : int or tuple of ints, default ()
        Axes along which all elements share their fate. ``0`` drops the same units for the whole batch.
    noise_shape : tuple of int or None, optional
        The same in TensorFlow's words; None stands for a full axis of any length, 0 too. Give this or `shared_axes`.
    rng : None, int, sequence of ints, SeedSequence, BitGenerator, Generator or RandomState, optional
        Where the layer's key comes from, as in `dropout`.

    Attributes
    ----------
    training : bool
        Whether calls drop elements.
    rate : float
        Probability that an element is dropped.
    key : int
        The layer's stream of masks.
    draw : int
        The number of masks drawn so far, and the `draw` of the next one.
    mask : Mask or None
        The mask of the last training call.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range.

    Notes
    -----
    A pickle or a copy has the layer's key and draw, and so gives the same masks from there on.

    Threads may share a layer: no draw is given twice. `backward` belongs to the last call, though, whoever made it;
    threads that train keep the `Mask` of their own call, or have a layer each. After 2**32 draws a call is an error
    rather than a repeated mask.

    Examples
    --------
    >>> import numpy as np
    >>> import dropfast
    >>> layer = dropfast.Dropout(0.5, rng=0)
    >>> x = np.ones((2, 6), np.float32)
    >>> y = layer(x)
    >>> np.array_equal(layer.backward(x), y)
    True
    >>> state = layer.state_dict()
    >>> y = layer(x)
    >>> layer.load_state_dict(state)
    >>> np.array_equal(layer(x), y)
    True
    """

    __module__ = "dropfast"  # the name that pickles have for it
    __slots__ = (
        *("_draw", "_key", "_last", "_lock", "_noise_shape", "_rate", "_shared_axes", "_training"),
        "__weakref__",
    )

    def __init__(
        self,
        rate: RateLike = 0.5,
        *,
        shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
        noise_shape: Iterable[SupportsIndex | None] | None = None,
        rng: RNGLike | SeedLike | None = None,
    ) -> None:
        self.rate = rate
        self._shared_axes, self._noise_shape = _checks.sharing_of_any_shape(shared_axes, noise_shape)
        self._training = True
        self._key, self._draw = _checks.new_key(rng), 0
        self._last: tuple[float, _checks.Recipe] | None = None  # rate and recipe of the last training call
        self._renew_lock()

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
        _layers.add(self)

    @property
    def rate(self) -> float:
        """Probability that an element is dropped.

        A new one is for the calls from there on; `backward` and `mask` belong to the last.
        """
        return self._rate[0]

    @rate.setter
    def rate(self, value: RateLike) -> None:
        rate = _checks.rate(value)
        self._rate = rate, _checks.threshold(rate)  # in one piece, for a call may read it in another thread

    @property
    def training(self) -> bool:
        """Whether calls drop elements; `train` and `eval` set it, too.

        False makes the layer the identity: it returns `x` itself and draws nothing.
        """
        return self._training

    @training.setter
    def training(self, value: bool) -> None:
        if type(value) is not bool:
            raise TypeError(f"training must be a bool, got {value!r}")
        self._training = value

    def train(self) -> Self:
        """Let calls drop elements.

        Returns
        -------
        Dropout
            The layer itself.
        """
        self._training = True
        return self

    def eval(self) -> Self:
        """Make the layer the identity.

        Returns
        -------
        Dropout
            The layer itself.
        """
        self._training = False
        return self

    @property
    def key(self) -> int:
        """The layer's stream of masks."""
        return self._key

    @property
    def draw(self) -> int:
        """The number of masks drawn so far, and the `draw` of the next one."""
        return self._draw

    @property
    def mask(self) -> Mask | None:
        """The mask of the last training call."""
        last = self._last
        if last is None:
            return None
        rate, recipe = last
        shared_axes = _checks.sharing(recipe[0], self._shared_axes, self._noise_shape)[1]
        return Mask._of(rate, shared_axes, recipe)

    def __call__(self, x: npt.NDArray[Float], out: npt.NDArray[Float] | None = None) -> npt.NDArray[Float]:
        """Return `x` with the next mask applied, or `x` itself if the layer is not training.

        Parameters
        ----------
        x : numpy.ndarray
            As in `dropout`.
        out : numpy.ndarray, optional
            Where to write, as in `dropout`; if the layer is not training, a copy of `x`.

        Returns
        -------
        numpy.ndarray
            `out` if given, else a new array in training, else `x`.
        """
        if not self._training:
            return _identity(x, out)
        shape, strides = _checks.layout(x, self._shared_axes, self._noise_shape)
        rate, threshold = self._rate
        with self._lock:
            key, draw = self._key, self._draw
            if draw == 1 << 32:
                raise _checks.no_masks_left(key)
            self._draw = draw + 1
        recipe = (shape, strides, 0, key, draw, threshold)
        try:
            y = _backend.apply(x, out, recipe)
        except BaseException:
            self._give_back(key, draw)
            raise
        self._last = rate, recipe
        return y

    def _give_back(self, key: int, draw: int) -> None:
        """Undo a draw that nobody saw, unless another thread has drawn since: rather lose a mask than repeat one."""
        with self._lock:
            if (self._key, self._draw) == (key, draw + 1):
                self._draw = draw

    def backward(self, dy: npt.NDArray[Float], out: npt.NDArray[Float] | None = None) -> npt.NDArray[Float]:
        """Return the gradient for `x`, from the gradient for ``layer(x)``: the same mask again.

        Parameters
        ----------
        dy : numpy.ndarray
            Of the shape of the last call's `x`.
        out : numpy.ndarray, optional
            Where to write, as in `dropout`; if the layer is not training, a copy of `dy`.

        Returns
        -------
        numpy.ndarray
            `out` if given, else a new array in training, else `dy`.

        Raises
        ------
        RuntimeError
            If the layer has not been called in training.
        """
        if not self._training:
            return _identity(dy, out)
        last = self._last
        if last is None:
            raise RuntimeError("backward needs a training call of the layer before it")
        return _backend.apply(dy, out, last[1])

    def state_dict(self) -> dict[str, int]:
        """Return all that a run needs to continue bit for bit.

        Returns
        -------
        dict
            The layer's ``key``, and as ``draw`` the number of masks drawn.
        """
        with self._lock:
            return {"key": self._key, "draw": self._draw}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state of `state_dict`.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        TypeError, ValueError
            If it does not hold just a key in [0, 2**64) and a draw in [0, 2**32]. The layer is as it was then.
        """
        if set(state) != {"key", "draw"}:
            raise ValueError(f"state must hold 'key' and 'draw', got {sorted(state)}")
        key, draw = _checks.unsigned("key", state["key"], 64), _checks.drawn(state["draw"])
        with self._lock:
            self._key, self._draw, self._last = key, draw, None

    def __getstate__(self) -> dict[str, Any]:
        # Public names alone, so that a pickle of today means something to a dropfast that is otherwise inside.
        return {
            **getattr(self, "__dict__", {}),  # of a subclass
            "rate": self.rate,
            "shared_axes": self._shared_axes,
            "noise_shape": self._noise_shape,
            "training": self._training,
            "mask": self.mask,
            **self.state_dict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        sharing = {name: rest.pop(name) for name in ("shared_axes", "noise_shape")}
        Dropout.__init__(self, rest.pop("rate"), **sharing)
        self.load_state_dict({name: rest.pop(name) for name in ("key", "draw")})
        mask = rest.pop("mask")
        self._last = mask and (mask.rate, mask._recipe)
        for name, value in rest.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        shared = f", shared_axes={self._shared_axes}" if self._shared_axes else ""
        noise = f", noise_shape={self._noise_shape}" if self._noise_shape is not None else ""
        return f"Dropout({self.rate!r}{shared}{noise})"


def _identity(x: npt.NDArray[Float], out: npt.NDArray[Float] | None) -> npt.NDArray[Float]:
    """Return `x`, or a copy in `out`."""
    if out is None:
        return x
    fault = _checks.fault(x, out, getattr(x, "shape", ()))
    if fault is not None:
        raise fault
    np.copyto(out, x)
    return out


# A fork while another thread was about to count a draw leaves the child with a lock that nobody will ever release.
_layers: weakref.WeakSet[Dropout] = weakref.WeakSet()


def _renew_locks() -> None:
    for layer in list(_layers):
        layer._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
