"""The promise that Ctrl-C is answered during a call that takes long, and that everything can be used afterwards."""

import sys

import pytest
from processes import run_python

from dropfast import _backend

# A gigabyte at the slowest that the kernels can do: a second or two. The part of it that is 0.0 has not been written.
SCRIPT = """
import signal, sys, threading, time
import numpy as np
import dropfast
from dropfast import _backend
_backend.use(sys.argv[1])
out = np.zeros(2**29, np.float16)
x = np.broadcast_to(np.float16(1), out.shape)
mask = dropfast.Mask(out.shape, 0.001, key=1)
asked = []
def ask():
    asked.append(time.perf_counter())
    signal.raise_signal(signal.SIGINT)
threading.Timer(0.1, ask).start()
try:
    mask.apply(x, out=out)
except KeyboardInterrupt:
    waited = time.perf_counter() - asked[0]
    assert waited < 1, waited
    assert out[:64].any(), "stopped before it began"
    assert not out[-64:].any(), "stopped when all was done"
    small = dropfast.Mask(1000, 0.5, key=2)
    assert np.array_equal(small.apply(x[:1000]) != 0, small.keep())
    mask.window(2**29 - 1000, 1000).apply(x[:1000], out=out[-1000:])
    assert out[-64:].any()
    print("answered")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize("name", ["native:baseline", "numpy"] if _backend.native else ["numpy"])
def test_ctrl_c(name: str) -> None:
    done = run_python(SCRIPT, name, env={"OMP_NUM_THREADS": "1"})
    assert done.stdout.split() == ["answered"], done.stderr
