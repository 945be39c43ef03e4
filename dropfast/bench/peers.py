"""The peers, each run as its own users would run it at its best: compiled, warmed up, its output awaited.

To add one, write a class with a `prepare`, and add it to `CONTENDERS`. A peer is imported in `prepare`, not before: the
threads must have been limited by then, and none has to be installed.
"""

# ruff: noqa: D102 (what the methods do is said in Contender)

from __future__ import annotations

from functools import cache, partial
from importlib import import_module, util
from typing import Any

import numpy as np

from dropfast.bench.case import Array, Case
from dropfast.bench.contender import Contender, Run


class PyTorch(Contender):
    """F.dropout, with autograd for the backward pass; it has no shared masks, so that a row of ones is dropped."""

    name, distributions = "PyTorch", ("torch",)

    def prepare(self, case: Case) -> Run:
        torch = import_module("torch")
        torch.set_num_threads(case.threads)
        dropout, rate = torch.nn.functional.dropout, case.rate

        def tensor(a: Array) -> Any:
            if case.dtype == "float32":
                return torch.from_numpy(a)
            return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)

        x, dy = tensor(case.x()), tensor(case.dy())
        ones = torch.ones(case.noise_shape, dtype=x.dtype) if case.shared else None
        x.requires_grad_(case.backward)

        def both() -> tuple[Any, Any]:
            y = dropout(x, rate)
            return y, torch.autograd.grad(y, x, dy)[0]

        return both if case.backward else (lambda: x * dropout(ones, rate)) if case.shared else lambda: dropout(x, rate)

    def to_numpy(self, result: Any) -> Array:
        array: Array = result.detach().float().numpy()
        return array


class TensorFlow(Contender):
    """tf.nn.dropout in a tf.function; compiled by XLA the stateless one with Threefry, by far the fastest there."""

    distributions = "tensorflow", "tensorflow-cpu"

    def __init__(self, name: str, *, xla: bool) -> None:
        self.name, self._xla = name, xla

    def prepare(self, case: Case) -> Run:
        tf = import_module("tensorflow")
        tf.get_logger().setLevel("ERROR")  # it warns of functions that are made anew for each case, which is meant here
        if self._xla:
            dropout = partial(tf.nn.experimental.stateless_dropout, seed=tf.constant([1, 2]), rng_alg="threefry")
        else:
            dropout = tf.nn.dropout
        if case.shared:
            dropout = partial(dropout, noise_shape=case.noise_shape)

        @tf.function(jit_compile=self._xla, autograph=False)  # type: ignore[untyped-decorator]
        def forward(x: Any) -> Any:
            return dropout(x, rate=case.rate)

        @tf.function(jit_compile=self._xla, autograph=False)  # type: ignore[untyped-decorator]
        def both(x: Any, dy: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = dropout(x, rate=case.rate)
            return y, tape.gradient(y, x, output_gradients=dy)

        x, dy = tf.constant(case.x()), tf.constant(case.dy())
        return (lambda: both(x, dy)) if case.backward else lambda: forward(x)


class Jax(Contender):
    """jit of random.bernoulli and where, as Flax has it, with the key of one of JAX's generators."""

    distributions = ("jax",)

    def __init__(self, name: str, *, generator: str) -> None:
        self.name, self._generator = name, generator

    def prepare(self, case: Case) -> Run:
        jax = import_module("jax")
        key = jax.random.key(0, impl=self._generator)

        def dropout(key: Any, x: Any) -> Any:
            keep = jax.random.bernoulli(key, 1 - case.rate, case.noise_shape)
            return jax.numpy.where(keep, x / (1 - case.rate), 0)

        def dropout_and_gradient(key: Any, x: Any, dy: Any) -> tuple[Any, Any]:
            y, pull_back = jax.vjp(partial(dropout, key), x)
            return y, pull_back(dy)[0]

        x, dy = jax.numpy.asarray(case.x()), jax.numpy.asarray(case.dy())
        forward, both = jax.jit(dropout), jax.jit(dropout_and_gradient)
        if case.backward:
            return lambda: jax.block_until_ready(both(key, x, dy))
        return lambda: jax.block_until_ready(forward(key, x))


class OnnxRuntime(Contender):
    """A Dropout node in training mode, with bound input and output. Its package has no gradients."""

    name, distributions = "ONNX Runtime", ("onnxruntime",)
    dtypes, backward = ("float32",), False

    def version(self) -> str | None:
        return super().version() if util.find_spec("onnx") else None  # the node cannot be written without it

    def prepare(self, case: Case) -> Run:
        onnx, ort = import_module("onnx"), import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
        model = self._model(onnx, case).SerializeToString()
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        value = ort.OrtValue.ortvalue_from_numpy
        y = value(np.empty_like(case.x()))
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", value(case.x()))
        binding.bind_ortvalue_output("y", y)
        if case.shared:
            binding.bind_ortvalue_input("ones", value(np.ones(case.noise_shape, np.float32)))

        def run() -> Any:
            session.run_with_iobinding(binding)
            return y

        return run

    def _model(self, onnx: Any, case: Case) -> Any:
        helper, proto = onnx.helper, onnx.TensorProto
        info = partial(helper.make_tensor_value_info, elem_type=proto.FLOAT)
        inputs = [info("x", shape=case.shape)]
        if case.shared:
            inputs.append(info("ones", shape=case.noise_shape))
            nodes = [
                helper.make_node("Dropout", ["ones", "rate", "training"], ["factors"]),
                helper.make_node("Mul", ["x", "factors"], ["y"]),
            ]
        else:
            nodes = [helper.make_node("Dropout", ["x", "rate", "training"], ["y"])]
        constants = [
            helper.make_tensor("rate", proto.FLOAT, [], [case.rate]),
            helper.make_tensor("training", proto.BOOL, [], [True]),
        ]
        graph = helper.make_graph(nodes, "dropout", inputs, [info("y", shape=case.shape)], constants)
        # Versions that every runtime of the last years reads.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    def to_numpy(self, result: Any) -> Array:
        array: Array = result.numpy()
        return array


class Numba(Contender):
    """A compiled loop over an array of random numbers, which is faster than asking for them one by one. One thread."""

    name, distributions = "Numba", ("numba",)
    dtypes = ("float32",)

    def prepare(self, case: Case) -> Run:
        draw, apply, apply_shared = _numba_functions()
        rng, rate, scale = np.random.default_rng(0), np.float32(case.rate), np.float32(case.scale)
        x, dy, y, dx = case.arrays()
        n = case.noise_shape[0] * case.noise_shape[1]

        def forward() -> Array:
            apply(x.ravel(), y.ravel(), draw(rng, n), rate, scale)
            return y

        def shared() -> Array:
            apply_shared(x, y, draw(rng, n), rate, scale)
            return y

        def both() -> tuple[Array, Array]:
            drawn = draw(rng, n)
            apply(x.ravel(), y.ravel(), drawn, rate, scale)
            apply(dy.ravel(), dx.ravel(), drawn, rate, scale)
            return y, dx

        return both if case.backward else shared if case.shared else forward


@cache
def _numba_functions() -> tuple[Any, Any, Any]:
    numba = import_module("numba")

    def draw(rng: Any, n: int) -> Any:  # pragma: no cover - Numba compiles it
        return rng.random(n, np.float32)

    def apply(x: Any, y: Any, drawn: Any, rate: Any, scale: Any) -> None:  # pragma: no cover - Numba compiles it
        for i in range(x.size):
            y[i] = x[i] * scale if drawn[i] >= rate else np.float32(0)

    def apply_shared(x: Any, y: Any, drawn: Any, rate: Any, scale: Any) -> None:  # pragma: no cover - Numba compiles it
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                y[i, j] = x[i, j] * scale if drawn[j] >= rate else np.float32(0)

    return numba.njit(draw), numba.njit(apply), numba.njit(apply_shared)
