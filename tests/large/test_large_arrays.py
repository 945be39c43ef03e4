"""The promise that arrays of more than 2^32 elements are as good as others: `make large`, with 14 GiB of memory.

Every element is looked at. The mask's bits come from packed(), a way of their own, and are held to the definition at
both ends and around 2^31 and 2^32. Instruction sets differ in what they do to one batch of blocks alone, so the best of
the machine stands for all.
"""

import math

import expected
import numpy as np
import numpy.typing as npt
import pytest
from cases import DTYPES, MODES, Array, Shape
from expected import DEFAULT_AND_TWIN, using

from dropfast import Mask

KEY, DRAW, RATE = 0x0123456789ABCDEF, 7, 0.1
AT_ONCE = 1 << 22  # elements

ARRAYS: dict[str, tuple[str, Shape, str]] = {
    "bfloat16-per-sample": ("bfloat16", (2**32 + 2**20 + 5,), "per-sample"),
    "float16-rows": ("float16", (65537, 65543), "per-sample"),
    "bfloat16-shared-last": ("bfloat16", (2**31 + 3, 3), "shared-last"),
    "float16-shared-first": ("float16", (3, 2**31 + 3), "shared-first"),
}


def bits_of(mask: Mask) -> npt.NDArray[np.uint8]:
    """Return the packed bits, after a look at the places where an index of too few bits would go wrong."""
    bits, n = mask.packed(), math.prod(mask.noise_shape)
    for first in (0, 2**31 - 1000, 2**32 - 1000, n - 2000):
        if first + 2000 <= n:
            start = first // 8 * 8
            kept = expected.keep((n,), RATE, KEY, DRAW, start=(start,), shape=(min(2000, n - start),))
            want = np.packbits(kept, bitorder="little")
            assert bits[start // 8 :][: want.size].tobytes() == want.tobytes()
    return bits


def assert_kept(y: Array, bits: npt.NDArray[np.uint8], first_bit: int = 0) -> None:
    """Hold a contiguous run of the output of ones to the bits of the mask that begin at `first_bit`."""
    scale = y.dtype.type(Mask(1, RATE, key=0).scale)
    kept, dropped = np.array([scale, 0], y.dtype).view(np.uint16)
    for first in range(0, y.size, AT_ONCE):
        part = y[first : first + AT_ONCE].view(np.uint16)
        begin = (first_bit + first) // 8
        keep = np.unpackbits(bits[begin : begin + part.size // 8 + 2], bitorder="little").view(np.bool_)
        shift = (first_bit + first) % 8
        assert np.array_equal(part, np.where(keep[shift : shift + part.size], kept, dropped)), first


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("name", DEFAULT_AND_TWIN)
def test_more_than_2_to_the_32_elements(name: str, array: str) -> None:
    dtype, shape, mode = ARRAYS[array]
    mask = Mask(shape, RATE, key=KEY, draw=DRAW, **MODES[mode](shape))
    y = np.ones(shape, DTYPES[dtype])
    with using(name):
        assert mask.apply(y, out=y) is y
        bits = bits_of(mask)
    if mode == "per-sample":
        assert_kept(y.reshape(-1), bits)
    elif mode == "shared-first":
        for row in y:
            assert_kept(row, bits)
    else:
        for first in range(0, len(y), AT_ONCE):
            part = y[first : first + AT_ONCE]
            assert np.array_equal(part.view(np.uint16), np.repeat(part[:, :1].view(np.uint16), 3, axis=1))
            assert_kept(np.ascontiguousarray(part[:, 0]), bits, first)


@pytest.mark.parametrize("name", DEFAULT_AND_TWIN)
def test_as_many_bits(name: str) -> None:
    n = 2**32 + 2**20 + 5
    mask = Mask(n, RATE, key=KEY, draw=DRAW)
    with using(name):
        assert np.packbits(mask.keep(), bitorder="little").tobytes() == bits_of(mask).tobytes()
