"""The promise that arrays without what is dropped are read and written as far as they go, and no byte further."""

import sys

import numpy as np
import pytest
from cases import DTYPES, values
from test_guard_pages import LENGTHS, ROOM, array_at, walled
from test_thin import assert_identical, mask_along

from dropfast import thin

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no mprotect")


@pytest.mark.parametrize("at", ["first-byte", "last-byte"])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0], ids=lambda rate: f"rate={rate}")
@pytest.mark.parametrize("dtype", DTYPES)
def test_thin_walls(backend: str, dtype: str, rate: float, at: str) -> None:
    """Both arrays between forbidden pages, at another misalignment for each length."""
    of = DTYPES[dtype]

    with walled() as wide_room, walled() as compact_room:
        for n in LENGTHS:
            mask, rows = mask_along(1, (3, n), rate), mask_along(0, (3,), 0.0)
            x = values((3, n), of)
            compact = mask.compress(x)
            wide_row, row = n * of.itemsize + n % 4, compact.shape[1] * of.itemsize + n % 3
            if at == "last-byte":
                wide_room_at = wide_room + ROOM - 2 * wide_row - n * of.itemsize
                compact_at = compact_room + ROOM - 2 * row - compact.shape[1] * of.itemsize
            else:
                wide_room_at, compact_at = wide_room, compact_room
            wide = array_at(wide_room_at, (3, n), of, wide_row)
            narrow = array_at(compact_at, compact.shape, of, row)
            wide[...] = x
            assert_identical(mask.compress(wide, out=narrow), compact)
            assert_identical(mask.expand(narrow, out=wide), mask.apply(x))
            assert_identical(mask.expand(narrow, out=wide, scaled=True), mask.expand(compact, scaled=True))
            wide[...] = x
            assert_identical(thin.take(wide, rows, mask, out=narrow), x[:, mask.kept()])
            thin.add(wide, narrow, cols=mask, alpha=0.5)
            assert_identical(wide, thin.add(x.copy(), narrow.copy(), cols=mask, alpha=0.5))
            assert_identical(thin.put(narrow, rows, mask, out=wide), mask.expand(narrow.copy()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_new_arrays_are_aligned(backend: str, dtype: str) -> None:
    """To 64 bytes, for MKL; and no array is longer than its rows need."""
    for n in (1, 16, 31, 64, 1000):
        mask = mask_along(1, (5, n), 0.4)
        compact = mask.compress(np.ones((5, n), DTYPES[dtype]))
        for array in (compact, mask.expand(compact), thin.take(np.ones((5, n), DTYPES[dtype]), cols=mask)):
            assert array.ctypes.data % 64 == 0
            assert array.size == 0 or array.strides[0] == -(-array.shape[1] * array.itemsize // 64) * 64
