"""The promise that no more threads are used than the process may have processors, unless OMP_NUM_THREADS says so."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import run_python

from dropfast import _backend, _quota

# What is in proc/self/cgroup and below sys/fs/cgroup, and the processors that it means.
TREES: dict[str, tuple[str, dict[str, str], int | None]] = {
    "none": ("0::/\n", {}, None),
    "v2-max": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "v2-two": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    "v2-rounded-up": ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
    "v2-a-half": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "v2-own-group": ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n"}, 3),
    "v2-least-of-all-above": ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),
    "v2-another-group": ("0::/a\n", {"b/cpu.max": "100000 100000\n"}, None),
    "v1-none": ("1:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    "v1-two": ("1:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 2),
    "v1-seen-from-outside": ("1:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "1000\n", "cpu/cpu.cfs_period_us": "1000\n"}, 1),
    "v1-other-controllers": ("4:memory:/\n2:cpuset,cpuacct:/\n", {"cpu.max": "100000 100000\n"}, None),
}


@pytest.mark.parametrize("tree", TREES)
def test_quotas(tmp_path: Path, tree: str) -> None:
    own, files, expected = TREES[tree]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert _quota.processors(tmp_path) == expected


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert _quota.processors(tmp_path) is None


SCRIPT = """
from dropfast import _quota
_quota.processors = lambda: 1
import importlib
from dropfast import _backend
importlib.reload(_backend)
print(_backend.native.max_threads())
"""


@pytest.mark.skipif(_backend.native is None, reason="the twin has one thread")
def test_the_quota_is_respected() -> None:
    assert _backend.native is not None
    assert run_python(SCRIPT).stdout.split() == ["1"]
    assert run_python(SCRIPT, env={"OMP_NUM_THREADS": "3"}).stdout.split() == ["3"]


@pytest.mark.skipif(sys.platform != "linux" or _backend.native is None, reason="affinity is Linux'")
def test_affinity() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {%d}); import dropfast; print(dropfast.show_config('dicts')['threads'])"
    )
    assert run_python(script % min(os.sched_getaffinity(0))).stdout.split() == ["1"]


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of the kernel's with a quota of one processor, in version 1 or 2."""
    name = f"dropfast-{os.getpid()}"
    v1, v2 = Path("/sys/fs/cgroup/cpu", name), Path("/sys/fs/cgroup", name)
    group, quota = (v1, "cpu.cfs_quota_us") if v1.parent.exists() else (v2, "cpu.max")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (group / quota).write_text("100000")
        yield group
    except OSError as error:
        pytest.skip(f"no quota can be set here: {error}")
    finally:
        group.rmdir()


INSIDE = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
import dropfast
print(dropfast.show_config("dicts")["threads"])
"""


@pytest.mark.skipif(sys.platform != "linux" or _backend.native is None, reason="quotas are Linux', threads native")
def test_a_real_quota(real_group: Path) -> None:
    done = run_python(INSIDE, str(real_group))
    assert done.stdout.split() == ["1"], done.stderr
