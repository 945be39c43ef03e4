"""What a user calls: the words are `tf.nn.dropout`'s."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from dropfast import _checks
from dropfast._checks import RateLike
from dropfast._mask import Mask
from dropfast.tensorflow import _arguments
from dropfast.tensorflow._roads import Numbers, select


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator,unused-ignore]
def apply(mask: Mask, x: Any, *, name: str | None = None) -> Any:
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
    with tf.name_scope(name or "dropout"):
        x = _arguments.tensor(x)
        if not x.shape.is_compatible_with(mask.shape):
            raise _checks.wrong_shape(mask.shape, tuple(x.shape))
        _, strides, start, key, draw, threshold = mask._recipe
        return select(tf.ensure_shape(x, mask.shape), Numbers(key, draw, threshold, start, strides))


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator,unused-ignore]
def dropout(x: Any, rate: RateLike | Any, noise_shape: Any = None, seed: Any = None, name: str | None = None) -> Any:
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
    if isinstance(x, tf.RaggedTensor):
        if noise_shape is not None:
            raise ValueError(f"noise_shape must be None for a RaggedTensor, got {noise_shape!r}")
        return x.with_flat_values(dropout(x.flat_values, rate, seed=seed, name=name))
    with tf.name_scope(name or "dropout"):
        x = _arguments.tensor(x)
        threshold = _arguments.threshold(rate)
        key, draw = _arguments.key_and_draw(seed)
        strides, lengths = _arguments.sharing(x, noise_shape)
        return select(x, Numbers(key, draw, threshold, 0, strides, lengths))
