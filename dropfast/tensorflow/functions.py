"""What a user calls: the words are `tf.nn.dropout`'s."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from dropfast import _checks
from dropfast._checks import RateLike
from dropfast._mask import Mask
from dropfast.tensorflow import _arguments
from dropfast.tensorflow._arguments import Numbers
from dropfast.tensorflow._roads import select


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator,unused-ignore]
def apply(mask: Mask, x: Any, *, name: str | None = None, portable: bool = False) -> Any:
    """Return `x` with a mask applied; the gradient for `x` is the upstream gradient with the same mask applied.

    Parameters
    ----------
    mask : dropfast.Mask
        Of the shape of `x`. A `window` of a bigger mask gives a shard the bits of the whole.
    x : tf.Tensor or what `tf.convert_to_tensor` takes
        float16, bfloat16, float32 or float64.
    name : str, optional
        What the operations are called in a graph.
    portable : bool, default False
        Whether the mask is computed by TensorFlow's own operations, as in `dropout`.

    Returns
    -------
    tf.Tensor
        Bit for bit what ``mask.apply`` gives for NumPy arrays.

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape; for a tensor of a `tf.experimental.dtensor` mesh. A shape that is only known while a
        graph runs is a `tf.errors.InvalidArgumentError` there.

    Notes
    -----
    Gradients of any order work. The kernels keep nothing for the backward pass but the mask's few numbers.

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
    _arguments.boolean("portable", portable)
    with tf.name_scope(name or "dropout"):
        x = _arguments.tensor(x)
        if not x.shape.is_compatible_with(mask.shape):
            raise _checks.wrong_shape(mask.shape, tuple(x.shape))
        if not x.shape.is_fully_defined():
            x = tf.ensure_shape(x, mask.shape)
        _, strides, start, key, draw, threshold = mask._recipe
        return select(x, Numbers(key, draw, threshold, start, strides), portable)


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator,unused-ignore]
def dropout(
    x: Any,
    rate: RateLike | Any,
    noise_shape: Any = None,
    seed: Any = None,
    name: str | None = None,
    *,
    portable: bool = False,
) -> Any:
    """Drop elements of `x` at random, and scale the kept ones so that the mean stays: as `tf.nn.dropout`.

    Parameters
    ----------
    x : tf.Tensor, tf.RaggedTensor or what `tf.convert_to_tensor` takes
        float16, bfloat16, float32 or float64. Of a ragged tensor the flat values are dropped.
    rate : float or scalar tensor of floats
        Probability that an element is dropped, in [0, 1], with a resolution of 2**-32. A tensor is data of the graph;
        its value counts as it is, and 0.1 in float32 is another number than in float64.
    noise_shape : sequence of int, None or scalar tensor, or a tensor, optional
        The shape of the mask: 1 on axes along which all elements share their fate; the full length, or None, on others.
        Not for ragged tensors.
    seed : None, int, or a pair (key, draw), optional
        Where the mask comes from. None: a key from TensorFlow's own generator, so that each call and each execution
        of a graph has a mask of its own, and `tf.random.set_seed` makes runs repeat. An int: what ``rng=seed``
        means to `dropfast.dropout`, the same mask each time. A pair of integers or integer tensors, or an integer
        tensor of shape (2,): the mask of ``Mask(key=key, draw=draw)``, in the manner of TensorFlow's stateless
        functions; tensors are data of the graph, so new values need no new trace.
    name : str, optional
        What the operations are called in a graph.
    portable : bool, default False
        Whether the mask is computed by TensorFlow's own operations, with the same bits: slower on a CPU, but a
        SavedModel can be loaded where dropfast is not installed. On other devices and under XLA it is so anyway.

    Returns
    -------
    tf.Tensor or tf.RaggedTensor
        Of the shape and dtype of `x`: ``x * scale`` where kept, +0.0 where dropped.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range; for a tensor of a `tf.experimental.dtensor` mesh. What can
        only be seen while a graph runs is a `tf.errors.InvalidArgumentError` there; XLA sees no values.

    See Also
    --------
    apply : with a `dropfast.Mask`; for shards.

    Notes
    -----
    As in `apply`: gradients of any order, and the kernels keep nothing for the backward pass.

    Examples
    --------
    >>> import tensorflow as tf
    >>> import dropfast.tensorflow
    >>> dropfast.tensorflow.dropout(tf.ones((2, 6)), 0.5, noise_shape=(1, None), seed=(7, 0)).numpy()
    array([[2., 0., 2., 2., 0., 2.],
           [2., 0., 2., 2., 0., 2.]], dtype=float32)
    """
    _arguments.boolean("portable", portable)
    if isinstance(x, (tf.RaggedTensor, tf.compat.v1.ragged.RaggedTensorValue)):
        if noise_shape is not None:
            raise ValueError(f"noise_shape must be None for a ragged tensor, got {noise_shape!r}")
        if not isinstance(x, tf.RaggedTensor):
            x = tf.RaggedTensor.from_nested_row_splits(x.flat_values, x.nested_row_splits)
        return x.with_flat_values(dropout(x.flat_values, rate, None, seed, name, portable=portable))
    with tf.name_scope(name or "dropout"):
        x = _arguments.tensor(x)
        threshold = _arguments.threshold(rate)
        key, draw = _arguments.key_and_draw(seed)
        strides, lengths = _arguments.sharing(x, noise_shape)
        return select(x, Numbers(key, draw, threshold, 0, strides, lengths), portable)
