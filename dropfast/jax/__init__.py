"""Dropout for JAX: masks that are pure functions of a JAX key, under jit, grad, jvp, vmap, shard_map and export.

>>> import jax
>>> import jax.numpy as jnp
>>> from dropfast.jax import dropout
>>> x = jnp.ones((2, 8))
>>> y = dropout(jax.random.key(7), x, 0.5)  # each sample its own mask
>>> y = dropout(jax.random.key(7), x, 0.5, shared_axes=0)  # one mask for the whole batch
"""

from dropfast import _doors

_doors.need("jax")

from dropfast.jax._handler import road
from dropfast.jax.functions import apply, dropout

__all__ = ["apply", "dropout", "road"]

for _name in __all__:  # which room a thing stands in is no promise
    globals()[_name].__module__ = __name__
del _name
