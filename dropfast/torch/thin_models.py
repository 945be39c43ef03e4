"""Whole models without what shared masks drop: `thin` for training, and `sample` for Monte Carlo dropout."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import SupportsIndex

import torch
from torch import Tensor, nn

from dropfast import _checks
from dropfast.torch import _private
from dropfast.torch._eager import plain_key
from dropfast.torch._thin_masks import LayersOwn, Network, is_dropout, is_shared
from dropfast.torch._thin_plan import Kind, kind_of, leaves, link
from dropfast.torch._thin_run import Chain, is_open, may_be_worth_it
from dropfast.torch.layers import OURS, own_dropout

_log = logging.getLogger("dropfast.torch")
_layers_own = LayersOwn()


class ThinSequential(nn.Sequential):
    """A `torch.nn.Sequential` that does not compute what its dropout layers drop for a whole batch: see `thin`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what `torch.nn.Sequential` does, but for the order of sums."""
        if (
            not torch.compiler.is_compiling()
            and isinstance(input, Tensor)
            and may_be_worth_it(self, _CHAINS, input)
            and is_open(input)
        ):
            return Chain([module for _, module in leaves(self, _CHAINS)], LayersOwn.kind).run(input, _layers_own)
        return super().forward(input)  # type: ignore[no-any-return]

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what torch.jit.script makes of it: PyTorch's own."""
        return nn.Sequential(OrderedDict(self._modules)).train(self.training)


_CHAINS = nn.Sequential, ThinSequential


def thin(model: nn.Module) -> list[str]:
    """Let a model's Sequentials leave out what dropout with a shared mask drops, and return the names of the dropout.

    In training, the products before such a dropout then compute the units that it keeps, and those behind it read no
    others: in ``Linear, ReLU, Dropout(shared_axes=0), Linear`` half of each, at p = 0.5.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place: each `torch.nn.Sequential` in which there is something to leave out becomes a
        `ThinSequential`. All modules stay the same objects, with their parameters, names, modes and `state_dict`.

    Returns
    -------
    list of str
        The names of the layers whose dropped units are left out, as in `model.named_modules`.

    Notes
    -----
    Masks, outputs and gradients are those of the model as it was, but for the order of sums, and so is its evaluation.
    `revert` undoes it.

    Left out are the units of `dropfast.torch.Dropout` with one mask for the whole batch, and the channels of
    `Dropout2d` with ``shared_axes=0``, next to a Linear or a Conv2d. Between the product and the dropout activations
    and pooling may stand, and behind the dropout those that make 0 of 0, and Flatten. Where anything else stands,
    as a norm or a residual, all units are computed. The logger "dropfast.torch" has a warning that names all dropout
    that stays as it is, and why.

    The same holds, each time, where it is not worth it, as for small batches and narrow layers, and where others look
    on: hooks, autocast, forward-mode AD, and whatever compiles, exports, traces or transforms. So it does for inputs
    that are not on the CPU, or not of one of the four dtypes.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> model = torch.nn.Sequential(
    ...     *(torch.nn.Linear(784, 2048), torch.nn.ReLU(), dropfast.torch.Dropout(0.5, shared_axes=0)),
    ...     torch.nn.Linear(2048, 10),
    ... )
    >>> dropfast.torch.thin(model)
    ['2']
    >>> model(torch.randn(128, 784)).square().mean().backward()
    """
    search = _Search()
    search.visit(model, "")
    for chain in search.chains:
        chain.__class__ = ThinSequential
    if search.left:
        _log.warning("thin leaves as it is: %s", "; ".join(search.left))
    return search.found


class _Search:
    """What there is to leave out in a model, and what not."""

    def __init__(self) -> None:
        self.chains: list[nn.Module] = []
        self.found: list[str] = []
        self.left: list[str] = []

    def visit(self, module: nn.Module, name: str) -> None:
        """Look at a module and what is in it."""
        if type(module) in _CHAINS:
            self._visit_chain(module, name)
            return
        if is_dropout(module) and module.p != 0:
            self._leave(name, module, "it stands in no torch.nn.Sequential")
        elif not is_dropout(module) and (of := own_dropout(module)):
            self._leave(name, module, of)
        for child, its in module.named_children():
            self.visit(its, f"{name}.{child}" if name else child)

    def _visit_chain(self, chain: nn.Module, name: str) -> None:
        named = list(leaves(chain, _CHAINS, f"{name}." if name else ""))
        kinds = [kind_of(module, _kind_in_training) for _, module in named]
        found = []
        for index, (its_name, module) in enumerate(named):
            if kinds[index] is Kind.DROP:
                its = link(kinds, index)
                in_the_way = [
                    f"{type(named[at][1]).__name__} {where} it"
                    for at, product, where in (
                        (its.before, its.producer, "before"),
                        (its.behind, its.consumer, "behind"),
                    )
                    if product is None and 0 <= at < len(named)
                ]
                if its.producer is None and (its.consumer is None or module.inplace):
                    why = "no Linear or Conv2d next to it" if its.consumer is None else "in place"
                    self._leave(its_name, module, " and ".join([why, *in_the_way]))
                    continue
                found.append(its_name)
                if in_the_way:
                    self._leave(its_name, module, f"on one side: {' and '.join(in_the_way)}")
            elif is_dropout(module) and module.p != 0:
                self._leave(its_name, module, _why_not(module))
            else:
                self.visit(module, its_name)
        if found and type(chain) is nn.Sequential:
            self.chains.append(chain)
            self.found += found

    def _leave(self, name: str, module: nn.Module, why: str) -> None:
        self.left.append(f"{name or 'the model'} ({type(module).__name__}: {why})")


def _kind_in_training(module: nn.Module) -> Kind | None:
    """Return what a dropout is to a chain, whatever its mode is now."""
    if not is_dropout(module):
        return None
    if module.p == 0:
        return Kind.ZERO_TO_ZERO
    return Kind.DROP if is_shared(module) else Kind.OTHER


def _why_not(layer: nn.Module) -> str:
    if not _private.is_bare(layer):
        return "it has hooks"
    return "no mask for the whole batch" if type(layer) in OURS.values() else "PyTorch's own, a mask for each sample"


# ---- Monte Carlo ---------------------------------------------------------------------------------


def sample(model: nn.Module, x: Tensor, samples: SupportsIndex, *, key: SupportsIndex | None = None) -> Tensor:
    """Return what `samples` networks make of `x`, each of them the model with other units dropped: MC dropout.

    Sample s is one network for the whole batch, and for the next batch, too, with the same key: one function of the
    model's posterior, where dropout with a mask for each sample mixes as many as there are rows.

    Parameters
    ----------
    model : torch.nn.Sequential
        With dropout layers, PyTorch's or ours, which are in force in whatever mode they are. The other modules do
        what they do in theirs: call ``model.eval()`` first, for a norm, say.
    x : torch.Tensor
        What the model takes, with the batch on axis 0.
    samples : int
        How many networks, at least 1.
    key : int, optional
        Which networks, in [0, 2**64): sample s drops by draw s of it. One of PyTorch's generator if not given.

    Returns
    -------
    torch.Tensor
        Of shape (samples, batch, ...).

    Raises
    ------
    TypeError
        If `model` is no Sequential, or `x` no tensor.
    ValueError
        If the model has no dropout, or a module that drops otherwise, or hooks; if a number is out of range, or `x`
        has less than two axes.

    Notes
    -----
    The layers before the first dropout are computed once. The units that it drops are left out, as by `thin`, and
    nothing of the masks is stored. Networks are the same for batches of any size, for any number of samples and on any
    device; one unit of a network is in all of a layer's masks or in none, also where the layer has one for each sample
    in training. Layers with p = 0 count as none. Nothing is known of calls of `torch.nn.functional.dropout`.

    With gradients on, those of all samples are kept: `torch.no_grad` saves their memory. A part of a model that is no
    Sequential is sampled by itself, after what is before it.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3))
    >>> pool = torch.randn(100, 4)
    >>> with torch.no_grad():
    ...     y = dropfast.torch.sample(model, pool, 8, key=7)
    ...     rest = dropfast.torch.sample(model, pool[60:], 8, key=7)
    >>> y.shape, torch.allclose(y[:, 60:], rest, atol=1e-6)
    (torch.Size([8, 100, 3]), True)
    """
    modules = _modules_of(model)
    n = _checks.unsigned("samples", samples, 32)
    if n == 0:
        raise ValueError("samples must be at least 1, got 0")
    if key is not None:
        key = _checks.unsigned("key", key, 64)
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.ndim < 2:
        raise ValueError(f"x must have at least two axes, the batch's first, got the shape {tuple(x.shape)}")
    first = next((index for index, module in enumerate(modules) if is_dropout(module) and module.p != 0), len(modules))
    for module in modules[:first]:
        x = module(x)
    if first == len(modules):
        return torch.stack([x] * n)
    if key is None:
        key = plain_key()
    rest = Chain(modules[first:], Network.kind)
    return torch.stack([rest.run(x, Network(key, draw)) for draw in range(n)])


def _modules_of(model: nn.Module) -> list[nn.Module]:
    """Return what a model calls, if all that it drops is known."""
    if not isinstance(model, nn.Sequential) or type(model).forward not in (chain.forward for chain in _CHAINS):
        raise TypeError(
            f"model must be a torch.nn.Sequential, got {type(model).__name__}: sample the Sequentials in it"
        )
    named = list(leaves(model, _CHAINS))
    for name, module in (("", model), *named):
        if not _private.is_bare(module) and (module is model or is_dropout(module)):
            raise ValueError(f"model must have no hooks on dropout, and none itself, got {name or 'its own'}")
        if module is not model and not is_dropout(module) and (of := _hidden_dropout(module)):
            raise ValueError(f"model must have its dropout in Sequentials, got {name} ({type(module).__name__}, {of})")
    if not any(is_dropout(module) for _, module in named):
        raise ValueError("model must have a dropout layer, for else all samples are the same; got one without")
    return [module for _, module in named]


def _hidden_dropout(module: nn.Module) -> str | None:
    """Return what a module drops by itself or in what is in it."""
    return next(
        (own_dropout(its) or repr(its) for its in module.modules() if is_dropout(its) or own_dropout(its)), None
    )
