"""The JAX door's programs: for other devices, divided among several, exported, and with the rate as data."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, MODES, RATES, values
from expected import assert_same_bits
from jax import export
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from processes import run_python

from dropfast import Mask
from dropfast import jax as door
from dropfast.jax import _private

PAGE = Path(__file__).parents[2] / "docs" / "jax.md"
HANDLER_IS_BUILT = importlib.util.find_spec("dropfast._jax_ffi") is not None
KEY = jax.random.key(123)
ONES = np.ones((12, 300), np.float32)
OURS = [export.DisabledSafetyCheck.custom_call("dropfast")]


def same(got: Any, want: Any) -> None:
    assert_same_bits(np.asarray(got), np.asarray(want))


# ---- where it runs -------------------------------------------------------------------------------


def _jit(**how: Any) -> Any:
    return jax.jit(lambda x: door.dropout(KEY, x, 0.3, **how))


def _shard_map() -> Any:
    mesh = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))
    return jax.jit(
        jax.shard_map(lambda x: door.dropout(KEY, x, 0.3, spec=P("a")), mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    )


Program = Callable[[tuple[str, ...]], str]
PROGRAMS: dict[str, Program] = {
    "`jax.jit`": lambda platforms: _jit().trace(ONES).lower(lowering_platforms=platforms).as_text(),
    "its gradient": lambda platforms: (
        jax.jit(jax.grad(lambda x: _jit()(x).sum())).trace(ONES).lower(lowering_platforms=platforms).as_text()
    ),
    "`jax.vmap`": lambda platforms: jax.jit(jax.vmap(_jit())).trace(ONES).lower(lowering_platforms=platforms).as_text(),
    "`jax.shard_map`": lambda platforms: _shard_map().trace(ONES).lower(lowering_platforms=platforms).as_text(),
    "`jax.export`": lambda platforms: export.export(_jit(), platforms=platforms, disabled_checks=OURS)(
        ONES
    ).mlir_module(),
    "`portable=True`": lambda platforms: _jit(portable=True).trace(ONES).lower(lowering_platforms=platforms).as_text(),
}
DEVICES = {"CPU": "cpu", "CPU, no handler": "cpu", "GPU": "cuda", "TPU": "tpu"}


def _table() -> list[tuple[str, str, str]]:
    """Return (row, column, cell) of the page's table."""
    lines = PAGE.read_text(encoding="utf-8").split("## Where it runs")[1].split("\n## ")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [(row[0], column, cell) for row in rows for column, cell in zip(head[1:], row[1:], strict=True)]


def test_the_table_is_complete() -> None:
    assert [(row, column) for row, column, _ in _table()] == [(row, column) for row in PROGRAMS for column in DEVICES]


@pytest.mark.parametrize(("row", "column", "cell"), _table())
def test_where_it_runs(row: str, column: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if column == "CPU, no handler" or not HANDLER_IS_BUILT:
        monkeypatch.setattr(door._handler, "is_registered", lambda: False)
        cell = cell if column != "CPU" or cell != "handler" else dict(_no_handler())[row]
    text = PROGRAMS[row]((DEVICES[column],))
    found = "handler" if "@dropfast(" in text else "callback" if "callback" in text else "portable"
    assert found == cell
    assert ("custom_call" in text) == (found != "portable")


def _no_handler() -> list[tuple[str, str]]:
    return [(row, cell) for row, column, cell in _table() if column == "CPU, no handler"]


def test_a_program_for_several_platforms_takes_what_each_has() -> None:
    exported = export.export(_jit(), platforms=("cpu", "cuda", "tpu"), disabled_checks=OURS)(ONES)
    text = exported.mlir_module()
    assert "stablehlo.case" in text
    assert text.count("@dropfast(") == HANDLER_IS_BUILT
    same(exported.call(ONES), Mask(ONES.shape, 0.3, key=123).apply(ONES))


# ---- the portable text in the door ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_portable_masks_are_the_same(dtype: str) -> None:
    array = values((3, 5, 131), DTYPES[dtype])
    with np.errstate(invalid="ignore"):
        array[np.abs(array) < jnp.finfo(array.dtype).tiny] = 0  # which XLA flushes on CPUs
    with jax.enable_x64(dtype == "float64"):
        for of in MODES.values():
            mask = Mask(array.shape, 0.3, key=2**63 + 5, draw=2**32 - 1, **of(array.shape))
            same(door.apply(mask, jnp.asarray(array), portable=True), mask.apply(array))
    far = Mask((2**20, 2**41), 0.1, key=9).window((2**19 + 1, 2**40 + 5), (4, 300))
    same(door.apply(far, jnp.asarray(ONES[:4]), portable=True), far.apply(ONES[:4]))


def test_portable_masks_of_many_keys_at_once() -> None:
    keys = jax.random.split(KEY, 3)
    got = jax.vmap(lambda key: door.dropout(key, ONES, 0.3, portable=True))(keys)
    for key, y in zip(keys, got, strict=True):
        same(y, door.dropout(key, ONES, 0.3))


# ---- the rate as data ----------------------------------------------------------------------------


@pytest.mark.parametrize("portable", [False, True], ids=["handler", "portable"])
@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_a_rate_may_be_data(rate: float, portable: bool) -> None:
    with jax.enable_x64(True):
        dropped = jax.jit(lambda x, rate: door.dropout(KEY, x, rate, portable=portable))
        want = Mask(ONES.shape, rate, key=123).apply(ONES)
        same(dropped(ONES, jnp.float64(rate)), want)
        same(door.dropout(KEY, ONES, jnp.float64(rate), portable=portable), want)
        wide = ONES.astype(np.float64)
        same(dropped(wide, rate), Mask(ONES.shape, rate, key=123).apply(wide))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_rate_is_what_its_dtype_makes_of_it(dtype: str) -> None:
    rate = jnp.asarray(0.1, dtype)
    want = Mask(ONES.shape, float(rate), key=123).apply(ONES)
    same(jax.jit(lambda rate: door.dropout(KEY, ONES, rate))(rate), want)
    same(door.dropout(KEY, ONES, rate), want)


@pytest.mark.parametrize(("rate", "counts_as"), [(-1.0, 0.0), (1.5, 1.0), (np.nan, 1.0), (np.inf, 1.0)])
def test_a_traced_rate_out_of_range_counts_as_the_end_of_it(rate: float, counts_as: float) -> None:
    got = jax.jit(lambda rate: door.dropout(KEY, ONES, rate))(rate)
    same(got, Mask(ONES.shape, counts_as, key=123).apply(ONES))


@pytest.mark.parametrize("portable", [False, True], ids=["handler", "portable"])
def test_new_rates_and_draws_compile_nothing(portable: bool) -> None:
    traced = []

    @jax.jit
    def dropped(x: Any, rate: Any, draw: Any) -> Any:
        traced.append(rate)
        return door.dropout(KEY, x, rate, draw=draw, portable=portable)

    rates, draws = np.linspace(0, 1, 11, dtype=np.float32), np.arange(11, dtype=np.uint32)
    want = [Mask(ONES.shape, float(r), key=123, draw=int(d)).apply(ONES) for r, d in zip(rates, draws, strict=True)]
    for rate, draw, y in zip(rates, draws, want, strict=True):
        same(dropped(ONES, rate, draw), y)
    assert len(traced) == 1
    same(jax.vmap(dropped, (None, 0, 0))(ONES, rates, draws), np.stack(want))
    _, layers = jax.lax.scan(lambda x, of: (x, dropped(x, *of)), jnp.asarray(ONES), (rates, draws))
    same(layers, np.stack(want))


# ---- key reuse -----------------------------------------------------------------------------------

USES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "once": (lambda key: door.dropout(key, ONES, 0.5), False),
    "twice": (lambda key: (door.dropout(key, ONES, 0.5), door.dropout(key, ONES, 0.5)), True),
    "before-another": (lambda key: (door.dropout(key, ONES, 0.5), jax.random.uniform(key)), True),
    "after-another": (lambda key: (jax.random.uniform(key), door.dropout(key, ONES, 0.5)), True),
    "split": (lambda key: [door.dropout(one, ONES, 0.5) for one in jax.random.split(key)], False),
    "draws": (lambda key: [door.dropout(key, ONES, 0.5, draw=draw) for draw in (1, 2)], False),
    "grad": (lambda key: jax.grad(lambda x: door.dropout(key, x, 0.5).sum())(jnp.ones(3)), False),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("use", USES)
def test_key_reuse_is_seen(use: str, jit: bool) -> None:
    f, is_reuse = USES[use]
    with jax.debug_key_reuse(True):
        call = jax.jit(f) if jit else f
        if is_reuse:
            with pytest.raises(jax.errors.KeyReuseError):
                call(jax.random.key(3))
        else:
            call(jax.random.key(3))


# ---- export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("portable", [False, True], ids=["handler", "portable"])
@pytest.mark.parametrize("how", [{}, {"shared_axes": 0}, {"shared_axes": (1, 2)}], ids=str)
def test_exported_for_any_batch(how: dict[str, Any], portable: bool) -> None:
    shape = export.symbolic_shape("batch, 7, 30")
    f = jax.jit(lambda key, x: door.dropout(key, x, 0.3, portable=portable, **how))
    exported = export.export(f, disabled_checks=() if portable else OURS)(KEY, jax.ShapeDtypeStruct(shape, jnp.float32))
    exported = export.deserialize(exported.serialize())
    for batch in (1, 5):
        x = np.ones((batch, 7, 30), np.float32)
        same(exported.call(KEY, x), Mask(x.shape, 0.3, key=123, **how).apply(x))


def test_several_unknown_lengths() -> None:
    shape = export.symbolic_shape("batch, time, 30")
    exported = export.export(_jit(), disabled_checks=OURS)(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = np.ones((3, 5, 30), np.float32)
    same(exported.call(x), Mask(x.shape, 0.3, key=123).apply(x))
    with pytest.raises(ValueError, match="x may have an unknown length only on its first axis that is not shared"):
        export.export(_jit(shared_axes=2))(jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("portable", [False, True], ids=["handler", "portable"])
def test_an_exported_program_runs_in_a_fresh_process(portable: bool, tmp_path: Path) -> None:
    exported = export.export(_jit(portable=portable), disabled_checks=() if portable else OURS)(ONES)
    (tmp_path / "program").write_bytes(bytes(exported.serialize(vjp_order=1)))
    code = f"""
        import sys
        from pathlib import Path
        if {portable}:
            sys.modules["dropfast"] = None  # as if it were not installed
        else:
            import dropfast.jax
        import jax, numpy as np
        exported = jax.export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
        x = np.ones((12, 300), np.float32)
        y, dx = exported.call(x), jax.grad(lambda x: exported.call(x).sum())(x)
        print(np.asarray(y).tobytes().hex(), np.asarray(dx).tobytes().hex())
    """
    code = textwrap.dedent(code).replace("import jax, numpy", "import jax, jax.export, numpy")
    ran = run_python(code, str(tmp_path / "program"))
    want = Mask(ONES.shape, 0.3, key=123).apply(ONES).tobytes().hex()
    assert ran.stdout.split() == [want, want], ran.stderr


# ---- several devices -----------------------------------------------------------------------------

DIVIDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dropfast import Mask, jax as door

portable, kind = sys.argv[1] == "portable", AxisType[sys.argv[2]]
key, rate = jax.random.key(123), 0.3
array = np.random.default_rng(0).standard_normal((8, 12, 40)).astype(np.float32)
MESHES = [
    ((1,), [P("a")]),
    ((2,), [P("a"), P(None, "a"), P(None, None, "a")]),
    ((2, 2), [P(), P("a", "b"), P(("a", "b")), P(None, "b", "a"), P(None, None, ("b", "a"))]),
]
for shape, specs in MESHES:
    mesh = jax.make_mesh(shape, ("a", "b")[: len(shape)], axis_types=(kind,) * len(shape),
                         devices=jax.devices()[: np.prod(shape)])
    for spec in specs:
        shared = [{"shared_axes": 0}, {"shared_axes": (1, 2)}] if spec in (P("a"), P("a", "b")) else []
        for how in ({}, *shared):
            with jax.set_mesh(mesh):
                x = jax.device_put(array, NamedSharding(mesh, spec))
                want = Mask(array.shape, rate, key=123, **how).apply(array)
                f = jax.jit(lambda x: door.dropout(key, x, rate, portable=portable, **how))
                df = jax.jit(jax.grad(lambda x: (f(x) * x).sum()))
                for program, result in ((f, want), (df, 2 * want)):
                    compiled = program.lower(x).compile()
                    y = compiled(x)
                    assert np.asarray(y).tobytes() == result.tobytes(), (spec, how)
                    assert y.sharding.is_equivalent_to(x.sharding, 3), (spec, how)
                    text = compiled.as_text()
                    for word in ("all-", "collective", "reduce-scatter", "send", "recv"):
                        assert word not in text, (spec, how, word)
print("done")
"""


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("way", ["handler", "portable"])
def test_each_device_computes_its_own_and_asks_for_nothing(way: str, kind: str) -> None:
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    ran = run_python(DIVIDED, way, kind, env=env)
    assert ran.stdout == "done\n", ran.stderr


# Along the axes that a shard_map leaves to XLA, JAX itself gathers arrays that are divided explicitly.
PARTLY = r"""
import re
import sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dropfast import Mask, jax as door

portable, kind = sys.argv[1] == "portable", AxisType[sys.argv[2]]
key, rate = jax.random.key(123), 0.3
array = np.random.default_rng(0).standard_normal((8, 12, 40)).astype(np.float32)
mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(kind,) * 3)


def communication(program):
    return len(re.findall(r" (?:all-|collective-|reduce-scatter|send|recv)[a-z-]*[(]", program.as_text()))


CASES = [  # the axes that shard_map is for, how x is divided along these, and along all
    ({"a"}, P("a"), P("a", "b", "c")),
    ({"a"}, P(), P("c", None, "b")),
    ({"a"}, P(None, "a"), P(("c", "b"), "a")),
    ({"b"}, P("b"), P(("b", "a"), None, "c")),
    ({"b"}, P(None, "b"), P(None, ("b", "c"), "a")),
    ({"a", "c"}, P("c", None, "a"), P(("c", "b"), None, "a")),
]
with jax.set_mesh(mesh):
    for axes, here, everywhere in CASES:
        x = jax.device_put(array, NamedSharding(mesh, everywhere))
        for how in ({}, {"shared_axes": 0}, {"shared_axes": (1, 2)})[: 3 if here == P("a") else 1]:
            def program(part):
                f = jax.jit(jax.shard_map(part, in_specs=here, out_specs=here, axis_names=axes))
                return f, jax.jit(jax.grad(lambda x: (f(x) * x).sum()))

            want = Mask(array.shape, rate, key=123, **how).apply(array)
            ours = program(lambda x: door.dropout(key, x, rate, spec=here, portable=portable, **how))
            for f, doubled, result in zip(ours, program(lambda x: 2 * x), (want, 2 * want)):
                compiled = f.lower(x).compile()
                y = compiled(x)
                assert np.asarray(y).tobytes() == result.tobytes(), (axes, everywhere, how)
                assert y.sharding.is_equivalent_to(x.sharding, 3), (axes, everywhere, how)
                allowed = 0 if kind is AxisType.Auto else communication(doubled.lower(x).compile())
                assert communication(compiled) <= allowed, (axes, everywhere, how)
                assert compiled.memory_analysis().temp_size_in_bytes < array.nbytes // 8 or allowed or portable
print("done")
"""


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("way", ["handler", "portable"])
def test_nor_along_the_axes_that_a_shard_map_leaves_to_xla(way: str, kind: str) -> None:
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    ran = run_python(PARTLY, way, kind, env=env)
    assert ran.stdout == "done\n", ran.stderr


SHARDED_KEYS = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dropfast import Mask, jax as door

mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
words, x = np.arange(8, dtype=np.uint32).reshape(4, 2), np.ones((4, 12, 40), np.float32)
want = [Mask((12, 40), 0.3, key=int(high) << 32 | int(low)).apply(row) for (high, low), row in zip(words, x)]
with jax.set_mesh(mesh):
    words = jax.device_put(words, NamedSharding(mesh, P("a")))
    x = jax.device_put(x, NamedSharding(mesh, P("a", None, "b")))
    compiled = jax.jit(jax.vmap(lambda key, x: door.dropout(key, x, 0.3))).lower(words, x).compile()
    assert np.asarray(compiled(words, x)).tobytes() == np.stack(want).tobytes()
    assert not any(word in compiled.as_text() for word in ("all-", "collective", "reduce-scatter", "send", "recv"))
print("done")
"""


def test_keys_are_divided_as_what_they_are_for() -> None:
    ran = run_python(SHARDED_KEYS, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4"})
    assert ran.stdout == "done\n", ran.stderr


# ---- private names of JAX ------------------------------------------------------------------------


@pytest.mark.parametrize("name", _private.REASONS)
def test_private_name_of_jax_is_there(name: str) -> None:
    _private.find(name)


def test_a_private_name_that_is_gone_is_named_at_import() -> None:
    name = "_src.dispatch.prim_requires_devices_during_lowering"
    # JAX's own modules have it by then.
    ran = run_python(f"import jax, jax.experimental.custom_partitioning; del jax.{name}; import dropfast.jax")
    words = f"ImportError: JAX {jax.__version__} lacks jax.{name}, needed {_private.REASONS[name]}"
    assert ran.stderr.splitlines()[-1] == words


def test_rooms_are_read_in_one_sitting() -> None:
    rooms = {room.name: room.read_text(encoding="utf-8") for room in Path(door.__file__).parent.glob("*.py")}
    assert [name for name, text in rooms.items() if "jax._src" in text] == []
    assert max(len(text.splitlines()) for text in rooms.values()) <= 300
