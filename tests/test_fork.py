"""The promise that dropfast works in children of a process that used it, however they are started: no hang, equal bits.

Each child has a time limit, so that a hang is a failure.
"""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import DTYPES, values
from expected import DEFAULT_AND_TWIN
from processes import run_file, run_python
from test_threads import WORK, apply, our_libgomp, with_libgomp

import dropfast
from dropfast._backend import on_threads

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
# Python 3.12 and newer warn of any fork in a process with threads. That it works all the same is what is tested.
may_fork = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

PATIENCE = 30  # seconds, for a hang to count as one


def in_forked_child(check: Callable[[], bool]) -> int:
    """Return how a child ended that calls check(): 0 if it held, else an exit code or minus a signal."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)  # ends the child even if it hangs in a lock
        try:
            os._exit(0 if check() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@forks
@may_fork
@pytest.mark.parametrize("threads", [1, 2, 7], ids=lambda n: f"threads={n}")
def test_fork_after_a_parallel_call(backend: str, threads: int) -> None:
    shape, mode = WORK["per-sample-rows"]
    x = values(shape, DTYPES["float32"])
    with on_threads(threads):
        alone = apply(shape, mode, x).tobytes()
        assert in_forked_child(lambda: apply(shape, mode, x).tobytes() == alone) == 0
        assert apply(shape, mode, x).tobytes() == alone  # the parent goes on
        # A child of a child, and one that makes several calls.
        assert in_forked_child(lambda: in_forked_child(lambda: apply(shape, mode, x).tobytes() == alone) == 0) == 0
        assert in_forked_child(lambda: all(apply(shape, mode, x).tobytes() == alone for _ in range(3))) == 0


@forks
@may_fork
def test_fork_from_another_thread(backend: str) -> None:
    shape, mode = WORK["shared-first"]
    x = values(shape, DTYPES["float32"])
    alone = apply(shape, mode, x).tobytes()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: apply(shape, mode, x).tobytes()).result() == alone
        ended = pool.submit(in_forked_child, lambda: apply(shape, mode, x).tobytes() == alone).result(2 * PATIENCE)
    assert ended == 0


@forks
@may_fork
def test_fork_while_another_thread_counts_a_draw() -> None:
    """The lock of a layer is held for an instant in each call; in a child nobody is left who would release it."""
    layers = [dropfast.Dropout(0.5, rng=0), pickle.loads(pickle.dumps(dropfast.Dropout(0.5, rng=0)))]
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with layers[0]._lock, layers[1]._lock:
            held.set()
            release.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(PATIENCE)
    x = np.ones(1000)
    want = dropfast.Mask(1000, 0.5, key=layers[0].key).apply(x).tobytes()
    try:
        assert in_forked_child(lambda: [layer(x).tobytes() for layer in layers] == [want, want]) == 0
    finally:
        release.set()
        holder.join()


# Every way to start a child, with a parallel call in the parent before and another one between: the child's own, and
# that of a child of its.
CHILDREN = """
import hashlib, multiprocessing, sys, warnings
from concurrent.futures import ProcessPoolExecutor
import numpy as np
import dropfast
from dropfast import _backend
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # 3.12 and newer warn of threads
backend, method = sys.argv[1:]

def digest(draw):
    _backend.use(backend)
    x = np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000)
    return hashlib.sha256(dropfast.Mask(x.shape, 0.1, key=5, draw=draw).apply(x).tobytes()).hexdigest()

def grandchild(draw):
    with ProcessPoolExecutor(1, context()) as pool:
        return digest(draw), pool.submit(digest, draw).result(60)

def context():
    return multiprocessing.get_context(method)

if __name__ == "__main__":
    alone = [digest(draw) for draw in range(6)]
    with context().Pool(2) as pool:
        assert pool.map_async(digest, range(6)).get(60) == alone, "multiprocessing.Pool"
    with ProcessPoolExecutor(2, context()) as pool:
        assert list(pool.map(digest, range(6), timeout=60)) == alone, "ProcessPoolExecutor"
        assert pool.submit(grandchild, 1).result(60) == (alone[1], alone[1]), "a grandchild"
    assert [digest(draw) for draw in range(6)] == alone, "the parent afterwards"
    print("equal")
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize("name", DEFAULT_AND_TWIN)
def test_children_of_every_kind(tmp_path: Path, name: str, method: str) -> None:
    script = tmp_path / "children.py"
    script.write_text(CHILDREN)
    done = run_file(script, name, method, env={"OMP_NUM_THREADS": "2"})
    assert (done.stdout, done.returncode) == ("equal\n", 0), done.stderr


# Another library used the same libgomp before the fork, and dropfast comes only after it: its own word of the fork, an
# atfork handler, was not there in time.
LATE = """
import ctypes, os, signal, sys
libgomp = ctypes.CDLL(sys.argv[1])
region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: None)
libgomp.GOMP_parallel(region, None, 2, 0)
child = os.fork()
if child == 0:
    signal.alarm(30)
    import numpy as np
    import dropfast
    assert dropfast.show_config(mode="dicts")["threads"] == 2
    x = np.ones((1000, 1000), np.float32)
    mask = dropfast.Mask(x.shape, 0.5, key=1)
    for _ in range(3):
        assert np.array_equal(mask.apply(x) != 0, mask.keep())
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
"""


@with_libgomp
def test_fork_before_the_import_after_a_region_of_another_library() -> None:
    done = run_python(LATE, our_libgomp(), env={"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr


@forks
@may_fork
def test_a_fork_copies_a_layer_but_not_the_systems_entropy() -> None:
    """As a pickle does: the two give the same masks from there on. What has no seed differs."""
    layer, x = dropfast.Dropout(0.5), np.ones(1000)
    layer(x)
    read, write = os.pipe()
    assert (
        in_forked_child(lambda: os.write(write, (layer(x) > 0).tobytes() + (dropfast.dropout(x) > 0).tobytes()) == 2000)
        == 0
    )
    of_child = os.read(read, 2000)
    assert (layer(x) > 0).tobytes() == of_child[:1000]
    assert (dropfast.dropout(x) > 0).tobytes() != of_child[1000:]
