"""Dropout for CPUs at the speed of memory, with a mask that is the same everywhere.

>>> import numpy as np
>>> import dropfast
>>> x = np.ones((4, 10), np.float32)
>>> y = dropfast.dropout(x, 0.5, rng=0)  # each sample its own mask
>>> y = dropfast.dropout(x, 0.5, shared_axes=0, rng=0)  # one mask for the whole batch
>>> mask = dropfast.Mask(x.shape, 0.5, key=123)  # a mask with a name: forward, and backward the same again
>>> y, dx = mask.apply(x), mask.apply(np.ones_like(x))
"""

from dropfast._api import Dropout, dropout
from dropfast._config import __version__, show_config
from dropfast._mask import Mask

__all__ = ["Dropout", "Mask", "__version__", "dropout", "show_config"]
