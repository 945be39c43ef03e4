"""The promise that arrays without what is dropped are the same on any number of threads, and that calls get along."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import DTYPES, Shape, values
from progress import calls_let_others_go_on
from test_thin import assert_identical, ix, mask_along

from dropfast import thin
from dropfast._backend import on_threads

# Each large enough for seven threads (2^17 elements each), and divided on another axis or in another way.
WORK: dict[str, tuple[Shape, int]] = {
    "one-run": ((1_000_003,), 0),
    "rows": ((1100, 913), 1),
    "few-rows": ((3, 320_001), 1),
    "short-rows": ((320_001, 3), 1),
    "whole-rows": ((1113, 900), 0),
    "whole-short-rows": ((320_001, 3), 0),
    "channels": ((15, 70, 30, 31), 1),
}


@pytest.mark.parametrize("threads", [1, 2, 3, 7], ids=lambda n: f"threads={n}")
@pytest.mark.parametrize("work", WORK)
def test_thread_counts(backend: str, work: str, threads: int) -> None:
    shape, axis = WORK[work]
    for dtype in (DTYPES["float32"], DTYPES["bfloat16"]):
        mask, x = mask_along(axis, shape, 0.3), values(shape, dtype)
        applied = mask.apply(x)
        index = (slice(None),) * axis + (mask.kept(),)
        with on_threads(threads):
            compact = mask.compress(x, out=applied[index].copy())  # without gaps: what runs over hits the next row
            assert_identical(compact, applied[index])
            assert_identical(mask.expand(compact, out=x.copy()), applied)


@pytest.mark.parametrize("threads", [1, 2, 7], ids=lambda n: f"threads={n}")
@pytest.mark.parametrize("shape", [(1100, 913), (3, 320_001), (320_001, 3), (700, 40, 9, 5)], ids=str)
def test_thread_counts_of_weights(backend: str, shape: Shape, threads: int) -> None:
    w = np.resize(np.arange(-50, 50, dtype=np.float32), shape)
    rows, cols = mask_along(0, shape[:1], 0.4), mask_along(1, (9, shape[1]), 0.3)
    part = ix([rows.kept(), cols.kept()], shape)
    whole, total = np.zeros_like(w), w.copy()
    whole[part] = w[part]
    total[part] += np.float32(0.5) * w[part]
    with on_threads(threads):
        g = thin.take(w, rows, cols, out=w[part].copy())
        assert_identical(g, w[part])
        assert_identical(thin.put(g, rows, cols, out=w.copy()), whole)
        assert_identical(thin.add(w, g, rows, cols, 0.5), total)


def test_many_python_threads_at_once(backend: str) -> None:
    """They share a mask and read one array; those that add have rows of their own."""
    mask, x = mask_along(1, (300, 1000), 0.5), values((300, 1000), DTYPES["float32"])
    want, w = mask.compress(x), np.zeros((8, 300, 1000), np.float32)
    g = np.ones(want.shape, np.float32)

    def work(i: int) -> bool:
        compact = mask.compress(x)
        same = compact.tobytes() == want.tobytes() and mask.expand(compact).tobytes() == mask.apply(x).tobytes()
        return same and bool((thin.add(w[i % 8], g, cols=mask) != 0).sum() == g.size)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_thin_calls_release_the_gil(backend: str) -> None:
    """While one thread is inside a call, another goes on; with the GIL held it could not, from end to end."""
    mask = mask_along(1, (4096, 2048), 0.5)
    x = np.ones(mask.shape, np.float32)
    out = mask.compress(x)
    seen = calls_let_others_go_on(lambda: mask.compress(x, out=out))
    assert any(seen), f"no progress elsewhere in {len(seen)} calls"
