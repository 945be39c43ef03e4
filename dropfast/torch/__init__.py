"""Dropout for PyTorch: its names, arguments and gradients, with dropfast's masks.

Randomness is PyTorch's: each mask has a key of 64 bits from PyTorch's generator. Nothing else is stored of it, as the
backward pass computes the same mask again.

>>> import torch
>>> import dropfast.torch
>>> layer = dropfast.torch.Dropout(p=0.5)  # in the place of torch.nn.Dropout
>>> x = torch.ones(2, 6, requires_grad=True)
>>> y = layer(x)
>>> y.backward(torch.ones(2, 6))
>>> torch.equal(x.grad, y)
True
"""

from dropfast import _doors

_doors.need("torch")

from dropfast.torch.conversion import convert, revert
from dropfast.torch.functions import apply, dropout
from dropfast.torch.layers import Dropout, Dropout1d, Dropout2d, Dropout3d
from dropfast.torch.override import disable, enable
from dropfast.torch.thin_functions import conv2d, linear
from dropfast.torch.thin_models import ThinSequential, sample, thin

__all__ = [
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "ThinSequential",
    "apply",
    "conv2d",
    "convert",
    "disable",
    "dropout",
    "enable",
    "linear",
    "revert",
    "sample",
    "thin",
]

for _name in __all__:  # which room a thing stands in is no promise
    globals()[_name].__module__ = __name__
del _name
