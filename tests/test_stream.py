"""The promise "stream v1": a mask is the same function of (key, draw, index, rate), everywhere and for good.

The chain of trust: Philox is held to its published answers, the reference to the answers of docs/stream.md,
which are repeated here by hand, and the frozen golden file to the reference.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import reference

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


@pytest.mark.parametrize(
    ("key", "draw", "start", "rate", "packed"),
    [
        pytest.param(0, 0, 0, 0.5, "d5e827668dc569e1", id="rate=0.5"),
        pytest.param(0, 0, 0, 0.1, "f5ffefffffe7fdff", id="rate=0.1"),
        pytest.param(0x0123456789ABCDEF, 7, 0, 0.1, "fffeffffeffdcdff", id="rate=0.1-other-key"),
        pytest.param(0x0123456789ABCDEF, 7, 2**40 + 5, 0.3, "e7eb5ff45e7aeb1f", id="rate=0.3-far"),
        pytest.param(2**64 - 1, 2**32 - 1, 127, 0.9, "0d00000002000400", id="rate=0.9-largest-key-and-draw"),
    ],
)
def test_packed_mask_gives_the_documented_answers(
    key: int, draw: int, start: int, rate: float, packed: str
) -> None:
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
