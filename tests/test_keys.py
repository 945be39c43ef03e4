"""The promise about keys: 64 bits of whatever NumPy calls random, by a rule that is written down, and no bit twice."""

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import randomgen
from cases import MODES
from expected import assert_same_bits
from numpy.random import MT19937, PCG64, PCG64DXSM, SFC64, BitGenerator, Philox, RandomState

from dropfast import Dropout, Mask, dropout

X = np.ones((40, 50), np.float32)


def keys(rng: Any, n: int) -> list[int]:
    return [Dropout(rng=rng).key for _ in range(n)]


# ---- the rule ------------------------------------------------------------------------------------

# The first two keys of seed 7, which no version of dropfast and of NumPy may change.
KNOWN: dict[str, tuple[Callable[[int], Any], list[int]]] = {
    "PCG64": (PCG64, [0xA00641A9F1E54A8B, 0xE5AFCDBCAF266A95]),
    "PCG64DXSM": (PCG64DXSM, [0x18DBEFF4A675A4C9, 0xD2E25E7728EF4F6D]),
    "Philox": (Philox, [0x78046C3E44C57FAE, 0x6D17E4BDF94F8AC5]),
    "SFC64": (SFC64, [0x0B3A7273FA505ECF, 0x96579C2E0219BABB]),
    "MT19937": (MT19937, [0x4E69FA836FB2E822, 0xA20C1BA80D55EC3F]),
    "RandomState": (RandomState, [0x1388F0AF3A32E4C4, 0xC7A8C21951A829F6]),
    # A third party's: raw numbers of 64 bits, of 32, and the bits of a double.
    "randomgen.Xoshiro256": (randomgen.Xoshiro256, [0xB3CF2DED934E39BD, 0xFC59ECDDCB6BFEC9]),
    "randomgen.PCG32": (randomgen.PCG32, [0xB72C7904993C42A0, 0x04F35C59A91F8E85]),
    "randomgen.DSFMT": (randomgen.DSFMT, [0x1C0CB5CC707459A9, 0x745E922FF46AD341]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_keys(name: str) -> None:
    make, want = KNOWN[name]
    assert keys(make(7), 2) == want
    if issubclass(make, BitGenerator):  # type: ignore[arg-type]
        assert keys(np.random.Generator(make(7)), 2) == want
        assert keys(RandomState(make(7)), 2) == want  # type: ignore[arg-type,unused-ignore]


def test_every_bit_generator_of_numpy_has_a_known_key() -> None:
    of_numpy = {name for name, kind in vars(np.random).items() if isinstance(kind, type)}
    there = {name for name in of_numpy if issubclass(getattr(np.random, name), (BitGenerator, RandomState))}
    assert there - {"BitGenerator"} <= set(KNOWN)


@pytest.mark.parametrize("make", [PCG64, PCG64DXSM, Philox, SFC64, randomgen.Xoshiro256, lambda n: randomgen.JSF(n)])
def test_a_raw_number_of_64_bits_is_a_key(make: Any) -> None:
    assert keys(make(3), 20) == make(3).random_raw(20).tolist()


@pytest.mark.parametrize("make", [MT19937, randomgen.PCG32, randomgen.MWC64X32, lambda n: randomgen.JSF(n, size=32)])
def test_two_raw_numbers_of_32_bits_are_a_key_the_high_half_first(make: Any) -> None:
    raw = make(3).random_raw(40).tolist()
    assert max(raw) < 2**32
    assert keys(make(3), 20) == [high << 32 | low for high, low in zip(raw[::2], raw[1::2], strict=True)]


@pytest.mark.parametrize("kind", [PCG64, Philox, MT19937])
def test_a_subclass_gives_the_keys_of_its_class(kind: type[BitGenerator]) -> None:
    subclass = type("Subclass", (kind,), {})
    assert keys(subclass(3), 5) == keys(kind(3), 5)


@pytest.mark.parametrize("name", KNOWN)
def test_every_bit_of_a_key_is_used(name: str) -> None:
    many = keys(KNOWN[name][0](1), 200)
    ones = [sum(key >> bit & 1 for key in many) for bit in range(64)]
    assert all(55 < count < 145 for count in ones)  # 6.4 standard errors: one in 10^8 for all of them


@pytest.mark.parametrize("kind", [np.random.Generator, RandomState])
def test_keys_of_32_bits_do_not_come_back(kind: Any) -> None:
    """With keys of one raw number, numbers 68,164 and 81,339 of these, counted from 0, were the same."""
    assert len(set(keys(kind(MT19937(0)), 90_000))) == 90_000


# ---- what takes a key ----------------------------------------------------------------------------

SEEDS = {
    "int": 0,
    "large-int": 2**100,
    "numpy-int": np.int64(5),
    "sequence": [1, 2, 3],
    "SeedSequence": np.random.SeedSequence(7),
}


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_a_seed_means_what_it_means_to_numpy(seed: Any) -> None:
    assert keys(seed, 1) == [np.random.default_rng(seed).bit_generator.random_raw()]


@pytest.mark.parametrize("name", [*SEEDS, *KNOWN])
def test_rng_gives_the_key(backend: str, name: str) -> None:
    """It is the same one for the function, for the mask and for the layer."""

    def rng() -> Any:
        return SEEDS[name] if name in SEEDS else KNOWN[name][0](7)

    (key,) = keys(rng(), 1)
    assert Mask(X.shape, 0.3, rng=rng()) == Mask(X.shape, 0.3, key=key)
    assert_same_bits(dropout(X, 0.3, rng=rng()), Mask(X.shape, 0.3, key=key).apply(X))
    layer = Dropout(0.3, rng=rng())
    assert (layer.key, layer.draw) == (key, 0)
    assert_same_bits(layer(X), Mask(X.shape, 0.3, key=key, draw=0).apply(X))


def test_forward_and_backward_by_a_seed(backend: str) -> None:
    for sharing in MODES.values():
        mask = Mask(X.shape, 0.3, rng=7, **sharing(X.shape))
        assert_same_bits(mask.apply(X), dropout(X, 0.3, rng=7, **sharing(X.shape)))
    again = pickle.loads(pickle.dumps(Mask(X.shape, rng=RandomState(1))))
    assert again == eval(repr(again)) == Mask(X.shape, rng=RandomState(1))


def test_generator_moves_on_by_one_raw_draw(backend: str) -> None:
    rng, twin = np.random.default_rng(3), np.random.default_rng(3)
    a, b = dropout(X, rng=rng), dropout(X, rng=rng)
    assert not np.array_equal(a, b)
    Dropout(rng=rng)
    Mask(X.shape, rng=rng)
    twin.bit_generator.random_raw(4)
    assert rng.bit_generator.state == twin.bit_generator.state
    bits = np.random.PCG64(3)
    dropout(X, rng=bits)
    assert bits.random_raw() == np.random.PCG64(3).random_raw(2)[1]


def test_an_int_repeats_and_none_does_not(backend: str) -> None:
    assert_same_bits(dropout(X, rng=5), dropout(X, rng=5))
    assert not np.array_equal(dropout(X, rng=5), dropout(X, rng=6))
    assert not np.array_equal(dropout(X), dropout(X))
    assert len({Dropout().key for _ in range(100)}) == 100
    assert len({Mask(X.shape, rng=None) for _ in range(100)}) == 100


def test_numpys_global_state_plays_no_part(backend: str) -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tobytes()  # type: ignore[index]  # noqa: NPY002
    a = dropout(X)
    np.random.seed(0)  # noqa: NPY002
    assert not np.array_equal(a, dropout(X))
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[index]  # noqa: NPY002


def test_a_failed_call_draws_nothing() -> None:
    rng = np.random.default_rng(3)
    state = rng.bit_generator.state
    with pytest.raises(ValueError, match="rate"):
        dropout(X, 2.0, rng=rng)
    with pytest.raises(ValueError, match="both"):
        Dropout(shared_axes=0, noise_shape=(1, None), rng=rng)
    for wrong in ({"shape": -1}, {"rate": 2.0}, {"draw": -1}, {"shared_axes": 2}, {"noise_shape": (3, 3)}, {"key": 1}):
        arguments: dict[str, Any] = {"shape": X.shape, **wrong}
        with pytest.raises((TypeError, ValueError)):
            Mask(**arguments, rng=rng)
    assert rng.bit_generator.state == state


def test_layers_of_one_generator_have_keys_of_their_own() -> None:
    """Each takes a raw draw of the generator, in their order, so that a run with the same seed has the same keys."""
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    many = keys(rng, 1000)
    assert many == [again.bit_generator.random_raw() for _ in range(1000)]
    assert len(set(many)) == 1000


@pytest.mark.parametrize("make", [MT19937, RandomState, randomgen.PCG32, PCG64])
def test_threads_that_share_a_generator_get_whole_keys(make: Any) -> None:
    """No half of one goes to another thread: together they get just the keys that one thread would."""
    rng, start = make(1), threading.Barrier(8)

    def work(_: int) -> list[int]:
        start.wait()
        return keys(rng, 500)

    with ThreadPoolExecutor(8) as pool:
        got = [key for some in pool.map(work, range(8)) for key in some]
    assert sorted(got) == sorted(keys(make(1), 4000))
