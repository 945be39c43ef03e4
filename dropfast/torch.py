"""Dropout for PyTorch: its names, arguments and gradients, with dropfast's masks.

Nothing of a mask is stored: the backward pass computes the same one again from its key and draw.

>>> import torch
>>> import dropfast.torch
>>> layer = dropfast.torch.Dropout(p=0.5)  # in the place of torch.nn.Dropout
>>> x = torch.ones(2, 6, requires_grad=True)
>>> y = layer(x)
>>> y.backward(torch.ones(2, 6))
>>> torch.equal(x.grad, y)
True
"""

from __future__ import annotations

from dropfast import _doors

_doors.need("torch")

import functools
import inspect
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, library
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.nn import functional

from dropfast import _backend, _checks
from dropfast._checks import Recipe
from dropfast._mask import Mask

__all__ = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "apply", "convert", "dropout"]

# What PyTorch itself uses, and has no public names for.
_functorch_is_active = torch._C._are_functorch_transforms_active
_backward_id = torch._C._current_graph_task_id  # -1 outside of backward passes
_dispatch_modes = torch.utils._python_dispatch._len_torch_dispatch_stack
_is_legacy_batch = torch._C._functorch.is_legacy_batchedtensor  # of autograd.grad(is_grads_batched=True)
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks

ALL_64 = (1 << 64) - 1


# ---- what is legal -------------------------------------------------------------------------------

_FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def _check(input: Any, inplace: bool = False) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}{_doors.hint(input)}")
    if not input.is_cpu:
        raise ValueError(f"input must be on the CPU, got one on {input.device}")
    if input.dtype not in _FLOATS:
        allowed = "torch.float16, torch.bfloat16, torch.float32 or torch.float64"
        raise TypeError(f"input must have dtype {allowed}, got {input.dtype}")
    if inplace and input.requires_grad and torch.is_grad_enabled():
        # PyTorch finds this out too, but only after the input has been written. The words are its own.
        if input.is_leaf:
            raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
        if input._is_view() and input._base.is_leaf:
            raise RuntimeError("a view of a leaf Variable that requires grad is being used in an in-place operation.")


def _threshold(p: float) -> int:
    if isinstance(p, bool):
        raise TypeError(f"dropout probability has to be a number, but got {p}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return _checks.threshold(p)


# ---- the operators: pure functions, for whoever traces, transforms or recomputes them ------------

# A state is an int64 tensor (key, draw, index of the first element), with the key's bits as a signed number. There may
# be many, on axes in front; the input then has these axes in front too.
_LIBRARY = library.Library("dropfast", "DEF")
for _schema in (
    "apply(Tensor input, Tensor state, SymInt[] strides, int threshold) -> Tensor",
    "next(Tensor counter) -> (Tensor, Tensor)",
    "lanes(Tensor state, Tensor lane, SymInt size) -> Tensor",
):
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
_ops = torch.ops.dropfast


def _state(key: int, draw: int, start: int = 0) -> Tensor:
    return torch.tensor((key - (key >> 63 << 64), draw, start), dtype=torch.int64, device="cpu")


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """Return NumPy's view of a tensor's memory."""
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return tensor.numpy()  # type: ignore[no-any-return]


def _apply_on_cpu(input: Tensor, state: Tensor, strides: Sequence[int], threshold: int) -> Tensor:
    output = torch.empty_like(input)
    x, out, states = _array(input), _array(output), state.numpy()
    for place in np.ndindex(states.shape[:-1]):
        key, draw, start = states[place].tolist()
        part = x[(*place, ...)]
        recipe = part.shape, tuple(strides), start, key & ALL_64, draw, threshold
        _backend.apply(part, out[(*place, ...)], recipe)
    return output


def _save_state(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.rest = inputs[2:]


def _apply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _ops.apply(grad, ctx.saved_tensors[0], *ctx.rest), None, None, None


def _apply_vmap(
    info: Any, in_dims: tuple[int | None, ...], input: Tensor, state: Tensor, strides: Sequence[int], threshold: int
) -> tuple[Tensor, int]:
    input = input.expand(info.batch_size, *input.shape) if in_dims[0] is None else input.movedim(in_dims[0], 0)
    if in_dims[1] is not None:
        return _by_state(input, state.movedim(in_dims[1], 0), strides, threshold), 0
    behind_states = state.ndim - 1
    return _by_state(input.movedim(0, behind_states), state, (0, *strides), threshold), behind_states


def _next_on_cpu(counter: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state of a layer's next mask, and the counter after it."""
    after = counter.clone()
    return _state(*_once(lambda: _count(after.numpy()))), after


def _lanes_vmap(
    info: Any, in_dims: tuple[int | None, ...], state: Tensor, lane: Tensor, size: int
) -> tuple[Tensor, int]:
    """Give each example its part of one large mask: the one that a call with the whole batch would use."""
    lane = lane if in_dims[1] is None else lane.select(in_dims[1], 0)
    if in_dims[0] is not None:
        return _ops.lanes(state.movedim(in_dims[0], 0), lane, size), 0
    starts = size * torch.arange(info.batch_size, device="cpu").view(-1, *[1] * state.ndim)
    return _ops.lanes(state, lane, size * info.batch_size) + starts * torch.tensor((0, 0, 1), device="cpu"), 0


_LIBRARY.impl("apply", _apply_on_cpu, "CPU")
_LIBRARY.impl("next", _next_on_cpu, "CPU")
_LIBRARY.impl("lanes", lambda state, lane, size: state.clone(), "CPU")
library.register_fake("dropfast::apply", lambda input, *_: torch.empty_like(input), lib=_LIBRARY)
library.register_fake("dropfast::next", lambda counter: (counter.new_empty(3), counter.clone()), lib=_LIBRARY)
library.register_fake("dropfast::lanes", lambda state, *_: state.clone(), lib=_LIBRARY)
library.register_autograd("dropfast::apply", _apply_backward, setup_context=_save_state, lib=_LIBRARY)
library.register_vmap("dropfast::apply", _apply_vmap, lib=_LIBRARY)
library.register_vmap("dropfast::lanes", _lanes_vmap, lib=_LIBRARY)


class _Apply(torch.autograd.Function):
    """The same for `torch.func`, which does not take the gradients of operators."""

    @staticmethod
    def forward(input: Tensor, state: Tensor, strides: Sequence[int], threshold: int) -> Tensor:
        return _ops.apply(input, state, strides, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_state(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Apply.apply(grad, ctx.saved_tensors[0], *ctx.rest), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _Apply.apply(tangent, ctx.saved_tensors[0], *ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return _apply_vmap(info, in_dims, *args)


def _by_state(input: Tensor, state: Tensor, strides: Sequence[int], threshold: int, inplace: bool = False) -> Tensor:
    operator = _Apply.apply if _functorch_is_active() else _ops.apply
    output = operator(input, state, strides, threshold)
    return input.copy_(output) if inplace else output


# ---- the short cut: in eager mode, the dispatcher would take longer than a small mask ------------


def _is_plain(input: Tensor) -> bool:
    """Return whether this is a legal tensor, and nobody but autograd needs to know what happens to it."""
    return (
        type(input) in (Tensor, torch.nn.Parameter)
        and input.dtype in _FLOATS
        and input.is_cpu
        and not _functorch_is_active()
        and not _dispatch_modes()
        and not _is_legacy_batch(input)
    )


class _ApplyByRecipe(_SingleLevelFunction):  # torch.autograd.Function, without asking once more about functorch
    @staticmethod
    def forward(ctx: Any, input: Tensor, recipe: Recipe, inplace: bool) -> Tensor:
        ctx.recipe, ctx.inplace = recipe, inplace
        if inplace:
            ctx.mark_dirty(input)
        return _write(input, recipe, inplace)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            try:
                return _write(grad, ctx.recipe, False), None, None
            except RuntimeError:  # from Tensor.numpy: a batch of gradients has no memory of its own
                pass
        return _by_recipe(grad, ctx.recipe), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _by_recipe(tangent, ctx.recipe, ctx.inplace)


def _write(input: Tensor, recipe: Recipe, inplace: bool) -> Tensor:
    output = input if inplace else torch.empty_like(input)
    _backend.apply(_array(input), _array(output), recipe)
    return output


def _by_plain_recipe(input: Tensor, recipe: Recipe, inplace: bool) -> Tensor:
    if (input.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return _ApplyByRecipe.apply(input, recipe, inplace)
    if inplace:
        torch.autograd.graph.increment_version(input)
    return _write(input, recipe, inplace)


def _by_recipe(input: Tensor, recipe: Recipe, inplace: bool = False) -> Tensor:
    if not torch.compiler.is_compiling() and _is_plain(input):
        return _by_plain_recipe(input, recipe, inplace)
    _, strides, start, key, draw, threshold = recipe
    return _by_state(input, _state(key, draw, start), strides, threshold, inplace)


# ---- where masks come from -----------------------------------------------------------------------

Numbers: TypeAlias = tuple[int, int]  # the key and the draw of a mask

# By checkpointed region: the masks drawn in it, and how many of them each backward pass has repeated.
_regions: WeakKeyDictionary[Any, tuple[list[Numbers], Counter[Any]]] = WeakKeyDictionary()


def _once(draw: Callable[[], Numbers]) -> Numbers:
    """Return what `draw` gives; where `torch.utils.checkpoint` repeats a forward pass, what it gave the first time.

    A region is known by what the hooks hold that checkpointing sets for it.
    """
    hooks = _saved_tensors_hooks(True)
    if hooks is None:
        return draw()
    pack = inspect.unwrap(hooks[0])
    code, cells = getattr(pack, "__code__", None), getattr(pack, "__closure__", None) or ()
    held = {name: cell.cell_contents for name, cell in zip(code.co_freevars if code else (), cells, strict=False)}
    if "target_frame_ref" in held:
        numbers, repeated = _regions[held["target_frame_ref"]()]
        repeated[held["gid"]] += 1
        return numbers[repeated[held["gid"]] - 1]
    drawn = draw()
    if "frame" in held:
        _regions.setdefault(held["frame"], ([], Counter()))[0].append(drawn)
    return drawn


def _count(counter: npt.NDArray[np.int64]) -> Numbers:
    """Return the key and the draw of a layer's next mask, and count it."""
    key, draw = counter.tolist()
    if draw >> 32:
        raise _checks.no_masks_left(key & ALL_64)
    counter[1] = draw + 1
    return key & ALL_64, draw


def _size(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements the mask of such an input has."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _new_key(generator: torch.Generator | None) -> Tensor:
    """Return 64 random bits as an int64 tensor; under torch.vmap, one for each example if that is what it wants."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64, device="cpu", generator=generator)


# ---- what users call -----------------------------------------------------------------------------


def apply(mask: Mask, input: Tensor) -> Tensor:
    """Return `input` with a mask applied, as `mask.apply` does for arrays, and its gradient with the same mask.

    Parameters
    ----------
    mask : dropfast.Mask
        Of the shape of `input`; a window of a larger mask, too.
    input : torch.Tensor
        float16, bfloat16, float32 or float64, on the CPU, with any strides.

    Returns
    -------
    torch.Tensor
        A new tensor: ``input * scale`` where kept, +0.0 where dropped.

    Raises
    ------
    TypeError
        If `input` is no tensor, or has a device, a layout or a dtype that is not allowed.
    ValueError
        If `input` does not have the mask's shape.

    Notes
    -----
    Bit for bit what ``mask.apply(input.numpy())`` gives. Only the mask's few numbers are kept for the backward pass. It
    can be differentiated any number of times, and works with `torch.compile` and all transforms of `torch.func` but
    `jvp`; for `torch.vmap` it is not random, so all examples have the same mask.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> mask = dropfast.Mask((2, 6), 0.5, key=7)
    >>> dropfast.torch.apply(mask, torch.ones(2, 6))
    tensor([[2., 0., 2., 2., 0., 2.],
            [0., 0., 0., 2., 0., 2.]])
    """
    _check(input)
    if input.shape != mask.shape:
        raise ValueError(f"input must have the mask's shape {mask.shape}, got {tuple(input.shape)}")
    return _by_recipe(input, mask._recipe)


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
    noise_shape: Iterable[SupportsIndex | None] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Zero elements of `input` at random, and scale the others so that the mean stays.

    Parameters
    ----------
    input : torch.Tensor
        float16, bfloat16, float32 or float64, on the CPU, with any strides.
    p : float, default 0.5
        Probability that an element is zeroed, in [0, 1], with a resolution of 2**-32.
    training : bool, default True
        False returns `input` itself, whatever it is.
    inplace : bool, default False
        Whether to write into `input`.
    shared_axes : int or tuple of ints, default ()
        Axes along which all elements share their fate. ``0`` zeroes the same units for the whole batch.
    noise_shape : tuple of int or None, optional
        The same in TensorFlow's words: the shape of the mask, with 1 on shared axes and the full length, or None, on
        others. Give this or `shared_axes`.
    generator : torch.Generator, optional
        Where the mask's key comes from; PyTorch's default generator if not given, so that `torch.manual_seed` decides.

    Returns
    -------
    torch.Tensor
        `input` if `inplace`, else a new tensor: ``input * scale`` where kept, +0.0 where dropped.

    Raises
    ------
    TypeError
        If `input` is no tensor, or has a device, a layout or a dtype that is not allowed.
    ValueError
        If `p` is not in [0, 1], or if `shared_axes` or `noise_shape` do not fit the input.
    RuntimeError
        If `inplace`, and `input` is a leaf that requires a gradient.

    Notes
    -----
    Each call takes one random number from the generator, and so differs from the next. In a graph of `torch.compile` a
    function cannot do that safely: use a layer, or `apply`.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> _ = torch.manual_seed(0)
    >>> dropfast.torch.dropout(torch.ones(2, 6), 0.5, shared_axes=0)
    tensor([[0., 0., 0., 2., 2., 2.],
            [0., 0., 0., 2., 2., 2.]])
    """
    if torch.compiler.is_compiling():
        return _dropout_uncompiled(  # type: ignore[no-any-return]
            input, p, training, inplace, shared_axes=shared_axes, noise_shape=noise_shape, generator=generator
        )
    threshold = _threshold(p)
    if not training:
        return input
    _check(input, inplace)
    shape = tuple(input.shape)
    strides, _ = _checks.sharing(shape, shared_axes, noise_shape)
    new_key = _new_key(generator)
    if _is_plain(input):
        numbers = int(new_key) & ALL_64, 0
        return _by_plain_recipe(input, (shape, strides, 0, *_once(lambda: numbers), threshold), inplace)
    zero = torch.zeros_like(new_key)
    return _by_state(input, torch.stack((new_key, zero, zero)), strides, threshold, inplace)


_dropout_uncompiled = torch.compiler.disable(
    dropout,
    reason="dropfast.torch.dropout takes its key from PyTorch's generator, and a compiler may do that again for the "
    "backward pass: compile a layer, as dropfast.torch.Dropout, or dropfast.torch.apply",
)


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...], p: float, shared_axes: tuple[int, ...], noise_shape: tuple[int | None, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return the shape, the strides and the threshold of a layer's masks."""
    shape = tuple(shape)  # of a torch.Size
    return shape, _checks.sharing(shape, shared_axes, noise_shape)[0], _threshold(p)


class _Layer:
    """What the layers have in common: the key of their masks, and the number of masks drawn so far."""

    p: float
    inplace: bool
    training: bool
    _shared_axes: tuple[int, ...] = ()
    _noise_shape: tuple[int | None, ...] | None = None

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: torch.Generator | None = None) -> None:
        super().__init__(p, inplace)  # type: ignore[call-arg]
        _threshold(p)
        self._start(generator)

    def _start(self, generator: torch.Generator | None = None) -> None:
        # No buffer: DistributedDataParallel would give all ranks the buffers, and so the masks, of rank 0.
        self._counter = np.array((int(_new_key(generator)), 0))

    @property
    def key(self) -> int:
        """The layer's stream of masks."""
        return int(self._counter[0]) & ALL_64

    @property
    def draw(self) -> int:
        """The number of masks drawn so far, and the `draw` of the next one."""
        return int(self._counter[1])

    def get_extra_state(self) -> Tensor:
        """Return what `state_dict` holds of the layer: key and draw, as an int64 tensor."""
        return torch.tensor(self._counter)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from what `get_extra_state` returned."""
        if not isinstance(state, Tensor) or state.dtype is not torch.int64 or state.shape != (2,):
            raise ValueError(f"the state of a layer must be an int64 tensor of key and draw, got {state!r}")
        _checks.drawn(int(state[1]))
        self._counter = np.array(state.tolist())

    def _draw(self) -> Numbers:
        if _backward_id() != -1:
            raise RuntimeError(
                "a layer that is called in a backward pass cannot know which of its masks to repeat: "
                "checkpoint with use_reentrant=False, and no region inside another"
            )
        return _count(self._counter)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with the next mask applied, or the input itself if the layer is not training."""
        if not self.training:
            return input
        if torch.compiler.is_compiling():
            return self._traced(input)
        plain = _is_plain(input)
        if self.inplace or not plain:
            _check(input, self.inplace)
        shape, strides, threshold = _plan(input.shape, self.p, self._shared_axes, self._noise_shape)
        may_be_repeated = _saved_tensors_hooks(True) is not None or _backward_id() != -1
        key, draw = _once(self._draw) if may_be_repeated else _count(self._counter)
        if plain:
            return _by_plain_recipe(input, (shape, strides, 0, key, draw, threshold), self.inplace)
        return self._transformed(input, _state(key, draw), strides, threshold)

    def _transformed(self, input: Tensor, state: Tensor, strides: tuple[int, ...], threshold: int) -> Tensor:
        if _functorch_is_active():
            # No random numbers, but a question for them: vmap refuses it, or wants others for each example, or not.
            state = _ops.lanes(state, torch.rand(0), _size(input.shape, strides))
        return _by_state(input, state, strides, threshold, self.inplace)

    def _traced(self, input: Tensor) -> Tensor:
        """Do what `forward` does in terms that compilers follow: symbols for lengths, and no caches."""
        _check(input)
        shape, axes, lengths = tuple(input.shape), self._shared_axes, self._noise_shape
        if lengths is not None:
            if len(lengths) != len(shape) or any(n not in (None, 1, shape[axis]) for axis, n in enumerate(lengths)):
                _checks.sharing(shape, (), lengths)  # raises
            axes = tuple(axis for axis, n in enumerate(lengths) if n == 1)
        strides, _ = _checks._sharing.__wrapped__(shape, axes)
        # A new array, for the backward pass may compute from the old one.
        state, counter = _ops.next(torch.from_numpy(self._counter))
        self._counter = counter.numpy()
        return self._transformed(input, state, strides, _threshold(self.p))


class Dropout(_Layer, torch.nn.Dropout):
    """A dropout layer in the place of `torch.nn.Dropout`: one key, and a new mask for each call in training.

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
        Where the layer's key comes from; PyTorch's default generator if not given.

    Attributes
    ----------
    p, inplace, training
        As in `torch.nn.Dropout`; they may be changed.
    key, draw : int
        The layer's stream of masks, and the number of masks drawn so far, which is the `draw` of the next one.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range.
    OverflowError
        By a call, after 2**32 masks.

    Notes
    -----
    The next call in training does what ``apply(dropfast.Mask(input.shape, p, key=layer.key, draw=layer.draw), input)``
    does. `state_dict` has key and draw, so that a restored run continues bit for bit; a copy or a pickle of a layer has
    them too, and then draws the same masks. Under `torch.vmap`, ``randomness="different"`` gives each example what it
    would have in a call with the whole batch. `torch.utils.checkpoint` repeats the masks, with
    ``use_reentrant=False``, also if it does not preserve PyTorch's random state.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> _ = torch.manual_seed(0)
    >>> layer = dropfast.torch.Dropout(0.5)
    >>> mask = dropfast.Mask((2, 6), 0.5, key=layer.key, draw=layer.draw)
    >>> x = torch.ones(2, 6)
    >>> torch.equal(layer(x), dropfast.torch.apply(mask, x))
    True
    >>> layer.draw
    1
    """

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
        noise_shape: Iterable[SupportsIndex | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        sharing = _checks.sharing_of_any_shape(shared_axes, noise_shape)  # before a key is drawn
        super().__init__(p, inplace, generator=generator)
        self._shared_axes, self._noise_shape = sharing

    def extra_repr(self) -> str:
        """Return the arguments."""
        shared = f", shared_axes={self._shared_axes}" if self._shared_axes else ""
        noise = f", noise_shape={self._noise_shape}" if self._noise_shape is not None else ""
        return f"{super().extra_repr()}{shared}{noise}"


class _ChannelLayer(_Layer):
    """A layer whose masks are shared by all of a channel, which depends on the number of the input's axes."""

    @abstractmethod
    def _channel(self, ndim: int) -> int:
        """Return the axis of the channels, after PyTorch had its say about inputs that are not as they should be."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with the next mask applied, or the input itself if the layer is not training."""
        if self.training and isinstance(input, Tensor):
            self._shared_axes = tuple(range(self._channel(input.ndim) + 1, input.ndim))
        return super().forward(input)


def _ask_torch(function: Callable[..., Tensor], ndim: int) -> None:
    """Let PyTorch's own function say what it thinks of an input with so many axes."""
    function(torch.empty((1,) * ndim, device="meta"))


class Dropout1d(_ChannelLayer, torch.nn.Dropout1d):
    """Zero whole channels of inputs (N, C, L) or (C, L), in the place of `torch.nn.Dropout1d`.

    Parameters, attributes and guarantees are those of `Dropout`, without `shared_axes` and `noise_shape`.
    """

    def _channel(self, ndim: int) -> int:
        if ndim not in (2, 3):
            _ask_torch(functional.dropout1d, ndim)
        return ndim - 2


class Dropout2d(_ChannelLayer, torch.nn.Dropout2d):
    """Zero whole channels of inputs (N, C, H, W), in the place of `torch.nn.Dropout2d`, with its warnings for others.

    Parameters, attributes and guarantees are those of `Dropout`, without `shared_axes` and `noise_shape`.
    """

    def _channel(self, ndim: int) -> int:
        if ndim != 4:
            _ask_torch(functional.dropout2d, ndim)
        return 1


class Dropout3d(_ChannelLayer, torch.nn.Dropout3d):
    """Zero whole channels of inputs (N, C, D, H, W) or (C, D, H, W), in the place of `torch.nn.Dropout3d`.

    Parameters, attributes and guarantees are those of `Dropout`, without `shared_axes` and `noise_shape`.
    """

    def _channel(self, ndim: int) -> int:
        if ndim not in (4, 5):
            _ask_torch(functional.dropout3d, ndim)
        return 1 if ndim == 5 else 0


_IN_PLACE_OF = {
    torch.nn.Dropout: Dropout,
    torch.nn.Dropout1d: Dropout1d,
    torch.nn.Dropout2d: Dropout2d,
    torch.nn.Dropout3d: Dropout3d,
}


def convert(model: torch.nn.Module) -> list[str]:
    """Turn every `torch.nn.Dropout`, 1d, 2d and 3d in a model into dropfast's, and return their names.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place. The modules stay the same objects, with their p, their mode and their hooks.

    Returns
    -------
    list of str
        The names of what was turned, as in `model.named_modules`; ``""`` for the model itself.

    Notes
    -----
    The keys come from PyTorch's default generator. Subclasses of PyTorch's modules, AlphaDropout, and dropout that is
    no module (`torch.nn.functional.dropout`, ``dropout=`` of `torch.nn.LSTM`, attention's) stay as they are.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.1))
    >>> dropfast.torch.convert(model)
    ['1']
    >>> type(model[1])
    <class 'dropfast.torch.Dropout'>
    """
    names = [name for name, module in model.named_modules(remove_duplicate=False) if type(module) in _IN_PLACE_OF]
    for module in model.modules():
        if type(module) in _IN_PLACE_OF:
            module.__class__ = _IN_PLACE_OF[type(module)]
            module._start()
    return names
