"""Where dropfast.keras runs: no mask twice, and no other one for the gradient, whoever calls the layers."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cases import Array
from expected import assert_same_bits
from keras_help import BACKEND, SPATIAL, Scale, array, gradients, mask_of, ones, tensor, words

import dropfast
from dropfast import Mask
from dropfast.keras import Dropout, SpatialDropout1D, _masks, _recomputed

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning",
    "ignore:Model doesn't support `jit_compile=True`:UserWarning",
    "ignore:Rematerialization memory optimization is not supported:UserWarning",
)

X = ones(1, 50)

# ---- the table of the page: what a cell says is what happens -----------------------------------------

#: Of what was done with a layer: what it gave, in order, and what its masks give, from the first one on.
Outcome = tuple[list[Array], list[Array]]


def calls(call: Callable[[Any], Any] | None = None) -> Outcome:
    layer = Dropout(0.5, seed=4)
    got = [array(layer(tensor(X), training=True)) for _ in range(2)]
    return got, [mask_of(layer, X.shape, draw).apply(X) for draw in range(2)]


def stateless() -> Outcome:
    layer = Dropout(0.5, seed=4)
    state = layer.seed_generator.state
    with keras.StatelessScope([(state, tensor(np.array([5, 0, 9, 0], np.uint32)))]) as scope:
        got = [array(layer(tensor(X), training=True)) for _ in range(2)]
        assert words(scope.get_current_value(state)) == [5, 0, 11, 0]
    assert layer.draw == 0
    return got, [Mask(X.shape, 0.5, key=5, draw=draw).apply(X) for draw in (9, 10)]


def fit(**how: Any) -> Outcome:
    layer = Dropout(0.5, seed=4)
    return outcome(layer, keras.Sequential([keras.Input((50,)), Scale(), layer, Scale()]), **how)


def outcome(layer: Dropout, model: Any, **how: Any) -> Outcome:
    """The gradients of weights before a layer and behind it, which are those of one mask, and the masks taken."""
    got = gradients(model, X, **how)
    assert layer.draw == 1
    return got, [mask_of(layer, X.shape, 0).apply(X)[0]] * 2


def layers_in_a_scope(**scope: Any) -> Outcome:
    with keras.RematScope(**scope):
        layer = Dropout(0.5, seed=4, name="dropped")
    return outcome(layer, keras.Sequential([keras.Input((50,)), Scale(), layer, Scale()]))


def model_in_a_scope(**how: Any) -> Outcome:
    with keras.RematScope(mode="full"):
        layer = Dropout(0.5, seed=4)
        model = keras.Sequential([keras.Input((50,)), Scale(), layer, Scale()])
    return outcome(layer, model, **how)


class Recomputed(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Any] = [Scale(), Dropout(0.5, seed=4), Scale()]

    def build(self, shape: Any) -> None:
        for part in self.parts:
            part.build(shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        before, dropout, behind = self.parts
        return keras.remat(lambda x: behind(dropout(before(x), training=training)))(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def function_recomputed() -> Outcome:
    layer = Recomputed()
    return outcome(layer.parts[1], keras.Sequential([keras.Input((50,)), layer]))


def threads(layer: Dropout, *calls: Callable[[], Any]) -> tuple[set[bytes], set[bytes]]:
    """What calls of a layer give in eight threads, a hundred times in each, and what its first 800 masks give."""
    got: list[Any] = []
    workers = [
        threading.Thread(target=lambda call=call: got.extend(call() for _ in range(100)))
        for call in calls * (8 // len(calls))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert layer.draw == 800
    return {array(y).tobytes() for y in got}, {mask_of(layer, X.shape, draw).apply(X).tobytes() for draw in range(800)}


def in_threads() -> Outcome:
    layer, x = Dropout(0.5, seed=4), tensor(X)
    got, want = threads(layer, lambda: layer(x, training=True))
    assert len(want) == 800
    assert got == want
    return [], []


def branches() -> Outcome:
    layer = Dropout(0.5, seed=4)
    got = layer([tensor(X), tensor(2 * X)], training=True)
    assert layer.draw == 1
    return [array(y) for y in got], [mask_of(layer, X.shape, 0).apply(x) for x in (X, 2 * X)]


MODES: dict[str, Callable[[], Outcome]] = {
    "a call": calls,
    "a call with a list, for one mask": branches,
    "a call in a `StatelessScope`": stateless,
    "calls in eight threads": in_threads,
    "`fit`": fit,
    "`fit`, `run_eagerly=True`": lambda: fit(run_eagerly=True),
    "`fit`, `jit_compile=True`": lambda: fit(jit_compile=True),
    '`fit`, a layer of `RematScope("full")`': lambda: layers_in_a_scope(mode="full"),
    '`fit`, of `"larger_than"`': lambda: layers_in_a_scope(mode="larger_than", output_size_threshold=1),
    '`fit`, of `"list_of_layers"`': lambda: layers_in_a_scope(mode="list_of_layers", layer_names=["dropped"]),
    '`fit`, of `"activations"`': lambda: layers_in_a_scope(mode="activations"),
    '`fit`, a model of `RematScope("full")`': model_in_a_scope,
    "the same, `run_eagerly=True`": lambda: model_in_a_scope(run_eagerly=True),
    "`fit`, `keras.remat` of a function": function_recomputed,
}

PAGE = (Path(__file__).parents[2] / "docs" / "keras.md").read_text()
HEAD, *ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in re.search(r"\n(\| on a CPU .*?)\n\n", PAGE, re.DOTALL)[1].split("\n")  # type: ignore[index]
]
CELLS = {mode: dict(zip(HEAD[1:], cells, strict=True))[BACKEND] for mode, *cells in ROWS[1:]}


def test_the_table_has_all_modes() -> None:
    assert list(CELLS) == list(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_where_it_runs(mode: str) -> None:
    how = CELLS[mode].partition(",")[0]  # with a note behind
    if how == "refused":
        with pytest.raises((NotImplementedError, RuntimeError, TypeError, ValueError)):
            MODES[mode]()
        return
    assert how == "kernels"
    for got, want in zip(*MODES[mode](), strict=True):
        assert_same_bits(got, want)


# ---- more than once ------------------------------------------------------------------------------


if BACKEND == "numpy":  # the others have threads of their own, which do not survive it

    def test_a_child_of_a_fork_draws() -> None:
        """Though another thread was drawing."""
        layer, x = Dropout(0.5, seed=4), tensor(X)
        with _masks._one_at_a_time:
            child = os.fork()
            if not child:
                layer(x, training=True)
                os._exit(layer.draw)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


# ---- one mask for branches -----------------------------------------------------------------------


def test_branches_keep_their_structure() -> None:
    layer = Dropout(0.5, seed=4)
    got = layer({"a": tensor(X), "b": (tensor(X), tensor(X))}, training=True)
    want = mask_of(layer, X.shape, 0).apply(X)
    for y in (got["a"], *got["b"]):
        assert_same_bits(array(y), want)


def test_branches_in_a_functional_model() -> None:
    inputs = [keras.Input((50,)), keras.Input((50,))]
    layer = Dropout(0.5, seed=4)
    model = keras.Model(inputs, layer(inputs, training=True))
    for each in (model, keras.Model.from_config(model.get_config())):
        for y in each([tensor(X), tensor(X)]):
            assert_same_bits(array(y), mask_of(layer, X.shape, 0).apply(X))


def test_branches_may_differ_along_axes_that_share_the_mask() -> None:
    layer, short, long = SpatialDropout1D(0.5, seed=4), ones(2, 3, 8), ones(2, 5, 8)
    for y, x in zip(layer([tensor(short), tensor(long)], training=True), (short, long), strict=True):
        assert_same_bits(array(y), mask_of(layer, x.shape, 0).apply(x))


@pytest.mark.parametrize("training", [False, True])
def test_branches_of_other_shapes_are_refused(training: bool) -> None:
    layer = Dropout(0.5)
    with pytest.raises(ValueError, match=r"inputs must have one shape to get one mask, got \[\(1, 50\), \(1, 51\)\]"):
        layer([tensor(X), tensor(ones(1, 51))], training=training)
    with pytest.raises(
        ValueError, match=r"inputs must have one shape to get one mask, got \[\(None, 50\), \(None, 51\)\]"
    ):
        layer([keras.Input((50,)), keras.Input((51,))])
    assert layer.draw == 0


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_each_branch_has_the_axes_of_a_spatial_layer(dimensions: int) -> None:
    right, wrong = (keras.Input((4,) * (dimensions + n)) for n in (1, 2))
    with pytest.raises(ValueError, match=f"SpatialDropout{dimensions}D takes inputs of {dimensions + 2} axes, got"):
        SPATIAL[f"{dimensions}D"](0.5)([right, wrong])


# ---- made and called without side effects --------------------------------------------------------


def test_made_in_a_stateless_scope() -> None:
    with keras.StatelessScope() as scope:
        layer = Dropout(0.5, seed=4)
        got = [array(layer(tensor(X), training=True)) for _ in range(2)]
        assert words(scope.get_current_value(layer.seed_generator.state))[2:] == [2, 0]
    assert (layer.key, layer.draw) == (dropfast.Dropout(rng=4).key, 0)
    for draw, y in enumerate(got):
        assert_same_bits(y, mask_of(layer, X.shape, draw).apply(X))
    assert_same_bits(array(layer(tensor(X), training=True)), got[0])


class Made(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = Dropout(0.5, seed=4)
        self.dense = keras.layers.Dense(3)

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.dense(self.dropout(inputs, training=training))


def test_shapes_are_inferred_without_a_draw() -> None:
    model = Made()
    assert model(keras.Input((50,)), training=True).shape == (None, 3)
    assert model.dropout.draw == 0


if BACKEND == "jax":
    import jax

    def test_made_in_compiled_code() -> None:
        made = []

        @jax.jit
        def program(x: Any) -> Any:
            with keras.StatelessScope():
                made.append(Dropout(0.5, seed=4))
                return made[0](x, training=True)

        for _ in range(2):
            assert_same_bits(array(program(X)), mask_of(made[0], X.shape, 0).apply(X))
        assert made[0].draw == 0  # and no part of the program
        assert_same_bits(array(made[0](X, training=True)), array(program(X)))

    def test_called_in_compiled_code() -> None:
        layer = Dropout(0.5, seed=4)
        state = layer.seed_generator.state

        @jax.jit
        def program(now: Any, x: Any) -> Any:
            with keras.StatelessScope([(state, now)]) as scope:
                return layer(x, training=True), scope.get_current_value(state)

        now = state.value
        for draw in range(3):
            y, now = program(now, X)
            assert_same_bits(array(y), mask_of(layer, X.shape, draw).apply(X))

    @pytest.mark.parametrize("compiler", [jax.jit, jax.checkpoint], ids=["jit", "checkpoint"])
    def test_a_program_with_one_mask_for_ever_is_refused(compiler: Any) -> None:
        layer = Dropout(0.5, seed=4)
        with pytest.raises(ValueError, match="a layer that JAX compiles needs its state as data"):
            compiler(lambda x: layer(x, training=True))(X)
        assert layer.draw == 0

    @pytest.mark.parametrize("transform", [jax.vmap, lambda f: jax.grad(lambda x: f(x).sum())], ids=["vmap", "grad"])
    def test_transforms_take_a_mask_each_time(transform: Any) -> None:
        layer = Dropout(0.5, seed=4)
        for draw in range(2):
            shape = (50,) if transform is jax.vmap else X.shape
            got = array(transform(lambda x: layer(x, training=True))(jax.numpy.asarray(X)))
            assert_same_bits(got, mask_of(layer, shape, draw).apply(ones(*shape)).reshape(X.shape))


# ---- computed again for the gradient -------------------------------------------------------------

if BACKEND == "torch":
    import torch
    from torch.utils.checkpoint import checkpoint

    def totals(run: Callable[[Any, Any], Any]) -> tuple[Any, Any, Dropout]:
        """Two masks of a layer, in a function that is computed again; its outputs and gradient for weights."""
        layer, weights, x = Dropout(0.5, seed=4), torch.ones(50, requires_grad=True), torch.ones(50, requires_grad=True)
        y = run(lambda x: layer(layer(x * weights, training=True) * weights, training=True) * weights, x)
        layer(x, training=True)  # another mask, before the gradient
        y.sum().backward()
        return y, weights.grad, layer

    WAYS: dict[str, Callable[[Any, Any], Any]] = {
        "keras.remat": lambda f, x: keras.remat(f)(x),
        "within": lambda f, x: keras.remat(lambda x: keras.remat(f)(x))(x),
        "checkpoint": lambda f, x: checkpoint(f, x, use_reentrant=False),
        "reentrant": lambda f, x: checkpoint(f, x, use_reentrant=True),
    }

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    def test_what_is_computed_again_has_its_masks(way: Any) -> None:
        y, gradient, layer = totals(way)
        kept = mask_of(layer, (50,), 0).apply(mask_of(layer, (50,), 1).apply(ones(50)))
        assert_same_bits(array(y.detach()), kept)
        assert_same_bits(array(gradient), 3 * kept)
        assert layer.draw == 3

    def test_a_mask_that_cannot_be_known_is_refused() -> None:
        with pytest.raises(RuntimeError, match="mask is not known any more: checkpoints must keep preserve_rng_state"):
            totals(lambda f, x: checkpoint(f, x, use_reentrant=False, preserve_rng_state=False))

    def test_a_mask_that_may_be_another_is_refused() -> None:
        layer, weights = Dropout(0.5), torch.ones(50, requires_grad=True)

        def start() -> Any:
            torch.manual_seed(0)
            return keras.remat(lambda x: layer(x * weights, training=True) * weights)(torch.ones(50)).sum()

        first = start()
        start()
        with pytest.raises(RuntimeError, match="PyTorch's generator was set to the same state before two calls"):
            first.backward()

    def test_the_same_state_of_the_generator_in_each_step() -> None:
        layer, weights = Dropout(0.5, seed=4), torch.ones(50, requires_grad=True)
        for draw in range(2):
            torch.manual_seed(0)
            weights.grad = None
            keras.remat(lambda x: layer(x * weights, training=True) * weights)(torch.ones(50)).sum().backward()
            assert_same_bits(array(weights.grad), 2 * mask_of(layer, (50,), draw).apply(ones(50)))

    def test_a_mask_that_is_forgotten_is_refused() -> None:
        layer, weights = Dropout(0.5), torch.ones(50, requires_grad=True)
        y = keras.remat(lambda x: layer(x * weights, training=True) * weights)(torch.ones(50)).sum()
        for _ in range(4096):
            layer.call(torch.ones(1), training=True)
        with pytest.raises(RuntimeError, match="mask is not known any more"):
            y.backward()

    def test_vmap_takes_one_mask() -> None:
        layer = Dropout(0.5, seed=4)
        got = torch.vmap(lambda x: layer(x, training=True))(torch.ones(3, 50))
        assert_same_bits(array(got), mask_of(layer, (50,), 0).apply(ones(50))[None].repeat(3, 0))


if BACKEND == "tensorflow":
    import tensorflow as tf

    def totals_of_graphs(wrap: Any, recompute: Any) -> tuple[Any, list[Any], Dropout]:
        """Two masks of a layer, in a function that is computed again, and its gradient twice."""
        layer, weights = Dropout(0.5, seed=4), tf.Variable(ones(50))
        f = recompute(lambda x: layer(layer(x * weights, training=True) * weights, training=True) * weights)

        def step(x: Any) -> Any:
            with tf.GradientTape(persistent=True) as tape:
                y = f(x)
            layer(x, training=True)  # another mask, before the gradient
            return y, [tape.gradient(y, weights) for _ in range(2)]

        y, found = wrap(step)(tf.ones(50))
        return y, found, layer

    @pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
    @pytest.mark.parametrize(
        "recompute",
        [keras.remat, tf.recompute_grad, lambda f: keras.remat(lambda x: keras.remat(f)(x))],
        ids=["keras.remat", "recompute_grad", "within"],
    )
    def test_what_is_computed_again_has_its_masks(wrap: Any, recompute: Any) -> None:
        y, found, layer = totals_of_graphs(wrap, recompute)
        kept = mask_of(layer, (50,), 0).apply(mask_of(layer, (50,), 1).apply(ones(50)))
        assert_same_bits(y.numpy(), kept)
        for gradient in found:
            assert_same_bits(gradient.numpy(), 3 * kept)
        assert layer.draw == 3

    def test_a_mask_that_is_forgotten_is_refused() -> None:
        layer, weights = Dropout(0.5), tf.Variable(ones(50))
        f = keras.remat(lambda x: layer(x * weights, training=True) * weights)
        other = keras.remat(lambda x: x + _recomputed.in_tensorflow(layer.seed_generator.taken, lambda: 0.0))
        with tf.GradientTape() as tape:
            y = f(tf.ones(50))
            for _ in range(4096):
                other(tf.ones(1))
        with pytest.raises(RuntimeError, match="mask is not known any more"):
            tape.gradient(y, weights)

    def test_a_graph_that_is_computed_again_is_refused() -> None:
        """It would draw once more, and nobody could tell it not to."""
        layer, weights = Dropout(0.5), tf.Variable(ones(50))
        f = keras.remat(tf.function(lambda x: layer(x * weights, training=True) * weights))
        with pytest.raises(ValueError, match="a graph that is computed again"):
            f(tf.ones(50))

    def test_threads_that_run_graphs() -> None:
        layer, x = Dropout(0.5, seed=4), tensor(X)
        graph = tf.function(lambda: layer(x, training=True))
        graph.get_concrete_function()
        got, want = threads(layer, graph, lambda: layer(x, training=True))
        assert got == want

    def test_branches_of_other_shapes_are_refused_when_a_graph_runs() -> None:
        layer = Dropout(0.5, (None, 1))
        graph = tf.function(
            lambda a, b: layer([a, b], training=True), input_signature=[tf.TensorSpec((None, None))] * 2
        )
        for y, x in zip(graph(ones(2, 3), ones(2, 4)), (ones(2, 3), ones(2, 4)), strict=True):
            assert_same_bits(y.numpy(), mask_of(layer, x.shape, 0).apply(x))
        with pytest.raises(tf.errors.InvalidArgumentError, match="inputs must have one shape to get one mask"):
            graph(ones(2, 3), ones(3, 3))
        assert layer.draw == 1
