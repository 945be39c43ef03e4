"""Dask: the result of the whole array, whatever the chunks, the scheduler and the fate of the workers."""

import doctest
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import expected
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from cases import DTYPES, MODES, Array, Shape, values
from dask.base import tokenize
from expected import assert_same_bits
from processes import run_python
from test_docs import run, session_of

import dropfast
import dropfast.dask
from dropfast import Mask, _backend

ROOT = Path(__file__).parent.parent.parent
KEY = 0xFEDCBA9876543210
SHAPE = (37, 23, 11)


@pytest.fixture(autouse=True)
def in_this_thread() -> Iterator[None]:
    """Whoever wants another scheduler says so."""
    with dask.config.set(scheduler="sync"):
        yield


def chunking(seed: int, shape: Shape = SHAPE) -> tuple[tuple[int, ...], ...]:
    """Cut each axis at up to four places."""
    rng = np.random.default_rng(seed)
    cuts = [np.sort(rng.choice(np.arange(1, n), rng.integers(5), replace=False)) for n in shape]
    return tuple(tuple(np.diff([0, *cut, n]).tolist()) for cut, n in zip(cuts, shape, strict=True))


# ---- the mask ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20), ids=lambda seed: f"chunking{seed}")
def test_any_chunking(backend: str, seed: int) -> None:
    x = values(SHAPE, DTYPES["float32"])
    want = expected.output(x, expected.keep(SHAPE, 0.1, KEY, 3), 0.1)
    y = dropfast.dask.apply(Mask(SHAPE, 0.1, key=KEY, draw=3), da.from_array(x, chunking(seed)))
    assert y.chunks == chunking(seed)
    assert_same_bits(y.compute(), want)


def test_the_chunkings_differ() -> None:
    assert len({chunking(seed) for seed in range(20)}) == 20


@pytest.mark.parametrize("mode", MODES)
def test_modes(backend: str, mode: str) -> None:
    x, sharing = values(SHAPE, DTYPES["float32"]), MODES[mode](SHAPE)
    want = expected.output(x, expected.keep(SHAPE, 0.5, KEY, **sharing), 0.5)
    for seed in (1, 2):
        y = dropfast.dask.apply(Mask(SHAPE, 0.5, key=KEY, **sharing), da.from_array(x, chunking(seed)))
        assert_same_bits(y.compute(), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(backend: str, dtype: str) -> None:
    x = values((40, 30), DTYPES[dtype])
    y = dropfast.dask.apply(Mask(x.shape, 0.25, key=KEY), da.from_array(x, (7, 13)))
    assert y.dtype == x.dtype
    assert_same_bits(y.compute(), expected.output(x, expected.keep(x.shape, 0.25, KEY), 0.25))


@pytest.mark.parametrize("mode", ["per-sample", "shared-first", "noise-shape"])
def test_dropout_is_that_of_numpy(mode: str) -> None:
    x, sharing = values(SHAPE, DTYPES["float32"]), MODES[mode](SHAPE)
    y = dropfast.dask.dropout(da.from_array(x, chunking(7)), 0.3, rng=5, **sharing)
    assert_same_bits(y.compute(), dropfast.dropout(x, 0.3, rng=5, **sharing))


def test_keys_are_of_64_bits_whatever_the_bit_generator() -> None:
    """With keys of one raw number of MT19937, which has 32 bits, these two would be the same."""
    x, masks = da.ones((20, 30), chunks=7), []
    for before in (68_164, 81_339):
        bits = np.random.MT19937(0)
        bits.random_raw(before, output=False)
        masks.append(dropfast.dask.dropout(x, rng=np.random.RandomState(bits)).compute())
    assert not np.array_equal(*masks)


def test_a_mask_shared_over_the_batch_is_shared_by_all_chunks() -> None:
    y = dropfast.dask.dropout(da.ones((60, 50), chunks=(7, 20)), 0.5, shared_axes=0, rng=1).compute()
    assert 0 < np.count_nonzero(y[0]) < 50
    assert (y == y[0]).all()


def test_backward_applies_the_same_mask() -> None:
    x, dy = values((40, 30), DTYPES["float32"]), np.ones((40, 30), np.float32)
    mask = Mask(x.shape, 0.5, key=KEY)
    dx = dropfast.dask.apply(mask, da.from_array(dy, (9, 30)))  # its chunks may be others than those of x
    assert_same_bits(dx.compute(), mask.apply(dy))


def test_rechunk() -> None:
    x, mask = values(SHAPE, DTYPES["float32"]), Mask(SHAPE, 0.1, key=KEY)
    before = dropfast.dask.apply(mask, da.from_array(x, chunking(3)).rechunk(chunking(4)))
    after = dropfast.dask.apply(mask, da.from_array(x, chunking(3))).rechunk(chunking(4))
    assert_same_bits(before.compute(), mask.apply(x))
    assert_same_bits(after.compute(), mask.apply(x))


@pytest.mark.parametrize("optimize_graph", [True, False], ids=["optimized", "as-it-is"])
def test_inside_a_graph(optimize_graph: bool) -> None:
    """Between other steps, which are fused with it, and under slices, of which only the needed blocks are computed."""
    x, mask = values((60, 40), DTYPES["float32"]), Mask((60, 40), 0.5, key=KEY)
    want = mask.apply(x)
    y = dropfast.dask.apply(mask, -da.from_array(-x, (7, 9)))
    for got, wanted in (
        (y, want),
        (y[3:31, 5:], want[3:31, 5:]),
        (y[::-3, 2::2], want[::-3, 2::2]),
        (y[[30, 1, 5]], want[[30, 1, 5]]),
        (y[4], want[4]),
        (y.T, want.T),
        (dropfast.dask.apply(mask, y), mask.apply(want)),
    ):
        assert_same_bits(got.compute(optimize_graph=optimize_graph), wanted)


def test_windows() -> None:
    """A Dask array may itself be a shard of something larger."""
    mask = Mask((2**20, 2**30), 0.1, key=KEY).window((3, 2**29 + 77), (50, 60))
    x = values(mask.shape, DTYPES["float64"])
    assert_same_bits(dropfast.dask.apply(mask, da.from_array(x, (11, 60))).compute(), mask.apply(x))


def test_far_inside_an_array_of_2_to_the_33_elements() -> None:
    x = da.ones((2**22, 2**11), chunks=(2**14, 2**11), dtype=np.float16)  # 16 GiB; one chunk of 64 MiB is computed
    y = dropfast.dask.apply(Mask(x.shape, 0.3, key=KEY), x)[-40:, -300:].compute()
    kept = expected.keep(x.shape, 0.3, KEY, start=(2**22 - 40, 2**11 - 300), shape=(40, 300))
    assert_same_bits(y, expected.output(np.ones((40, 300), np.float16), kept, 0.3))


@pytest.mark.parametrize("x", [np.ones(()), np.ones(0), np.ones((0, 5)), np.ones((3, 0, 2))], ids=lambda x: x.shape)
def test_no_axes_and_no_elements(x: Array) -> None:
    mask = Mask(x.shape, 0.5, key=1)
    assert_same_bits(np.asarray(dropfast.dask.apply(mask, da.from_array(x)).compute()), mask.apply(x))


def test_a_block_of_no_axes_may_be_a_numpy_scalar() -> None:
    x = da.ones(10, chunks=5).sum()
    assert isinstance(x.compute(), np.float64)
    assert dropfast.dask.apply(Mask((), 0.0, key=1), x).compute() == 10


# ---- what is lazy, and what is not ---------------------------------------------------------------


def test_nothing_is_computed_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("called")

    x = da.map_blocks(never, chunks=((5, 5), (4,)), meta=np.empty((0, 0), np.float32))
    with monkeypatch.context() as patch:
        patch.setattr(_backend, "apply", never)
        y = dropfast.dask.dropout(x)
        assert y.dtype == np.float32
        assert type(y._meta) is np.ndarray
    with pytest.raises(AssertionError, match="called"):
        y.compute()


def test_the_key_is_drawn_when_dropout_is_called() -> None:
    x = da.ones((20, 30), chunks=7)
    rng, twin = np.random.default_rng(3), np.random.default_rng(3)
    y = dropfast.dask.dropout(x, rng=rng)
    assert_same_bits(y.compute(), Mask(x.shape, key=twin.bit_generator.random_raw()).apply(np.ones(x.shape)))
    assert_same_bits(y.compute(), y.compute())
    assert rng.bit_generator.state == twin.bit_generator.state  # one draw, and none for the computations
    assert not (dropfast.dask.dropout(x, rng=rng) == y).all()


def test_without_rng_each_call_has_a_mask_of_its_own() -> None:
    x = da.ones((20, 30), chunks=7)
    y = dropfast.dask.dropout(x)
    assert_same_bits(y.compute(), y.compute())
    assert not (dropfast.dask.dropout(x) == y).all()


NAME = """
import dask.array as da, dropfast.dask
mask = dropfast.Mask((40, 30), 0.5, key=7, shared_axes=0).window((1, 0), (30, 30))
print(dropfast.dask.apply(mask, da.ones((30, 30), chunks=7)).name)
"""


def test_names_are_deterministic() -> None:
    x = da.ones((30, 30), chunks=7)

    def name(mask: Mask, x: da.Array = x) -> str:
        with dask.config.set({"tokenize.ensure-deterministic": True}):
            return str(dropfast.dask.apply(mask, x).name)

    whole = Mask((40, 30), 0.5, key=7, shared_axes=0)
    mask = whole.window((1, 0), (30, 30))
    equal = Mask([40, 30], 0.5, key=7, noise_shape=(1, None)).window((1, 0), (39, 30)).window((0, 0), (30, 30))
    assert name(mask).startswith("dropout-")
    assert name(mask) == name(equal) == name(pickle.loads(pickle.dumps(mask)))
    done = run_python(NAME)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == name(mask)
    assert dropfast.dask.dropout(x, rng=0).name == dropfast.dask.dropout(x, rng=0).name

    others = [
        whole.window((2, 0), (30, 30)),
        *(Mask((30, 30), 0.5, key=key, draw=draw) for key, draw in ((7, 0), (8, 0), (7, 1))),
        Mask((30, 30), 0.4, key=7),
        Mask((30, 30), 0.5, key=7, shared_axes=0),
    ]
    assert len({name(other) for other in (mask, *others)}) == 1 + len(others)
    assert name(mask, x.rechunk(8)) != name(mask)


def test_equal_bfloat16_arrays_have_equal_names() -> None:
    a, b = (np.ones((6, 6), ml_dtypes.bfloat16) for _ in range(2))
    assert tokenize(a) == tokenize(b)


# ---- schedulers ----------------------------------------------------------------------------------


def test_threads(backend: str) -> None:
    x, mask = values((300, 200), DTYPES["float32"]), Mask((300, 200), 0.1, key=KEY)
    y = dropfast.dask.apply(mask, da.from_array(x, (30, 50)))
    with dask.config.set(scheduler="threads", num_workers=4):
        assert_same_bits(y.compute(), mask.apply(x))


# Functions of the script that tasks call are pickled by value: the workers start with an empty __main__.
PREAMBLE = """
import json, os, signal, time
import dask, dask.array as da, numpy as np
import dropfast, dropfast.dask

def equal(a, b):
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()

def slowly(block):
    time.sleep(0.1)
    return block

x = np.random.default_rng(0).standard_normal((400, 50)).astype(np.float32)
mask = dropfast.Mask(x.shape, 0.1, key=9, shared_axes=SHARED)
y = dropfast.dask.apply(mask, da.from_array(x, CHUNKS))
"""


def script(body: str, **names: Any) -> Any:
    """Run a script in a process of its own, and within a time limit; return what it printed as JSON."""
    constants = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    done = run_python(constants + PREAMBLE + body)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_processes() -> None:
    body = """
pids = da.map_blocks(lambda block: np.array([[os.getpid()]]), y, chunks=(1, 1), meta=np.empty((0, 0), int))
got, pids = dask.compute(y, pids, scheduler="processes", num_workers=2)
print(json.dumps([equal(got, mask.apply(x)), os.getpid() in pids]))
"""
    assert script(body, SHARED=(), CHUNKS=(30, 20)) == [True, False]


def test_query_planning() -> None:
    """Dask's coming way of making graphs, which can only be switched on in a new process."""
    body = """
want = mask.apply(x)
results = [equal(y.compute(optimize_graph=optimize), want) for optimize in (True, False)]
results += [equal(y[3:31, 5:].compute(), want[3:31, 5:].copy()), equal(y.rechunk(17).compute(), want)]
print(json.dumps([bool(da._array_expr_enabled()), results]))
"""
    planned = "import dask\ndask.config.set({'array.query-planning': True})\n"
    done = run_python(f"{planned}SHARED, CHUNKS = 0, (30, 20)\n{PREAMBLE}{body}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, [True] * 4]


DISTRIBUTED = """
from distributed import Client, LocalCluster, futures_of

with (
    LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
    Client(cluster) as client,
):
    workers = client.run(os.getpid)
    threads = client.run(lambda: dropfast.show_config(mode="dicts")["threads"])
    whole = client.compute(y).result(timeout=60)

    slow = client.persist(y.map_blocks(slowly, meta=y._meta))
    while True:  # until somebody has finished a few blocks
        victim, blocks = max(client.has_what().items(), key=lambda item: len(item[1]))
        if len(blocks) >= 3:
            break
        time.sleep(0.02)
    os.kill(workers[victim], signal.SIGKILL)
    unfinished = sum(future.status == "pending" for future in futures_of(slow))
    with_a_kill = client.compute(slow).result(timeout=60)
    print(json.dumps({
        "workers": len(set(workers.values()) - {os.getpid()}),
        "threads": set(threads.values()) == {1},
        "whole": equal(whole, mask.apply(x)),
        "lost blocks": len(blocks),
        "unfinished": unfinished,
        "victim is gone": workers[victim] not in client.run(os.getpid).values(),
        "with a kill": equal(with_a_kill, mask.apply(x)),
    }))
"""


def test_distributed_and_a_worker_killed_in_the_middle() -> None:
    seen = script(DISTRIBUTED, SHARED=(), CHUNKS=(10, 50))
    assert seen["workers"] == 2
    assert seen["threads"]  # one each: docs/dask.md speaks of it
    assert seen["whole"]
    assert seen["lost blocks"] >= 3
    assert seen["unfinished"] > 0
    assert seen["victim is gone"]
    assert seen["with a kill"]


# ---- errors --------------------------------------------------------------------------------------


def masked() -> da.Array:
    return da.ma.masked_equal(da.ones((4, 4)), 0)


def sparse() -> da.Array:
    return da.ones((4, 4)).map_blocks(scipy.sparse.csr_matrix)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        pytest.param(np.ones(3), TypeError, "x must be a dask.array.Array, got ndarray", id="numpy"),
        pytest.param([1.0, 2.0], TypeError, "x must be a dask.array.Array, got list", id="list"),
        pytest.param(masked(), TypeError, "chunks of numpy.ndarray itself, no subclass, got MaskedArray", id="masked"),
        pytest.param(sparse(), TypeError, "chunks of numpy.ndarray itself, no subclass, got csr_matrix", id="sparse"),
        pytest.param(da.ones(3, dtype=int), TypeError, "float32 or float64 in native byte order, got int64", id="int"),
        pytest.param(da.ones(3, dtype=">f4"), TypeError, "in native byte order, got >f4", id="big-endian"),
        pytest.param(da.ones(9)[da.arange(9) > 2], ValueError, r"known chunk sizes, got the shape \(nan,\)", id="nan"),
    ],
)
def test_arrays_that_are_refused(x: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        dropfast.dask.dropout(x)
    with pytest.raises(error, match=words):
        dropfast.dask.apply(Mask(3, key=0), x)


def test_chunk_sizes_can_be_found_out() -> None:
    x = da.ones(9, chunks=4)[da.arange(9, chunks=4) > 2].compute_chunk_sizes()
    assert_same_bits(dropfast.dask.dropout(x, rng=0).compute(), dropfast.dropout(np.ones(6), rng=0))


def test_masks_that_are_refused() -> None:
    with pytest.raises(TypeError, match=r"mask must be a dropfast\.Mask, got ndarray"):
        dropfast.dask.apply(np.ones(3), da.ones(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must have the mask's shape \(3,\), got \(4,\)"):
        dropfast.dask.apply(Mask(3, key=0), da.ones(4))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"rate": 1.5}, ValueError, r"rate must be in \[0, 1\], got 1.5"),
        ({"rate": "high"}, TypeError, "rate must be a real number"),
        ({"shared_axes": 2}, ValueError, "shared_axes must be in"),
        ({"shared_axes": 0, "noise_shape": (1, None)}, ValueError, "give shared_axes or noise_shape, not both"),
        ({"shared_axes": False}, TypeError, "shared_axes must be an integer or a sequence of integers, got False"),
        ({"noise_shape": (True, None)}, TypeError, "noise_shape must be a sequence of integers and None"),
        ({"rng": True}, TypeError, "rng must be something that numpy.random.default_rng takes, got True"),
        ({"rng": da.random.default_rng(0)}, TypeError, "rng must be something that numpy.random.default_rng takes"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_arguments_that_are_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        dropfast.dask.dropout(da.ones((3, 4)), **arguments)


def test_blocks_that_are_not_what_the_array_says() -> None:
    """Found when they are computed: no block is taken for what it is not."""
    x = da.ones((8, 3), chunks=(4, 3))
    short = x.map_blocks(lambda block: block[1:], chunks=x.chunks)
    with pytest.raises(ValueError, match=r"x must have the mask's shape \(4, 3\), got \(3, 3\)"):
        dropfast.dask.dropout(short).compute()
    hidden = x.map_blocks(np.ma.MaskedArray, meta=x._meta)
    with pytest.raises(TypeError, match=r"^x must be a numpy\.ndarray or .* itself, got the subclass MaskedArray"):
        dropfast.dask.dropout(hidden).compute()


# ---- the house -----------------------------------------------------------------------------------


def test_dask_is_only_imported_when_asked_for() -> None:
    done = run_python("import dropfast, sys; print(any(name.partition('.')[0] == 'dask' for name in sys.modules))")
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("thing", [dropfast.dask, dropfast.dask.dropout, dropfast.dask.apply], ids=lambda o: o.__name__)
def test_docstrings(thing: Any) -> None:
    for test in doctest.DocTestFinder(recurse=False).find(thing):
        assert len(test.examples) >= 3
        run(test)


def test_page() -> None:
    session = session_of(ROOT / "docs" / "dask.md")
    assert len(session.examples) >= 3
    run(session)
