"""Everyone who takes part: dropfast, a plain copy, what one writes in NumPy, and the peers."""

# ruff: noqa: D102 (what the methods do is said in Contender)

from __future__ import annotations

from typing import Any

import numpy as np

import dropfast
from dropfast import _backend, _numpy
from dropfast.bench import peers
from dropfast.bench.case import Array, Case, empty
from dropfast.bench.contender import Contender, Run


class Copy(Contender):
    """np.copyto into an array that is there: the limit that memory sets. Backward, a second copy."""

    name, distributions, peer = "np.copyto", ("numpy",), False

    def prepare(self, case: Case) -> Run:
        x, dy, y, dx = case.arrays()

        def forward() -> Array:
            np.copyto(y, x)
            return y

        def both() -> tuple[Array, Array]:
            np.copyto(y, x)
            np.copyto(dx, dy)
            return y, dx

        return both if case.backward else forward

    def check(self, case: Case, returned: Any) -> None:
        y = returned[0] if case.backward else returned
        if not np.array_equal(y, case.x()):
            raise AssertionError(f"{case.name}: not a copy")


class Dropfast(Contender):
    """A mask applied, into an array that is there."""

    name, distributions, peer = "dropfast", ("dropfast",), False

    def version(self) -> str:
        return f"{dropfast.__version__} {_backend.current()}"

    def prepare(self, case: Case) -> Run:
        x, dy, y, dx = case.arrays()
        apply = _mask(case).apply
        return (lambda: (apply(x, out=y), apply(dy, out=dx))) if case.backward else lambda: apply(x, out=y)


class DropfastNew(Dropfast):
    """The same, with a new array for each result, as frameworks have it."""

    name = "dropfast, no out="

    def prepare(self, case: Case) -> Run:
        x, dy = case.x(), case.dy()
        apply = _mask(case).apply
        return (lambda: (apply(x), apply(dy))) if case.backward else lambda: apply(x)


class Twin(Contender):
    """What runs where dropfast could not be compiled: the same bits in NumPy."""

    name, distributions, peer = "dropfast's twin", ("numpy",), False

    def prepare(self, case: Case) -> Run:
        x, dy, y, dx = case.arrays()
        recipe = _mask(case)._recipe

        def forward() -> Array:
            _numpy.apply(x, y, recipe)
            return y

        def both() -> tuple[Array, Array]:
            _numpy.apply(x, y, recipe)
            _numpy.apply(dy, dx, recipe)
            return y, dx

        return both if case.backward else forward


class NumPyTuned(Contender):
    """The idiom with every array made beforehand; of several orders of the steps, the fastest."""

    name, distributions, peer = "NumPy, tuned", ("numpy",), False

    def prepare(self, case: Case) -> Run:
        x, dy, y, dx = case.arrays()
        buf, keep = empty(case.noise_shape, np.float32), empty(case.noise_shape, np.bool_)
        factors = empty(case.noise_shape, x.dtype)
        rng, rate, scale = np.random.default_rng(0), np.float32(case.rate), x.dtype.type(case.scale)

        def draw() -> None:
            rng.random(out=buf, dtype=np.float32)
            np.greater_equal(buf, rate, out=keep)

        def apply(x: Array, y: Array) -> Array:
            np.multiply(x, scale, out=y)
            np.multiply(y, keep, out=y)
            return y

        def forward() -> Array:
            draw()
            return apply(x, y)

        def shared() -> Array:  # the scale goes into the small mask
            draw()
            np.multiply(keep, scale, out=factors)
            return np.multiply(x, factors, out=y)

        def both() -> tuple[Array, Array]:
            draw()
            return apply(x, y), apply(dy, dx)

        return both if case.backward else shared if case.shared else forward


class NumPyNaive(Contender):
    """The line that comes to mind first."""

    name, distributions, peer = "NumPy, naive", ("numpy",), False

    def prepare(self, case: Case) -> Run:
        x, dy, shape, rate = case.x(), case.dy(), case.noise_shape, case.rate
        rng = np.random.default_rng(0)

        def both() -> tuple[Array, Array]:
            keep = rng.random(shape) >= rate
            return x * keep / (1 - rate), dy * keep / (1 - rate)

        return both if case.backward else lambda: x * (rng.random(shape) >= rate) / (1 - rate)


def _mask(case: Case) -> dropfast.Mask:
    return dropfast.Mask(case.shape, case.rate, key=0, shared_axes=0 if case.shared else ())


CONTENDERS: tuple[Contender, ...] = (
    Copy(),  # first: the others are compared with it
    Dropfast(),
    DropfastNew(),
    Twin(),
    NumPyTuned(),
    NumPyNaive(),
    peers.PyTorch(),
    peers.TensorFlow("TensorFlow", xla=False),
    peers.TensorFlow("TensorFlow, XLA", xla=True),
    peers.Jax("JAX, Threefry", generator="threefry2x32"),
    peers.Jax("JAX, RBG", generator="rbg"),
    peers.OnnxRuntime(),
    peers.Numba(),
)
