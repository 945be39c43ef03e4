"""Dropout for TensorFlow on CPUs: eager and in `tf.function`, with gradients, and the masks of `dropfast.Mask`.

>>> import tensorflow as tf
>>> import dropfast.tensorflow
>>> x = tf.ones((2, 6))
>>> dropfast.tensorflow.dropout(x, 0.5, seed=(7, 0)).numpy()  # key 7, draw 0
array([[2., 0., 2., 2., 0., 2.],
       [0., 0., 0., 2., 0., 2.]], dtype=float32)
"""

from __future__ import annotations

from dropfast import _doors

_doors.need("tensorflow")

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from dropfast import _backend, _checks
from dropfast._checks import RateLike, Recipe
from dropfast._mask import Mask

__all__ = ["apply", "dropout"]


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator,unused-ignore]
def apply(mask: Mask, x: Any) -> Any:
    """Return `x` with a mask applied; the gradient for `x` is the upstream gradient with the same mask applied.

    Parameters
    ----------
    mask : dropfast.Mask
        Of the shape of `x`. A `window` of a bigger mask gives a shard the bits of the whole.
    x : tf.Tensor or what `tf.convert_to_tensor` takes
        float16, bfloat16, float32 or float64, on a CPU.

    Returns
    -------
    tf.Tensor
        Bit for bit what ``mask.apply`` gives for NumPy arrays.

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape; for a tensor that is not on a CPU; when traced for XLA (``jit_compile=True``). What
        can only be seen while a graph runs is a `tf.errors.InvalidArgumentError` with the same words.

    Notes
    -----
    Nothing is kept for the backward pass but the mask's few numbers, and gradients of any order work. A graph with a
    mask cannot be exported as a SavedModel: saving is an error.

    Examples
    --------
    >>> import tensorflow as tf
    >>> import dropfast.tensorflow
    >>> mask, x = dropfast.Mask((2, 6), 0.5, key=7), tf.Variable(tf.ones((2, 6)))
    >>> with tf.GradientTape() as tape:
    ...     y = dropfast.tensorflow.apply(mask, x)
    >>> bool(tf.reduce_all(tape.gradient(y, x) == y))
    True
    """
    if not isinstance(mask, Mask):
        raise _checks.not_a_mask(mask)
    recipe = mask._recipe
    x = _checked(x)
    if not x.shape.is_compatible_with(mask.shape):
        raise _checks.wrong_shape(mask.shape, tuple(x.shape))
    return _select(x, lambda shape: recipe)


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator,unused-ignore]
def dropout(x: Any, rate: RateLike, noise_shape: Any = None, seed: Any = None) -> Any:
    """Drop elements of `x` at random, and scale the kept ones so that the mean stays: as `tf.nn.dropout`.

    Parameters
    ----------
    x : tf.Tensor or what `tf.convert_to_tensor` takes
        float16, bfloat16, float32 or float64, on a CPU.
    rate : float
        Probability that an element is dropped, in [0, 1], with a resolution of 2**-32. A number, not a tensor.
    noise_shape : sequence of int, None or scalar tensor, or a tensor, optional
        The shape of the mask: 1 on axes along which all elements share their fate; the full length, or None, on others.
    seed : None, int, or a pair (key, draw), optional
        Where the mask comes from. None: a key from TensorFlow's own generator, so that each call and each execution
        of a `tf.function` has a mask of its own, and `tf.random.set_seed` makes runs repeat. An int: what ``rng=seed``
        means to `dropfast.dropout`, the same mask each time. A pair of integers or integer tensors, or an integer
        tensor of shape (2,): the mask of ``Mask(key=key, draw=draw)``, in the manner of TensorFlow's stateless
        functions; tensors are data of the graph, so new values need no new trace.

    Returns
    -------
    tf.Tensor
        Of the shape and dtype of `x`: ``x * scale`` where kept, +0.0 where dropped.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range; for a tensor that is not on a CPU; when traced for XLA
        (``jit_compile=True``). What can only be seen while a graph runs is a `tf.errors.InvalidArgumentError` with the
        same words.

    See Also
    --------
    apply : with a `dropfast.Mask`; for shards.

    Notes
    -----
    As in `apply`: gradients of any order, nothing kept for the backward pass, no SavedModel.

    Examples
    --------
    >>> import tensorflow as tf
    >>> import dropfast.tensorflow
    >>> dropfast.tensorflow.dropout(tf.ones((2, 6)), 0.5, noise_shape=(1, None), seed=(7, 0)).numpy()
    array([[2., 0., 2., 2., 0., 2.],
           [2., 0., 2., 2., 0., 2.]], dtype=float32)
    """
    x = _checked(x)
    threshold = _checks.threshold(_checks.rate(rate))
    key, draw = _key_and_draw(seed)
    lengths = _lengths(x, noise_shape)

    def recipe(shape: tuple[int, ...], key: Any, draw: Any, dynamic: Iterable[int] | None = None) -> Recipe:
        strides, _ = _checks.sharing(shape, (), lengths if dynamic is None else dynamic)
        return shape, strides, 0, _checks.unsigned("key", key, 64), _checks.unsigned("draw", draw, 32), threshold

    if tf.is_tensor(lengths):
        return _select(x, recipe, key, draw, lengths)
    if x.shape.is_fully_defined():
        _checks.sharing(tuple(x.shape), (), lengths)  # while tracing, where the fault was made, not when the graph runs
    return _select(x, recipe, key, draw)


# ---- arguments -----------------------------------------------------------------------------------


def _checked(x: Any) -> Any:
    """Return `x` as a tensor; an error if it, or the graph that is being traced, cannot be served."""
    x = tf.convert_to_tensor(x)
    dtype = np.dtype(x.dtype.as_numpy_dtype)
    if not _checks.takes(dtype):  # a graph would say so late
        raise _checks.wrong_dtype(dtype)
    if tf.executing_eagerly():
        if "CPU" not in x.device:
            raise ValueError(f"x must be on a CPU, got a tensor on {x.device}")
        return x
    graph = tf.compat.v1.get_default_graph()
    if GraphOrParentsInXlaContext(graph):
        raise ValueError("dropfast runs outside of XLA, so it cannot be used with jit_compile=True; compile without it")
    graph.capture(_no_export())
    return x


@functools.cache
def _no_export() -> Any:
    """Return a resource that belongs to no model, so that SavedModel refuses graphs that hold it, and says its name.

    Without it a graph is saved with the number of its Python function, which means nothing to the process that loads
    it, or something else.
    """
    name = "a dropfast mask runs in Python and cannot be exported: export the model's inference alone"
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=(), shared_name=name)


def _key_and_draw(seed: Any) -> tuple[Any, Any]:
    """Return the key and the draw that a seed stands for, as integers or integer tensors."""
    if seed is None:
        return _random_key(), 0
    if isinstance(seed, (int, np.integer)):
        return _checks.new_key(_checks.unsigned("seed", seed, 64)), 0
    try:
        key, draw = tf.unstack(seed) if tf.is_tensor(seed) else seed
    except (TypeError, ValueError):
        raise TypeError(f"seed must be None, an integer or a pair (key, draw), got {seed!r}") from None
    return _word("key", key, 64), _word("draw", draw, 32)


def _random_key() -> Any:
    """Return a key that `tf.random.set_seed` governs: a number, or in a graph a tensor, new in each execution."""
    if not tf.executing_eagerly():
        # All values but one: what uniform cannot give is its own maxval.
        return tf.bitcast(tf.random.uniform((), tf.int64.min, tf.int64.max, tf.int64), tf.uint64)
    # Not the same in eager mode, where three operations would take longer than many a mask. Two seeds, of 31 bits each.
    (_, first), (of_all, second) = tf.compat.v1.get_seed(None), tf.compat.v1.get_seed(None)
    return _checks.new_key(None if first is None else (of_all, first, second))


def _word(name: str, value: Any, bits: int) -> Any:
    """Return an integer that is in range, or a scalar integer tensor, whose range is seen when it has a value."""
    if not tf.is_tensor(value):
        return _checks.unsigned(name, value, bits)
    if not value.dtype.is_integer or value.shape.rank not in (0, None):
        raise TypeError(f"{name} must be an integer or a scalar integer tensor, got {value!r}")
    return value


def _lengths(x: Any, noise_shape: Any) -> Any:
    """Return a noise_shape as a tuple of integers and None, or as a tensor if a graph has still to compute it."""
    if noise_shape is None:
        return None
    try:
        entries = (noise_shape,) if tf.is_tensor(noise_shape) else tuple(noise_shape)
    except TypeError:
        raise _checks.not_a_noise_shape(noise_shape) from None
    tensors = list(filter(tf.is_tensor, entries))
    if not all(n.dtype.is_integer for n in tensors):
        raise _checks.not_a_noise_shape(noise_shape)
    if tf.executing_eagerly() or not tensors:
        return _checks.noise_lengths(noise_shape)
    if tf.is_tensor(noise_shape):
        return noise_shape
    numbers = _checks.noise_lengths([None if tf.is_tensor(n) else n for n in entries])
    full = tf.shape(x, tf.int64)
    return tf.stack(
        [
            tf.cast(n, tf.int64) if tf.is_tensor(n) else full[axis] if numbers[axis] is None else numbers[axis]
            for axis, n in enumerate(entries)
        ]
    )


# ---- from tensors to arrays and back -------------------------------------------------------------


def _select(x: Any, recipe: Callable[..., Recipe], *words: Any) -> Any:
    """Return what the recipe, a function of the shape of `x` and of `words`, makes of `x`."""

    @tf.custom_gradient  # type: ignore[untyped-decorator,unused-ignore]
    def select(x: Any) -> Any:
        return _run(x, recipe, words), lambda dy: _select(tf.convert_to_tensor(dy), recipe, *words)

    return select(x)


def _run(x: Any, recipe: Callable[..., Recipe], words: tuple[Any, ...]) -> Any:
    def run(x: npt.NDArray[Any], *words: Any) -> npt.NDArray[Any]:
        return _backend.apply(x, _aligned_empty_like(x), recipe(x.shape, *words))

    def run_in_graph(x: Any, *words: Any) -> npt.NDArray[Any]:
        return run(np.asarray(x), *words)  # which comes as a number if it has no axes

    if tf.executing_eagerly():
        return _tensor(run(np.asarray(x) if x.shape.rank else np.asarray(x.numpy()), *words))
    words = tuple(word if tf.is_tensor(word) else tf.constant(word, tf.uint64) for word in words)
    y = tf.numpy_function(run_in_graph, [x, *words], x.dtype, stateful=False)
    y.set_shape(x.shape)
    return y


def _aligned_empty_like(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a new array on a cache line: what TensorFlow's kernels ask for, and then it takes memory as it is."""
    memory = np.empty(x.nbytes + 63, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + x.nbytes].view(x.dtype).reshape(x.shape)


def _tensor(y: npt.NDArray[Any]) -> Any:
    """Return the array as a tensor, without a copy: nobody else holds it, so nobody can change it."""
    if _checks.is_bfloat16(y.dtype):  # which NumPy cannot hand over
        return tf.bitcast(_tensor(y.view(np.uint16)), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(y.__dlpack__())
