"""The suite can tell: faults are planted in the twin at run time, and exactly the tests that should find each do.

Most of them leave the statistics perfect, so that only known answers can find them, and some only where a carry is.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import expected
import numpy as np
import pytest
import test_statistics
import test_stream

from dropfast import _numpy

Fault: TypeAlias = Callable[[pytest.MonkeyPatch], None]


# ---- the tests -----------------------------------------------------------------------------------


def documented_masks() -> None:
    for case in test_stream.known_masks.args[1]:
        test_stream.test_backend_gives_the_documented_masks("numpy", *case.values)


def golden_masks() -> None:
    for case in test_stream.golden_cases("masks"):
        test_stream.test_backend_gives_the_golden_masks("numpy", *case.values)


def golden_uniforms() -> None:
    for case in test_stream.golden_cases("uniforms"):
        test_stream.test_backend_gives_the_golden_uniforms("numpy", *case.values)


def drop_counts() -> None:
    test_statistics.within_budget("drop_counts", test_statistics.drop_counts(1 << 19))


def failures() -> set[str]:
    failed = set()
    for test in (documented_masks, golden_masks, golden_uniforms, drop_counts):
        try:
            test()
        except AssertionError:
            failed.add(test.__name__)
    return failed


# ---- the faults ----------------------------------------------------------------------------------


def no_fault(patch: pytest.MonkeyPatch) -> None:
    """Another way to the same bits: all 32 planes, and numbers that are compared."""

    def keep_bits(blocks: Any, key: int, draw: int, threshold: int) -> Any:
        u = expected.uniforms(key, draw, (blocks[:, None] << 7) + np.arange(128, dtype=np.uint64))
        return (u.astype(np.int64) >= threshold).astype(np.uint8)

    patch.setattr(_numpy, "_keep_bits", keep_bits)


def words_swapped(patch: pytest.MonkeyPatch) -> None:
    philox = _numpy._philox

    def swapped(*counter_and_key: Any) -> Any:
        w0, w1, w2, w3 = philox(*counter_and_key)
        return w1, w0, w2, w3

    patch.setattr(_numpy, "_philox", swapped)


def nine_planes(patch: pytest.MonkeyPatch) -> None:
    """What is undecided after them is kept."""
    patch.setattr(_numpy, "PLANES_AT_ONCE", (8, 1))


def blocks_numbered(number: Callable[[Any], Any]) -> Fault:
    def fault(patch: pytest.MonkeyPatch) -> None:
        planes = _numpy._planes
        patch.setattr(_numpy, "_planes", lambda blocks, *rest: planes(number(blocks), *rest))

    return fault


def at_most_the_threshold(patch: pytest.MonkeyPatch) -> None:
    """U <= T instead of U < T."""
    keep_bits = _numpy._keep_bits

    def one_more(blocks: Any, key: int, draw: int, threshold: int) -> Any:
        return keep_bits(blocks, key, draw, min(threshold + 1, 2**32))

    patch.setattr(_numpy, "_keep_bits", one_more)


@pytest.fixture(autouse=True)
def twin() -> Iterator[None]:
    with expected.using("numpy"):
        yield


GOLDEN = {"golden_masks", "golden_uniforms"}
BIT_32, LOW = np.uint64(2**32), np.uint64(2**32 - 1)


@pytest.mark.parametrize(
    ("fault", "found_by"),
    [
        pytest.param(no_fault, set(), id="no-fault"),
        pytest.param(words_swapped, GOLDEN | {"documented_masks"}, id="two-words-swapped"),
        pytest.param(nine_planes, GOLDEN | {"drop_counts"}, id="nine-planes"),
        pytest.param(blocks_numbered(lambda b: b & LOW), GOLDEN | {"documented_masks"}, id="high-word-lost"),
        pytest.param(blocks_numbered(lambda b: b & ~BIT_32), GOLDEN, id="bit-32-lost"),
        pytest.param(blocks_numbered(lambda b: b & LOW | b[:1] & ~LOW), {"golden_masks"}, id="no-carry-within-a-batch"),
        pytest.param(at_most_the_threshold, GOLDEN, id="at-most-the-threshold"),
    ],
)
def test_each_fault_is_found(fault: Fault, found_by: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    assert failures() == found_by
