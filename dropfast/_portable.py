"""The portable text: stream v1 once more, in operations on whole arrays that JAX, TensorFlow and PyTorch can trace.

It gives the kernels' bits without the kernels, on any device, and compilers make it a part of the caller's program. It
knows no framework. What is not the same in all of them, a dozen operations, is an argument: see `Arrays`. Numbers of
32 bits are *words*, and numbers of 64 bits, which not every device has, are pairs of words, the high one first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

# Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
LOW = 0xFFFFFFFF

BLOCK = 128  # elements that share one Philox call a plane

Array: TypeAlias = Any
Pair: TypeAlias = tuple[Array, Array]
Body: TypeAlias = Callable[[Any, tuple[Array, ...]], tuple[Array, ...]]


class Arrays(Protocol):
    """A framework's arrays. Their operators ``+ - * & | ^`` and ``< >``, indices and slices are used as they are."""

    wide: bool  #: words are held in signed integers of 64 bits; else in unsigned ones of 32, which wrap around

    def word(self, number: int) -> Any:
        """Return a number as one that operators between it and words take."""

    def words(self, numbers: list[int]) -> Array:
        """Return numbers as an array of words."""

    def arange(self, n: Any) -> Array:
        """Return the words 0, 1, ... n - 1."""

    def right(self, words: Array, by: Any) -> Array:
        """Return words shifted to the right."""

    def left(self, words: Array, by: Any) -> Array:
        """Return words shifted to the left."""

    def where(self, condition: Array, a: Array, b: Any) -> Array:
        """Return a or b, which may be a number."""

    def cast(self, array: Array, dtype: Any) -> Array:
        """Return an array as words (``"word"``), as ``"uint8"``, or as a dtype of the framework's."""

    def widened(self, x: Array) -> Array:
        """Return floats of 16 bits as float32, others as they are."""

    def stack(self, arrays: list[Array]) -> Array:
        """Join arrays along a new last axis."""

    def concatenate(self, arrays: list[Array]) -> Array:
        """Join arrays along the last axis."""

    def reshape(self, array: Array, shape: tuple[Any, ...]) -> Array:
        """Return an array with another shape."""

    def planes_at_once(self, needed: int) -> int:
        """Return how many planes to draw at a time, when so many are needed."""

    def in_memory(self, words: Array) -> Array:
        """Return words that are computed once, and not once more for each of their bits."""

    def repeat(self, n: int, body: Body, of: tuple[Array, ...], shape: tuple[Any, ...]) -> Any:
        """Return ``body(n - 1, ... body(1, body(0, of)))``. The arrays may broadcast, in the end to this shape."""


# ---- numbers of 32 and 64 bits -------------------------------------------------------------------


def _low(xp: Arrays, numbers: Array) -> Array:
    """Return the low 32 bits, as words."""
    return numbers & LOW if xp.wide else numbers


def _multiply(xp: Arrays, words: Array, by: int) -> Pair:
    """Return all 64 bits of the products of words and one constant word."""
    if xp.wide:
        # No product of these leaves 63 bits. What subtracting 2**32 from a big constant took is the words themselves.
        big = by >> 31
        product = words * (by - (big << 32))
        high = xp.right(product, 32)
        return _low(xp, high + words if big else high), product & LOW
    low_half, high_half = words & 0xFFFF, xp.right(words, 16)
    by_low, by_high = by & 0xFFFF, by >> 16
    middle = high_half * by_low + xp.right(low_half * by_low, 16)
    other = low_half * by_high + (middle & 0xFFFF)
    return high_half * by_high + xp.right(middle, 16) + xp.right(other, 16), words * xp.word(by)


def _add(xp: Arrays, a: Pair, b: Pair) -> Pair:
    low = _low(xp, a[1] + b[1])
    return _low(xp, a[0] + b[0] + xp.cast(low < b[1], "word")), low


def advanced(xp: Arrays, index: Pair, by: Array, stride: int) -> Pair:
    """Return the index of the element that is `by` further on along an axis of this stride."""
    high, low = _multiply(xp, by, stride & LOW)
    return _add(xp, index, (_low(xp, high + by * xp.word(stride >> 32)) if stride > LOW else high, low))


# ---- draw ----------------------------------------------------------------------------------------


def _philox(xp: Arrays, shape: tuple[Any, ...], counter: tuple[Array, ...], key: Pair) -> tuple[Array, ...]:
    """Philox4x32-10 on words that broadcast to this shape."""
    high, low = key

    def one_round(i: Any, c: tuple[Array, ...]) -> tuple[Array, ...]:
        high0, low0 = _multiply(xp, c[0], MULTIPLIERS[0])
        high1, low1 = _multiply(xp, c[2], MULTIPLIERS[1])
        k0 = _low(xp, low + i * xp.word(WEYL[0]))
        k1 = _low(xp, high + i * xp.word(WEYL[1]))
        return high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0

    return tuple(xp.repeat(ROUNDS, one_round, counter, shape))


def _keep_words(xp: Arrays, shape: tuple[Any, ...], blocks: Pair, key: Pair, draw: Array, threshold: Any) -> Array:
    """Return the keep bits of blocks, an array of this shape: four words for each, along the last axis.

    The planes come from the last to the first. Where the threshold has a 1, those are kept whose uniform has a 1 too
    and is not below it in what follows; where it has a 0, those with a 1 and those that are not below it further on.
    """
    known = isinstance(threshold, int)
    high, low = divmod(threshold, 1 << 32) if known else (word[:, None, None] for word in threshold)
    needed = 33 - (low & -low).bit_length() if known and low else 1 if known else 32  # nothing is below its lowest 1
    each = xp.planes_at_once(needed)
    times = -(-needed // each)

    def some_planes(i: Any, kept: tuple[Array]) -> tuple[Array]:
        (keep,) = kept
        k = xp.reshape(xp.arange(each) + (times - 1 - i) * each, (each, 1, 1, 1))
        planes = xp.stack(list(_philox(xp, (each, *shape), (blocks[1], blocks[0], draw, k), key)))
        if known and times == 1:
            for j in reversed(range(each)):
                keep = planes[j] & keep if low >> 31 - j & 1 else planes[j] | keep
        else:
            # All ones where the threshold has a 1: "and" is "or" of what is inverted. So keep is used once:
            # compilers may compute it again for each use, and for each of these what it is made of.
            ones = _low(xp, 0 - (xp.right(xp.word(low) if known else low, 31 - k) & 1))[..., None]
            for j in reversed(range(each)):
                keep = (planes[j] ^ ones[j] | keep ^ ones[j]) ^ ones[j]
        return (keep,)

    (keep,) = xp.repeat(times, some_planes, (xp.word(LOW),), (*shape, 4))
    keep = xp.reshape(keep, (*shape[:-1], 4 * shape[-1]))
    return keep & (xp.word(LOW * (1 - high)) if known else _low(xp, high - 1))  # at 2**32 nothing is kept


def _shifted(xp: Arrays, words: Array, by: Array, n_words: Any) -> Array:
    """Return n_words of strings of bits along the last axis, from bit `by`, which is below 128."""
    words = xp.concatenate([words, words[..., :4]])  # what is behind the end is asked for, but not used
    for step in (2, 1):
        words = xp.where((by & 32 * step) < 1, words[..., :-step], words[..., step:])
    words, next_words = words[..., :n_words], words[..., 1 : n_words + 1]
    by = by & 31
    return xp.right(words, by) | _low(xp, xp.left(_low(xp, xp.left(next_words, 31 - by)), 1))


def _expand(xp: Arrays, shape: tuple[Any, ...], words: Array) -> Array:
    """Return the bits of words, an array of this shape, as booleans: by way of bytes, of which registers hold more."""
    octets = xp.cast(xp.right(words[..., None], xp.words([0, 8, 16, 24])) & 0xFF, "uint8")
    bits = (octets[..., None] & xp.cast(xp.words([1 << t for t in range(8)]), "uint8")) > 0
    return xp.reshape(bits, (*shape[:-1], 32 * shape[-1]))


# ---- masks ---------------------------------------------------------------------------------------


def keep(
    xp: Arrays,
    shape: tuple[Any, ...],
    strides: tuple[int, ...],
    start: int | Pair,
    key: Pair,
    draw: Array,
    threshold: int | Pair,
) -> Array:
    """Return which elements are kept, as booleans, in a shape that broadcasts against x: 1 long on shared axes.

    `shape`, `strides`, `start` and `threshold` are those of a `dropfast._checks.Recipe`. Numbers that are known give a
    shorter program; those that are data are given in words. Words have one axis, which counts masks, and so has the
    result, in front: there may be many of one shape, and there is at least one.
    """
    noise_shape = tuple(n if stride else 1 for n, stride in zip(shape, strides, strict=True))
    masks = key[0].shape[0]
    # Runs of consecutive indices: their starts, and the length they have in common.
    length, covered = 1, len(shape)
    while covered > 0 and (not strides[covered - 1] or strides[covered - 1] == length):
        length, covered = length * noise_shape[covered - 1], covered - 1
    steps = [(n, stride) for n, stride in zip(noise_shape[:covered], strides, strict=False) if stride]
    in_step = isinstance(start, int) and all(by % BLOCK == 0 for by in (start, *(stride for _, stride in steps)))
    starts = tuple(xp.words([word]) for word in divmod(start, 1 << 32)) if isinstance(start, int) else start
    starts = tuple(word[:, None] for word in starts)
    runs = 1
    for n, stride in steps:
        runs = runs * n
        starts = advanced(xp, tuple(word[..., None] for word in starts), xp.arange(n), stride)
        starts = tuple(xp.reshape(word, (word.shape[0], runs)) for word in starts)

    # The blocks that they are in; if it is not known where in its block a run begins, there may be one more.
    n_blocks = (length + (BLOCK - 1 if in_step else 2 * BLOCK - 2)) // BLOCK
    n_words = (length + 31) // 32
    high, low = (word[..., None] for word in starts)
    first = xp.right(high, 7), xp.right(low, 7) | _low(xp, xp.left(high, 25))
    blocks = _add(xp, first, (xp.word(0), xp.arange(n_blocks)))
    key, draw = (key[0][:, None, None], key[1][:, None, None]), draw[:, None, None]
    words = _keep_words(xp, (masks, runs, n_blocks), blocks, key, draw, threshold)
    words = xp.in_memory(words[..., :n_words] if in_step else _shifted(xp, words, low & (BLOCK - 1), n_words))
    bits = _expand(xp, (masks, runs, n_words), words)[..., :length]
    return xp.reshape(bits, (masks, *noise_shape))


def select(xp: Arrays, x: Array, kept: Array, scale: Any) -> Array:
    """Return x * scale where it is kept, +0.0 elsewhere: 16-bit floats are multiplied in float32, and rounded once."""
    return xp.where(kept, xp.cast(xp.widened(x) * scale, x.dtype), 0)


# ---- two ways to repeat --------------------------------------------------------------------------


class Unrolled:
    """Arrays with integers of 64 bits, whose operations are done one after the other: no loop is shorter."""

    wide = True

    def word(self, number: int) -> int:
        return number

    def planes_at_once(self, needed: int) -> int:
        return needed

    def in_memory(self, words: Array) -> Array:
        return words

    def repeat(self, n: int, body: Body, of: tuple[Array, ...], shape: tuple[Any, ...]) -> Any:
        for i in range(n):
            of = body(i, of)
        return of


class Looped:
    """Arrays of a compiler that computes again, for each use, what does not come out of a loop: XLA.

    So no plane is combined with another, and no word taken apart, but in a loop or after one.
    """

    #: Do what `Arrays.repeat` does, in a loop, for arrays that have their shape.
    loop: Callable[[int, Body, tuple[Array, ...]], Any]
    #: Return an array with a shape that it broadcasts to.
    broadcast: Callable[[Array, tuple[Any, ...]], Array]

    def planes_at_once(self, needed: int) -> int:
        return min(4, max(1, needed // 2))

    def in_memory(self, words: Array) -> Array:
        return self.loop(2, lambda _, of: (~of[0],), (words,))[0]  # it does nothing, which XLA does not see

    def repeat(self, n: int, body: Body, of: tuple[Array, ...], shape: tuple[Any, ...]) -> Any:
        if n == 1:
            return body(0, of)
        return self.loop(n, body, tuple(self.broadcast(a, shape) for a in of))
