"""What a door costs: each framework's own dropout, and dropfast's behind its door, in turns and on one thread.

python benchmarks/doors.py [torch] [tensorflow] [jax] [keras]   (all if none is named; Keras on KERAS_BACKEND)
"""

import sys
import time
from functools import partial
from importlib import import_module
from typing import Any

from dropfast.bench import machine, peers
from dropfast.bench.case import Array, Case
from dropfast.bench.contender import Contender, Run
from dropfast.bench.contenders import Copy
from dropfast.bench.measure import Timing, measure
from dropfast.bench.tables import figure

CASES = ((4, 10), 0.5), ((32, 256), 0.5), ((1024, 1024), 0.5), ((1024, 1024), 0.1)
ROUNDS = 31


class Layer(Contender):
    """A layer of PyTorch in training, with autograd."""

    distributions = ("torch",)

    def __init__(self, package: str) -> None:
        self.name, self._package = package, package

    def prepare(self, case: Case) -> Run:
        torch = import_module("torch")
        torch.set_num_threads(1)
        layer = import_module(self._package).Dropout(case.rate)
        x, dy = torch.from_numpy(case.x()).requires_grad_(case.backward), torch.from_numpy(case.dy())

        def both() -> tuple[Any, Any]:
            x.grad = None
            y = layer(x)
            y.backward(dy)
            return y, x.grad

        return both if case.backward else lambda: layer(x)

    def to_numpy(self, result: Any) -> Array:
        array: Array = result.detach().numpy()
        return array


class Function(Contender):
    """A function of TensorFlow: eager, in a graph, or compiled by XLA."""

    distributions = "tensorflow", "tensorflow-cpu"

    def __init__(self, name: str, module: str, way: str, **how: Any) -> None:
        self.name, self._module, self._way, self._how = f"{name}, {way}", module, way, how

    def prepare(self, case: Case) -> Run:
        tf = import_module("tensorflow")
        tf.get_logger().setLevel("ERROR")  # it warns of functions that are made anew for each case, which is meant here
        dropout = partial(import_module(self._module).dropout, rate=case.rate, **self._how)

        def both(x: Any, dy: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = dropout(x)
            return y, tape.gradient(y, x, output_gradients=dy)

        run = both if case.backward else lambda x, dy: dropout(x)
        if self._way != "eager":
            run = tf.function(run, autograph=False, jit_compile=self._way == "XLA")
        x, dy = tf.constant(case.x()), tf.constant(case.dy())
        return lambda: run(x, dy)


class Jitted(Contender):
    """A function of JAX under jit, from a key and x."""

    distributions = ("jax",)

    def __init__(self, name: str, function: Any) -> None:
        self.name, self._function = name, function

    def prepare(self, case: Case) -> Run:
        jax = import_module("jax")
        dropout = partial(self._function, rate=case.rate)

        def both(key: Any, x: Any, dy: Any) -> tuple[Any, Any]:
            y, pull_back = jax.vjp(lambda x: dropout(key, x), x)
            return y, pull_back(dy)[0]

        run = jax.jit(both if case.backward else lambda key, x, dy: dropout(key, x))
        key, x, dy = jax.random.key(0), jax.numpy.asarray(case.x()), jax.numpy.asarray(case.dy())
        return lambda: jax.block_until_ready(run(key, x, dy))


class Called(Contender):
    """A layer of Keras, called in training."""

    distributions = ("keras",)
    backward = False

    def __init__(self, name: str, module: str) -> None:
        self.name, self._module = name, module

    def prepare(self, case: Case) -> Run:
        keras = import_module("keras")
        layer = import_module(self._module).Dropout(case.rate, seed=0)
        x = keras.ops.convert_to_tensor(case.x())
        return lambda: layer(x, training=True)

    def to_numpy(self, result: Any) -> Array:
        array: Array = import_module("keras").ops.convert_to_numpy(result)
        return array


def pairs(framework: str) -> list[tuple[Contender, Contender]]:
    """Return the framework's own and dropfast's, as often as there are ways to call them."""
    if framework == "torch":
        return [(Layer("torch.nn"), Layer("dropfast.torch"))]
    if framework == "tensorflow":
        ways: list[tuple[str, dict[str, Any]]] = [
            ("eager", {}),
            ("graph", {}),
            ("XLA", {}),
            ("graph", {"portable": True}),
        ]
        return [
            (
                Function("tf.nn.dropout", "tensorflow.nn", way),
                Function("dropfast.tensorflow" + " (portable)" * bool(how), "dropfast.tensorflow", way, **how),
            )
            for way, how in ways
        ]
    if framework == "jax":
        door = import_module("dropfast.jax")
        theirs = peers.Jax("bernoulli and where", generator="threefry2x32")
        return [
            (theirs, Jitted(f"dropfast.jax ({door.road()})", door.dropout)),
            (theirs, Jitted("dropfast.jax (portable)", partial(door.dropout, portable=True))),
        ]
    backend = import_module("keras").config.backend()
    return [(Called(f"keras.layers on {backend}", "keras.layers"), Called("dropfast.keras", "dropfast.keras"))]


def first_call(contender: Contender, case: Case) -> float:
    """Return the seconds of all that comes before a second call: tracing, and compiling where that is done."""
    run, began = contender.prepare(case), time.perf_counter()
    run()
    return time.perf_counter() - began


def time_of(timing: Timing) -> str:
    """Return a time as people read it: of a call where calls are short, of an element where arrays are large."""
    if timing.case.size < 1 << 17:
        return f"{figure(1e6 * timing.median)} µs"
    return f"{figure(timing.nanoseconds)} ns/element"


def main() -> None:
    with machine.limit_threads(1):
        frameworks = sys.argv[1:] or ["torch", "tensorflow", "jax", "keras"]
        print(*machine.describe()[:2], sep="\n")
        for framework in frameworks:
            for theirs, ours in pairs(framework):
                print(f"\n| float32 | {theirs.name} | {ours.name} | times as fast | share of np.copyto |")
                print("|---|---|---|---|---|")
                for backward in (False, True)[: 1 + ours.backward]:
                    for shape, rate in CASES:
                        case = Case(shape, rate, backward=backward)
                        copy, own, door = measure(case, [Copy(), theirs, ours], ROUNDS)
                        what = f"{'x'.join(map(str, shape))}, rate {rate}" + ", and backward" * backward
                        ratios = figure(own.median / door.median), figure(copy.median / door.median)
                        print("|", " | ".join([what, time_of(own), time_of(door), *ratios]), "|", flush=True)
                firsts = [f"{first_call(contender, Case(*CASES[-1])):.2f} s" for contender in (theirs, ours)]
                print("| first call |", " | ".join(firsts), "| | |", flush=True)


if __name__ == "__main__":
    main()
