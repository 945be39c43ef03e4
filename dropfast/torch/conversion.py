"""Whole models: from PyTorch's layers to these, and back."""

from __future__ import annotations

import logging

from torch import nn

from dropfast.torch.layers import OURS, own_dropout
from dropfast.torch.thin_models import ThinSequential

_log = logging.getLogger("dropfast.torch")

_THEIRS: dict[type[nn.Module], type[nn.Module]] = {
    **{ours: theirs for theirs, ours in OURS.items()},
    ThinSequential: nn.Sequential,
}


def convert(model: nn.Module) -> list[str]:
    """Turn every `torch.nn.Dropout`, 1d, 2d and 3d of a model into dropfast's, and return their names.

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
    Layers with p = 0 stay as they are. So does other dropout: AlphaDropout, subclasses of PyTorch's modules, and what
    is no module. Where it can be seen (``dropout=`` of `torch.nn.LSTM` and of attention), the logger "dropfast.torch"
    has a warning that says which; a call of `torch.nn.functional.dropout` cannot. `enable` reaches them all.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.1))
    >>> dropfast.torch.convert(model)
    ['1']
    >>> model
    Sequential(
      (0): Linear(in_features=8, out_features=8, bias=True)
      (1): Dropout(p=0.1, inplace=False)
    )
    >>> type(model[1])
    <class 'dropfast.torch.Dropout'>
    """
    names, left = [], []
    turned = {module for module in model.modules() if type(module) in OURS and module.p != 0}
    for name, module in model.named_modules(remove_duplicate=False):
        if module in turned:
            names.append(name)
        elif type(module) not in OURS and (of := own_dropout(module)):
            left.append(f"{name or 'the model'} ({type(module).__name__}, {of})")
    for module in turned:
        module.__class__ = OURS[type(module)]
    if left:
        _log.warning("convert leaves %s as it is; dropfast.torch.enable() reaches every dropout", ", ".join(left))
    return names


def revert(model: nn.Module) -> list[str]:
    """Turn dropfast's layers of a model into PyTorch's own: undo `convert` and `thin`, and return their names.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place. Shared axes and generators, which PyTorch's layers do not know, are lost.

    Returns
    -------
    list of str
        The names of what was turned, as in `model.named_modules`; ``""`` for the model itself.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), dropfast.torch.Dropout(0.1))
    >>> dropfast.torch.revert(model)
    ['1']
    >>> type(model[1])
    <class 'torch.nn.modules.dropout.Dropout'>
    """
    names = [name for name, module in model.named_modules(remove_duplicate=False) if type(module) in _THEIRS]
    for module in model.modules():
        if type(module) in _THEIRS:
            for own in ("generator", "_shared_axes", "_noise_shape"):
                module.__dict__.pop(own, None)
            module.__class__ = _THEIRS[type(module)]
    return names
