"""The promises about threads of dropfast's own: those of builds without OpenMP, and of all in children of forks."""

import sys

import pytest
from processes import run_python

from dropfast import _backend

compiled = pytest.mark.skipif(_backend.native is None, reason="the fallback has one thread")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as on Linux")

# In a child, whose threads are the pool's however dropfast was built: those that its calls have started, and no others.
IN_A_CHILD = """
import os, signal, sys, threading, time
import numpy as np
import dropfast
def there_are(threads):
    while len(os.listdir("/proc/self/task")) != threads:  # Python's own take a moment to end after they are joined
        time.sleep(0.01)
x = np.ones((1000, 1000), np.float32)
mask = dropfast.Mask(x.shape, 0.1, key=1)
alone = mask.apply(x).tobytes()
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)  # ends the child even if it hangs
"""


@on_linux
@compiled
def test_threads_are_kept_and_shared() -> None:
    """One call after the other, and eight at once, each of which may have four threads: three helpers for all."""
    code = """
assert dropfast.show_config("dicts")["threading"] == "pool"
there_are(1)
for calls in (1, 1, 8, 8):
    right = []
    callers = [threading.Thread(target=lambda: right.append(mask.apply(x).tobytes() == alone)) for _ in range(calls)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert right == [True] * calls
    there_are(1 + 3)
"""
    done = run_python(IN_A_CHILD + code, env={"OMP_NUM_THREADS": "4"})
    assert done.returncode == 0, done.stderr


@on_linux
@compiled
def test_more_threads_than_processors_or_pieces() -> None:
    """Most of them fall asleep between the calls, and some are woken too late for a piece."""
    code = """
for pause in (0, 0, 0.002, 0.02, 0.0005) * 8:
    time.sleep(pause)
    assert mask.apply(x).tobytes() == alone
    part = mask.window((0, 0), (300, 1000))
    assert part.apply(x[:300]).tobytes() == alone[: 300 * 1000 * 4]
there_are(1 + 6)
"""
    done = run_python(IN_A_CHILD + code, env={"OMP_NUM_THREADS": "2000"})
    assert done.returncode == 0, done.stderr


@compiled
def test_a_process_may_end_while_its_threads_are_at_work() -> None:
    code = """
import sys, threading
import numpy as np
import dropfast
x = np.ones((3000, 1000), np.float32)
mask = dropfast.Mask(x.shape, 0.1, key=1)
begun = threading.Barrier(4)
def work():
    mask.apply(x)
    begun.wait()
    while True:
        mask.apply(x)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
print("ended")
"""
    done = run_python(code, env={"OMP_NUM_THREADS": "3"})
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)


# As OpenMP reads it; None where it takes no notice.
NUMBERS = {"3": 3, "3,2": 3, " 3 , 2": 3, "3 ": 3, "": None, "0": None, "-2": None, "3x": None, "3,": None}


@compiled
@pytest.mark.parametrize("text", NUMBERS, ids=repr)
def test_numbers_of_threads_in_the_environment(text: str) -> None:
    code = "import dropfast; print(dropfast.show_config('dicts')['threads'])"
    default = run_python(code, env={"OMP_NUM_THREADS": "nonsense"}).stdout.strip()
    number = NUMBERS[text]
    assert run_python(code, env={"OMP_NUM_THREADS": text}).stdout.strip() == str(number or default)
