"""The promise that masks look random: counts, neighbours, places, patterns, keys, draws and blocks; and their mean.

Keys are fixed, so a result never changes from run to run. The error budget says how likely it was, before the keys
were chosen, that a perfect generator fails anything here: at most 1e-6, of which the windows take 1e-7 and all other
comparisons equal shares of the rest (Bonferroni). Each test states beforehand how many comparisons it makes, and is
held to this table:

    drop_counts      2^26 elements, 44 rates from 2^-20 to 1 - 2^-20 x 2 streams                     88
    twins_counts     2^22 of them, on the slower numpy backend                                       88
    lags             elements 1..8, 16, 32, 64, 127..129 apart, 3 orders x 2 rates x 2 keys         168
    runs             lengths of the runs of dropped and of kept elements, the same orders            24
    patterns         2 and 4 elements in a row, the same orders                                      24
    places           each of the 128 places in a block, 3 rates x 2 keys                            768
    pairs_of_places  each two of them, 2 keys                                                     16256
    nested           what each of the 44 rates drops beyond the one before, 2 keys                   90
    uniforms         16 and 64 levels of U, 3 keys                                                    6
    keys             one key against its neighbours: + 1, and each bit flipped, 2 rates             520
    draws            the same of draws                                                              264
    blocks           the same of blocks, each of the 56 bits of their number, 2 rates x 2 keys      224
    keys_and_draws   small keys x small draws, each pair of 24 masks                                276
    rows             row and column means of a matrix, 2 rates                                    10192
    shared           the same of shared masks, between features and batches                         128
    means            mean of dropout(ones)                                                           12

    windows          64 elements in a row, at all places of 4096 masks: no two are the same        1e-7

The p-values of counts are upper bounds (Chernoff, Agrawal), and that of windows is a union bound. Those of lags are the
normal limit, which at these sizes is right up to a factor of two.

All but the drop counts are computed on the default backend alone: other tests see to it that the bits are the same.
The exact mean is arithmetic, not statistics, and is computed from what each backend writes.

That the tests can fail is tested too: with streams that are faulty in one way each, and in tests/test_faults.py with
faults in the library.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import reference
from cases import DTYPES, Array

from dropfast import Mask, dropout

Bits: TypeAlias = npt.NDArray[np.bool_]  # True = dropped


def share(rate: float) -> float:
    """Return the share of elements that a rate drops: it has 32 bits."""
    return reference.threshold(rate) / 2**32


COMPARISONS = {name: int(n) for name, n in re.findall(r"^ {4}(\w+) .* (\d+)$", __doc__ or "", re.MULTILINE)}
FALSE_ALARMS, OF_WINDOWS = 1e-6, 1e-7
ALPHA = (FALSE_ALARMS - OF_WINDOWS) / sum(COMPARISONS.values())

KEYS = (0, 1, 0x0123456789ABCDEF, 2**64 - 1)
POWERS = [2.0**-k for k in range(1, 21)]
RATES = sorted({*POWERS, *(1 - p for p in POWERS), *(share(rate) for rate in (0.01, 0.1, 0.3, 0.9, 0.99))})
# What each rate drops beyond the one before, and what the last one keeps.
SHARES = [b - a for a, b in itertools.pairwise([0.0, *RATES, 1.0])]
BLOCK = 128
ROW = 1000  # rows of a matrix begin anywhere in a block
N = 4096 * ROW
SMALL = 1024 * BLOCK


def within_budget(name: str, p_values: Iterable[float]) -> None:
    p = list(p_values)
    assert len(p) == COMPARISONS[name], "the budget above is wrong"
    assert min(p) > ALPHA, f"a chance of {min(p):.3g} at comparison {p.index(min(p))}"


# ---- p-values ------------------------------------------------------------------------------------


def divergence(observed: Iterable[int], shares: Iterable[float]) -> float:
    """Return the relative entropy of counts to what is expected, times the number of what is counted."""
    counts = list(observed)
    n = sum(counts)
    return sum(count * math.log(count / (n * p)) for count, p in zip(counts, shares, strict=True) if count)


def p_of_count(count: int, n: int, p: float) -> float:
    """At most the chance that a binomial count is as far off as this, or farther, to either side (Chernoff's bound)."""
    return min(1.0, 2 * math.exp(-divergence((count, n - count), (p, 1 - p))))


def p_of_counts(counts: Sequence[int], shares: Sequence[float]) -> float:
    """At most the chance that multinomial counts diverge as much as this, or more.

    R. Agrawal, "Finite-sample concentration of the multinomial in relative entropy", IEEE Trans. Inf. Theory 66, 2020.
    """
    off, freedoms = divergence(counts, shares), len(counts) - 1
    return math.exp(freedoms - off + freedoms * math.log(off / freedoms)) if off > freedoms else 1.0


def p_of_normal(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def test_p_values_are_right() -> None:
    assert p_of_normal(1.959964) == pytest.approx(0.05, rel=1e-6)
    # A bound is never below the exact chance: the sum over all outcomes that are as far off.
    n, two, three = 20, (0.1, 0.9), (0.6, 0.3, 0.1)
    bounds: list[tuple[tuple[float, ...], Callable[..., float]]] = [
        (two, lambda count, _: p_of_count(count, n, 0.1)),
        (two, lambda *counts: p_of_counts(counts, two)),
        (three, lambda *counts: p_of_counts(counts, three)),
    ]
    for shares, bound in bounds:
        outcomes = [counts for counts in itertools.product(range(n + 1), repeat=len(shares)) if sum(counts) == n]
        chances = [
            math.factorial(n) * math.prod(p**k / math.factorial(k) for p, k in zip(shares, counts, strict=True))
            for counts in outcomes
        ]
        off = [divergence(counts, shares) for counts in outcomes]
        for counts, least in zip(outcomes, off, strict=True):
            exact = sum(chance for chance, d in zip(chances, off, strict=True) if d >= least)
            assert bound(*counts) > exact * (1 - 1e-9)


# ---- the statistics, as functions of the bits ----------------------------------------------------

LONG = 32  # runs as long as this, or longer, are counted together
LAGS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 127, 128, 129)


def lag(bits: Bits, rate: float, by: int) -> float:
    """Elements `by` apart: how often both are dropped, against what independent ones do."""
    n = bits.size - by
    a, b = bits[:-by], bits[by:]
    both, either = int(np.count_nonzero(a & b)), int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    covariance = both / n - rate * either / n + rate**2
    return p_of_normal(covariance / (rate * (1 - rate)) * math.sqrt(n))


def runs(bits: Bits, rate: float) -> list[float]:
    """Lengths of the runs of dropped elements, and of kept ones: geometric."""
    ends = np.flatnonzero(bits[1:] != bits[:-1])
    lengths, of_dropped = np.minimum(np.diff(ends), LONG), bits[ends[:-1] + 1]
    enough = int(0.98 * bits.size * rate * (1 - rate))  # so many for sure: a number that the lengths have no part in
    p_values = []
    for go_on, some in ((rate, lengths[of_dropped][:enough]), (1 - rate, lengths[~of_dropped][:enough])):
        shares = [go_on**length * (1 - go_on) for length in range(LONG - 1)] + [go_on ** (LONG - 1)]
        p_values.append(p_of_counts(np.bincount(some - 1, minlength=LONG).tolist(), shares))
    return p_values


def pattern(bits: Bits, rate: float, length: int) -> float:
    words = bits.reshape(-1, length) @ (1 << np.arange(length))
    shares = [rate ** i.bit_count() * (1 - rate) ** (length - i.bit_count()) for i in range(1 << length)]
    return p_of_counts(np.bincount(words, minlength=1 << length).tolist(), shares)


def places(bits: Bits, rate: float) -> list[float]:
    blocks = bits.reshape(-1, BLOCK)
    return [p_of_count(count, len(blocks), rate) for count in np.count_nonzero(blocks, axis=0).tolist()]


def pairs_of_places(bits: Bits) -> list[float]:
    """Two places of a block, at rate 0.5: independent ones agree in half of the blocks."""
    signs = np.where(bits.reshape(-1, BLOCK), np.float32(1), np.float32(-1))
    sums = (signs.T @ signs)[np.triu_indices(BLOCK, 1)]  # of 1 for each agreement and -1 for each other: small integers
    return [p_of_count((len(signs) + int(more)) // 2, len(signs), 0.5) for more in sums.tolist()]


def agreement(a: Bits, b: Bits, rate: float = 0.5) -> float:
    """How many elements of two masks are the same in both."""
    return p_of_count(int(np.count_nonzero(a == b)), a.size, rate**2 + (1 - rate) ** 2)


def increments(masks: Iterable[Bits]) -> list[int]:
    """How many elements each mask drops that the one before keeps, and how many the last one keeps."""
    counts: list[int] = []
    before = np.zeros(1, np.bool_)
    for bits in masks:
        assert not (before & ~bits).any(), "the masks are not nested"
        counts.append(int(np.count_nonzero(before ^ bits)))
        before = bits
    return [*counts, int(np.count_nonzero(~before))]


def windows(masks: Bits) -> npt.NDArray[np.uint64]:
    """All 64 elements in a row, of each mask, as the bits of one number."""
    words = masks.astype(np.uint64)
    for length in (1, 2, 4, 8, 16, 32):
        words = words[:, :-length] | words[:, length:] << np.uint64(length)
    return words.ravel()


def repeats(numbers: npt.NDArray[np.uint64]) -> int:
    return int(np.count_nonzero(np.diff(np.sort(numbers)) == 0))


# ---- the stream ----------------------------------------------------------------------------------


def dropped(rate: float, key: int, draw: int = 0, n: int = N) -> Bits:
    return ~Mask(n, rate, key=key, draw=draw).keep()


def readings() -> Iterator[tuple[Bits, float]]:
    """Masks and their rates, each read row by row, column by column, and place by place through all blocks."""
    for rate, key in itertools.product((0.5, 0.1), KEYS[1:3]):
        bits = dropped(rate, key)
        for order in (bits, bits.reshape(-1, ROW).T.ravel(), bits.reshape(-1, BLOCK).T.ravel()):
            yield order, rate


def drop_counts(n: int) -> list[float]:
    p_values = []
    for rate, (key, draw) in itertools.product(RATES, ((KEYS[2], 7), (KEYS[3], 2**32 - 1))):
        kept = int(np.bitwise_count(Mask(n, rate, key=key, draw=draw).packed()).sum(dtype=np.int64))
        p_values.append(p_of_count(n - kept, n, rate))
    return p_values


def test_drop_counts(backend: str) -> None:
    name, n = ("twins_counts", 1 << 22) if backend == "numpy" else ("drop_counts", 1 << 26)
    within_budget(name, drop_counts(n))


def test_lags() -> None:
    within_budget("lags", (lag(bits, rate, by) for bits, rate in readings() for by in LAGS))


def test_runs() -> None:
    within_budget("runs", (p for bits, rate in readings() for p in runs(bits, rate)))


def test_patterns() -> None:
    within_budget("patterns", (pattern(bits, rate, length) for bits, rate in readings() for length in (2, 4)))


def test_places_in_the_block() -> None:
    masks = itertools.product((0.5, 0.25, 0.1), KEYS[1:3])
    within_budget("places", (p for rate, key in masks for p in places(dropped(rate, key), rate)))
    within_budget("pairs_of_places", (p for key in KEYS[1:3] for p in pairs_of_places(dropped(0.5, key))))


def test_nested_masks() -> None:
    """What a rate drops, each higher rate drops too, and of the rest its share."""
    p_values = []
    for key in KEYS[1:3]:
        counts = increments(dropped(rate, key) for rate in RATES)
        p_values += [p_of_count(count, N, p) for count, p in zip(counts, SHARES, strict=True)]
    within_budget("nested", p_values)


def test_uniforms() -> None:
    """How many of the thresholds 1/16, 2/16, ... drop an element is its U, to 4 bits; so with 64."""
    p_values = []
    for key, levels in itertools.product(KEYS[:3], (16, 64)):
        counts = increments(dropped(level / levels, key, n=1 << 19) for level in range(1, levels))
        p_values.append(p_of_counts(counts, [1 / levels] * levels))
    within_budget("uniforms", p_values)


# Neighbours are compared at two rates: at 0.25, plane 1 of a key, draw or block meets plane 0 of its neighbour too.


def test_neighbouring_keys() -> None:
    p_values = []
    for rate, key in itertools.product((0.5, 0.25), KEYS):
        for other in ((key + 1) % 2**64, *(key ^ 1 << bit for bit in range(64))):
            p_values.append(agreement(dropped(rate, key, n=SMALL), dropped(rate, other, n=SMALL), rate))
    within_budget("keys", p_values)


def test_neighbouring_draws() -> None:
    p_values = []
    for rate, key, draw in itertools.product((0.5, 0.25), KEYS[1:3], (0, 1000)):
        for other in (draw + 1, *(draw ^ 1 << bit for bit in range(32))):
            p_values.append(agreement(dropped(rate, key, draw, SMALL), dropped(rate, key, other, SMALL), rate))
    within_budget("draws", p_values)


def test_neighbouring_blocks() -> None:
    """Blocks whose numbers differ in one bit; that those next to each other do not agree, test_lags says."""
    p_values = []
    for rate, key, bit in itertools.product((0.5, 0.25), KEYS[1:3], range(56)):
        apart = BLOCK << bit
        mask = Mask((2**62 // apart, 2, apart), rate, key=key)
        kept = mask.window((0, 0, 0), (max(1, SMALL // apart), 2, min(SMALL, apart))).keep()
        p_values.append(agreement(kept[:, 0], kept[:, 1], rate))
    within_budget("blocks", p_values)


def test_small_keys_and_draws() -> None:
    masks = [dropped(0.5, key, draw, SMALL) for key in range(4) for draw in range(6)]
    within_budget("keys_and_draws", (agreement(a, b) for a, b in itertools.combinations(masks, 2)))


def test_no_mask_repeats_another() -> None:
    """No 64 elements in a row occur twice, in place or shifted by up to 448: over many keys and many draws."""
    streams = [(key, 0) for key in range(2048)] + [(KEYS[2], draw) for draw in range(2048)]
    numbers = windows(np.stack([dropped(0.5, key, draw, 512) for key, draw in streams]))
    assert math.comb(numbers.size, 2) / 2**64 < OF_WINDOWS
    assert repeats(numbers) == 0


def test_rows_and_columns() -> None:
    p_values = []
    for rate in (0.5, 0.1):
        matrix = dropped(rate, KEYS[2]).reshape(-1, ROW)
        for axis in (0, 1):
            counts = np.count_nonzero(matrix, axis=axis)
            p_values += [p_of_count(count, matrix.shape[axis], rate) for count in counts.tolist()]
    within_budget("rows", p_values)


def test_shared_masks() -> None:
    """Features of a shared mask are independent, and so are the masks of successive batches."""
    masks = [~Mask((64, SMALL), 0.5, key=7, draw=draw, shared_axes=0).keep()[0] for draw in range(65)]
    p_values = [agreement(a, b) for a, b in itertools.pairwise(masks)]
    p_values += [lag(bits, 0.5, 1) for bits in masks[1:]]
    within_budget("shared", p_values)


# ---- the mean ------------------------------------------------------------------------------------

# To how many bits numbers are rounded on the way from x to y: the scale as float64, the scale in the compute type, the
# product, and the result of 16 bits. Each time they change by at most 2^-bits of their value.
ROUNDED_TO = {
    "float16": (53, 24, 24, 11),
    "bfloat16": (53, 24, 24, 8),
    "float32": (53, 24, 24),
    "float64": (53, 53),
}


def rounding(dtype: np.dtype[Any]) -> Fraction:
    """Return the most that all the roundings can change a value, of its own size."""
    return math.prod((1 + Fraction(1, 2**bits) for bits in ROUNDED_TO[dtype.name]), start=Fraction(1)) - 1


def bias(x: Array, if_dropped: Array, if_kept: Array, rate: float) -> Fraction:
    """Return how far the mean over the 2^32 values of U is from x, of its size and at worst: in rational numbers."""
    p = Fraction(share(rate))
    columns = (map(Fraction, array.astype(np.float64).tolist()) for array in (x, if_dropped, if_kept))
    worst: Fraction = max(abs((p * zero + (1 - p) * y) / a - 1) for a, zero, y in zip(*columns, strict=True))
    return worst


def some_values(dtype: np.dtype[Any]) -> Array:
    """Return normal numbers, so small that the largest scale leaves them finite."""
    return np.random.default_rng(1).uniform(2.0**-14, 2.0**-13, 64).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_mean_is_exact(backend: str, dtype: np.dtype[Any]) -> None:
    """The share that is kept, times the scale, is 1; so the mean is x, but for the roundings."""
    x = some_values(dtype)
    for rate in RATES:
        mask = Mask((2**40, x.size), rate, key=0, shared_axes=1)
        scale = 1 / (1 - Fraction(rate))
        assert mask.scale == float(scale)
        # The elements with U = 0 and with U = 2^32 - 1 (docs/stream.md, section 10): dropped and kept at any rate.
        first, last = (mask.window((i, 0), (1, x.size)).apply(x[None])[0] for i in (8046175150, 343460240))
        # Nothing is rounded where the scale is a power of two.
        assert bias(x, first, last, rate) <= (0 if 1 - rate in POWERS else rounding(dtype))


def test_means() -> None:
    """The mean of dropout(ones) is 1: kept * scale / n, where only `kept` is random."""
    p_values = []
    for seed, rate in itertools.product(range(4), (0.1, 0.5, 0.9)):
        y = dropout(np.ones(N), rate, rng=seed)
        kept = int(np.count_nonzero(y))
        assert np.count_nonzero(y == reference.scale(rate)) == kept
        p_values.append(p_of_count(kept, N, 1 / reference.scale(rate)))
    within_budget("means", p_values)


# ---- the tests can fail --------------------------------------------------------------------------


def truth(rate: float = 0.5, seed: int = 1) -> Bits:
    """A stream that is not ours, and as good as they come."""
    return np.random.default_rng(seed).random(N) < rate


def some_of(n: int, rate: float) -> Bits:
    return np.random.default_rng(2).random(n) < rate


def repeated(row: int) -> Bits:
    """One row in 64 is the one before it."""
    rows = truth().reshape(-1, row)
    rows[1::64] = rows[: len(rows) - 1 : 64]
    return rows.ravel()


def stuck_place() -> Bits:
    blocks = truth().reshape(-1, BLOCK)
    blocks[:, 77] |= some_of(len(blocks), 0.1)
    return blocks.ravel()


def copied_place() -> Bits:
    blocks = truth().reshape(-1, BLOCK)
    blocks[:, 77] = np.where(some_of(len(blocks), 0.1), blocks[:, 3], blocks[:, 77])
    return blocks.ravel()


def sticky_pairs() -> Bits:
    """Right counts, wrong order: dropped elements like to come in twos."""
    pairs = truth().reshape(-1, 2)
    pairs[:, 1] = np.where(some_of(len(pairs), 0.03), pairs[:, 0], pairs[:, 1])
    return pairs.ravel()


def test_the_tests_pass_a_good_stream() -> None:
    good, other = truth(), truth(seed=2)
    p_values = [p_of_count(int(np.count_nonzero(good)), N, 0.5), agreement(good, other)]
    p_values += [pattern(good, 0.5, length) for length in (2, 4)] + [lag(good, 0.5, by) for by in LAGS]
    p_values += runs(good, 0.5) + runs(truth(0.1), 0.1) + places(good, 0.5) + pairs_of_places(good)
    p_values += [p_of_counts(increments(map(truth, RATES)), SHARES)]
    assert min(p_values) > ALPHA
    assert repeats(windows(good.reshape(-1, 512)[:4096])) == 0
    x = some_values(DTYPES["float64"])
    assert bias(x, 0 * x, x / (1 - share(0.1)), 0.1) <= rounding(x.dtype)


def test_the_tests_fail_faulty_streams() -> None:
    assert p_of_count(int(np.count_nonzero(truth(0.505))), N, 0.5) < ALPHA  # biased by 1 %
    assert lag(repeated(BLOCK), 0.5, BLOCK) < ALPHA
    assert lag(repeated(ROW).reshape(-1, ROW).T.ravel(), 0.5, 1) < ALPHA
    assert min(lag(repeated(ROW), 0.5, by) for by in LAGS) > ALPHA  # nothing is wrong along the rows
    assert min(places(stuck_place(), 0.5)) < ALPHA
    assert min(pairs_of_places(copied_place())) < ALPHA
    assert min(places(copied_place(), 0.5)) > ALPHA
    assert pattern(sticky_pairs(), 0.5, 2) < ALPHA
    assert pattern(sticky_pairs(), 0.5, 4) < ALPHA
    assert lag(sticky_pairs(), 0.5, 1) < ALPHA
    assert max(runs(sticky_pairs(), 0.5)) < ALPHA
    with pytest.raises(AssertionError, match="a chance of"):
        within_budget("means", [0.5] * 11 + [1e-12])


def test_the_tests_fail_masks_that_are_alike() -> None:
    a, b = truth()[:SMALL], truth(seed=2)[:SMALL]
    nearly = a.copy()
    nearly[::50] = True
    assert agreement(a, nearly) < ALPHA
    assert agreement(a, np.concatenate([a[:4000], b[4000:]])) < ALPHA  # the first 3 % are the same
    c = truth(seed=3)[:SMALL]
    assert agreement(a, b) > ALPHA
    assert agreement(a & b, b & c, 0.25) < ALPHA  # plane 1 of the one is plane 0 of the other
    masks = truth().reshape(-1, 512)[:4096]
    masks[900, 37:101] = masks[7, 400:464]
    assert repeats(windows(masks)) > 0


def test_the_tests_fail_wrong_levels() -> None:
    with pytest.raises(AssertionError, match="not nested"):
        increments(truth(rate, seed) for seed, rate in enumerate(RATES))
    coarse = np.floor(np.random.default_rng(1).random(N) * 512) / 512  # 9 bits of U
    assert p_of_counts(increments(coarse < rate for rate in RATES), SHARES) < ALPHA


def test_the_tests_fail_a_mean_that_is_off() -> None:
    x, half = some_values(DTYPES["float64"]), some_values(DTYPES["float16"])
    assert bias(x, 0 * x, x / (1 - 0.1), 0.1) > rounding(x.dtype)  # the scale of the rate, not of what is drawn
    assert bias(half, 0 * half, half * np.float16(1 / (1 - 0.3)), 0.3) > rounding(half.dtype)  # a scale of 16 bits
