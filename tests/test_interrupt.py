"""The promise that Ctrl-C is answered within a second during a call of any length, and that everything can be used
afterwards.
"""

import sys

import pytest
from processes import run_python

from dropfast import _backend

# What is to be filled has 8 GiB, of which only what is reached before the interrupt becomes memory.
SCRIPT = """
import signal, sys, threading, time
import numpy as np
import dropfast
from dropfast import _backend
backend, call = sys.argv[1:]
_backend.use(backend)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
n = 2**32
x, out = np.broadcast_to(np.float16(1), n), np.zeros(n, np.float16)
mask = dropfast.Mask(n, 0.001, key=1)
def many_short_axes():  # none of which is as long as what may be done between two looks at the signals
    shape = (2,) * 32
    dropfast.Mask(shape, 0.001, key=1).apply(x.reshape(shape), out=out.reshape(shape))
units = dropfast.Mask((2**12, 2**20), 0.001, key=1, shared_axes=0)
def thinned(move):
    kept, wide = units.kept().size, (2**12, 2**20)
    y = out[: 2**12 * kept].reshape(2**12, kept)
    if move == "compress":
        units.compress(x.reshape(wide), out=y)
    elif move == "expand":
        units.expand(np.broadcast_to(np.float16(1), y.shape), out=out.reshape(wide))
    else:
        dropfast.thin.add(out.reshape(wide), np.broadcast_to(np.float16(1), y.shape), cols=units)
calls = {
    "compress": lambda: thinned("compress"),
    "expand": lambda: thinned("expand"),
    "add": lambda: thinned("add"),
    "apply": lambda: mask.apply(x, out=out),
    "many-short-axes": many_short_axes,
    "packed": lambda: dropfast.Mask(2**36, 0.001, key=1).packed(),
    "keep": lambda: dropfast.Mask(2**33, 0.001, key=1).keep(),
}
asked = []
def ask():
    asked.append(time.perf_counter())
    signal.raise_signal(signal.SIGINT)
mask.window(0, 2**20).apply(x[:2**20])
threading.Timer(0.3, ask).start()
try:
    calls[call]()
except KeyboardInterrupt:
    waited = time.perf_counter() - asked[0]
    assert waited < 1, waited
    if call not in ("packed", "keep"):
        assert out[:64].any(), "stopped before it began"
        assert not out[-64:].any(), "stopped when all was done"
    small = dropfast.Mask(1000, 0.5, key=2)
    assert np.array_equal(small.apply(x[:1000]) != 0, small.keep())
    mask.window(n - 1000, 1000).apply(x[:1000], out=out[-1000:])
    assert out[-64:].any()
    print("answered")
"""

LONGEST = ["native:baseline", "numpy"] if _backend.native else ["numpy"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize("call", ["apply", "many-short-axes", "packed", "keep", "compress", "expand", "add"])
@pytest.mark.parametrize("name", LONGEST)
def test_ctrl_c(name: str, call: str) -> None:
    done = run_python(SCRIPT, name, call, env={"OMP_NUM_THREADS": "1"})
    assert done.stdout.split() == ["answered"], done.stderr
