"""The promise that a network without what is dropped is the network: every output and every gradient, bit for bit.

With small integers no sum is rounded, so that the order of the sums, which is all that differs, does not matter.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from cases import Array
from hypothesis import example, given
from hypothesis import strategies as st
from test_thin import assert_identical

from dropfast import Mask, thin


class Results(NamedTuple):
    """What comes out forward and backward, with the shapes of the whole network."""

    y: Array
    dx: Array
    hidden: list[Array]
    dw: list[Array]


def relu(a: Array) -> Array:
    return np.where(a > 0, a, np.zeros((), a.dtype))


def masked(x: Array, weights: list[Array], masks: list[Mask], dy: Array) -> Results:
    """Dropout before each product, and all of each product."""
    inputs, before = [masks[0].apply(x)], []
    for w, mask in zip(weights, masks[1:], strict=False):
        before.append(inputs[-1] @ w)
        inputs.append(mask.apply(relu(before[-1])))
    y, d = inputs[-1] @ weights[-1], dy
    dw: list[Array] = []
    for layer in reversed(range(len(weights))):
        dw.insert(0, inputs[layer].T @ d)
        d = masks[layer].apply(d @ weights[layer].T)
        if layer > 0:
            d = d * (before[layer - 1] > 0)
    return Results(y, d, inputs, dw)


def thinned(x: Array, weights: list[Array], masks: list[Mask], dy: Array) -> Results:
    """The same, without what is dropped."""
    inputs, before = [masks[0].compress(x)], []
    for layer, w in enumerate(weights[:-1]):
        before.append(inputs[-1] @ thin.take(w, masks[layer], masks[layer + 1]))
        inputs.append(relu(before[-1]) * masks[layer + 1].scale)
    y, d = inputs[-1] @ thin.take(weights[-1], masks[-1]), dy
    dw: list[Array] = []
    for layer in reversed(range(len(weights))):
        ends = (masks[layer], masks[layer + 1] if layer + 1 < len(weights) else None)
        dw.insert(0, thin.put(np.ascontiguousarray(inputs[layer].T @ d), *ends))
        d = d @ thin.take(weights[layer], *ends).T
        if layer > 0:
            d = d * masks[layer].scale * (before[layer - 1] > 0)
    hidden = [mask.expand(h) for mask, h in zip(masks, inputs, strict=True)]
    return Results(y, masks[0].expand(d, scaled=True), hidden, dw)


def assert_equal_nets(widths: list[int], batch: int, rates: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)

    def integers(*shape: int) -> Array:
        return rng.integers(-2, 3, shape).astype(np.float64)

    weights = [integers(n, m) for n, m in pairwise(widths)]
    masks = [
        Mask((batch, n), rate, key=seed, draw=i, shared_axes=0)
        for i, (n, rate) in enumerate(zip(widths[:-1], rates, strict=True))
    ]
    x, dy = integers(batch, widths[0]), integers(batch, widths[-1])
    dense, thinner = masked(x, weights, masks, dy), thinned(x, weights, masks, dy)
    assert max(abs(array).max(initial=0) for array in (dense.y, dense.dx, *dense.hidden, *dense.dw)) < 2**53
    for got, want in zip(
        (thinner.y, thinner.dx, *thinner.hidden, *thinner.dw),
        (dense.y, dense.dx, *dense.hidden, *dense.dw),
        strict=True,
    ):
        assert_identical(got + 0.0, want + 0.0)  # a sum of nothing is 0 of either sign, as the product's author likes

    # A step of plain gradient descent leaves alone what was dropped.
    for layer, w in enumerate(weights):
        ends = (masks[layer], masks[layer + 1] if layer + 1 < len(weights) else None)
        stepped = w.copy()
        thin.add(stepped, thin.take(thinner.dw[layer], *ends), *ends, alpha=-0.5)
        assert_identical(stepped, w - 0.5 * dense.dw[layer])


rates = st.sampled_from([0.0, 0.5, 0.75, 0.875, 1.0])


@given(
    st.lists(st.integers(1, 129), min_size=4, max_size=4),
    st.integers(1, 9),
    st.lists(rates, min_size=3, max_size=3),
    st.integers(0, 2**32),
)
@example([129, 129, 129, 129], 9, [0.5, 0.5, 0.5], 1)
@example([17, 129, 128, 10], 5, [0.0, 0.5, 0.875], 2)
@example([64, 33, 65, 1], 4, [0.75, 1.0, 0.5], 3)
def test_any_thinned_network(backend: str, widths: list[int], batch: int, rates: list[float], seed: int) -> None:
    assert_equal_nets(widths, batch, rates, seed)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.75, 0.875, 1.0], ids=lambda rate: f"rate={rate}")
def test_thinned_networks_of_each_rate(backend: str, rate: float) -> None:
    for n in (1, 2, 15, 16, 31, 64, 100, 129):
        assert_equal_nets([n, 129 - n + 1, n, 10], 8, [0.0, rate, rate], n)
