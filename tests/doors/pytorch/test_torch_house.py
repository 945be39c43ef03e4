"""The house of dropfast.torch: what it imports, which private names of PyTorch it needs, its memory, its examples."""

import ast
import doctest
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
import torch
from processes import run_python
from test_docs import run, session_of

import dropfast.torch
from dropfast.torch import _private

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "torch.md"
ROOMS = sorted(Path(dropfast.torch.__file__).parent.glob("*.py"))


# ---- threads -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as on Linux")
def test_pytorch_keeps_its_threads() -> None:
    """Four for its own operations, some of which a call with work for two would end if it asked for no more."""
    code = """
        import os, torch, dropfast.torch
        torch.set_num_threads(4)
        large, small = torch.ones(1 << 20), torch.ones(1 << 18)
        (large + large), dropfast.torch.dropout(large)
        before = sorted(os.listdir("/proc/self/task"))
        assert len(before) >= 4
        for x in (small, large) * 3:
            dropfast.torch.dropout(x)
            large + large
            assert sorted(os.listdir("/proc/self/task")) == before
    """
    done = run_python(textwrap.dedent(code))
    assert done.returncode == 0, done.stderr


# ---- imports -------------------------------------------------------------------------------------


def test_import_dropfast_does_not_import_torch() -> None:
    done = run_python("import sys, dropfast; print('torch' in sys.modules)")
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


def test_import_dropfast_torch_imports_no_compiler() -> None:
    code = """
        import sys, torch
        before = set(sys.modules)
        import dropfast.torch
        new = set(sys.modules) - before
        print(sorted(name for name in new if name.split(".")[0] in ("torch", "sympy", "triton", "tensorflow")))
    """
    done = run_python(textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    assert "_dynamo" not in done.stdout
    assert "_inductor" not in done.stdout
    assert len(eval(done.stdout)) < 5


def test_tensorflow_and_torch_in_one_process() -> None:
    done = run_python("import tensorflow, torch, dropfast.torch as door; print(float(door.dropout(torch.ones(()), 1)))")
    assert (done.stdout, done.returncode) == ("0.0\n", 0), done.stderr


# ---- private names -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _private.REASONS)
def test_private_name_of_pytorch_is_there(name: str) -> None:
    _private.find(name)


def test_a_private_name_that_is_gone_is_named_at_import() -> None:
    done = run_python("import torch; del torch._C._dispatch_keys; import dropfast.torch")
    words = f"ImportError: PyTorch {torch.__version__} lacks torch._C._dispatch_keys, needed "
    assert done.stderr.splitlines()[-1] == words + _private.REASONS["_C._dispatch_keys"]


def private_names(room: Path) -> list[str]:
    """What a room imports from PyTorch, or gets from what it imported, that begins with an underscore."""
    tree, theirs, found = ast.parse(room.read_text()), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        theirs |= {name.split(".")[-1] for name in names} | {"torch"}
        found += [name for name in names if "._" in name]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in theirs:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.stem)
def test_private_names_of_pytorch_stand_in_one_place(room: Path) -> None:
    assert bool(private_names(room)) == (room.name == "_private.py")


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.stem)
def test_rooms_are_read_in_one_sitting(room: Path) -> None:
    assert len(room.read_text().splitlines()) <= 300


# ---- memory --------------------------------------------------------------------------------------


def test_peak_memory() -> None:
    """Ten layers in a row need two outputs at a time; PyTorch's hold ten masks besides."""
    code = """
        import sys, torch, dropfast.torch

        def peak():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

        torch.set_num_threads(1)
        layer = {"torch": torch.nn.Dropout, "dropfast": dropfast.torch.Dropout}[sys.argv[1]]
        model = torch.nn.Sequential(*(layer() for _ in range(10)))
        model(torch.randn(8, requires_grad=True)).sum().backward()
        x = torch.randn(1 << 22, requires_grad=True)
        before = peak()
        y = model(x)
        print((peak() - before) / (x.nbytes >> 10))
    """
    tensors = {}
    for which in ("torch", "dropfast"):
        # The C library returns big pieces of memory at once then, so that the peak is what is in use.
        env = {"MALLOC_MMAP_THRESHOLD_": "100000"}
        done = run_python(textwrap.dedent(code), which, env=env)
        assert done.returncode == 0, done.stderr
        tensors[which] = float(done.stdout)
    assert tensors["dropfast"] < 2.5
    assert tensors["torch"] > 11


# ---- the examples --------------------------------------------------------------------------------


def test_docstrings(backend: str) -> None:
    finder, found = doctest.DocTestFinder(recurse=False), {}
    for room in ROOMS:
        if room.stem == "_triton":  # which needs Triton: test_torch_triton.py
            continue
        module = import_module("dropfast.torch" if room.stem == "__init__" else f"dropfast.torch.{room.stem}")
        for name in {"": None, **{name: None for name in dropfast.torch.__all__ if hasattr(module, name)}}:
            thing = getattr(module, name) if name else module
            for test in finder.find(thing, name or module.__name__, module=False):
                found[test.name] = test
    with_examples = {name for name, test in found.items() if test.examples}
    names = ("Dropout", "apply", "conv2d", "convert", "dropout", "linear", "revert", "sample", "thin")
    assert {"dropfast.torch", *names} <= with_examples
    for name in with_examples:
        run(found[name])


def test_page(backend: str) -> None:
    session = session_of(PAGE)
    assert session.examples
    run(session)
