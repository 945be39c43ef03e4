"""The Cython door: a module built outside the tree, against the installed package alone, gives the same bits."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import dropfast
from dropfast import _backend

CONSUMER = Path(__file__).parent / "cython" / "consumer.pyx"

SETUP = """
from setuptools import Extension, setup
from Cython.Build import cythonize

setup(name="consumer", ext_modules=cythonize([Extension("consumer", ["consumer.pyx"])]))
"""


def build_consumer(folder: Path) -> ModuleType:
    """Build consumer.pyx the way its own users would: setuptools, and no path of ours."""
    shutil.copy(CONSUMER, folder)
    (folder / "setup.py").write_text(SETUP)
    command = [sys.executable, "-P", "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert built.returncode == 0, built.stdout + built.stderr
    library = folder / f"consumer{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("consumer", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if _backend.native is None:

    def test_without_the_compiled_backend_the_door_is_shut() -> None:
        with pytest.raises(ModuleNotFoundError, match="cython_api"):
            importlib.import_module("dropfast.cython_api")

else:

    @pytest.fixture(scope="module")
    def consumer(tmp_path_factory: pytest.TempPathFactory) -> Any:
        return build_consumer(tmp_path_factory.mktemp("consumer"))

    @pytest.fixture
    def x() -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.random.default_rng(0).standard_normal((37, 129)).astype(np.float32)

    @pytest.mark.parametrize("shared", [False, True], ids=["per-sample", "shared"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
    def test_rows_and_columns(consumer: Any, x: Any, dtype: Any, shared: bool) -> None:
        x = x.astype(dtype)
        out = np.full_like(x, 7)
        call: Callable[..., None] = {
            np.float32: consumer.rows_and_columns,
            np.float64: consumer.rows_and_columns_of_doubles,
        }[dtype]
        call(x, out, shared, 0.3, 2**63 + 5, 9)
        mask = dropfast.Mask(x.shape, 0.3, key=2**63 + 5, draw=9, shared_axes=0 if shared else ())
        assert out.tobytes() == mask.apply(x).tobytes()

    def test_window_with_strides(consumer: Any, x: Any) -> None:
        line, out = x[3, ::-2], np.full((x.shape[1], 3), 7, np.float32)[: x[3, ::-2].size, 1]
        start = 2**40 + 5
        consumer.window_of_a_line(line, out, start, 0.1, 11, 2)
        mask = dropfast.Mask(2**41, 0.1, key=11, draw=2).window(start, line.size)
        assert out.tobytes() == mask.apply(line).tobytes()

    @pytest.mark.parametrize(("rows", "columns"), [(0, 2**62), (2**62, 0)], ids=["no-rows", "no-columns"])
    def test_no_elements(consumer: Any, rows: int, columns: int) -> None:
        """Nothing is read or written, however long the other axis is."""
        consumer.nowhere(rows, columns, 0.3, 5)

    def test_packed(consumer: Any) -> None:
        out = np.full(38, 255, np.uint8)
        consumer.bits(out, 300, 0.25, 3, 4)
        np.testing.assert_array_equal(out, dropfast.Mask(300, 0.25, key=3, draw=4).packed())
