"""The promise "stream v1": a mask is the same function of (key, draw, index, rate), everywhere and for good.

The chain of trust: Philox is held to its published answers, the reference to the answers of docs/stream.md,
which are repeated here by hand, the frozen golden file to the reference, and each backend to the golden file, the
documented answers and, at random places, the reference. tests/expected.py, on which other tests rely, is held to
the reference too.
"""

import json
import random
from pathlib import Path
from typing import Any

import expected
import numpy as np
import pytest
import reference

import dropfast

DATA = Path(__file__).parent / "data"


def golden_cases(section: str) -> list[Any]:
    """One section of the golden file ("rates", "uniforms" or "masks") as pytest parameters with ids."""
    cases = []
    for case in json.loads((DATA / "stream_v1.json").read_text(encoding="utf-8"))[section]:
        if "rate" in case:
            case["rate"] = float.fromhex(case["rate"])
        rate = [f"rate={case['rate']:.10g}"] if "rate" in case else []
        where = [f"{field}={case[field]:#x}" for field in ("start", "key", "draw") if field in case]
        cases.append(pytest.param(case, id="-".join(rate + where)))
    return cases


def philox_known_answers() -> list[tuple[int, ...]]:
    lines = (DATA / "philox4x32_10_kat.txt").read_text(encoding="utf-8").splitlines()
    return [tuple(int(word, 16) for word in line.split()) for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("words", philox_known_answers(), ids=["zeros", "ones", "pi"])
def test_philox_gives_its_published_answers(words: tuple[int, ...]) -> None:
    c0, c1, c2, c3, k0, k1, *output = words
    assert reference.philox4x32_10((c0, c1, c2, c3), (k0, k1)) == tuple(output)


@pytest.mark.parametrize(
    ("key", "draw", "i", "u"),
    [
        (0, 0, 0, 0xC7172884),
        (0, 0, 1, 0x09C1F9BA),
        (0, 0, 2, 0xFB0AE47E),
        (0, 0, 3, 0x12DD5FAB),
        (0x0123456789ABCDEF, 7, 2**40 + 5, 0xA45FFAB0),
    ],
    ids=["i=0", "i=1", "i=2", "i=3", "i=2^40+5"],
)
def test_uniform_gives_the_documented_answers(key: int, draw: int, i: int, u: int) -> None:
    assert reference.uniform(key, draw, i) == u


known_masks = pytest.mark.parametrize(
    ("key", "draw", "start", "rate", "packed"),
    [
        pytest.param(0, 0, 0, 0.5, "d5e827668dc569e1", id="rate=0.5"),
        pytest.param(0, 0, 0, 0.1, "f5ffefffffe7fdff", id="rate=0.1"),
        pytest.param(0x0123456789ABCDEF, 7, 0, 0.1, "fffeffffeffdcdff", id="rate=0.1-other-key"),
        pytest.param(0x0123456789ABCDEF, 7, 2**40 + 5, 0.3, "e7eb5ff45e7aeb1f", id="rate=0.3-far"),
        pytest.param(2**64 - 1, 2**32 - 1, 127, 0.9, "0d00000002000400", id="rate=0.9-largest-key-and-draw"),
    ],
)


@known_masks
def test_reference_gives_the_documented_masks(key: int, draw: int, start: int, rate: float, packed: str) -> None:
    assert reference.packed(key, draw, start, 64, rate).hex() == packed


@pytest.mark.parametrize(
    ("rate", "threshold", "scale"),
    [
        pytest.param(0.0, 0, 1.0, id="0"),
        pytest.param(2**-33, 0, 1.0, id="2^-33-ties-down"),
        pytest.param(3 * 2**-33, 2, 2**32 / (2**32 - 2), id="3*2^-33-ties-up"),
        pytest.param(2**-32, 1, 2**32 / (2**32 - 1), id="2^-32"),
        pytest.param(0.1, 0x1999999A, 2**32 / 0xE6666666, id="0.1"),
        pytest.param(0.5, 2**31, 2.0, id="0.5"),
        pytest.param(1 - 2**-32, 2**32 - 1, 2.0**32, id="1-2^-32"),
        pytest.param(1 - 2**-33, 2**32, 0.0, id="1-2^-33-ties-up-to-all"),
        pytest.param(1.0, 2**32, 0.0, id="1"),
    ],
)
def test_threshold_and_scale_give_the_documented_answers(rate: float, threshold: int, scale: float) -> None:
    assert reference.threshold(rate) == threshold
    assert reference.scale(rate) == scale


@pytest.mark.parametrize(
    ("i", "rate", "kept"),
    [
        pytest.param(8046175150, 2**-33, True, id="U=0-T=0"),
        pytest.param(8046175150, 2**-32, False, id="U=0-T=1"),
        pytest.param(1514460400, 0.1, False, id="U=T-1"),
        pytest.param(1283727731, 0.1, True, id="U=T"),
        pytest.param(343460240, 1 - 2**-32, True, id="U=2^32-1-T=2^32-1"),
        pytest.param(343460240, 1.0, False, id="U=2^32-1-T=2^32"),
    ],
)
def test_an_element_is_dropped_exactly_below_the_threshold(i: int, rate: float, kept: bool) -> None:
    assert reference.keep(0, 0, i, rate) is kept


def test_golden_file_is_what_the_reference_writes() -> None:
    assert (DATA / "stream_v1.json").read_text(encoding="utf-8") == reference.golden_text()


@pytest.mark.parametrize("case", golden_cases("rates"))
def test_reference_gives_the_golden_rates(case: dict[str, Any]) -> None:
    assert reference.threshold(case["rate"]) == case["threshold"]
    assert reference.scale(case["rate"]).hex() == case["scale"]


@pytest.mark.parametrize("case", golden_cases("uniforms"))
def test_reference_gives_the_golden_uniforms(case: dict[str, Any]) -> None:
    for j, u in enumerate(case["u"]):
        assert reference.uniform(case["key"], case["draw"], case["start"] + j) == int(u, 16)


@pytest.mark.parametrize("case", golden_cases("masks"))
def test_reference_gives_the_golden_masks(case: dict[str, Any]) -> None:
    packed = reference.packed(case["key"], case["draw"], case["start"], case["n"], case["rate"])
    assert packed.hex() == case["packed"]


# ---- the backends --------------------------------------------------------------------------------


def part(key: int, draw: int, start: int, n: int, rate: float) -> dropfast.Mask:
    """The elements from `start` on, of as large a mask as there is."""
    if start + n < 2**63:
        return dropfast.Mask(2**63 - 1, rate, key=key, draw=draw).window(start, n)
    row = 2**63 - start  # one axis is at most 2^63 - 1 long, so the last element of all takes two
    assert n <= row == 1 << (row.bit_length() - 1)
    return dropfast.Mask((2**63 // row, row), rate, key=key, draw=draw).window((2**63 // row - 1, 0), (1, n))


@known_masks
def test_backend_gives_the_documented_masks(
    backend: str, key: int, draw: int, start: int, rate: float, packed: str
) -> None:
    assert part(key, draw, start, 64, rate).packed().tobytes().hex() == packed


@pytest.mark.parametrize("case", golden_cases("rates"))
def test_backend_gives_the_golden_rates(backend: str, case: dict[str, Any]) -> None:
    last = part(0, 0, 343460240, 1, case["rate"])  # U = 2^32 - 1: kept at every threshold but 2^32
    assert last.scale.hex() == case["scale"]
    for dtype in ("float32", "float64"):
        assert last.apply(np.ones(1, dtype)).tolist() == [float(np.dtype(dtype).type(last.scale))]


@pytest.mark.parametrize("case", golden_cases("uniforms"))
def test_backend_gives_the_golden_uniforms(backend: str, case: dict[str, Any]) -> None:
    for j, word in enumerate(case["u"]):
        u, where = int(word, 16), (case["key"], case["draw"], case["start"] + j, 1)
        # Kept at the threshold U, dropped at U + 1: that is all 32 bits of it.
        assert part(*where, u / 2**32).packed().tolist() == [1]
        assert part(*where, (u + 1) / 2**32).packed().tolist() == [0]


@pytest.mark.parametrize("case", golden_cases("masks"))
def test_backend_gives_the_golden_masks(backend: str, case: dict[str, Any]) -> None:
    mask = part(case["key"], case["draw"], case["start"], case["n"], case["rate"])
    assert mask.packed().tobytes().hex() == case["packed"]
    kept = np.unpackbits(mask.packed(), count=case["n"], bitorder="little").astype(bool)
    assert np.array_equal(mask.keep().ravel(), kept)
    assert np.array_equal((mask.apply(np.ones(mask.shape)) != 0).ravel(), kept & (mask.scale > 0))


def random_places() -> list[Any]:
    """Parts of masks in all magnitudes: (key, draw, start, n, rate)."""
    choose = random.Random(20240607)
    cases = []
    for i in range(60):
        bits = choose.choice((0, 8, 20, 31, 32, 33, 38, 39, 40, 46, 54, 62))
        start = max(0, (1 << bits) - choose.randrange(400)) + choose.choice((0, choose.getrandbits(bits)))
        key, draw = choose.getrandbits(64), choose.getrandbits(32)
        rate = (choose.random(), choose.random() ** 8, choose.getrandbits(6) / 64)[i % 3]
        n = choose.randrange(1, 700)
        cases.append(
            pytest.param(key, draw, min(start, 2**63 - 1 - n), n, rate, id=f"place{i}-2^{bits}-rate={rate:.3g}")
        )
    return cases


@pytest.mark.parametrize(("key", "draw", "start", "n", "rate"), random_places())
def test_backend_agrees_with_the_reference(backend: str, key: int, draw: int, start: int, n: int, rate: float) -> None:
    assert part(key, draw, start, n, rate).packed().tobytes() == reference.packed(key, draw, start, n, rate)


@pytest.mark.parametrize(("key", "draw", "start", "n", "rate"), random_places())
def test_expected_agrees_with_the_reference(key: int, draw: int, start: int, n: int, rate: float) -> None:
    u = expected.uniforms(key, draw, np.arange(start, start + n, dtype=np.uint64))
    assert u.tolist() == [reference.uniform(key, draw, start + j) for j in range(n)]
    kept = expected.keep((2**63 - 1,), rate, key, draw, start=(start,), shape=(n,))
    assert np.packbits(kept, bitorder="little").tobytes() == reference.packed(key, draw, start, n, rate)


def test_an_element_of_a_shared_mask_has_the_documented_index(backend: str) -> None:
    """The example of docs/stream.md, section 3."""
    for rate in (0.25, 0.5, 0.75):
        mask = dropfast.Mask((4, 5, 300), rate, key=11, draw=3, shared_axes=1)
        assert bool(mask.keep()[2, 0, 7]) == reference.keep(11, 3, 607, rate)
        assert (mask.apply(np.ones((4, 5, 300)))[2, :, 7] != 0).tolist() == [reference.keep(11, 3, 607, rate)] * 5


@pytest.mark.parametrize(
    ("whole", "start", "shape", "axes"),
    [
        pytest.param((2**31, 2**32), (2**30, 2**32 - 9), (4, 9), (), id="ends-of-rows"),
        pytest.param((1000, 1000), (7, 993), (60, 1), (), id="column"),
        pytest.param((2**20, 3, 2**30), (2**19, 1, 2**29), (3, 2, 40), (1,), id="shared-middle"),
        pytest.param((2**40, 9, 9), (2**39 - 20, 2, 3), (40, 3, 4), (1, 2), id="spatial-across-2^39"),
    ],
)
def test_windows_agree_with_the_reference(
    backend: str, whole: tuple[int, ...], start: tuple[int, ...], shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    mask = dropfast.Mask(whole, 0.3, key=5, draw=6, shared_axes=axes).window(start, shape)
    kept = mask.apply(np.ones(shape)) != 0
    for at in np.ndindex(*shape):
        i = 0
        for axis, n in enumerate(whole):
            if axis not in axes:
                i = i * n + start[axis] + at[axis]
        assert bool(kept[at]) == reference.keep(5, 6, i, 0.3)
