"""The promise that masks look random: counts, neighbours, places, patterns, keys and draws.

Keys are fixed, so a result never changes from run to run. The error budget says how likely it was, before the keys
were chosen, that a perfect generator fails anything here: at most 1e-6, shared by all comparisons alike (Bonferroni).
Each test states beforehand how many comparisons it makes:

    drop_counts      share of dropped elements, 11 rates x 4 keys x 2 draws      88
    lags             elements 1..8, 16, 32, ... 129, 1024 apart, 2 rates, 2 keys 60
    positions        each of the 128 places in a block, 3 rates x 2 keys        768
    patterns         2 and 4 bits in a row, 2 rates x 2 keys                      8
    uniforms         16 and 64 levels of U, 3 keys                                6
    keys             one key against its neighbours: + 1, and each bit flipped  260
    draws            the same of draws                                          132
    keys_and_draws   small keys x small draws, each pair of 24 masks            276
    rows             row and column means of a matrix                          8192
    shared           the same of shared masks, between features and batches     128
    means            mean of dropout(ones)                                       12

The p-values of counts are upper bounds (Chernoff) and not approximations; those of correlations and of chi-square
are the usual limits, which at these sizes differ by less than matters.

All but the drop counts are computed on the default backend alone: other tests see to it that the bits are the same.
That the tests can fail is tested too: with streams that are faulty in one way each.
"""

import itertools
import math
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from dropfast import Mask, dropout

Bits: TypeAlias = npt.NDArray[np.bool_]  # True = dropped

COMPARISONS = {
    "drop_counts": 88,
    "lags": 60,
    "positions": 768,
    "patterns": 8,
    "uniforms": 6,
    "keys": 260,
    "draws": 132,
    "keys_and_draws": 276,
    "rows": 8192,
    "shared": 128,
    "means": 12,
}
FALSE_ALARMS = 1e-6
ALPHA = FALSE_ALARMS / sum(COMPARISONS.values())

KEYS = (0, 1, 0x0123456789ABCDEF, 2**64 - 1)
N = 1 << 22


def within_budget(name: str, p_values: Iterable[float]) -> None:
    p = list(p_values)
    assert len(p) == COMPARISONS[name], "the budget above is wrong"
    assert min(p) > ALPHA, f"a chance of {min(p):.3g} at comparison {p.index(min(p))}"


# ---- p-values ------------------------------------------------------------------------------------


def p_of_count(count: int, n: int, p: float) -> float:
    """At most the chance that a binomial count is as far off as this, or farther, to either side (Chernoff's bound)."""
    q = count / n
    divergence = (q * math.log(q / p) if q else 0.0) + ((1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0)
    return min(1.0, 2 * math.exp(-n * divergence))


def p_of_normal(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def p_of_chi_square(observed: npt.NDArray[Any], shares: npt.NDArray[np.float64]) -> float:
    """The chance of a chi-square this large; exact for the limit distribution, by its recurrence in the freedoms."""
    wanted = shares * observed.sum()
    half = float(((observed - wanted) ** 2 / wanted).sum()) / 2
    freedoms = observed.size - 1
    assert freedoms % 2 == 1
    tail, a = math.erfc(math.sqrt(half)), 0.5
    while a < freedoms / 2:
        tail += math.exp(a * math.log(half) - half - math.lgamma(a + 1)) if half else 0.0
        a += 1
    return tail


def test_p_values_are_right() -> None:
    assert p_of_normal(1.959964) == pytest.approx(0.05, rel=1e-6)
    # 5 % points of chi-square, from tables.
    for freedoms, point in ((1, 3.841459), (3, 7.814728), (15, 24.995790), (63, 82.528727)):
        cells = freedoms + 1
        off = math.sqrt(point * 1000 / 2)  # two cells off by this much of 1000 make this chi-square
        observed = np.full(cells, 1000.0)
        observed[0] += off
        observed[1] -= off
        assert p_of_chi_square(observed, np.full(cells, 1 / cells)) == pytest.approx(0.05, rel=1e-5)
    # A bound is never below the exact chance.
    for n, p, count in ((10, 0.5, 9), (100, 0.1, 25), (1000, 0.25, 200)):
        chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        assert p_of_count(count, n, p) >= (sum(chances[count:]) if count > n * p else sum(chances[: count + 1]))


# ---- the tests, as functions of the bits ---------------------------------------------------------


@cache
def dropped(rate: float, key: int, draw: int = 0, n: int = N) -> Bits:
    return ~Mask(n, rate, key=key, draw=draw).keep()


def drop_count(bits: Bits, rate: float) -> float:
    return p_of_count(int(np.count_nonzero(bits)), bits.size, round(rate * 2**32) / 2**32)


LAGS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 127, 128, 129, 1024)


def lag(bits: Bits, rate: float, by: int) -> float:
    """Elements `by` apart: how often both are dropped, against what independent ones do."""
    n = bits.size - by
    a, b = bits[:-by], bits[by:]
    both, either = int(np.count_nonzero(a & b)), int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    covariance = both / n - rate * either / n + rate**2
    return p_of_normal(covariance / (rate * (1 - rate)) * math.sqrt(n))


def positions(bits: Bits, rate: float) -> list[float]:
    blocks = bits.reshape(-1, 128)
    return [p_of_count(int(count), len(blocks), rate) for count in np.count_nonzero(blocks, axis=0)]


def patterns(bits: Bits, rate: float, length: int) -> float:
    words = bits.reshape(-1, length) @ (1 << np.arange(length))
    ones = np.array([i.bit_count() for i in range(1 << length)])
    return p_of_chi_square(np.bincount(words, minlength=1 << length), rate**ones * (1 - rate) ** (length - ones))


def agreement(a: Bits, b: Bits) -> float:
    """Two masks of rate 0.5: independent ones agree in half of their elements."""
    return p_of_count(int(np.count_nonzero(a == b)), a.size, 0.5)


# ---- the stream ----------------------------------------------------------------------------------


def test_drop_counts(backend: str) -> None:
    rates = (2.0**-20, 2.0**-10, 0.01, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 0.99, 1 - 2.0**-10)
    n = N if backend == "numpy" else 4 * N
    p_values = []
    for rate in rates:
        for key in KEYS:
            for draw in (0, 2**32 - 1):
                packed = Mask(n, rate, key=key, draw=draw).packed()
                kept = int(np.bitwise_count(packed).sum(dtype=np.int64))
                p_values.append(p_of_count(n - kept, n, round(rate * 2**32) / 2**32))
    within_budget("drop_counts", p_values)


def test_lags() -> None:
    within_budget(
        "lags", (lag(dropped(rate, key), rate, by) for rate in (0.5, 0.1) for key in KEYS[1:3] for by in LAGS)
    )


def test_positions_in_the_block() -> None:
    within_budget(
        "positions",
        (p for rate in (0.5, 0.25, 0.1) for key in KEYS[1:3] for p in positions(dropped(rate, key), rate)),
    )


def test_patterns() -> None:
    within_budget(
        "patterns",
        (patterns(dropped(rate, key), rate, n) for rate in (0.5, 0.25) for key in KEYS[1:3] for n in (2, 4)),
    )


def test_uniforms() -> None:
    """How many of the thresholds 1/16, 2/16, ... drop an element is its U, to 4 bits; so with 64."""

    def levels(key: int, n: int) -> float:
        below = sum(dropped(level / n, key, n=1 << 19).astype(np.int64) for level in range(1, n))
        return p_of_chi_square(np.bincount(below, minlength=n), np.full(n, 1 / n))

    within_budget("uniforms", (levels(key, n) for key in KEYS[:3] for n in (16, 64)))


SMALL = 1 << 17


def test_neighbouring_keys() -> None:
    p_values = []
    for key in KEYS:
        a = dropped(0.5, key, n=SMALL)
        for other in ((key + 1) % 2**64, *(key ^ 1 << bit for bit in range(64))):
            p_values.append(agreement(a, dropped(0.5, other, n=SMALL)))
    within_budget("keys", p_values)


def test_neighbouring_draws() -> None:
    p_values = []
    for key in KEYS[1:3]:
        for draw in (0, 1000):
            a = dropped(0.5, key, draw, SMALL)
            for other in (draw + 1, *(draw ^ 1 << bit for bit in range(32))):
                p_values.append(agreement(a, dropped(0.5, key, other, SMALL)))
    within_budget("draws", p_values)


def test_small_keys_and_draws() -> None:
    masks = [dropped(0.5, key, draw, SMALL) for key in range(4) for draw in range(6)]
    within_budget("keys_and_draws", (agreement(a, b) for i, a in enumerate(masks) for b in masks[:i]))


def test_rows_and_columns() -> None:
    p_values = []
    for rate in (0.5, 0.1):
        matrix = dropped(rate, KEYS[2]).reshape(2048, 2048)
        for axis in (0, 1):
            p_values += [p_of_count(int(count), 2048, rate) for count in np.count_nonzero(matrix, axis=axis)]
    within_budget("rows", p_values)


def test_shared_masks() -> None:
    """Features of a shared mask are independent, and so are the masks of successive batches."""
    masks = [~Mask((64, SMALL), 0.5, key=7, draw=draw, shared_axes=0).keep()[0] for draw in range(65)]
    p_values = [agreement(a, b) for a, b in itertools.pairwise(masks)]
    p_values += [lag(bits, 0.5, 1) for bits in masks[1:]]
    within_budget("shared", p_values)


def test_means() -> None:
    """The mean of dropout(ones) is 1: kept * scale / n, where only `kept` is random."""
    p_values = []
    for seed in range(4):
        for rate in (0.1, 0.5, 0.9):
            y = dropout(np.ones(N), rate, rng=seed)
            scale = 2**32 / (2**32 - round(rate * 2**32))
            kept = round(float(y.mean()) * N / scale)
            assert y.mean() == pytest.approx(kept * scale / N, rel=1e-9)
            p_values.append(p_of_count(kept, N, 1 / scale))
            assert abs(y.mean() - 1) < 7 * math.sqrt(rate / (1 - rate) / N)
    within_budget("means", p_values)


# ---- the tests can fail --------------------------------------------------------------------------


def truth(rate: float = 0.5) -> Bits:
    """A stream that is not ours, and as good as they come."""
    return np.random.default_rng(1).random(N) < rate


def repeated_block() -> Bits:
    blocks = truth().reshape(-1, 128).copy()
    blocks[1::64] = blocks[::64]  # one block in 64 is the one before it
    return blocks.ravel()


def stuck_place() -> Bits:
    blocks = truth().reshape(-1, 128).copy()
    blocks[:, 77] |= np.random.default_rng(2).random(len(blocks)) < 0.1
    return blocks.ravel()


def swapped_pairs() -> Bits:
    """Right counts, wrong order: dropped elements like to come in twos."""
    pairs = truth().reshape(-1, 2).copy()
    copied = np.random.default_rng(2).random(len(pairs)) < 0.01
    pairs[copied, 1] = pairs[copied, 0]
    return pairs.ravel()


def test_the_tests_pass_a_good_stream() -> None:
    good = truth()
    p_values = [drop_count(good, 0.5), patterns(good, 0.5, 2), patterns(good, 0.5, 4)]
    p_values += [lag(good, 0.5, by) for by in LAGS] + positions(good, 0.5)
    assert min(p_values) > ALPHA


def test_the_tests_fail_faulty_streams() -> None:
    assert drop_count(truth(0.505), 0.5) < ALPHA  # biased by 1 %
    assert lag(repeated_block(), 0.5, 128) < ALPHA
    assert drop_count(repeated_block(), 0.5) > ALPHA
    assert min(positions(stuck_place(), 0.5)) < ALPHA
    assert patterns(swapped_pairs(), 0.5, 2) < ALPHA
    assert patterns(swapped_pairs(), 0.5, 4) < ALPHA
    assert lag(swapped_pairs(), 0.5, 1) < ALPHA
    a = truth()[:SMALL]
    b = a.copy()
    b[::50] = True  # nearly the same mask twice
    assert agreement(a, b) < ALPHA
    c = np.random.default_rng(3).random(SMALL) < 0.5
    c[:4000] = a[:4000]  # a mask that shares its first 3 % with another
    assert agreement(a, c) < ALPHA
    with pytest.raises(AssertionError, match="a chance of"):
        within_budget("means", [0.5] * 11 + [1e-12])
