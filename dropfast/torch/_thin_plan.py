"""Which dropped units of a chain of modules need not be computed: what stands before a dropout, and what behind it.

Before it, back to the product that computes the units, all has to work unit by unit. Behind it, up to the product that
reads them, it has to make 0 of 0 besides, for the units that are left out are zeros to the whole model.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import nn

from dropfast.torch import _private


class Kind(enum.Enum):
    """What a module is to a chain."""

    DROP = enum.auto()  # dropout whose units may be left out
    LINEAR = enum.auto()
    CONV = enum.auto()
    UNITWISE = enum.auto()
    ZERO_TO_ZERO = enum.auto()  # unitwise, too
    POOL = enum.auto()  # both, if the units are channels
    FLATTEN = enum.auto()
    OTHER = enum.auto()


PRODUCTS = Kind.LINEAR, Kind.CONV
_BEFORE = Kind.UNITWISE, Kind.ZERO_TO_ZERO, Kind.POOL
_BEHIND = Kind.ZERO_TO_ZERO, Kind.POOL, Kind.FLATTEN

_KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind.LINEAR,
    nn.Conv2d: Kind.CONV,
    nn.Flatten: Kind.FLATTEN,
    **dict.fromkeys((nn.Hardsigmoid, nn.LogSigmoid, nn.Sigmoid, nn.Softplus, nn.Threshold), Kind.UNITWISE),
    **dict.fromkeys(
        (
            *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Mish),
            *(nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink),
        ),
        Kind.ZERO_TO_ZERO,
    ),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d), Kind.POOL),
}


def _checked(module: nn.Module, kind: Kind) -> Kind:
    """Return a module's kind, if its arguments are such as that is meant for."""
    if kind is Kind.CONV:
        usual = module.groups == 1 and module.padding_mode == "zeros"
    elif kind is Kind.FLATTEN:
        usual = (module.start_dim, module.end_dim) == (1, -1)
    elif kind is Kind.POOL:
        usual = not getattr(module, "return_indices", False)
    elif type(module) is nn.Hardtanh and not module.min_val <= 0 <= module.max_val:
        return Kind.UNITWISE
    else:
        usual = type(module) is not nn.PReLU or module.num_parameters == 1
    return kind if usual else Kind.OTHER


def kind_of(module: nn.Module, dropout: Callable[[nn.Module], Kind | None]) -> Kind:
    """Return what a module is, where `dropout` says it of dropout, and nothing of other modules."""
    if not _private.is_bare(module):
        return Kind.OTHER
    return dropout(module) or _checked(module, _KINDS.get(type(module), Kind.OTHER))


def leaves(chain: nn.Sequential, chains: tuple[type, ...], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Return what a Sequential calls, with names, and what others in it do."""
    for name, module in chain._modules.items():
        if type(module) in chains and _private.is_bare(module):
            yield from leaves(module, chains, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


class Link(NamedTuple):
    """What may leave out the units that a dropout drops."""

    before: int  # the nearest module before it that does not work unit by unit, -1 if there is none
    behind: int  # the nearest behind it that needs all units, or the number of modules
    producer: int | None  # `before`, if that can leave them out
    consumer: int | None  # `behind`, if that can
    channels: bool | None  # whether they are channels of images, or features; None: the input will tell
    flattened: bool  # whether they are flattened before the consumer has them


def link(kinds: Sequence[Kind], drop: int) -> Link:
    """Return what may leave out the units of the dropout with this index."""
    before = drop - 1
    while before >= 0 and kinds[before] in _BEFORE:
        before -= 1
    passed = kinds[before + 1 : drop]
    producer = kinds[before] if before >= 0 else Kind.OTHER
    if producer not in PRODUCTS or (producer is Kind.LINEAR and Kind.POOL in passed):
        producer = Kind.OTHER
    channels = None if producer is Kind.OTHER else producer is Kind.CONV

    behind, flattened, pooled = drop + 1, False, False
    while behind < len(kinds) and kinds[behind] in _BEHIND:
        if kinds[behind] is Kind.POOL:
            if flattened or channels is False:
                break
            pooled = True
        flattened |= kinds[behind] is Kind.FLATTEN
        behind += 1
    consumer = kinds[behind] if behind < len(kinds) else Kind.OTHER
    if consumer is Kind.CONV and channels is not False and not flattened:
        channels = True
    elif consumer is Kind.LINEAR and flattened:
        channels = True if pooled else channels
    elif consumer is Kind.LINEAR and not channels and not pooled:
        channels = False
    else:
        consumer = Kind.OTHER
    return Link(
        before,
        behind,
        None if producer is Kind.OTHER else before,
        None if consumer is Kind.OTHER else behind,
        channels,
        flattened,
    )
