"""The machine: what it is, and how many threads it may use."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import dropfast
from dropfast import _backend
from dropfast.bench.contenders import CONTENDERS


@contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Limit every contender to that many threads. To be entered before any of them is imported.

    What dropfast and NumPy run on is held to the limit until it is left; the limit of the others stays.
    """
    from threadpoolctl import threadpool_limits

    n = str(threads)
    os.environ |= {
        "OMP_NUM_THREADS": n,
        "NUMBA_NUM_THREADS": n,
        "TF_NUM_INTRAOP_THREADS": n,
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": n,  # the threads of JAX's CPU client, for which there is no option
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={n}",
    }
    with threadpool_limits(threads), _backend.on_threads(threads):
        yield


def info() -> dict[str, Any]:
    """Return what a reader must know of this machine to make sense of its numbers: processor, dropfast, versions."""
    versions = {contender.name: contender.version() for contender in CONTENDERS}
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "dropfast": dropfast.show_config(mode="dicts"),
        "versions": {name: version for name, version in versions.items() if version is not None},
        "not installed": list(dict.fromkeys(c.project for c in CONTENDERS if versions[c.name] is None)),
    }


def describe() -> list[str]:
    """Return `info` in lines for people."""
    found = info()
    config, versions = found["dropfast"], found["versions"]
    backend = config["backend"] + (f" {config['isa']}" if config["isa"] else "")
    peers = {c.project: f"{c.project} {versions[c.name]}" for c in CONTENDERS if c.peer and c.name in versions}
    return [
        f"{found['cpu']}, {found['cores']} cores, {found['system']}, Python {found['python']}, NumPy {found['numpy']}",
        f"dropfast {config['version']}, {backend}; threads: {config['threads']}",
        f"peers: {', '.join(peers.values()) or 'none'}",
        f"not installed, so not measured: {', '.join(found['not installed']) or 'none'}",
    ]


def cpu() -> str:
    """Return the name of the processor."""
    if platform.system() == "Darwin":  # pragma: no cover - not measured there
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()  # pragma: no cover - not on Linux on x86
