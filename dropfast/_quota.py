"""How many processors Linux' control groups give this process: OpenMP and our pool know its affinity, not its quota."""

from __future__ import annotations

import math
from pathlib import Path


def processors(root: Path = Path("/")) -> int | None:
    """Return the quota in processors, rounded up; None if there is none.

    Parameters
    ----------
    root : Path, default '/'
        Where ``proc`` and ``sys`` are. For tests.

    Notes
    -----
    Counts are the quota of the process' own group and of all above it, in version 2 (cpu.max) and 1 (cpu.cfs_*).
    Source: Linux' documentation, admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
    """
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        group = mount / own.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                words = [word for name in names for content in _lines(folder / name) for word in content.split()]
                quotas.append(_processors(*words))
    return min((quota for quota in quotas if quota is not None), default=None)


def _processors(quota: str = "max", period: str = "100000") -> int | None:
    """Return microseconds in each period as processors; 'max' and -1 stand for no limit."""
    return None if quota in ("max", "-1") else max(1, math.ceil(int(quota) / int(period)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
