"""Where a layer's masks come from: a key, and how many of its masks were drawn, as a variable of Keras."""

from __future__ import annotations

import os
import threading
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras.src.utils.naming import auto_name


class Masks(keras.random.SeedGenerator):
    """A key and the number of its masks that were drawn, as four 32-bit words, the low ones first.

    A seed generator to Keras, so that it is kept and traced like one, and counts as no weight of the model.
    """

    def __init__(self, key: int) -> None:
        self.name = auto_name("masks")  # PyTorch's state_dict tells variables apart by their paths
        words = _words(key, 0)
        with keras.name_scope(self.name, caller=self):
            self.state = keras.Variable(
                lambda shape, dtype: _constant(words, dtype),  # a StatelessScope calls it when it ends
                shape=words.shape,
                dtype="uint32",
                trainable=False,
                aggregation="none",
                name="state",
            )
        self.taken: dict[int, Any] = {}  # what _recomputed.py remembers

    @property
    def words(self) -> npt.NDArray[np.uint32]:
        """The four words."""
        return np.asarray(keras.ops.convert_to_numpy(self.state), np.uint32)

    @property
    def key_and_draw(self) -> tuple[int, int]:
        """The stream of masks, and the number of the next one."""
        return _numbers(self.words)

    def take(self) -> tuple[int, int]:
        """Count one more mask, and return its key and draw, which no other thread gets."""
        with _one_at_a_time:
            words = self.count()
        return key_and_draw(words)

    def count(self) -> npt.NDArray[np.uint32]:
        """Count one more mask, and return the words as they were. Beyond the last mask the count stands still."""
        words = self.words
        key, draw = _numbers(words)
        self.state.assign(_words(key, min(draw + 1, 1 << 32)))
        return words


def key_and_draw(words: npt.NDArray[np.uint32]) -> tuple[int, int]:
    """Return what four words mean; an error if there is no such mask."""
    key, draw = _numbers(words)
    if draw >> 32:
        raise OverflowError(f"the layer's key {key} has given its 2**32 masks; make a layer with another seed")
    return key, draw


def _numbers(words: npt.NDArray[np.uint32]) -> tuple[int, int]:
    key_low, key_high, draw_low, draw_high = words.tolist()
    return key_high << 32 | key_low, draw_high << 32 | draw_low


def _constant(words: npt.NDArray[np.uint32], dtype: str) -> Any:
    if keras.config.backend() != "jax":
        return keras.ops.convert_to_tensor(words, dtype)
    import jax

    with jax.ensure_compile_time_eval():  # a value, not a part of the program that is compiled around it
        return keras.ops.convert_to_tensor(words, dtype)


def _words(key: int, draw: int) -> npt.NDArray[np.uint32]:
    return np.array([key & 0xFFFFFFFF, key >> 32, draw & 0xFFFFFFFF, draw >> 32], np.uint32)


_one_at_a_time = threading.Lock()


def _renew_lock() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


# A fork while another thread was about to count a draw leaves the child with a lock that nobody will ever release.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
