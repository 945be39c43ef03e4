"""Dropout for CPUs at the speed of memory, with a mask that is the same everywhere.

>>> import numpy as np
>>> import dropfast
>>> x = np.ones((4, 10), np.float32)
>>> y = dropfast.dropout(x, 0.5, rng=0)  # each sample its own mask
>>> y = dropfast.dropout(x, 0.5, shared_axes=0, rng=0)  # one mask for the whole batch
>>> mask = dropfast.Mask(x.shape, 0.5, key=123)  # a mask with a name: forward, and backward the same again
>>> y, dx = mask.apply(x), mask.apply(np.ones_like(x))
"""

import importlib
import sys
from typing import TYPE_CHECKING

from dropfast import _doors, thin
from dropfast._api import Dropout, dropout
from dropfast._config import __version__, show_config
from dropfast._mask import Mask

__all__ = ["Dropout", "Mask", "__version__", "dropout", "show_config", "thin"]

if TYPE_CHECKING:  # the doors, which are really imported when they are first used
    from dropfast import dask as dask
    from dropfast import jax as jax
    from dropfast import keras as keras
    from dropfast import tensorflow as tensorflow
    from dropfast import torch as torch
else:

    def __getattr__(name):
        if name not in _doors.FRAMEWORKS:
            raise AttributeError(f"module 'dropfast' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        fault = _doors.fault(name)
        if fault:  # no ImportError, so that hasattr and help(dropfast) work without the frameworks
            raise AttributeError(str(fault))
        return importlib.import_module(f"dropfast.{name}")

    def __dir__():
        return [*__all__, *_doors.FRAMEWORKS]
