"""Dropout on an array that is larger than memory would like: 4 GiB in chunks of 64 MiB, in a few hundred MiB.

The array is made, dropped out and reduced chunk by chunk. At the end a window across chunk borders is compared with
the same window in NumPy.

    python examples/dask_large_array.py
    python examples/dask_large_array.py --gib 64 --workers 8
"""

import argparse
import resource
import sys
import time

import dask.array as da
import numpy as np
from dask.diagnostics import ProgressBar

import dropfast
import dropfast.dask

UNITS = 1024
RATE = 0.1


def peak_memory() -> float:
    """Return the most MiB that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the array (default %(default)s)")
    parser.add_argument("--chunk-mib", type=float, default=64.0, help="size of a chunk (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="chunks computed at once (default %(default)s)")
    options = parser.parse_args()

    row = UNITS * np.dtype(np.float32).itemsize
    samples, chunk = round(options.gib * 2**30 / row), round(options.chunk_mib * 2**20 / row)
    x = da.random.default_rng(0).standard_normal((samples, UNITS), chunks=(chunk, UNITS), dtype=np.float32)
    mask = dropfast.Mask(x.shape, RATE, key=123)
    y = dropfast.dask.apply(mask, x)
    print(f"{x.shape[0]:,} x {x.shape[1]:,} float32: {x.nbytes / 2**30:g} GiB in {x.npartitions} chunks")

    border = chunk * (x.numblocks[0] // 2)
    around = slice(border - 3, border + 3)
    before = peak_memory()
    began = time.perf_counter()
    with ProgressBar(dt=1.0):
        dropped, mean, square, x_around, y_around = da.compute(
            (y == 0).mean(),
            y.mean(dtype=np.float64),
            (y * y).mean(dtype=np.float64),
            x[around],
            y[around],
            scheduler="threads",
            num_workers=options.workers,
        )
    seconds = time.perf_counter() - began

    same = np.array_equal(y_around, mask.window((border - 3, 0), x_around.shape).apply(x_around))

    print(f"dropped {dropped:.6f} of the elements, expected {RATE}")
    print(f"mean {mean:+.6f}, expected 0; mean square {square:.6f}, expected {1 / (1 - RATE):.6f}")
    print(f"rows {border - 3:,} to {border + 2:,}, on both sides of a chunk border, equal those of NumPy: {same}")
    print(f"{seconds:.1f} s, {x.nbytes / 2**20 / seconds:.0f} MiB/s, with the making of the array")
    print(f"peak memory {peak_memory():.0f} MiB, {before:.0f} MiB of it before the first chunk")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
