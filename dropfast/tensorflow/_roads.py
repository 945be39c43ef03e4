"""From a mask's numbers to its bits: by the kernels, as an operator of TensorFlow's or by way of Python."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.eager.record import could_possibly_record, record_operation, stop_recording
from tensorflow.python.ops.control_flow_switch_case import execute_fn_for_device

from dropfast import _backend, _checks
from dropfast.tensorflow import _portable
from dropfast.tensorflow._arguments import Numbers


def select(x: Any, mask: Numbers, portable: bool) -> Any:
    """Return `x` with a mask applied; so does the gradient for it, with the same mask."""
    if portable:
        return _portable.select(x, mask)
    if tf.executing_eagerly():
        return _kernels(x, _words(mask)) if _has_kernels(x.device) else _portable.select(x, mask)
    if _portable.is_for_xla():
        return _portable.select(x, mask)
    _refuse_export(tf.compat.v1.get_default_graph())
    by_kernels = functools.partial(_kernels, x, _words(mask))
    if not _has_other_devices():
        return by_kernels()
    return execute_fn_for_device({"CPU": by_kernels}, functools.partial(_portable.select, x, mask))


@functools.cache
def _has_kernels(device: str) -> bool:
    """Return whether this device of an eager tensor has the kernels; other ones have TensorFlow's operations."""
    kind = tf.DeviceSpec.from_string(device).device_type
    if kind == "CUSTOM":  # of a mesh, for one
        raise ValueError(f"x must be on a CPU, a GPU or a TPU, got a tensor on {device}")
    return bool(kind == "CPU")


def _has_other_devices() -> bool:
    """Return whether TensorFlow may place a graph's operations elsewhere than on a CPU."""
    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())


# ---- what cannot be exported ---------------------------------------------------------------------


def _refuse_export(graph: Any) -> None:
    """Let TensorFlow refuse to save a graph with a mask, which only a process with dropfast could run."""
    with tf.init_scope():
        in_function = tf.executing_eagerly()
    if in_function:  # a graph of TensorFlow 1's has nothing that could refuse
        graph.capture(_no_export())


@functools.cache
def _no_export() -> Any:
    """Return a resource that belongs to no model, so that SavedModel refuses graphs that hold it, and says its name."""
    name = "a dropfast mask is computed by dropfast's kernels and cannot be exported: portable=True makes one that can"
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=(), shared_name=name)


# ---- the kernels ---------------------------------------------------------------------------------
#
# A mask reaches them as words of 64 bits: key, draw, threshold and start, and then, unless x is the whole and shares no
# axis, the strides. In one tensor, of int64: not every device of TensorFlow's can put unsigned numbers together.


def _words(mask: Numbers) -> Any:
    words = [mask.key, mask.draw, mask.threshold, mask.start, *(mask.strides or ())]
    if all(isinstance(word, int) for word in words):  # tf.is_tensor takes its time
        tensor = tf.constant(list(map(_signed, words)), tf.int64)
    else:
        tensor = tf.stack([tf.constant(_signed(n), tf.int64) if isinstance(n, int) else n for n in words])
    if mask.noise_shape is None:
        return tensor
    strides = tf.math.cumprod(mask.noise_shape, exclusive=True, reverse=True)
    return tf.concat([tensor, tf.where(tf.equal(mask.noise_shape, 1), tf.zeros_like(strides), strides)], 0)


def _signed(word: int) -> int:
    """Return the signed number of the same 64 bits."""
    return (word ^ 1 << 63) - (1 << 63)


def _kernels(x: Any, words: Any) -> Any:
    run = (_backend.active is _backend.native and _operator()) or _python
    if not tf.executing_eagerly():
        return _with_gradient(run)(x, words) if run is _python else run(x, words)
    if not could_possibly_record():
        return run(x, words)
    # Not by the operator's own gradient: TensorFlow would keep x for it, which has no use for it. Nor by
    # tf.custom_gradient, which does this too, but takes longer than all the rest of a small call.
    with stop_recording():
        y = run(x, words)
    record_operation("Dropfast", [y], [x], lambda dy: [_kernels(tf.convert_to_tensor(dy), words)])
    return y


def _with_gradient(run: Any) -> Any:
    def select(x: Any, words: Any) -> Any:
        def again(x: Any) -> Any:
            return run(x, words), lambda dy: select(tf.convert_to_tensor(dy), words)

        return tf.custom_gradient(again)(x)

    return select


@functools.cache
def _operator() -> Any:
    """Register the operator of csrc/tensorflow_op.cpp with TensorFlow, once, and return it; None if there is none."""
    found = importlib.util.find_spec("dropfast.tensorflow._operator")
    if _backend.native is None or found is None or found.origin is None:
        return None
    operator = getattr(tf.load_op_library(found.origin), "dropfast_dropout", None)
    if operator is None:
        warnings.warn(
            "dropfast.tensorflow calls its kernels by way of Python, which is slower: its operator does not find the C "
            f"interface that it needs in TensorFlow {tf.__version__}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    capsule = ctypes.pythonapi.PyCapsule_GetPointer
    capsule.restype, capsule.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    native = capsule(_backend.native._C_API, b"dropfast._native._C_API")  # type: ignore[attr-defined]
    if not ctypes.CDLL(found.origin).dropfast_connect(ctypes.c_void_p(native)):
        raise ImportError("dropfast.tensorflow._operator and dropfast._native are of different versions")
    tf.RegisterGradient("Dropfast>Dropout")(lambda op, dy: (operator(dy, op.inputs[1]), None))
    return operator


def _python(x: Any, words: Any) -> Any:
    if tf.executing_eagerly():
        return tf.constant(_from_python(x.numpy(), words.numpy()))
    y = tf.numpy_function(_from_python, [x, words], x.dtype, stateful=False)
    y.set_shape(x.shape)
    return y


def _from_python(x: npt.ArrayLike, words: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Do what csrc/tensorflow_op.cpp does."""
    x = np.asarray(x)  # which comes as a number if it has no axes
    key, draw, threshold, start, *strides = words.view(np.uint64).tolist()
    if not strides:
        strides, _ = _checks.sharing(x.shape, (), None)
    return _backend.apply(x, None, (x.shape, tuple(strides), start, key, draw, threshold))


_operator()  # now, so that graphs that hold it can be read
