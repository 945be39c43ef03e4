"""The promises about limits: indices up to 2^63, the counter's high word, memory or threads that cannot be had."""

import sys

import expected
import numpy as np
import pytest
from cases import DTYPES, MODES, Shape, values
from expected import DEFAULT_AND_TWIN, assert_same_bits
from processes import run_python

from dropfast import Dropout, Mask, _backend

KEY, DRAW = 0x0123456789ABCDEF, 2**32 - 1
SIZE = 2**18 + 300  # large enough for two threads

# Where a mask of 2^63 - 1 elements is looked at. From index 2^39 on a block's number has a high word.
PLACES = {
    "2^31": 2**31 - SIZE // 2,
    "2^32": 2**32 - SIZE // 2,
    "2^39": 2**39 - SIZE // 2,
    "2^40": 2**40 - SIZE // 2,
    "2^62": 2**62 - SIZE // 2,
    "end": 2**63 - 1 - SIZE,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_places_up_to_the_end(backend: str, dtype: str, place: str) -> None:
    whole = (2**63 - 1,)
    x = values((SIZE,), DTYPES[dtype])
    for rate in (0.5, 0.1):
        kept = expected.keep(whole, rate, KEY, DRAW, start=(PLACES[place],), shape=(SIZE,))
        mask = Mask(whole, rate, key=KEY, draw=DRAW).window(PLACES[place], SIZE)
        assert_same_bits(mask.apply(x), expected.output(x, kept, rate))
        assert mask.packed().tobytes() == np.packbits(kept, bitorder="little").tobytes()


# A whole mask of 2^63 elements, or nearly, and its last corner.
WHOLES: dict[str, tuple[Shape, str]] = {
    "per-sample": ((2**21, 2**21, 2**21), "per-sample"),
    "odd": ((3**13, 3**13, 3**13), "per-sample"),
    "shared-first": ((2**62, 2**31, 2**32), "shared-first"),
    "shared-last": ((2**32, 2**31, 2**62), "shared-last"),
    "shared-middle": ((2**31, 2**62, 2**32), "shared-middle"),
}


@pytest.mark.parametrize("whole", WHOLES)
def test_the_last_corner(backend: str, whole: str) -> None:
    lengths, mode = WHOLES[whole]
    shape = (5, 60, 1001)  # large enough for two threads
    start = tuple(n - m for n, m in zip(lengths, shape, strict=True))
    x = values(shape, DTYPES["float32"])
    kept = expected.keep(lengths, 0.1, KEY, DRAW, start=start, shape=shape, **MODES[mode](lengths))
    mask = Mask(lengths, 0.1, key=KEY, draw=DRAW, **MODES[mode](lengths)).window(start, shape)
    assert_same_bits(mask.apply(x), expected.output(x, kept, 0.1))
    assert np.array_equal(mask.keep(), kept)


@pytest.mark.parametrize("shape", [(2**52, 0), (2**52, 0, 3), (0, 2**30, 2**22), (2**52, 1, 0)], ids=str)
def test_long_axes_beside_an_empty_one(backend: str, shape: Shape) -> None:
    x = np.empty(shape, np.float16)
    for mask in (Mask(shape, 0.1, key=KEY), Mask(shape, 0.1, key=KEY, shared_axes=0)):
        assert mask.apply(x).shape == shape
        assert mask.apply(x, out=x) is x


def test_a_result_that_has_no_room(backend: str) -> None:
    """More than any address space: nothing but MemoryError, and everything can be used afterwards."""
    n = 2**62 - 1
    x = np.broadcast_to(np.float16(1), n)
    mask, layer = Mask(n, 0.5, key=KEY), Dropout(0.5, rng=0)
    for call in (lambda: mask.apply(x), mask.keep, mask.packed, Mask(2**62 - 1, 1.0, key=0).packed, lambda: layer(x)):
        with pytest.raises(MemoryError):
            call()
    assert layer.draw == 0
    assert_same_bits(layer(x[:1000]), Mask(1000, 0.5, key=layer.key).apply(x[:1000]))
    assert_same_bits(mask.window(0, 1000).apply(x[:1000]), Mask(1000, 0.5, key=KEY).apply(x[:1000]))


# Ever less room, until it is enough for nothing: each call gives the right bits or MemoryError, and threads that cannot
# be started are done without. In a process of its own, which libgomp would end.
LIMITED = """
import os, resource, sys
from pathlib import Path
import numpy as np
import dropfast
from dropfast import _backend
_backend.use(sys.argv[1])
x = np.arange(2**23, dtype=np.float64)  # 64 MiB: more than what malloc has set aside for a thread
mask = dropfast.Mask(x.shape, 0.1, key=3)
want = mask.apply(x).tobytes()
out = np.empty_like(x)
def calls():
    outcomes, results = set(), []
    for room in (200 << 20, 80 << 20, 20 << 20, 1 << 20, 0):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
        for call in (lambda: mask.apply(x), lambda: mask.apply(x, out=out), lambda: mask.keep()):
            try:
                results.append(call())
                outcomes.add("done")
            except MemoryError:
                outcomes.add("MemoryError")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert mask.apply(x).tobytes() == want
    assert mask.apply(x, out=out).tobytes() == want
    return sorted(outcomes)
child = os.fork()  # after a parallel call
if child == 0:
    print(*calls(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(*calls())
"""

# The first parallel call of the process, with no room for the stacks of other threads.
NO_THREADS = """
import resource
from pathlib import Path
import numpy as np
import dropfast
x, out = np.arange(2**20, dtype=np.float32), np.empty(2**20, np.float32)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, resource.RLIM_INFINITY))
dropfast.Mask(x.shape, 0.1, key=3).apply(x, out=out)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
again = np.empty_like(out)
dropfast.Mask(x.shape, 0.1, key=3).apply(x, out=again)
print(out.tobytes() == again.tobytes() and out.any())
"""

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of another kind")


@on_linux
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", DEFAULT_AND_TWIN)
def test_memory_that_runs_out(name: str) -> None:
    done = run_python(LIMITED, name, env={"OMP_NUM_THREADS": "4"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["MemoryError", "done"] * 2, done.stderr


@on_linux
@pytest.mark.skipif(_backend.native is None, reason="the twin has one thread")
def test_threads_that_cannot_be_started_are_done_without() -> None:
    done = run_python(NO_THREADS, env={"OMP_NUM_THREADS": "7"})
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr
