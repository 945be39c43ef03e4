"""Weights without what a mask drops: a unit that is dropped for the whole batch need not be computed.

A mask that is shared by a batch drops whole units, and with them rows and columns of the weights on either side. `take`
has what is left of the weights, for smaller products; `put` makes the whole gradient of theirs, for any optimizer, and
`add` updates the weights in place. Which axis of the weights is that of the units, is for the user to say: for
``h @ w`` the mask of `h` is that of the rows of `w`, and the mask of the product that of its columns.

>>> import numpy as np
>>> from dropfast import Mask, thin
>>> h, w = np.ones((32, 6), np.float32), np.ones((6, 8), np.float32)
>>> m1, m2 = Mask((32, 6), 0.5, key=1, shared_axes=0), Mask((32, 8), 0.5, key=2, shared_axes=0)
>>> y = m2.compress(m1.apply(h) @ w)  # all products, of which most are dropped
>>> np.array_equal(y, m1.compress(h) @ thin.take(w, m1, m2) * np.float32(m2.scale))
True
"""

from __future__ import annotations

import numpy.typing as npt

from dropfast import _backend, _checks
from dropfast._checks import Float, RateLike
from dropfast._mask import Mask

__all__ = ["add", "put", "take"]

_NAMES = "rows", "cols"


def take(
    w: npt.NDArray[Float],
    rows: Mask | None = None,
    cols: Mask | None = None,
    out: npt.NDArray[Float] | None = None,
) -> npt.NDArray[Float]:
    """Return the part of `w` that masks keep: ``w[numpy.ix_(rows.kept(), cols.kept())]``.

    Parameters
    ----------
    w : numpy.ndarray
        float16, bfloat16 (of ml_dtypes), float32 or float64, in any memory layout. Axes from 2 on, those of the kernel
        of a convolution, stay whole.
    rows, cols : Mask, optional
        Masks that vary along one axis, for axis 0 and axis 1 of `w`: at least one of them. None keeps all.
    out : numpy.ndarray, optional
        Where to write; of the shape of the result and the dtype of `w`, which it must not overlap.

    Returns
    -------
    numpy.ndarray
        `out`, or a new array in C order in which each index of axis 0 begins at a multiple of 64 bytes, so that there
        may be gaps. Elements are as they are in `w`, not scaled.

    Raises
    ------
    TypeError
        If no mask is given or something that is none, or if an array is none, of a subclass, or of another dtype.
    ValueError
        If a mask varies along no axis, or along several; if `w` is not as long as a mask, or `out` does not fit, is
        read-only, or overlaps `w` or itself. Nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> from dropfast import Mask, thin
    >>> rows, cols = Mask(4, 0.5, key=0), Mask((32, 3), 0.5, key=7, shared_axes=0)
    >>> rows.kept(), cols.kept()
    (array([0, 2]), array([0, 2]))
    >>> thin.take(np.arange(12.0).reshape(4, 3), rows, cols)
    array([[0., 2.],
           [6., 8.]])
    """
    kept = _kept(rows, cols)
    _checks.floats("w", w)
    _checks.lengths("w", w.shape, {axis: (_NAMES[axis], along.length) for axis, along in kept.items()})
    return _backend.compress("w", w, out, kept, None)


def put(
    g: npt.NDArray[Float],
    rows: Mask | None = None,
    cols: Mask | None = None,
    out: npt.NDArray[Float] | None = None,
) -> npt.NDArray[Float]:
    """Return the whole gradient, from that of the part that `take` gives: `g` where masks keep, +0.0 elsewhere.

    Parameters
    ----------
    g : numpy.ndarray
        Of the shape that `take` gives for these masks.
    rows, cols : Mask, optional
        As in `take`.
    out : numpy.ndarray, optional
        Where to write; of the shape of the result and the dtype of `g`, which it must not overlap.

    Returns
    -------
    numpy.ndarray
        `out`, or a new array, as in `take`. An axis without a mask is as long as that of `g`.

    Raises
    ------
    TypeError, ValueError
        As in `take`.

    Examples
    --------
    >>> import numpy as np
    >>> from dropfast import Mask, thin
    >>> thin.put(np.ones((2, 3)), rows=Mask(4, 0.5, key=0))
    array([[1., 1., 1.],
           [0., 0., 0.],
           [1., 1., 1.],
           [0., 0., 0.]])
    """
    kept = _kept(rows, cols)
    _checks.floats("g", g)
    _checks.lengths("g", g.shape, {axis: (f"what {_NAMES[axis]} keeps", along.left) for axis, along in kept.items()})
    return _backend.expand("g", g, out, kept, None)


def add(
    w: npt.NDArray[Float],
    g: npt.NDArray[Float],
    rows: Mask | None = None,
    cols: Mask | None = None,
    alpha: RateLike = 1.0,
) -> npt.NDArray[Float]:
    """Add to the part of `w` that masks keep, in place: ``w[numpy.ix_(rows.kept(), cols.kept())] += alpha * g``.

    With the negative learning rate as `alpha` that is a step of plain gradient descent, which leaves alone what was
    dropped. What moves all weights in each step, like momentum or weight decay, needs the whole gradient of `put`.

    Parameters
    ----------
    w : numpy.ndarray
        As in `take`, writable.
    g : numpy.ndarray
        Of the shape that `take` gives for these masks, and the dtype of `w`, which it must not overlap.
    rows, cols : Mask, optional
        As in `take`.
    alpha : float, default 1.0
        A number that the dtype has; it is rounded to it.

    Returns
    -------
    numpy.ndarray
        `w`.

    Raises
    ------
    TypeError, ValueError
        As in `take`; or if `alpha` is no real number, or one that overflows the dtype.

    Notes
    -----
    The product is rounded to the dtype and then the sum is, as NumPy does. Elements between those that are kept are
    read and written back as they were: no other thread may write to these rows of `w` meanwhile.

    Examples
    --------
    >>> import numpy as np
    >>> from dropfast import Mask, thin
    >>> thin.add(np.ones((4, 3)), np.ones((2, 3)), rows=Mask(4, 0.5, key=0), alpha=-0.25)
    array([[0.75, 0.75, 0.75],
           [1.  , 1.  , 1.  ],
           [0.75, 0.75, 0.75],
           [1.  , 1.  , 1.  ]])
    """
    kept = _kept(rows, cols)
    _checks.floats("w", w)
    _checks.lengths("w", w.shape, {axis: (_NAMES[axis], along.length) for axis, along in kept.items()})
    _checks.floats("g", g)
    shape = tuple(kept[axis].left if axis in kept else n for axis, n in enumerate(w.shape))
    if g.shape != shape:
        raise _checks.wrong_part(shape, g.shape)
    _checks.target("w", w, w.shape, "g", g)
    _backend.active.thin("add", w, g, kept, _checks.alpha(alpha, w.dtype))
    return w


def _kept(rows: Mask | None, cols: Mask | None) -> _backend.KeptAlong:
    """Return what masks keep, by the axis of the weights."""
    masks = {axis: mask for axis, mask in enumerate((rows, cols)) if mask is not None}
    if not masks:
        raise TypeError("give rows or cols or both, masks for the axes 0 and 1; got neither")
    for axis, mask in masks.items():
        if not isinstance(mask, Mask):
            raise _checks.not_a_mask(mask, _NAMES[axis])
    return {axis: mask._along()[1] for axis, mask in masks.items()}
