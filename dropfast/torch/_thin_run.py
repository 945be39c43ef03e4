"""A pass through a chain of modules in which what a shared mask drops is not computed, where that is worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from dropfast import _checks
from dropfast._mask import Mask
from dropfast.torch import _thin_products
from dropfast.torch._eager import by_recipe, is_plain, plain_key
from dropfast.torch._thin_plan import PRODUCTS, Kind, Link, kind_of, link
from dropfast.torch._thin_products import put, rows_of, take
from dropfast.torch.functions import is_ours, probability
from dropfast.torch.layers import OURS, Dropout, Dropout2d, shared_axes_of

_LAYERS = frozenset((*OURS, *OURS.values()))


class Masks(Protocol):
    """Where the masks of a pass come from."""

    def kind(self, module: nn.Module) -> Kind | None:
        """Return what a dropout is to a chain; None if the module is none."""

    def shared_axes(self, layer: nn.Module, shape: Sequence[int | None]) -> tuple[int, ...]:
        """Return which axes share their bits."""

    def units(self, layer: nn.Module, n: int) -> Mask:
        """Return the mask of so many units, each of which is dropped as a whole."""

    def dropped(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return `x` with a mask applied."""


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

    def units(self, layer: nn.Module, n: int) -> Mask:
        """See `Masks`."""
        return Mask(n, probability(layer.p), key=plain_key(layer.generator))

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

    def units(self, layer: nn.Module, n: int) -> Mask:
        """See `Masks`."""
        whole = Mask(self._met + n, probability(layer.p), key=self._key, draw=self._draw)
        first, self._met = self._met, self._met + n
        return whole.window(first, n)

    def dropped(self, layer: nn.Module, x: Tensor) -> Tensor:
        """See `Masks`."""
        if not is_ours(x):
            raise ValueError(f"sample takes dense tensors on the CPU, CUDA, MPS or XPU, got {x.layout}, on {x.device}")
        shape = tuple(x.shape)
        strides, axes = _checks.sharing(shape, self.shared_axes(layer, shape), None)
        met, size = self._met, 1
        for axis, n in enumerate(shape):
            size *= 1 if axis in axes else n
        self._met += size
        return by_recipe(x, (shape, strides, met, self._key, self._draw, _checks.threshold(probability(layer.p))))


def is_dropout(module: nn.Module) -> bool:
    """Return whether a module is a dropout layer, PyTorch's or ours, and no subclass."""
    return type(module) in _LAYERS


def is_shared(layer: nn.Module) -> bool:
    """Return whether a layer is one that may drop the same units for a whole batch."""
    return type(layer) in (Dropout, Dropout2d) and bool(layer._shared_axes or layer._noise_shape)


def is_dropping(chain: nn.Module, chains: tuple[type, ...]) -> bool:
    """Return whether there is a layer with units to leave out: what `LayersOwn` and `link` would find, but sooner."""
    for module in chain._modules.values():
        if type(module) in chains:
            if is_dropping(module, chains):
                return True
        elif type(module) in _LAYERS and module.training and module.p != 0 and is_shared(module):
            return True
    return False


# ---- a pass --------------------------------------------------------------------------------------


class _Units(NamedTuple):
    """What a dropout keeps of the units on an axis: 1, or the last."""

    mask: Mask
    axis: int
    none: bool  # whether it keeps none, where convolutions and pooling refuse to have nothing to do

    def take(self, x: Tensor) -> Tensor:
        """Return what is kept of `x`, not scaled."""
        if self.axis == 1:
            return take(x, None, self.mask)
        compact = take(rows_of(x), None, self.mask)
        return compact.reshape(*x.shape[:-1], compact.shape[-1])

    def put(self, x: Tensor) -> Tensor:
        """Return all units, of which `x` has those that are kept."""
        (n,) = self.mask.shape
        if self.axis == 1:
            return put(x, None, self.mask, (x.shape[0], n, *x.shape[2:]))
        rows = rows_of(x)
        return put(rows, None, self.mask, (rows.shape[0], n)).reshape(*x.shape[:-1], n)


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
            x = (coming.take(x) if its.producer is None or coming.none else x) * coming.mask.scale
            has = coming
            if its.consumer is None or coming.none:
                x, has = coming.put(x), None
    return x


def _units(
    modules: Sequence[nn.Module], producer: int | None, drop: int, links: Mapping[int, Link], x: Tensor, masks: Masks
) -> _Units | None:
    """Return what a dropout keeps, if what it drops can be left out from here on, and that is worth it."""
    layer, its = modules[drop], links[drop]
    products = [modules[index] for index in (producer, its.consumer) if index is not None]
    if not products or not is_plain(x):
        return None
    channels = x.ndim == 4 if its.channels is None else its.channels
    axis = 1 if channels or x.ndim == 2 else x.ndim - 1
    if x.ndim < 2 or (channels and x.ndim != 4) or (x.ndim != 2 and its.flattened and not channels):
        return None
    n = x.shape[axis] if producer is None else products[0].weight.shape[0]
    if not _is_worth_it(layer.p, x.numel() // max(x.shape[axis], 1), [product.weight.numel() for product in products]):
        return None
    if (type(layer) is Dropout2d and not channels) or (producer is None and layer.inplace):
        return None
    for product in products:
        for tensor in (product.weight, product.bias):
            if tensor is not None and (tensor.dtype is not x.dtype or not is_plain(tensor)):
                return None
    shape = [*x.shape[:axis], n, *((None,) * (x.ndim - axis - 1))]
    if masks.shared_axes(layer, shape) != tuple(other for other in range(x.ndim) if other != axis):
        return None
    mask = masks.units(layer, n)
    return _Units(mask, axis, not mask._along()[1].count)


def _is_worth_it(p: float, rows: int, weights: list[int]) -> bool:
    return True


def _product(module: nn.Module, kind: Kind, x: Tensor, has: _Units | None, coming: _Units | None) -> Tensor:
    """Return the product of the units that there are and those that are wanted."""
    in_mask = has and has.mask
    out_mask = None if coming is None or coming.none else coming.mask
    if in_mask is None and out_mask is None:
        return module(x)  # type: ignore[no-any-return]
    weight, bias = module.weight, module.bias
    if kind is Kind.CONV:
        return _thin_products.conv2d(x, weight, bias, in_mask, out_mask, module.stride, module.padding, module.dilation)
    if in_mask is not None and in_mask.shape[0] != weight.shape[1]:  # channels that have been flattened
        weight = weight.unflatten(1, (in_mask.shape[0], -1))
    return _thin_products.linear(x, weight, bias, in_mask, out_mask)
