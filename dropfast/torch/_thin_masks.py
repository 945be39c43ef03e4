"""Dropout in a chain of modules, and where its masks come from: the layers, or a network that has a name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from torch import Tensor, nn

from dropfast import _checks
from dropfast.torch._eager import by_recipe, plain_key
from dropfast.torch._operators import strides_of
from dropfast.torch._thin_plan import Kind
from dropfast.torch.functions import is_ours, probability
from dropfast.torch.layers import OURS, Dropout, Dropout2d, shared_axes_of

_LAYERS = frozenset((*OURS, *OURS.values()))
SHARING = frozenset((Dropout, Dropout2d))  # which may drop the same units for a whole batch


def is_dropout(module: nn.Module) -> bool:
    """Return whether a module is a dropout layer, PyTorch's or ours, and no subclass."""
    return type(module) in _LAYERS


def is_shared(layer: nn.Module) -> bool:
    """Return whether a layer seems to drop the same units for a whole batch; its input will tell."""
    return type(layer) in SHARING and bool(layer._shared_axes or layer._noise_shape)


#: (index of the first element, key, draw).
Name: TypeAlias = tuple[int, int, int]


class Masks(Protocol):
    """Where the masks of a pass come from."""

    def shared_axes(self, layer: nn.Module, shape: Sequence[int | None]) -> tuple[int, ...]:
        """Return which axes share their bits."""

    def name(self, layer: nn.Module, size: int) -> Name:
        """Return the name of the next mask, which has so many bits."""

    def dropped(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return `x` with the next mask applied."""


class LayersOwn:
    """New masks from the layers' generators, if these are training: those that the plain model would draw."""

    @staticmethod
    def kind(module: nn.Module) -> Kind | None:
        """Return what a dropout is to a chain; None if the module is none."""
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

    @staticmethod
    def kind(module: nn.Module) -> Kind | None:
        """Return what a dropout is to a chain; None if the module is none."""
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
        axes = self.shared_axes(layer, shape)
        name = self.name(layer, math.prod(n for axis, n in enumerate(shape) if axis not in axes))
        return by_recipe(x, (shape, strides_of(shape, axes), *name, _checks.threshold(probability(layer.p))))
