"""The handler that XLA reaches the kernels by: what it refuses, and that one which does not fit is loud."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from processes import OTHER_KERNELS, run_copy, run_python

from dropfast import _backend
from dropfast import jax as door

if importlib.util.find_spec("dropfast._jax_ffi") is not None:
    OPERANDS = {
        "dtype": (np.ones((2, 3), np.int32), np.zeros(9, np.uint32)),
        "a-word-less": (np.ones((2, 3), np.float32), np.zeros(8, np.uint32)),
        "more-masks-than-x-has": (np.ones((2, 3), np.float32), np.zeros((4, 9), np.uint32)),
    }

    @pytest.mark.parametrize(("x", "words"), OPERANDS.values(), ids=OPERANDS)
    def test_operands_that_fit_no_mask_are_refused(x: Any, words: Any) -> None:
        assert door.road() == "ffi"
        call = jax.ffi.ffi_call("dropfast", jax.ShapeDtypeStruct(x.shape, x.dtype))
        with pytest.raises(Exception, match="dropfast takes 16, 32 and 64 bit floats with at most 64 axes"):
            jax.block_until_ready(jax.jit(lambda x, words: call(x, words, strides=np.array([3, 1])))(x, words))

    def test_it_is_used_where_the_headers_of_jaxlib_are_not_there() -> None:
        code = """
import jax, jax.numpy as jnp, numpy as np
jax.ffi.include_dir = lambda: "/nowhere"
from dropfast import Mask, jax as door
mask = Mask(300, 0.5, key=1)
assert np.array_equal(door.apply(mask, jnp.ones(300)), mask.apply(np.ones(300, np.float32)))
print(door.road())
"""
        done = run_python(code)
        assert done.stdout == "ffi\n", done.stderr

    def test_one_that_lacks_something_is_loud(package: Path) -> None:
        shutil.copy(str(_backend.native.__file__), package)  # type: ignore[union-attr]
        for module in package.glob("_jax_ffi.*"):
            module.unlink()
        (package / "_jax_ffi.py").write_text("import dropfast_is_looking_for_this\n")
        done = run_copy(package, "warnings.simplefilter('ignore'); import dropfast.jax; dropfast.jax.road()")
        assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'dropfast_is_looking_for_this'"

    def test_kernels_of_another_version_are_refused() -> None:
        done = run_python(f"{OTHER_KERNELS}\nimport dropfast.jax; dropfast.jax.road()")
        words = "ImportError: dropfast._jax_ffi and dropfast._native are of different versions"
        assert done.stderr.splitlines()[-1] == words
