"""A pass through a chain of modules in which what a shared mask drops is not computed, where that is worth it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from torch import Tensor, nn

from dropfast import _backend, _checks
from dropfast._checks import Kept
from dropfast.torch import _thin_products
from dropfast.torch._eager import by_recipe, is_plain, plain_key
from dropfast.torch._thin_plan import PRODUCTS, Kind, Link, kind_of, link
from dropfast.torch._thin_products import put, rows_of, take
from dropfast.torch.functions import is_ours, probability
from dropfast.torch.layers import OURS, Dropout, Dropout2d, shared_axes_of

_LAYERS = frozenset((*OURS, *OURS.values()))


def is_dropout(module: nn.Module) -> bool:
    """Return whether a module is a dropout layer, PyTorch's or ours, and no subclass."""
    return type(module) in _LAYERS


def is_shared(layer: nn.Module) -> bool:
    """Return whether a layer is one that may drop the same units for a whole batch."""
    return type(layer) in (Dropout, Dropout2d) and bool(layer._shared_axes or layer._noise_shape)


# ---- masks ---------------------------------------------------------------------------------------

#: (index of the first element, key, draw).
Name: TypeAlias = tuple[int, int, int]


class Masks(Protocol):
    """Where the masks of a pass come from."""

    def kind(self, module: nn.Module) -> Kind | None:
        """Return what a dropout is to a chain; None if the module is none."""

    def shared_axes(self, layer: nn.Module, shape: Sequence[int | None]) -> tuple[int, ...]:
        """Return which axes share their bits."""

    def name(self, layer: nn.Module, size: int) -> Name:
        """Return the name of the next mask, which has so many bits."""

    def dropped(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return `x` with the next mask applied."""


class LayersOwn:
    """New masks from the layers' generators, if these are training: those that the plain model would draw."""

    def kind(self, module: nn.Module) -> Kind | None:
        """See `Masks`."""
        if type(module) not in _LAYERS:
            return None
        if not module.training or module.p == 0:
            return Kind.ZERO_TO_ZERO
        return Kind.DROP if is_shared(module) else Kind.OTHER

    def shared_axes(self, layer: nn.Module, shape: Sequence[int | None]) -> tuple[int, ...]:
        """See `Masks`."""
        return shared_axes_of(layer, shape)

    def name(self, layer: nn.Module, size: int) -> Name:
        """See `Masks`."""
        return 0, plain_key(layer.generator), 0

    def dropped(self, layer: nn.Module, x: Tensor) -> Tensor:
        """See `Masks`."""
        return layer(x)  # type: ignore[no-any-return]


class Network:
    """The masks of one network: draw `draw` of a key, of all that can be dropped, in the order in which it is met."""

    def __init__(self, key: int, draw: int) -> None:
        self._key, self._draw, self._met = key, draw, 0

    def kind(self, module: nn.Module) -> Kind | None:
        """See `Masks`."""
        if type(module) not in _LAYERS:
            return None
        return Kind.DROP if module.p != 0 else Kind.ZERO_TO_ZERO

    def shared_axes(self, layer: nn.Module, shape: Sequence[int | None]) -> tuple[int, ...]:
        """See `Masks`."""
        return tuple(sorted({0, *shared_axes_of(layer, shape)}))

    def name(self, layer: nn.Module, size: int) -> Name:
        """See `Masks`."""
        first, self._met = self._met, self._met + size
        return first, self._key, self._draw

    def dropped(self, layer: nn.Module, x: Tensor) -> Tensor:
        """See `Masks`."""
        if not is_ours(x):
            raise ValueError(f"sample takes dense tensors on the CPU, CUDA, MPS or XPU, got {x.layout}, on {x.device}")
        shape = tuple(x.shape)
        strides, axes = _checks.sharing(shape, self.shared_axes(layer, shape), None)
        name = self.name(layer, math.prod(1 if axis in axes else n for axis, n in enumerate(shape)))
        return by_recipe(x, (shape, strides, *name, _checks.threshold(probability(layer.p))))


# ---- what is worth it ----------------------------------------------------------------------------

_ROWS = 1
_PRODUCTS = 1


def _is_worth_it(rows: float, weights: int) -> bool:
    """Return whether to leave out so many rows of products with so many weights."""
    return rows >= _ROWS and rows * weights >= _PRODUCTS


def _rows(x: Tensor, axis: int) -> int:
    """Return with how many vectors of units weights are multiplied."""
    return x.numel() // max(x.shape[axis], 1)


def may_be_worth_it(chain: nn.Module, chains: tuple[type, ...], x: Tensor) -> bool:
    """Return whether `run` may have something to leave out, which takes longer to know for sure."""
    p, weights = _most(chain, chains)
    return p > 0 and x.ndim > 1 and _is_worth_it(p * _rows(x, 1 if x.ndim == 4 else -1), 2 * weights)


def _most(chain: nn.Module, chains: tuple[type, ...]) -> tuple[float, int]:
    """Return the highest rate of masks that are shared, and the number of weights of the largest product."""
    p, weights = 0.0, 0
    for module in chain._modules.values():
        kind = type(module)
        if kind is nn.Linear:
            weights = max(weights, module.in_features * module.out_features)
        elif kind is nn.Conv2d:
            weights = max(weights, module.in_channels * module.out_channels * math.prod(module.kernel_size))
        elif kind in _LAYERS:
            if module.training and is_shared(module):
                p = max(p, module.p)
        elif kind in chains:
            its_p, its_weights = _most(module, chains)
            p, weights = max(p, its_p), max(weights, its_weights)
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


def run(modules: Sequence[nn.Module], x: Tensor, masks: Masks) -> Tensor:
    """Return what the modules make of `x`, one after the other."""
    kinds = [kind_of(module, masks.kind) for module in modules]
    links = {drop: link(kinds, drop) for drop, kind in enumerate(kinds) if kind is Kind.DROP}
    drops = {its.producer: drop for drop, its in links.items()}
    has: _Units | None = None  # of which units `x` has only those that are kept
    coming: _Units | None = None  # what the next dropout will keep
    for index, module in enumerate(modules):
        kind = kinds[index]
        if kind in PRODUCTS:
            coming = _units(modules, index, drops[index], links, x, masks) if index in drops else None
            x, has = _product(module, kind, x, has, coming), None
        elif kind is not Kind.DROP:
            x = module(x)
        else:
            its = links[index]
            if its.producer is None:
                coming = _units(modules, None, index, links, x, masks)
            if coming is None:
                x = masks.dropped(module, x)
                continue
            none = not coming.kept.left
            x = (coming.take(x) if its.producer is None or none else x) * coming.scale
            has = coming
            if its.consumer is None or none:
                x, has = coming.put(x), None
    return x


def _units(
    modules: Sequence[nn.Module], producer: int | None, drop: int, links: Mapping[int, Link], x: Tensor, masks: Masks
) -> _Units | None:
    """Return what a dropout keeps, if what it drops can be left out from here on, and that is worth it."""
    layer, its = modules[drop], links[drop]
    products = [modules[index] for index in (producer, its.consumer) if index is not None]
    if not products or x.ndim < 2 or not is_plain(x):
        return None
    channels = x.ndim == 4 if its.channels is None else its.channels
    axis = 1 if channels or x.ndim == 2 else x.ndim - 1
    if (channels and x.ndim != 4) or (its.flattened and not channels and x.ndim != 2):
        return None
    if (type(layer) is Dropout2d and not channels) or (producer is None and layer.inplace):
        return None
    p = probability(layer.p)
    if not _is_worth_it(p * _rows(x, axis), sum(product.weight.numel() for product in products)):
        return None
    for product in products:
        for tensor in (product.weight, product.bias):
            if tensor is not None and (tensor.dtype is not x.dtype or not is_plain(tensor)):
                return None
    n = x.shape[axis] if producer is None else products[0].weight.shape[0]
    shape = (*x.shape[:axis], n, *((None,) * (x.ndim - axis - 1)))
    if masks.shared_axes(layer, shape) != tuple(other for other in range(x.ndim) if other != axis):
        return None
    bits, threshold = np.empty((n + 7) // 8, np.uint8), _checks.threshold(p)
    if n:
        _backend.active.packed(bits, ((n,), (1,), *masks.name(layer, n), threshold))
    return _Units(Kept(n, int(np.bitwise_count(bits).sum()), bits), axis, _checks.scale(threshold))


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
