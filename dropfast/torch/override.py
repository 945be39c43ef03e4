"""Every call of dropout in a process: kernels for PyTorch's own operators, which all its dropout comes to."""

from __future__ import annotations

import sys
import threading
import warnings
from contextlib import AbstractContextManager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.compiler.config
from torch import Tensor, library

from dropfast import _checks
from dropfast.torch import _abi, _kernels, _private
from dropfast.torch._eager import drop_plain, is_plain
from dropfast.torch._operators import FLOATS, is_sharded, operators
from dropfast.torch.functions import check_leaf

aten = torch.ops.aten

# In compiled code, where PyTorch's own dropout is part of a loop, ours is a call: it has to be worth one.
_WORTH_A_CALL = 1 << 10

_lock = threading.Lock()
_in_force: tuple[library.Library, list[_abi.Compiled]] | None = None
_TAG = "dropfast"
_KEYS = "AutogradCPU", "CPU"


class _Enabled(AbstractContextManager["_Enabled"]):
    """What `enable` returns, for those who want to undo it at the end of a block."""

    def __init__(self, was_enabled: bool) -> None:
        self._was_enabled = was_enabled

    def __exit__(self, *_: object) -> None:
        if not self._was_enabled:
            disable()


def enable() -> AbstractContextManager[object]:
    """Give every dropout of PyTorch on the CPU dropfast's masks, in the whole process, whoever calls it.

    Returns
    -------
    context manager
        Which calls `disable` at the end of its block, unless it was enabled before.

    Notes
    -----
    `torch.nn.functional.dropout` and all that comes to it: modules, attention, LSTM and GRU, transformer layers, calls
    from C++, in eager mode and in what is compiled from now on. Models, checkpoints and seeds stay as they are: the key
    of each mask is one number of PyTorch's default generator. Dense float16, bfloat16, float32 and float64 tensors on
    the CPU have dropfast's masks, and DTensors of them; others do not notice. AlphaDropout and dropout of whole
    channels, as by `torch.nn.Dropout2d`, stay PyTorch's. A process that is spawned, not forked, has to enable for
    itself.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> x = torch.ones(2, 6)
    >>> with dropfast.torch.enable():
    ...     _ = torch.manual_seed(0)
    ...     y = torch.nn.functional.dropout(x)
    >>> _ = torch.manual_seed(0)
    >>> torch.equal(y, dropfast.torch.dropout(x))
    True
    """
    global _in_force
    with _lock:
        was_enabled = _in_force is not None
        if not was_enabled:
            kernels = library.Library("aten", "IMPL")  # which takes all back if one cannot be had
            with warnings.catch_warnings():  # PyTorch says that some have a kernel already, which is the point
                warnings.simplefilter("ignore")
                for key in (*_KEYS, "FuncTorchDynamicLayerFrontMode"):
                    kernels.impl("dropout", _dropout, key)
                    kernels.impl("dropout_", _dropout_, key)
                kernels.impl("native_dropout", _kernels.native_dropout, "CPU")
                kernels.impl("native_dropout_backward", _kernels.native_dropout_backward, "CPU")
            if _SHARDED in sys.modules:
                _enable_sharded(kernels)
            elif _import not in sys.meta_path:
                sys.meta_path.insert(0, _import)
            compiled = []
            if _abi.let_errors_pass():  # over those in Python
                compiled.append(_abi.Compiled("aten", ("dropout", "dropout_"), *_KEYS))
            if _abi.are_compiled():
                compiled.append(_abi.Compiled("aten", ("native_dropout", "native_dropout_backward"), "CPU"))
            _in_force = kernels, compiled
            _let_compilers_know()
    return _Enabled(was_enabled)


def disable() -> None:
    """Give PyTorch its own dropout back: undo `enable`.

    Notes
    -----
    What was compiled in between keeps dropfast's masks.

    Examples
    --------
    >>> import dropfast.torch
    >>> _ = dropfast.torch.enable()
    >>> dropfast.torch.disable()
    """
    global _in_force
    with _lock:
        if _in_force is not None:
            kernels, compiled = _in_force
            for in_cxx in compiled:
                in_cxx.destroy()
            _private.destroy(kernels)
            _in_force = None
            _let_compilers_know()


# ---- DTensors, of which torch.distributed.tensor may be imported later ---------------------------

_SHARDED = "torch.distributed.tensor"


def _enable_sharded(kernels: library.Library) -> None:
    from dropfast.torch import _sharded

    _sharded.enable(kernels)


class _Import(MetaPathFinder):
    """Sees that it is imported, once, after an `enable`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _SHARDED:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_enable(module: ModuleType) -> None:
            execute(module)
            if _in_force is not None:
                _enable_sharded(_in_force[0])

        spec.loader.exec_module = execute_and_enable  # type: ignore[method-assign]
        return spec


_import = _Import()


def _let_compilers_know() -> None:
    """Make them look for the kernels again, and not on disk for what they made of the others."""
    overridden = aten.dropout, aten.dropout_, aten.native_dropout, aten.native_dropout_backward
    _private.forget_kernels(*(packet.default for packet in overridden))
    tags = [tag for tag in torch.compiler.config.cache_key_tag.split("+") if tag and tag != _TAG]
    torch.compiler.config.cache_key_tag = "+".join([*tags, _TAG] if _in_force is not None else tags)


# ---- the kernels ---------------------------------------------------------------------------------


def _does_something(input: Tensor, p: float, train: bool) -> bool:
    if not 0 <= p <= 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {p}")
    return train and p > 0 and input.numel() > 0


def _is_worth_a_call(input: Tensor) -> bool:
    """Return whether compiled code should call our operator: for long loops, and where only it repeats its mask."""
    size = input.numel()
    if not isinstance(size, int) or size >= _WORTH_A_CALL:
        return True
    return _private.memory_budget() != 1


def _dropout(input: Tensor, p: float, train: bool) -> Tensor:
    if not _does_something(input, p, train):
        return input
    if is_plain(input):
        return drop_plain(input, _checks.threshold(p))
    if input.dtype in FLOATS and _private.is_wrapper(input) and is_sharded(input):
        return operators.dropout(input, _checks.threshold(p), ())  # type: ignore[no-any-return]
    in_a_graph = _private.is_compiling() and not torch.compiler.is_exporting()
    if in_a_graph and input.dtype in FLOATS and not _private.is_wrapper(input) and _is_worth_a_call(input):
        return operators.dropout(input, _checks.threshold(p), ())  # type: ignore[no-any-return]
    # PyTorch's own operator, which all who look on know: its gradients are PyTorch's, and the kernel is ours.
    return aten.native_dropout(input, p, True)[0]  # type: ignore[no-any-return]


def _dropout_(input: Tensor, p: float, train: bool) -> Tensor:
    if not _does_something(input, p, train):
        return input
    if is_plain(input):
        check_leaf(input)
        return drop_plain(input, _checks.threshold(p), inplace=True)
    return input.copy_(_dropout(input, p, train))


_LIBRARY = library.Library("dropfast", "FRAGMENT")  # where the kernels in C++ leave what they do not take
for _schema, _kernel in (
    ("any_dropout(Tensor input, float p, bool train) -> Tensor", _dropout),
    ("any_dropout_(Tensor(a!) input, float p, bool train) -> Tensor(a!)", _dropout_),
):
    _name = _abi.define_for_cxx(_LIBRARY, _schema, _kernel)
    _LIBRARY.impl(_name, library.fallthrough_kernel, "Tracer")  # which sees what they call
