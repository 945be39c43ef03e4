"""The promise "the same bits on any number of threads", and that the library's threads get along with others."""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import expected
import numpy as np
import pytest
from cases import DTYPES, MODES, Array, Shape, values
from expected import assert_same_bits
from processes import run_python
from progress import calls_let_others_go_on

import dropfast
from dropfast import _backend
from dropfast._backend import on_threads

KEY = 0xFEDCBA9876543210

# Each large enough for seven threads (2^17 elements each), and divided on another axis or in another way.
WORK: dict[str, tuple[Shape, str]] = {
    "per-sample": ((1_000_003,), "per-sample"),
    "per-sample-rows": ((1100, 913), "per-sample"),
    "shared-first": ((1100, 913), "shared-first"),
    "shared-first-wide": ((3, 320_001), "shared-first"),
    "shared-first-narrow": ((320_001, 3), "shared-first"),
    "shared-last": ((1113, 900), "shared-last"),
    "shared-last-narrow": ((320_001, 3), "shared-last"),
    "shared-last-wide": ((3, 320_001), "shared-last"),
    "shared-middle": ((17, 80, 701), "shared-middle"),
    "spatial": ((15, 70, 30, 31), "spatial"),
    "shared-all": ((1100, 913), "shared-all"),
}


def threads_in_use() -> int:
    threads = dropfast.show_config(mode="dicts")["threads"]
    assert isinstance(threads, int)
    return threads


def apply(shape: Shape, mode: str, x: Array, draw: int = 0) -> Array:
    return dropfast.Mask(shape, 0.1, key=KEY, draw=draw, **MODES[mode](shape)).apply(x)


def wanted(shape: Shape, mode: str, x: Array) -> Array:
    return expected.output(x, expected.keep(shape, 0.1, KEY, **MODES[mode](shape)), 0.1)


@pytest.mark.parametrize("threads", [1, 2, 3, 7], ids=lambda n: f"threads={n}")
@pytest.mark.parametrize("work", WORK)
def test_thread_counts_of_calls(backend: str, work: str, threads: int) -> None:
    shape, mode = WORK[work]
    for dtype in (DTYPES["float32"], DTYPES["bfloat16"]):
        x = values(shape, dtype)
        with on_threads(threads):
            assert threads_in_use() == (1 if backend == "numpy" else threads)
            y = apply(shape, mode, x)
            assert apply(shape, mode, x, draw=1).shape == shape  # and once more with the same threads
            assert_same_bits(y, wanted(shape, mode, x))


@pytest.mark.parametrize("threads", [2, 3, 7], ids=lambda n: f"threads={n}")
def test_thread_counts_in_layouts_and_windows(backend: str, threads: int) -> None:
    shape = (1000, 999)
    x = values(shape, DTYPES["float64"])
    window = dropfast.Mask((2**20, 2**30), 0.1, key=KEY).window((3, 2**29 + 77), shape)
    kept = expected.keep((2**20, 2**30), 0.1, KEY, start=(3, 2**29 + 77), shape=shape)
    with on_threads(threads):
        for view in (x, x[::-1], np.asfortranarray(x)):
            assert_same_bits(window.apply(view), expected.output(view, kept, 0.1))


SCRIPT = """
import hashlib, sys
import numpy as np
import dropfast
from dropfast import _backend
threads = dropfast.show_config(mode="dicts")["threads"]
for backend in _backend.available():
    _backend.use(backend)
    digest = hashlib.sha256()
    for shape, shared_axes in SHAPES:
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 1000
        digest.update(dropfast.Mask(shape, 0.1, key=5, shared_axes=shared_axes).apply(x).tobytes())
    print(backend, dropfast.show_config(mode="dicts")["threads"], digest.hexdigest())
"""


def test_thread_counts_by_environment() -> None:
    shapes: list[tuple[Shape, Any]] = [
        (shape, MODES[mode](shape).get("shared_axes", ())) for shape, mode in WORK.values()
    ]
    digest = hashlib.sha256()
    for shape, shared_axes in shapes:
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 1000
        kept = expected.keep(shape, 0.1, 5, shared_axes=shared_axes)
        digest.update(expected.output(x, kept, 0.1).tobytes())
    for threads in (1, 2, 3, 7):
        done = run_python(f"SHAPES = {shapes!r}\n{SCRIPT}", env={"OMP_NUM_THREADS": str(threads)})
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        assert [line[0] for line in lines] == list(_backend.available())
        for name, used, sha in lines:
            assert used == str(1 if name == "numpy" else threads)
            assert sha == digest.hexdigest(), f"{name} on {threads} threads"


@pytest.mark.parametrize("work", ["per-sample-rows", "shared-first", "spatial"])
def test_many_python_threads_at_once(backend: str, work: str) -> None:
    shape, mode = WORK[work]
    x = values(shape, DTYPES["float32"])
    alone = [apply(shape, mode, x, draw).tobytes() for draw in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda draw: apply(shape, mode, x, draw).tobytes(), range(16)))
    assert together == alone


def test_one_array_by_many_python_threads(backend: str) -> None:
    """Each thread computes its own window into one output."""
    x = values((800, 1000), DTYPES["float32"])
    mask, out = dropfast.Mask(x.shape, 0.1, key=KEY), np.empty_like(x)

    def shard(row: int) -> None:
        mask.window((row, 0), (200, 1000)).apply(x[row : row + 200], out=out[row : row + 200])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(shard, range(0, 800, 200)))
    assert_same_bits(out, expected.output(x, expected.keep(x.shape, 0.1, KEY), 0.1))


def test_gil_is_released(backend: str) -> None:
    """While one thread is inside a call, another goes on; with the GIL held it could not, from end to end."""
    x = np.ones(1 << 23, np.float32)
    out = np.empty_like(x)
    mask = dropfast.Mask(x.shape, 0.1, key=KEY)
    mask.apply(x, out=out)
    seen = calls_let_others_go_on(lambda: mask.apply(x, out=out))
    assert any(seen), f"no progress elsewhere in {len(seen)} calls"


# ---- other people's threads ----------------------------------------------------------------------

# GCC's, or Clang's, which has the same entry points.
OUR_LIBGOMP = """
import dropfast
print(*{line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libomp" in line})
"""
with_libgomp = pytest.mark.skipif(
    sys.platform != "linux" or not dropfast.show_config(mode="dicts")["openmp"],
    reason="OpenMP was asked for, and is looked for as on Linux",
)


def our_libgomp() -> str:
    (path,) = run_python(OUR_LIBGOMP).stdout.split()
    return path


# Three threads of one team, each of which calls with an array large enough for a team of its own.
INSIDE = """
import ctypes, sys
import numpy as np
import dropfast
libgomp = ctypes.CDLL(sys.argv[1])
x = np.ones((1000, 1000), np.float32)
mask = dropfast.Mask(x.shape, 0.1, key=1)
alone = mask.apply(x).tobytes()
seen = []
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def region(data):
    threads = dropfast.show_config(mode="dicts")["threads"]
    seen.append((libgomp.omp_get_thread_num(), threads, mask.apply(x).tobytes() == alone))
libgomp.GOMP_parallel(region, None, 3, 0)
assert sorted(seen) == [(0, 1, True), (1, 1, True), (2, 1, True)], seen
assert dropfast.show_config(mode="dicts")["threads"] == 4
"""


@with_libgomp
def test_inside_another_parallel_region() -> None:
    done = run_python(INSIDE, our_libgomp(), env={"OMP_NUM_THREADS": "4"})
    assert done.returncode == 0, done.stderr


# Threads of the process before and after a big call: those of a team stay.
LIMITED = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import dropfast
from threadpoolctl import threadpool_limits
x = np.ones((1000, 1000), np.float32)
mask = dropfast.Mask(x.shape, 0.1, key=1)
def new_threads(limit):
    before = len(os.listdir("/proc/self/task"))
    with threadpool_limits(limit, user_api="openmp"):
        mask.apply(x)
        return len(os.listdir("/proc/self/task")) - before
with ThreadPoolExecutor(1) as pool:
    for run in (lambda limit: new_threads(limit), lambda limit: pool.submit(new_threads, limit).result()):
        run(1)  # starts the pool's own thread
        print(run(1), run(3))
"""


@with_libgomp
def test_threadpoolctl_is_obeyed_in_worker_threads_too() -> None:
    done = run_python(LIMITED, env={"OMP_NUM_THREADS": "4"})
    assert done.stdout.split() == ["0", "2", "0", "2"], done.stderr


# A team that shrinks ends threads, which the next call then starts again.
TEAMS = """
import os
import numpy as np
import dropfast
x = np.ones(1 << 20, np.float32)
large, small = dropfast.Mask(x.shape, 0.1, key=1), dropfast.Mask(1 << 18, 0.1, key=1)
def threads():
    return sorted(map(int, os.listdir("/proc/self/task")))
large.apply(x)
before = threads()
for mask in (small, large) * 3:
    mask.apply(x[: mask.shape[0]])
    assert threads() == before, (before, threads())
assert len(before) >= 4
"""


@with_libgomp
def test_calls_of_other_sizes_keep_the_threads() -> None:
    done = run_python(TEAMS, env={"OMP_NUM_THREADS": "4"})
    assert done.returncode == 0, done.stderr


def test_threads_that_share_a_layer_lose_no_draw(backend: str) -> None:
    """Eight at once on big arrays, and as many switches between them as can be had: each draw once, none left out."""
    shape, mode = WORK["shared-first"]
    layer = dropfast.Dropout(0.1, rng=3, **MODES[mode](shape))
    x = values(shape, DTYPES["float32"])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            outputs = list(pool.map(lambda _: hashlib.sha256(layer(x).tobytes()).digest(), range(24)))
    finally:
        sys.setswitchinterval(interval)
    masks = [dropfast.Mask(shape, 0.1, key=layer.key, draw=draw, **MODES[mode](shape)) for draw in range(24)]
    assert sorted(outputs) == sorted(hashlib.sha256(mask.apply(x).tobytes()).digest() for mask in masks)
    assert layer.draw == 24
