"""The JAX door: the bits of the mask by each road to the kernels, through JAX's transformations and over devices."""

from __future__ import annotations

import doctest
import importlib.util
import itertools
import os
import re
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, MODES, RATES, values
from expected import assert_same_bits, keep, output, using
from jax.sharding import PartitionSpec
from processes import run_python
from test_docs import run, session_of

import dropfast
from dropfast import Mask, _backend
from dropfast import jax as door

PAGE = Path(__file__).parents[2] / "docs" / "jax.md"

HANDLER_IS_BUILT = importlib.util.find_spec("dropfast._jax_ffi") is not None

# How XLA reaches a backend. The handler calls the compiled one, of which there may be none here.
ROADS = {
    **({"ffi": ("ffi", _backend.current())} if HANDLER_IS_BUILT else {}),
    "callback": ("callback", _backend.current()),
    "callback-numpy": ("callback", "numpy"),
}


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The way to the kernels; programs compiled for another one are forgotten (so tests jit what they can)."""
    name, backend = ROADS[request.param]
    if name == "callback":
        monkeypatch.setattr(door._handler, "is_registered", lambda: False)
    with using(backend):
        assert door.road() == name
        jax.clear_caches()
        yield name
    jax.clear_caches()


@pytest.fixture
def x() -> Any:
    return jnp.asarray(np.random.default_rng(0).standard_normal((37, 129)), jnp.float32)


KEY = jax.random.key(123)


def same(got: Any, want: Any) -> None:
    assert isinstance(got, jax.Array)
    assert_same_bits(np.asarray(got), np.asarray(want))


# ---- the bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_apply_gives_the_bits_of_the_mask(road: str, dtype: np.dtype[Any]) -> None:
    array = values((3, 5, 131), dtype)
    with jax.enable_x64(dtype == np.float64):
        x = jnp.asarray(array)
        for mode, of in MODES.items():
            mask = Mask(array.shape, 0.3, key=2**63 + 5, draw=2**32 - 1, **of(array.shape))
            assert mask.shared_axes or mode in ("per-sample",)
            same(door.apply(mask, x), mask.apply(array))
        kept = keep(array.shape, 0.3, 2**63 + 5, 2**32 - 1)
        same(door.apply(Mask(array.shape, 0.3, key=2**63 + 5, draw=2**32 - 1), x), output(array, kept, 0.3))


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_rates(road: str, x: Any, rate: float) -> None:
    same(door.dropout(KEY, x, rate), Mask(x.shape, rate, key=123).apply(np.asarray(x)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (300007,), (1,) * 20], ids=str)
def test_shapes(road: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32)
    for mask in (Mask(shape, 0.5, key=1), Mask(shape, 0.5, key=1, shared_axes=tuple(range(len(shape))))):
        same(door.apply(mask, jnp.asarray(array)), mask.apply(array))


def test_windows_are_the_same_bits_as_in_the_whole(road: str, x: Any) -> None:
    mask = Mask((74, 387), 0.3, key=9, draw=4, shared_axes=0)
    for part in (mask.window((5, 200), x.shape), mask.window((1, 100), (50, 200)).window((2, 3), x.shape)):
        same(door.apply(part, x), part.apply(np.asarray(x)))
    far = Mask(2**41, 0.1, key=9).window(2**40 + 5, x.shape[1])
    same(door.apply(far, x[0]), far.apply(np.asarray(x[0])))


def test_infinities_and_nan_are_dropped_to_plus_zero(road: str) -> None:
    x = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, -1.0] * 8)
    got = np.asarray(door.dropout(KEY, x, 0.5))
    dropped = ~Mask(32, 0.5, key=123).keep()
    assert 4 < dropped.sum() < 28
    assert not got[dropped].view(np.uint32).any()
    np.testing.assert_array_equal(got[~dropped], np.asarray(x)[~dropped] * 2)


@pytest.mark.parametrize("mode", MODES)
def test_dropout_shares_axes_as_the_mask_does(road: str, mode: str) -> None:
    array = np.ones((3, 5, 7), np.float32)
    how = MODES[mode](array.shape)
    same(door.dropout(KEY, jnp.asarray(array), 0.5, **how), Mask(array.shape, 0.5, key=123, **how).apply(array))


# ---- keys and draws ------------------------------------------------------------------------------

KEYS: dict[str, tuple[Callable[[], Any], int]] = {
    "typed": (lambda: jax.random.key(123), 123),
    "raw": (lambda: jax.random.PRNGKey(123), 123),
    "words": (lambda: np.array([2**31 + 1, 2**32 - 1], np.uint32), (2**31 + 1) << 32 | 2**32 - 1),
    "rbg": (lambda: jax.random.key(123, impl="rbg"), 123),
    "unsafe_rbg": (lambda: jax.random.key(123, impl="unsafe_rbg"), 123),
    "raw-rbg": (lambda: jax.random.key_data(jax.random.key(123, impl="rbg")), 123),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_its_first_two_words(road: str, x: Any, key: str) -> None:
    make, number = KEYS[key]
    want = Mask(x.shape, 0.5, key=number).apply(np.asarray(x))
    same(door.dropout(make(), x, 0.5), want)
    same(jax.jit(door.dropout, static_argnums=2)(make(), x, 0.5), want)


def test_the_other_words_of_an_rbg_key_say_nothing_more() -> None:
    key = jax.random.key(5, impl="rbg")
    for other in (key, *jax.random.split(key, 9), *jax.random.split(jax.random.fold_in(key, 7), 9)):
        words = jax.random.key_data(other)
        np.testing.assert_array_equal(words[:2], words[2:])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_split_and_folded_keys_give_masks_of_their_own(impl: str) -> None:
    key = jax.random.key(5, impl=impl)
    keys = [key, *jax.random.split(key, 9), *(jax.random.fold_in(key, i) for i in range(100, 109))]
    assert len({np.asarray(door.dropout(key, jnp.ones(128), 0.5)).tobytes() for key in keys}) == len(keys)


@pytest.mark.parametrize("draw", [0, 7, 2**32 - 1])
def test_draws(road: str, x: Any, draw: int) -> None:
    want = Mask(x.shape, 0.5, key=123, draw=draw).apply(np.asarray(x))
    for given in (draw, np.uint64(draw), jnp.uint32(draw)):
        same(door.dropout(KEY, x, 0.5, draw=given), want)
        same(jax.jit(lambda draw: door.dropout(KEY, x, 0.5, draw=draw))(jnp.uint32(draw)), want)


def test_a_traced_draw_counts_modulo_2_to_the_32(x: Any) -> None:
    traced = jax.jit(lambda draw: door.dropout(KEY, x, 0.5, draw=draw))
    same(traced(jnp.uint32(2**32 - 1) + 1), door.dropout(KEY, x, 0.5, draw=0))


def test_new_keys_draws_and_windows_compile_nothing(road: str, x: Any) -> None:
    compiled = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    traced = []

    def f(key: Any, x: Any, draw: Any) -> Any:
        traced.append(key)
        return door.dropout(key, x, 0.5, draw=draw)

    jitted = jax.jit(f)

    def everything(number: int) -> None:
        key = jax.random.key(number)
        jitted(key, x, number)
        door.dropout(key, x, 0.5, draw=number)
        door.apply(Mask((99, 129), 0.5, key=number, draw=number).window((number, 0), x.shape), x)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        everything(0)
        assert len(compiled) >= 3  # the listener hears
        compiled.clear()
        for number in range(1, 20):
            everything(number)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    assert len(traced) == 1


# ---- transformations -----------------------------------------------------------------------------


def test_jit(road: str, x: Any) -> None:
    want = Mask(x.shape, 0.3, key=123).apply(np.asarray(x))
    same(jax.jit(lambda key, x: door.dropout(key, x, 0.3))(KEY, x), want)
    with jax.disable_jit():
        same(door.dropout(KEY, x, 0.3), want)


def test_grad_is_the_mask_again(road: str, x: Any) -> None:
    mask = Mask(x.shape, 0.3, key=123)
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

    def loss(x: Any) -> Any:
        return (door.dropout(KEY, x, 0.3) * dy).sum()

    for grad in (jax.grad(loss), jax.jit(jax.grad(loss)), jax.grad(jax.checkpoint(loss)), jax.grad(jax.jit(loss))):
        same(grad(x), mask.apply(dy))
    (dx,) = jax.vjp(lambda x: door.apply(mask, x), x)[1](jnp.asarray(dy))
    same(dx, mask.apply(dy))


def test_jvp_is_the_mask_of_the_tangent(road: str, x: Any) -> None:
    mask = Mask(x.shape, 0.3, key=123, shared_axes=0)
    dx = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    y, dy = jax.jvp(lambda x: door.apply(mask, x), (x,), (dx,))
    same(y, mask.apply(np.asarray(x)))
    same(dy, mask.apply(dx))
    (back,) = jax.linear_transpose(lambda x: door.apply(mask, x), x)(jnp.asarray(dx))
    same(back, mask.apply(dx))


def test_derivatives_of_any_order_and_mode(road: str) -> None:
    x = jnp.asarray([1.0, -2.0, 3.0, 0.5])
    want = np.diag(8.0 * Mask(4, 0.5, key=123).keep()).astype(np.float32)
    for outer, inner in itertools.product((jax.jacfwd, jax.jacrev), repeat=2):
        same(jax.jit(outer(inner(lambda x: (door.dropout(KEY, x, 0.5) ** 2).sum())))(x), want)


def test_the_backward_pass_keeps_nothing_of_the_size_of_x(x: Any) -> None:
    _, backward = jax.vjp(lambda x: door.dropout(KEY, x, 0.5), x)
    assert jax.tree.leaves(backward)
    assert sum(kept.nbytes for kept in jax.tree.leaves(backward)) < 100 < x.nbytes


def test_a_key_has_no_gradient(x: Any) -> None:
    words = jax.random.key_data(KEY)
    dkey, dx = jax.grad(lambda key, x: door.dropout(key, x, 0.5).sum(), (0, 1), allow_int=True)(words, x)
    assert dkey.dtype == jax.dtypes.float0
    same(dx, Mask(x.shape, 0.5, key=123).apply(np.ones_like(x)))


def looped(f: Callable[..., Any], axes: tuple[int | None, ...], *args: Any) -> Any:
    """What vmap promises: f of each element, stacked."""
    f = jax.jit(f)
    n = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)
    elements = [
        f(*(arg if axis is None else jnp.moveaxis(arg, axis, 0)[i] for arg, axis in zip(args, axes, strict=True)))
        for i in range(n)
    ]
    return jnp.stack(elements)


VMAPS = {
    "x": (None, 0, None),
    "x-second-axis": (None, 1, None),
    "x-last-axis": (None, 2, None),
    "key": (0, None, None),
    "key-and-x": (0, 1, None),
    "draw": (None, None, 0),
    "draw-and-x": (None, 2, 0),
    "all": (0, 0, 0),
}


@pytest.mark.parametrize("axes", VMAPS.values(), ids=VMAPS)
def test_vmap_is_the_loop(road: str, axes: tuple[int | None, ...]) -> None:
    key = KEY if axes[0] is None else jax.random.split(KEY, 3)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 3)), jnp.float32)
    draw = jnp.uint32(1) if axes[2] is None else jnp.arange(3, dtype=jnp.uint32)

    def f(key: Any, x: Any, draw: Any) -> Any:
        return door.dropout(key, x, 0.5, shared_axes=0, draw=draw)

    want = looped(f, axes, key, x, draw)
    same(jax.jit(jax.vmap(f, axes))(key, x, draw), want)
    same(jax.vmap(f, axes, 1)(key, x, draw), jnp.moveaxis(want, 0, 1))


def test_vmaps_in_vmaps_and_with_grad(road: str) -> None:
    keys = jax.random.split(KEY, (2, 3))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, 5, 3, 7)), jnp.float32)

    f = jax.jit(lambda key, x: door.dropout(key, x, 0.5))

    def outer(key: Any, x: Any) -> Any:  # x: 4, 5, 3, 7; key: 3
        return jax.vmap(jax.vmap(f, (None, 1)), (0, 2))(key, x)

    got = jax.jit(jax.vmap(outer, (0, 1)))(keys, x)
    assert got.shape == (2, 3, 5, 4, 7)
    for i, j, k in np.ndindex(2, 3, 5):
        same(got[i, j, k], f(keys[i, j], x[:, i, k, j]))
    # Masks that are mapped after x was, and in other places.
    got = jax.jit(jax.vmap(lambda x: jax.vmap(f, (0, None))(keys[0], x), 3))(x[0])
    for i, j in np.ndindex(7, 3):
        same(got[i, j], f(keys[0, j], x[0, ..., i]))
    got = jax.jit(jax.vmap(jax.grad(lambda key, x: (f(key, x) * x).sum(), 1), (0, None)))(keys[0], x)
    for j in range(3):
        same(got[j], 2 * f(keys[0, j], x))


def test_loops_of_xla(road: str, x: Any) -> None:
    """A training loop under scan, with the step as the draw: each step its own mask."""

    def step(x: Any, draw: Any) -> tuple[Any, Any]:
        return x, door.dropout(KEY, x, 0.5, draw=draw)

    _, got = jax.lax.scan(step, x, jnp.arange(4, dtype=jnp.uint32))
    for draw in range(4):
        same(got[draw], Mask(x.shape, 0.5, key=123, draw=draw).apply(np.asarray(x)))


# ---- devices -------------------------------------------------------------------------------------

ON_FOUR_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dropfast import Mask, jax as door

if sys.argv[1] == "callback":
    door._handler.is_registered = lambda: False
assert door.road() == sys.argv[1]
assert jax.device_count() == 4
key, rate = jax.random.key(123), 0.3
array = np.random.default_rng(0).standard_normal((8, 12, 40)).astype(np.float32)


def same(got, want):
    assert got.shape == want.shape
    assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


def meshes():
    for types, lengths, spec, how in [
        (AxisType.Auto, (4, 1), P("a"), {}),
        (AxisType.Auto, (4, 1), P(None, "a"), {"shared_axes": 0}),
        (AxisType.Auto, (2, 2), P("b", None, "a"), {"shared_axes": 1}),
        (AxisType.Auto, (2, 2), P(("b", "a")), {"shared_axes": (1, 2)}),
        (AxisType.Explicit, (2, 2), P("a", "b"), {}),
        (AxisType.Explicit, (2, 2), P(None, "b"), {}),
    ]:
        mesh = jax.make_mesh(lengths, ("a", "b"), axis_types=(types,) * 2)
        yield mesh, spec, how, jax.device_put(array, NamedSharding(mesh, spec))

"""

SHARD_MAP = """
for mesh, spec, how, x in meshes():
    mask = Mask(array.shape, rate, key=123, **how)
    want = mask.apply(array)

    def f(key, x):
        return door.dropout(key, x, rate, spec=spec, **how)

    sharded = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P(), spec), out_specs=spec))
    same(sharded(key, x), want)
    text = sharded.lower(key, x).compile().as_text()
    assert "all-" not in text and "collective-" not in text
    same(jax.jit(jax.grad(lambda x: (sharded(key, x) * x).sum()))(x), 2 * want)
    of_mask = jax.shard_map(lambda x: door.apply(mask, x, spec=spec), mesh=mesh, in_specs=spec, out_specs=spec)
    same(jax.jit(of_mask)(x), want)

# Without jit; and with vmap inside, over an axis that is not divided.
mesh, spec, how, x = next(meshes())
mask = Mask(array.shape, rate, key=123)
f = jax.shard_map(lambda x: door.apply(mask, x, spec=spec), mesh=mesh, in_specs=spec, out_specs=spec)
same(f(x), mask.apply(array))
f = jax.shard_map(
    lambda x: jax.vmap(lambda x: door.dropout(key, x, rate, spec=spec), 1, 1)(x),
    mesh=mesh, in_specs=spec, out_specs=spec,
)
first = Mask((8, 40), rate, key=123)
same(f(x), np.stack([first.apply(array[:, i]) for i in range(12)], axis=1))

# A window of a larger mask, divided.
whole = Mask((16, 24, 40), rate, key=5)
part = whole.window((3, 7, 0), array.shape)
f = jax.shard_map(lambda x: door.apply(part, x, spec=spec), mesh=mesh, in_specs=spec, out_specs=spec)
same(f(x), part.apply(array))

# A key for each device, and an x that all have in common: the result differs from one device to the next.
mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
keys = jax.random.split(key, 4)
f = jax.shard_map(
    lambda keys, x: door.dropout(keys[0], x, rate)[None], mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a")
)
want = np.stack([door.dropout(k, jnp.asarray(array), rate) for k in keys])
same(jax.jit(f)(keys, jnp.asarray(array)), want)
same(jax.jit(jax.grad(lambda x: f(keys, x).sum()))(jnp.ones(4)), sum(door.dropout(k, jnp.ones(4), rate) for k in keys))
try:
    jax.shard_map(
        lambda keys, x: door.dropout(keys[0], x, rate), mesh=mesh, in_specs=(P("a"), P()), out_specs=P()
    )(keys, jnp.asarray(array))
except ValueError as error:
    assert "out_specs" in str(error), error
else:
    raise AssertionError("a result that differs passed for one that does not")

# Without spec each shard is an array of its own.
f = jax.shard_map(lambda x: door.dropout(key, x, rate), mesh=mesh, in_specs=P("a"), out_specs=P("a"))
same(f(jnp.ones((8, 5))), np.tile(Mask((2, 5), rate, key=123).apply(np.ones((2, 5), np.float32)), (4, 1)))

# What cannot be.
big = jax.ShapeDtypeStruct((2**34,), jnp.float32)
f = jax.shard_map(lambda x: door.dropout(key, x, rate, spec=P("a")), mesh=mesh, in_specs=P("a"), out_specs=P("a"))
try:
    jax.eval_shape(f, big)
except ValueError as error:
    assert str(error) == "spec may divide axes of at most 2**32 elements, got 17179869184", error
else:
    raise AssertionError("an axis that 32 bits cannot count passed")
print("done")
"""

SHARDED_BY_JIT = """
for mesh, spec, how, x in meshes():
    want = Mask(array.shape, rate, key=123, **how).apply(array)
    same(door.dropout(key, x, rate, **how), want)
    grad = jax.grad(lambda x: (door.dropout(key, x, rate, **how) * x).sum())
    same(jax.jit(grad)(x), 2 * want)
print("done")
"""

# Big enough for several threads each; a program that hangs runs into the time limit of run_python.
MANY_THREADS = """
import os
array = np.random.default_rng(0).integers(0, 2**24, (4096, 512), np.uint32).view(np.float32)  # about half subnormal
mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
f = jax.jit(jax.shard_map(
    lambda x: (door.dropout(key, x, rate, spec=P("a")), jnp.tanh(x)), mesh=mesh, in_specs=P("a"), out_specs=P("a")
))
x = jax.device_put(array, NamedSharding(mesh, P("a")))
want = Mask(array.shape, rate, key=123).apply(array)
counts = []
for _ in range(30):
    y, _ = jax.block_until_ready(f(x))
    same(y, want)
    counts.append(len(os.listdir("/proc/self/task")))
assert counts[-1] < counts[9] + 10, counts  # XLA may start some late, but there are no new ones with every call
print("done")
"""


@pytest.mark.parametrize("name", dict.fromkeys(road for road, _ in ROADS.values()))
@pytest.mark.parametrize(
    "code",
    [SHARD_MAP, SHARDED_BY_JIT, MANY_THREADS],
    ids=["shard_map-equals-unsharded", "jit-of-sharded-equals-unsharded", "openmp-threads"],
)
def test_on_four_devices(name: str, code: str) -> None:
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "OMP_NUM_THREADS": "3"}
    ran = run_python(ON_FOUR_DEVICES + code, name, env=env)
    assert ran.stdout == "done\n", ran.stderr


def test_callbacks_do_not_wait_for_ever_on_one_core() -> None:
    code = """
        import os
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        import jax, jax.numpy as jnp
        from dropfast import jax as door
        door._handler.is_registered = lambda: False
        key = jax.random.key(0)
        f = jax.jit(lambda x: jnp.tanh(door.dropout(key, jnp.sin(x), 0.5)) + door.dropout(key, x, 0.5))
        for i in range(10):
            y = f(jnp.ones((2000, 2000)) + i)
        print(y.block_until_ready().shape)
    """
    ran = run_python(textwrap.dedent(code))
    assert ran.stdout == "(2000, 2000)\n", ran.stderr


# ---- the roads -----------------------------------------------------------------------------------


def test_without_the_handler_it_is_the_callback() -> None:
    code = """
        import sys
        sys.modules["dropfast._jax_ffi"] = None  # as if it had not been built
        import jax.numpy as jnp, numpy as np
        from dropfast import Mask, jax as door
        mask = Mask(300, 0.5, key=1)
        assert np.array_equal(door.apply(mask, jnp.ones(300)), mask.apply(np.ones(300, np.float32)))
        print(door.road())
    """
    ran = run_python(textwrap.dedent(code))
    assert (ran.stdout, ran.stderr) == ("callback\n", "")


def test_the_numpy_backend_is_obeyed() -> None:
    ran = run_python("from dropfast import jax; print(jax.road())", env={"DROPFAST_BACKEND": "numpy"})
    assert ran.stdout == "callback\n", ran.stderr


def test_importing_the_door_does_not_start_jax() -> None:
    code = "import dropfast.jax, jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())"
    ran = run_python(code)
    assert ran.stdout == "3\n", ran.stderr


def test_importing_dropfast_does_not_import_jax() -> None:
    ran = run_python("import dropfast, sys; print('jax' in sys.modules)")
    assert ran.stdout == "False\n", ran.stderr


if HANDLER_IS_BUILT:
    # What every handler answers when it is registered, but for a version that no jaxlib has reached.
    NEWER = """
    #include "xla/ffi/api/c_api.h"

    extern "C" XLA_FFI_Error* handler(XLA_FFI_CallFrame* frame) {
      auto* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame->extension_start)->metadata;
      metadata->api_version.major_version = XLA_FFI_API_MAJOR;
      metadata->api_version.minor_version = 99;
      return nullptr;
    }
    """

    def test_a_handler_for_a_newer_jaxlib_gives_way_to_the_callback_with_a_warning(tmp_path: Path) -> None:
        (tmp_path / "newer.cpp").write_text(textwrap.dedent(NEWER))
        command = [os.environ.get("CXX", "c++"), "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}"]
        command += ["-o", str(tmp_path / "newer.so"), str(tmp_path / "newer.cpp")]
        subprocess.run(command, check=True, timeout=60)
        code = """
            import ctypes, sys, warnings
            import jax, jax.numpy as jnp, numpy as np
            from dropfast import Mask, _jax_ffi
            _jax_ffi.handler = jax.ffi.pycapsule(ctypes.CDLL(sys.argv[1]).handler)
            _jax_ffi.API_VERSION = (0, 99)
            from dropfast import jax as door
            mask = Mask(300, 0.5, key=1)
            with warnings.catch_warnings(record=True, action="always") as caught:
                got = jax.jit(lambda x: door.apply(mask, x))(jnp.ones(300))
                door.apply(Mask(40, 0.5, key=1), jnp.ones(40))
            assert np.array_equal(got, mask.apply(np.ones(300, np.float32)))
            (warning,) = caught
            assert warning.category is RuntimeWarning
            print(door.road(), warning.message)
        """
        ran = run_python(textwrap.dedent(code), str(tmp_path / "newer.so"))
        assert ran.stdout.startswith("callback dropfast.jax calls its kernels by way of Python"), ran.stderr
        assert "was built for version 0.99 of XLA's FFI, and jaxlib" in ran.stdout
        assert "refuses it" in ran.stdout

    def test_the_handler_is_used() -> None:
        compiled = jax.jit(lambda x: door.dropout(KEY, x, 0.5)).lower(jnp.ones(3)).compile()
        assert 'custom_call_target="dropfast"' in compiled.as_text()


# ---- errors --------------------------------------------------------------------------------------

ONES = jnp.ones((4, 6))

FAULTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "rate": (lambda: door.dropout(KEY, ONES, 1.5), ValueError, "rate must be in [0, 1], got 1.5"),
    "x-list": (
        lambda: door.dropout(KEY, [1.0], 0.5),
        TypeError,
        "x must be a jax.Array or a numpy.ndarray, got list",
    ),
    "x-subclass": (
        lambda: door.dropout(KEY, np.ones((4, 6), np.float32).view(np.recarray), 0.5),
        TypeError,
        "x must be a numpy.ndarray or numpy.memmap itself, got the subclass recarray; numpy.asarray(x) makes one",
    ),
    "x-integers": (
        lambda: door.dropout(KEY, jnp.arange(3), 0.5),
        TypeError,
        "x must have dtype float16, bfloat16, float32 or float64 in native byte order, got int32",
    ),
    "x-that-jax-would-narrow": (
        lambda: door.dropout(KEY, np.ones(3), 0.5),
        TypeError,
        "x must have a dtype that JAX keeps, got float64, which needs jax_enable_x64",
    ),
    "key-none": (
        lambda: door.dropout(None, ONES, 0.5),
        TypeError,
        "key must be a JAX key or its uint32 words, got NoneType",
    ),
    "rate-integers": (
        lambda: door.dropout(KEY, ONES, jnp.arange(2)),
        TypeError,
        "rate must be a number or a floating scalar, got int32 of the shape (2,)",
    ),
    "rate-array": (lambda: door.dropout(KEY, ONES, jnp.float32(1.5)), ValueError, "rate must be in [0, 1], got 1.5"),
    "key-number": (
        lambda: door.dropout(123, ONES, 0.5),
        TypeError,
        "key must be a JAX key or its uint32 words, got int",
    ),
    "key-floats": (
        lambda: door.dropout(jnp.zeros(2), ONES, 0.5),
        TypeError,
        "key must be a JAX key or its uint32 words, got float32",
    ),
    "keys": (
        lambda: door.dropout(jax.random.split(KEY, 3), ONES, 0.5),
        ValueError,
        "key must be one key, of 2 or 4 words, got words of the shape (3, 2)",
    ),
    "key-words": (
        lambda: door.dropout(jnp.zeros(3, jnp.uint32), ONES, 0.5),
        ValueError,
        "key must be one key, of 2 or 4 words, got words of the shape (3,)",
    ),
    "draw": (
        lambda: door.dropout(KEY, ONES, 0.5, draw=2**32),
        ValueError,
        "draw must be in [0, 2**32), got 4294967296",
    ),
    "draw-negative": (
        lambda: door.dropout(KEY, ONES, 0.5, draw=jnp.int32(-1)),
        ValueError,
        "draw must be in [0, 2**32), got -1",
    ),
    "draw-float": (
        lambda: door.dropout(KEY, ONES, 0.5, draw=1.0),
        TypeError,
        "draw must be an integer, got float",
    ),
    "draw-traced": (
        lambda: jax.jit(lambda draw: door.dropout(KEY, ONES, 0.5, draw=draw))(1.0),
        TypeError,
        "draw must be an integer, got float32 of the shape ()",
    ),
    "key-boolean": (
        lambda: door.dropout(True, ONES, 0.5),
        TypeError,
        "key must be a JAX key or its uint32 words, got bool",
    ),
    "draw-boolean": (lambda: door.dropout(KEY, ONES, 0.5, draw=True), TypeError, "draw must be an integer, got bool"),
    "draw-boolean-array": (
        lambda: door.dropout(KEY, ONES, 0.5, draw=jnp.array(True)),
        TypeError,
        "draw must be an integer, got ArrayImpl",
    ),
    "draw-boolean-traced": (
        lambda: jax.jit(lambda draw: door.dropout(KEY, ONES, 0.5, draw=draw))(True),
        TypeError,
        "draw must be an integer, got bool of the shape ()",
    ),
    "shared-axes-boolean": (
        lambda: door.dropout(KEY, ONES, 0.5, shared_axes=False),
        TypeError,
        "shared_axes must be an integer or a sequence of integers, got False",
    ),
    "noise-shape-boolean": (
        lambda: door.dropout(KEY, ONES, 0.5, noise_shape=(True, None)),
        TypeError,
        "noise_shape must be a sequence of integers and None, got (True, None)",
    ),
    "shared-axes": (
        lambda: door.dropout(KEY, ONES, 0.5, shared_axes=2),
        ValueError,
        "shared_axes must be in [-2, 2) for 2 axes, got 2",
    ),
    "shared-twice": (
        lambda: door.dropout(KEY, ONES, 0.5, shared_axes=0, noise_shape=(1, None)),
        ValueError,
        "give shared_axes or noise_shape, not both; got 0 and (1, None)",
    ),
    "mask": (lambda: door.apply(0.5, ONES), TypeError, "mask must be a dropfast.Mask, got float"),  # type: ignore[arg-type]
    "mask-shape": (
        lambda: door.apply(Mask((4, 7), 0.5, key=1), ONES),
        ValueError,
        "x must have the mask's shape (4, 7), got (4, 6)",
    ),
    "spec-type": (
        lambda: door.dropout(KEY, ONES, 0.5, spec=("a",)),
        TypeError,
        "spec must be a jax.sharding.PartitionSpec, got tuple",
    ),
    "spec-length": (
        lambda: door.dropout(KEY, ONES, 0.5, spec=PartitionSpec(None, None, None)),
        ValueError,
        "spec must have at most one entry for each of the 2 axes of x, got (None, None, None)",
    ),
    "spec-outside-shard_map": (
        lambda: door.dropout(KEY, ONES, 0.5, spec=PartitionSpec("a")),
        NameError,
        "unbound axis name: a",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str) -> None:
    call, kind, message = FAULTS[fault]
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        call()


# ---- documentation -------------------------------------------------------------------------------


def test_the_page_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert all(block.startswith(">>> ") for block in blocks)
    session = session_of(PAGE)
    assert session.examples
    run(session)


@pytest.mark.parametrize("name", door.__all__)
def test_docstrings_run(name: str) -> None:
    test = doctest.DocTestParser().get_doctest(getattr(door, name).__doc__, {}, name, name, 0)
    assert test.examples
    run(test)


def test_it_is_the_installed_package() -> None:
    assert Path(door.__file__).parents[1] == Path(dropfast.__file__).parent
