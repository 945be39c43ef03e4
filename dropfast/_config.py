"""What runs here: version, stream, backend, instruction sets, threads."""

from __future__ import annotations

from typing import Any, Literal, overload

from dropfast import _backend

__version__ = "0.1.0"

STREAM = "v1"  # docs/stream.md; a change would get a new name


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Print what runs here, or return it as a dict.

    Parameters
    ----------
    mode : {'stdout', 'dicts'}, default 'stdout'
        Whether to print, or to return a dict.

    Returns
    -------
    dict or None
        ``version``, ``stream``, ``backend`` in use ('native' or 'numpy'), ``isa`` in use (None for 'numpy'), ``why``
        these two ('the best of this machine', who asked for them, or why there is nothing but NumPy and what to do),
        ``available`` (what DROPFAST_BACKEND and DROPFAST_ISA may choose here, best first), ``openmp`` (whether the
        kernels were built with it), ``threading`` (what divides a big call among threads: 'openmp', or 'pool', threads
        of dropfast's own, without OpenMP and in children of forks; None for 'numpy'), ``threads`` (that a big call from
        this thread would use).

    Raises
    ------
    ValueError
        For another `mode`.

    Examples
    --------
    >>> import dropfast
    >>> dropfast.show_config(mode="dicts")["stream"]
    'v1'
    """
    native = _backend.native
    backend, _, isa = _backend.current().partition(":")
    in_use = native if backend == "native" else None
    config = {
        "version": __version__,
        "stream": STREAM,
        "backend": backend,
        "isa": isa or None,
        "why": _backend.why,
        "available": list(_backend.available()),
        "openmp": native is not None and native.openmp(),
        "threading": in_use.threading() if in_use else None,
        "threads": in_use.max_threads() if in_use else 1,
    }
    if mode == "dicts":
        return config
    if mode != "stdout":
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {mode!r}")
    for name, value in config.items():
        print(f"{name:>10}: {', '.join(value) if isinstance(value, list) else value}")
    return None
