"""The choice of backend, made once at import: the compiled one if it is installed, else its twin in NumPy."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from dropfast import _checks, _numpy, _quota
from dropfast._checks import Kept, Recipe

Move: TypeAlias = Literal["compress", "expand", "add"]
KeptAlong: TypeAlias = Mapping[int, Kept]  # by axis

_ROW_BYTES = 64  # what rows of new arrays are aligned to: MKL is slower by a third if they lie anyhow


class Backend(Protocol):
    """What a backend is: three functions. Both backends give the same bits."""

    def apply(self, x: object, out: object, recipe: Recipe, kept: npt.NDArray[Any] | None = None) -> bool:
        """Write `x * scale` into `out` where the mask keeps and +0.0 where it drops.

        The mask itself goes into `kept`, if given: booleans that lie in memory as `out` does. False, with nothing
        written, if x and out are not arrays that it can take: `_checks.fault` knows why.
        """

    def packed(self, out: npt.NDArray[np.uint8], recipe: Recipe) -> None:
        """Write the bits of the mask in C order (1 = kept, little bit order)."""

    def thin(
        self, move: Move, wide: npt.NDArray[Any], compact: npt.NDArray[Any], kept: KeptAlong, factor: float | None
    ) -> None:
        """Move elements between an array and a smaller one, which has no more than what is kept along some axes.

        'compress' writes into `compact` what is kept of `wide`; 'expand' writes into `wide` all of `compact` where it
        was kept and +0.0 elsewhere; both times the factor, or as they are for None. 'add' adds `compact` times the
        factor to what is kept of `wide`, with two roundings. The axes are one, or 0 and 1. The arrays are legal.
        """


class Native(Backend, Protocol):
    """What the compiled backend has besides: see `dropfast/_native.pyi`."""

    def isas(self) -> tuple[str, ...]:
        """Return the instruction sets that this machine has kernels for, best first."""

    def isa(self) -> str:
        """Return the one in use."""

    def use_isa(self, name: str) -> bool:
        """Switch to one; False if it is not there."""

    def openmp(self) -> bool:
        """Return whether it was built with OpenMP."""

    def threading(self) -> Literal["openmp", "pool"]:
        """Return what would divide a big call among threads: its own pool without OpenMP, and in children of forks."""

    def max_threads(self) -> int:
        """Return how many threads a big call from this thread would use."""

    def limit_threads(self, n: int) -> None:
        """Use at most so many, for the whole process."""

    def set_pool_threads(self, n: int) -> None:
        """Use so many, for the whole process, where it was built without OpenMP."""

    @property
    def torch_functions(self) -> tuple[str, ...]:
        """Return the names of PyTorch's functions that its kernels for PyTorch need."""

    @property
    def has_known_errors(self) -> bool:
        """Return whether its class for errors of Python's is that of PyTorch's versions so far."""

    def use_torch_functions(self, addresses: Sequence[int], large: int, takes_our_errors: bool) -> None:
        """Tell it where they are, which number of elements is large, and more: see csrc/torch_ops.h."""

    def implement_in_torch(self, name_space: str, operators: Sequence[str], dispatch_key: str) -> int:
        """Give operators of a namespace of PyTorch's the kernels of that name, and return what takes them back."""

    def forget_in_torch(self, library: int) -> None:
        """Take them back."""


def _import_native() -> Native | None:
    """Return the compiled backend, None if it was not built. One that is broken is an error, not a slow day."""
    try:
        import dropfast._native as module
    except ModuleNotFoundError as error:
        if error.name != "dropfast._native":
            raise
        return None
    return module


class _Refused:
    """No backend: the environment asks for one that cannot be had."""

    def __init__(self, error: ValueError) -> None:
        self._error = error

    def apply(self, x: object, out: object, recipe: Recipe, kept: npt.NDArray[Any] | None = None) -> bool:
        raise self._error

    def packed(self, out: npt.NDArray[np.uint8], recipe: Recipe) -> None:
        raise self._error

    def thin(
        self, move: Move, wide: npt.NDArray[Any], compact: npt.NDArray[Any], kept: KeptAlong, factor: float | None
    ) -> None:
        raise self._error


class _Unasked:
    """The twin where nobody asked for it: the first call says that it runs, and why."""

    def __init__(self) -> None:
        self._first = threading.Lock()  # which the first call takes, and keeps

    def apply(self, x: object, out: object, recipe: Recipe, kept: npt.NDArray[Any] | None = None) -> bool:
        self._warn()
        return _numpy.apply(x, out, recipe, kept)

    def packed(self, out: npt.NDArray[np.uint8], recipe: Recipe) -> None:
        self._warn()
        _numpy.packed(out, recipe)

    def thin(
        self, move: Move, wide: npt.NDArray[Any], compact: npt.NDArray[Any], kept: KeptAlong, factor: float | None
    ) -> None:
        self._warn()
        _numpy.thin(move, wide, compact, kept, factor)

    def _warn(self) -> None:
        global active
        if not self._first.acquire(blocking=False):
            return
        active = _numpy
        depth, frame = 1, sys._getframe()  # of the first line that is not dropfast's
        while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] == "dropfast":
            depth, frame = depth + 1, frame.f_back
        warnings.warn(
            f"dropfast runs on NumPy, with the same bits but many times slower: {why}. "
            "DROPFAST_BACKEND=numpy ends this warning.",
            RuntimeWarning,
            stacklevel=depth,
        )


native = _import_native()
active: Backend = native or _numpy
why = ""  # it is the one in use, in words
refused: ValueError | None = None  # what the command line has still to say of the environment


def apply(x: Any, out: Any, recipe: Recipe, kept: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """Apply a recipe to `x` with the backend in use; into a new array, in C order, if `out` is None."""
    if out is None:
        if not isinstance(x, np.ndarray):
            raise _checks.not_an_array("x", x)
        out = np.empty(x.shape, x.dtype)
    if not active.apply(x, out, recipe, kept):
        raise _checks.fault(x, out, recipe[0]) or SystemError("the backend refused arrays with no fault")
    return out  # type: ignore[no-any-return]


def compress(
    name: str, wide: npt.NDArray[Any], out: npt.NDArray[Any] | None, kept: KeptAlong, factor: float | None
) -> npt.NDArray[Any]:
    """Return what is kept of an array that is known to fit; into a new array if `out` is None."""
    shape = tuple(kept[axis].left if axis in kept else n for axis, n in enumerate(wide.shape))
    out = _result(out, shape, name, wide, kept)
    active.thin("compress", wide, out, kept, factor)
    return out


def expand(
    name: str, compact: npt.NDArray[Any], out: npt.NDArray[Any] | None, kept: KeptAlong, factor: float | None
) -> npt.NDArray[Any]:
    """Return the whole of which an array that is known to fit is what was kept; into a new array if `out` is None."""
    shape = tuple(kept[axis].length if axis in kept else n for axis, n in enumerate(compact.shape))
    out = _result(out, shape, name, compact, kept)
    active.thin("expand", out, compact, kept, factor)
    return out


def _result(
    out: npt.NDArray[Any] | None, shape: tuple[int, ...], name: str, source: npt.NDArray[Any], kept: KeptAlong
) -> npt.NDArray[Any]:
    """Return `out` if it can take what is made of `source`, or a new array if it is None."""
    if out is None:
        return _aligned(shape, source.dtype, max(kept))
    _checks.target("out", out, shape, name, source)
    return out


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any], axis: int) -> npt.NDArray[Any]:
    """Return a new array in C order whose rows begin at multiples of 64 bytes: a row is all from `axis` on, or 1."""
    strides, step = [0] * len(shape), dtype.itemsize
    for d in reversed(range(len(shape))):
        strides[d] = step
        step *= shape[d]
        if d == max(axis, 1):
            step += -step % _ROW_BYTES
    memory = np.empty(step + _ROW_BYTES, np.uint8)
    return np.ndarray(shape, dtype, memory.data, -memory.ctypes.data % _ROW_BYTES, strides)


def available() -> tuple[str, ...]:
    """Return the names that `use` takes on this machine, best first: 'native:avx2', ..., 'numpy'."""
    isas = native.isas() if native else ()
    return (*(f"native:{isa}" for isa in isas), "numpy")


def current() -> str:
    """Return the name of the backend in use."""
    return f"native:{native.isa()}" if native and active is native else "numpy"


def use(name: str) -> None:
    """Switch to a backend of `available()`, for the whole process. For tests and benchmarks."""
    global active, why
    if name not in available():
        raise ValueError(f"backend must be one of {', '.join(available())}, got {name!r}")
    active, why = _numpy, "asked for by a call"
    if native and name != "numpy":
        native.use_isa(name.removeprefix("native:"))
        active = native


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Use so many threads while this lasts. For tests and benchmarks: OpenMP's are of the calling thread alone."""
    from threadpoolctl import threadpool_limits

    if native is not None and not native.openmp():  # pragma: no cover - `tests/machines` builds without OpenMP
        before = native.max_threads()
        native.set_pool_threads(n)
        try:
            yield
        finally:
            native.set_pool_threads(before)
        return
    with threadpool_limits(n, user_api="openmp"):
        yield


def _use_environment() -> None:
    """Obey DROPFAST_BACKEND and DROPFAST_ISA; what they ask for and cannot have is an error."""
    global active, why
    backends = ("native", "numpy") if native else ("numpy",)
    backend = os.environ.get("DROPFAST_BACKEND") or backends[0]
    if backend not in backends:
        raise ValueError(f"DROPFAST_BACKEND must be one of {', '.join(backends)} here, got {backend!r}")
    isas = native.isas() if native and backend == "native" else ()
    isa = os.environ.get("DROPFAST_ISA") or next(iter(isas), "")
    if isa and isa not in isas:
        allowed = f"one of {', '.join(isas)} here" if isas else "unset with the numpy backend"
        raise ValueError(f"DROPFAST_ISA must be {allowed}, got {isa!r}")
    use(f"native:{isa}" if isas else "numpy")
    asked_by = [name for name in ("DROPFAST_BACKEND", "DROPFAST_ISA") if os.environ.get(name)]
    if asked_by:
        why = f"asked for by {' and '.join(asked_by)}"
    elif native:
        why = "the best of this machine"
    else:
        active, why = _Unasked(), _why_nothing_is_compiled()


def _why_nothing_is_compiled() -> str:
    """Return why there is no compiled backend, and what to do."""
    tree = Path(__file__).parents[1]
    if (tree / "csrc" / "module.cpp").exists():
        return (
            f"dropfast was found in the source tree {tree}, where nothing is compiled; "
            "install it, and start Python in another folder or as python -P"
        )
    return (
        "dropfast was installed without its compiled module; "
        "once there is a C++17 compiler (GCC or Clang), install it again with --force-reinstall --no-cache-dir"
    )


def _respect_quota() -> None:
    """Use no more threads than the process may have processors, unless OMP_NUM_THREADS says how many."""
    if native and not os.environ.get("OMP_NUM_THREADS"):
        quota = _quota.processors()
        if quota is not None:
            native.limit_threads(quota)


def _is_command_line() -> bool:
    """Return whether this import is that of the command line, which has to read its words before it can complain.

    Python calls the program '-m' while it looks for the module, which is the word before the program's own.
    """
    program = Path(sys.argv[0] if sys.argv else "")
    return program.stem == "dropfast" or (program.name == "-m" and sys.orig_argv[-len(sys.argv)] == "dropfast")


try:
    _use_environment()
except ValueError as error:
    if not _is_command_line():
        raise
    active, why, refused = _Refused(error), str(error), error
_respect_quota()
