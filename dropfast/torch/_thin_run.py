"""A pass through a chain of modules in which what a shared mask drops is not computed, where that is worth it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dropfast import _backend, _checks
from dropfast._checks import Kept
from dropfast.torch import _private, _thin_products
from dropfast.torch._eager import is_plain
from dropfast.torch._thin_masks import SHARING, Masks
from dropfast.torch._thin_plan import PRODUCTS, Kind, Link, kind_of, link
from dropfast.torch._thin_products import put, rows_of, take
from dropfast.torch.functions import probability
from dropfast.torch.layers import Dropout2d

# ---- what is worth it ----------------------------------------------------------------------------

#: Products of so many rows take as long as copying the weights that they are with, and their gradients back. This and
#: the next were measured on Zen 4, by the step and by the forward pass, at rates of 0.2 and 0.5.
_COPY = 12
#: So many products take as long as all else that is done for a dropout. oneDNN compiles its code for each new size.
_LEAST, _LEAST_OF_CONVOLUTIONS = 16e6, 180e6
_FEWEST_ROWS = 4


def _gain(weights: int, rows: int, kept: float) -> float:
    """Return how many products are saved, less what is lost, where this part of the weights is kept."""
    return weights * (rows * (1 - kept) - _COPY * kept)


def is_open(x: Tensor) -> bool:
    """Return whether nobody but autograd looks on: for all others there is what the plain model does."""
    return (
        not torch.compiler.is_compiling()
        and is_plain(x)
        and not torch.is_autocast_enabled("cpu")
        and not _private.is_forward_ad_on()
        and not _private.has_any_global_hook()
    )


def _rows(x: Tensor, axis: int) -> int:
    """Return with how many vectors of units weights are multiplied."""
    return x.numel() // max(x.shape[axis], 1)


#: By chain: the most weights of a product that it was seen to have, for a first look that takes no time.
_widest: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def may_be_worth_it(chain: nn.Module, chains: tuple[type, ...], x: Tensor) -> bool:
    """Return whether `Chain.run` may have something to leave out, which takes longer to know for sure."""
    size, ndim = x.numel(), x.ndim
    if type(size) is not int or ndim < 2:  # what is traced has no numbers
        return False
    rows = size // (x.shape[1 if ndim == 4 else -1] or 1)
    if rows < _FEWEST_ROWS or 2 * rows * _widest.get(chain, math.inf) < _LEAST:
        return False
    p, weights = _most(chain, chains)
    _widest[chain] = weights
    return p > 0 and 2 * _gain(weights, rows, (1 - p) ** 2) >= _LEAST


def _most(chain: nn.Module, chains: tuple[type, ...]) -> tuple[float, int]:
    """Return the highest rate of masks that are shared, and the number of weights of the largest product."""
    p, weights = 0.0, 0
    for module in chain._modules.values():
        kind, its_p, its_weights = type(module), 0.0, 0
        if kind is nn.Linear:
            its_weights = module.in_features * module.out_features
        elif kind is nn.Conv2d:
            its_weights = module.in_channels * module.out_channels * math.prod(module.kernel_size)
        elif kind in SHARING:
            its_p = module.p if module.training else 0.0
        elif kind in chains:
            its_p, its_weights = _most(module, chains)
        if its_p > p:
            p = its_p
        if its_weights > weights:
            weights = its_weights
    return p, weights


# ---- a pass --------------------------------------------------------------------------------------


class _Units(NamedTuple):
    """What a dropout keeps of the units on an axis: 1, or the last."""

    kept: Kept
    axis: int
    scale: float

    def take(self, x: Tensor) -> Tensor:
        """Return what is kept of `x`, not scaled."""
        if self.axis == 1:
            return take(x, None, self.kept)
        return take(rows_of(x), None, self.kept).reshape(*x.shape[:-1], self.kept.left)

    def put(self, x: Tensor) -> Tensor:
        """Return all units, of which `x` has those that are kept."""
        if self.axis == 1:
            return put(x, (x.shape[0], self.kept.length, *x.shape[2:]), None, self.kept)
        rows = put(rows_of(x), (math.prod(x.shape[:-1]), self.kept.length), None, self.kept)
        return rows.reshape(*x.shape[:-1], self.kept.length)


class Chain:
    """Modules to be called one after the other, of which the kinds are known, where `dropout` says it of dropout."""

    def __init__(self, modules: Sequence[nn.Module], dropout: Callable[[nn.Module], Kind | None]) -> None:
        self._modules = modules
        self._kinds = kinds = [kind_of(module, dropout) for module in modules]
        self._links = {drop: link(kinds, drop) for drop, kind in enumerate(kinds) if kind is Kind.DROP}
        # By product: the dropout that drops what it computes, and the one that has dropped what it reads.
        self._behind = {its.producer: drop for drop, its in self._links.items()}
        self._before = {its.consumer: drop for drop, its in self._links.items()}

    def run(self, x: Tensor, masks: Masks) -> Tensor:
        """Return what the modules make of `x`."""
        has: _Units | None = None  # of which units `x` has only those that are kept
        coming: _Units | None = None  # what the next dropout will keep
        for index, module in enumerate(self._modules):
            kind = self._kinds[index]
            if kind in PRODUCTS:
                coming = self._units(self._behind[index], index, x, masks) if index in self._behind else None
                x, has = _product(module, kind, x, has, coming), None
            elif kind is not Kind.DROP:
                x = module(x)
            else:
                its = self._links[index]
                if its.producer is None:
                    coming = self._units(index, None, x, masks)
                if coming is None:
                    x = masks.dropped(module, x)
                    continue
                none = not coming.kept.left
                x = (coming.take(x) if its.producer is None or none else x) * coming.scale
                has = coming
                if its.consumer is None or none:
                    x, has = coming.put(x), None
        return x

    def _units(self, drop: int, producer: int | None, x: Tensor, masks: Masks) -> _Units | None:
        """Return what a dropout keeps, if what it drops can be left out from here on, and that is worth it."""
        layer, its = self._modules[drop], self._links[drop]
        products = [index for index in (producer, its.consumer) if index is not None]
        if not products or x.ndim < 2 or not is_open(x):
            return None
        channels = x.ndim == 4 if its.channels is None else its.channels
        axis = 1 if channels or x.ndim == 2 else x.ndim - 1
        if (channels and x.ndim != 4) or (its.flattened and not channels and x.ndim != 2):
            return None
        if (type(layer) is Dropout2d and not channels) or (producer is None and layer.inplace):
            return None
        if not self._is_worth_it(products, its, x, axis):
            return None
        for product in products:
            for tensor in (self._modules[product].weight, self._modules[product].bias):
                if tensor is not None and (tensor.dtype is not x.dtype or not is_plain(tensor)):
                    return None
        n = x.shape[axis] if producer is None else self._modules[producer].weight.shape[0]
        shape = (*x.shape[:axis], n, *((None,) * (x.ndim - axis - 1)))
        if masks.shared_axes(layer, shape) != tuple(other for other in range(x.ndim) if other != axis):
            return None
        bits, threshold = np.empty((n + 7) // 8, np.uint8), _checks.threshold(probability(layer.p))
        if n:
            _backend.active.packed(bits, ((n,), (1,), *masks.name(layer, n), threshold))
        return _Units(Kept(n, int.from_bytes(bits).bit_count(), bits), axis, _checks.scale(threshold))

    def _is_worth_it(self, products: Sequence[int], its: Link, x: Tensor, axis: int) -> bool:
        gain, least = 0.0, _LEAST
        for product in products:
            kept = (1 - self._rate(self._before.get(product))) * (1 - self._rate(self._behind.get(product)))
            rows = x.shape[0] if its.flattened and product == its.consumer else _rows(x, axis)
            gain += _gain(self._modules[product].weight.numel(), rows, kept)
            if self._kinds[product] is Kind.CONV:
                least = _LEAST_OF_CONVOLUTIONS
        return gain >= least

    def _rate(self, drop: int | None) -> float:
        return 0.0 if drop is None else float(self._modules[drop].p)


def _product(module: nn.Module, kind: Kind, x: Tensor, has: _Units | None, coming: _Units | None) -> Tensor:
    """Return the product of the units that there are and those that are wanted."""
    ins = has and has.kept
    outs = coming and coming.kept
    if outs is not None and not outs.left:  # convolutions, and pooling, refuse to have nothing to do
        outs = None
    if ins is None and outs is None:
        return module(x)  # type: ignore[no-any-return]
    weight, bias = module.weight, module.bias
    if kind is Kind.CONV:
        return _thin_products.conv2d(x, weight, bias, ins, outs, module.stride, module.padding, module.dilation)
    if ins is not None and ins.length != weight.shape[1]:  # channels that have been flattened
        weight = weight.unflatten(1, (ins.length, -1))
    return _thin_products.linear(x, weight, bias, ins, outs)
