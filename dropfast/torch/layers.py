"""The layers: PyTorch's own modules, with another dropout inside, and no state of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, SupportsIndex

import torch
from torch import Tensor, fx
from torch.nn import functional

from dropfast import _checks
from dropfast.torch.functions import dropout, is_ours, probability


class _Layer:
    """What the layers have in common."""

    p: float
    inplace: bool
    training: bool
    generator: torch.Generator | None = None
    _shared_axes: tuple[int, ...] = ()
    _noise_shape: tuple[int | None, ...] | None = None
    #: What PyTorch has for it.
    _module: ClassVar[type[torch.nn.Module]]

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
        noise_shape: Iterable[SupportsIndex | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(probability(p), inplace)  # type: ignore[call-arg]
        self._shared_axes, self._noise_shape = _checks.sharing_of_any_shape(shared_axes, noise_shape)
        self.generator = generator

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with a new mask applied, or the input itself if the layer is not training."""
        if isinstance(input, fx.Proxy):  # a leaf, as PyTorch's modules are
            tracer = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})  # type: ignore[no-any-return]
        return self._dropout(input)

    def _dropout(self, input: Tensor) -> Tensor:
        return dropout(
            input,
            self.p,
            self.training,
            self.inplace,
            shared_axes=self._shared_axes,
            noise_shape=self._noise_shape,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return the arguments."""
        shared = f", shared_axes={self._shared_axes}" if self._shared_axes else ""
        noise = f", noise_shape={self._noise_shape}" if self._noise_shape is not None else ""
        return f"{super().extra_repr()}{shared}{noise}"  # type: ignore[misc]

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Return what torch.jit.script makes of the layer: PyTorch's own."""
        if self._shared_axes or self._noise_shape is not None or self.generator is not None:
            raise TypeError(f"torch.jit.script knows no shared_axes, noise_shape and generator, got {self}")
        return self._module(self.p, self.inplace).train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if state_dict.pop(f"{prefix}_extra_state", None) is not None:
            warnings.warn(
                "_extra_state of dropfast's layers is not used: their keys come from PyTorch's generator",
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


class Dropout(_Layer, torch.nn.Dropout):
    """A dropout layer in the place of `torch.nn.Dropout`.

    Parameters
    ----------
    p : float, default 0.5
        Probability that an element is zeroed, in [0, 1].
    inplace : bool, default False
        Whether to write into the input.
    shared_axes : int or tuple of ints, default ()
        Axes along which all elements share their fate. ``0`` zeroes the same units for the whole batch.
    noise_shape : tuple of int or None, optional
        The same in TensorFlow's words; None stands for a full axis of any length. Give this or `shared_axes`.
    generator : torch.Generator, optional
        Where the keys of the masks come from; PyTorch's default generator if not given.

    Attributes
    ----------
    p, inplace, training, generator
        As given; they may be changed.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range.

    Notes
    -----
    A call does what `dropfast.torch.dropout` does. The layer has no state: `state_dict` is empty, as that of PyTorch's
    own, and seeds, copies, checkpoints and processes do to its masks what they do to PyTorch's random numbers.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> layer = dropfast.torch.Dropout(0.5)
    >>> _ = torch.manual_seed(0)
    >>> layer(torch.ones(2, 6))
    tensor([[0., 0., 0., 2., 2., 2.],
            [0., 0., 2., 0., 0., 2.]])
    >>> layer.eval()(torch.ones(3))
    tensor([1., 1., 1.])
    """

    _module = torch.nn.Dropout


class _ChannelLayer(_Layer):
    """A layer whose masks are shared by all of a channel, which depends on the number of the input's axes."""

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, inplace, shared_axes=shared_axes, generator=generator)

    #: PyTorch's own function, the numbers of axes that it is meant for, and where the channels are.
    _function: ClassVar[Callable[..., Tensor]]
    _meant_for: ClassVar[tuple[int, ...]]
    _channel: ClassVar[Callable[[int], int]]

    def _dropout(self, input: Tensor) -> Tensor:
        if not self.training or not isinstance(input, Tensor):
            return super()._dropout(input)
        if not is_ours(input) and not self._shared_axes:
            return type(self)._function(input, self.p, True, self.inplace)
        if input.ndim not in self._meant_for:
            type(self)._function(torch.empty((1,) * input.ndim, device="meta"))  # warns or raises, in PyTorch's words
        axes = shared_axes_of(self, input.shape)
        return dropout(input, self.p, True, self.inplace, shared_axes=axes, generator=self.generator)


class Dropout1d(_ChannelLayer, torch.nn.Dropout1d):
    """Zero whole channels of inputs (N, C, L) or (C, L), in the place of `torch.nn.Dropout1d`.

    Parameters
    ----------
    p : float, default 0.5
        Probability that a channel is zeroed, in [0, 1].
    inplace : bool, default False
        Whether to write into the input.
    shared_axes : int or tuple of ints, default ()
        Axes that share their fate besides those of a channel. ``0`` zeroes the same channels for the whole batch.
    generator : torch.Generator, optional
        Where the keys of the masks come from, as in `Dropout`, whose attributes and guarantees are this layer's, too.
    """

    _module, _function = torch.nn.Dropout1d, functional.dropout1d
    _meant_for, _channel = (2, 3), lambda ndim: ndim - 2


class Dropout2d(_ChannelLayer, torch.nn.Dropout2d):
    """Zero whole channels of inputs (N, C, H, W), in the place of `torch.nn.Dropout2d`, with its warnings for others.

    Parameters
    ----------
    p, inplace, shared_axes, generator
        As in `Dropout1d`.
    """

    _module, _function = torch.nn.Dropout2d, functional.dropout2d
    _meant_for, _channel = (4,), lambda ndim: 1


class Dropout3d(_ChannelLayer, torch.nn.Dropout3d):
    """Zero whole channels of inputs (N, C, D, H, W) or (C, D, H, W), in the place of `torch.nn.Dropout3d`.

    Parameters
    ----------
    p, inplace, shared_axes, generator
        As in `Dropout1d`.
    """

    _module, _function = torch.nn.Dropout3d, functional.dropout3d
    _meant_for, _channel = (4, 5), lambda ndim: 1 if ndim == 5 else 0


#: By PyTorch's.
OURS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    layer._module: layer for layer in (Dropout, Dropout1d, Dropout2d, Dropout3d)
}


def shared_axes_of(layer: torch.nn.Module, shape: Sequence[int | None]) -> tuple[int, ...]:
    """Return along which axes of an input a layer, of ours or PyTorch's own, shares its masks; None is any length."""
    noise_shape = getattr(layer, "_noise_shape", None)
    if noise_shape is None:
        axes = _checks.axes_in(len(shape), getattr(layer, "_shared_axes", ()))
    elif len(noise_shape) != len(shape) or any(
        full is not None and n not in (None, 1, full) for n, full in zip(noise_shape, shape, strict=True)
    ):
        raise _checks.wrong_noise_shape(tuple(shape), noise_shape)
    else:
        axes = tuple(axis for axis, n in enumerate(noise_shape) if n == 1)
    channel = getattr(OURS.get(type(layer), type(layer)), "_channel", None)
    inside = range(channel(len(shape)) + 1, len(shape)) if channel else ()
    return tuple(sorted({*axes, *inside}))


def own_dropout(module: torch.nn.Module) -> str | None:
    """Return what a module that is none of ours seems to drop by itself."""
    if type(module) in OURS.values():
        return None
    name = "p" if isinstance(module, (*OURS, torch.nn.AlphaDropout, torch.nn.FeatureAlphaDropout)) else "dropout"
    rate = getattr(module, name, 0)
    return f"{name}={rate}" if isinstance(rate, (int, float)) and rate > 0 else None
