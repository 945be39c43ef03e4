"""The private names of PyTorch that this door needs: all of them, each with its reason, and nowhere else.

A test says which one is gone; without the test, the import does.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch._functorch.config
import torch._functorch.utils
import torch.utils._python_dispatch

#: What each is needed for.
REASONS = {
    "_C._dispatch_keys": "to know a tensor that has nothing special about it",
    "_C._dispatch_tls_local_include_set": "to know that no mode, tracer or transform wants to see what is done",
    "_C.DispatchKey": "to say which of these keys are the usual ones",
    "_C.DispatchKeySet": "to say which of these keys are the usual ones",
    "_C._AutoDispatchBelowAutograd": "to call an operator from its own formula for gradients",
    "_C._after_autograd_keyset": "to call an operator from its own formula for gradients",
    "_C._is_fwd_grad_enabled": "because a Function turns this off for what it calls",
    "autograd.forward_ad._set_fwd_grad_enabled": "because a Function turns this off for what it calls",
    "autograd.forward_ad._current_level": "to know that tensors may have tangents",
    "autograd.function._SingleLevelFunction": "for gradients of operators inside of torch.func",
    "_functorch.utils.enable_single_level_autograd_function": "for gradients of operators inside of torch.func",
    "_C._are_functorch_transforms_active": "because torch.vmap does not ask operators what randomness they have",
    "_functorch.config.activation_memory_budget": "because at 0 a backward pass would draw new keys",
    "_guards.TracingContext": "to know that a compiler is at work, which reads this budget",
    "_C.__file__": "to look up the functions of the stable ABI where PyTorch has loaded them",
    "_fused_dropout": "because its node is PyTorch's, and PyTorch itself has no kernel for it on the CPU",
    "_masked_scale": "because it is the gradient of that one",
    "library.Library._destroy": "to take kernels back from PyTorch's operators",
    "ops.aten.dropout.default._dispatch_cache": "because Python keeps there which kernels it has found before",
    "utils._python_dispatch.is_traceable_wrapper_subclass": "to leave tensors made of tensors to PyTorch's own code",
    "Tensor._is_view": "to refuse in time to write into a view of a leaf",
    "Tensor._base": "to refuse in time to write into a view of a leaf",
    "distributed.tensor.DTensor._spec": "to know that the axes of a mesh cut a tensor in their order",
    "nn.modules.module._has_any_global_hook": "to leave alone what hooks want to see",
    "nn.Module._load_from_state_dict": "to load files of old, which had the layers' keys",
}


def find(name: str) -> Any:
    """Return what a name below `torch` stands for, or say what is gone and what it was for."""
    found: Any = torch
    inside = "distributed.tensor."
    if name.startswith(inside):  # which `import torch` leaves to those who need it, and may be at it just now
        found = importlib.import_module("torch.distributed.tensor")
    for part in name.removeprefix(inside).split("."):
        if not hasattr(found, part):
            raise ImportError(f"PyTorch {torch.__version__} lacks torch.{name}, needed {REASONS[name]}")
        found = getattr(found, part)
    return found


dispatch_keys = find("_C._dispatch_keys")
included_keys = find("_C._dispatch_tls_local_include_set")
BelowAutograd = find("_C._AutoDispatchBelowAutograd")
keys_after_autograd = find("_C._after_autograd_keyset")
is_fwd_grad_enabled = find("_C._is_fwd_grad_enabled")
set_fwd_grad_enabled = find("autograd.forward_ad._set_fwd_grad_enabled")
SingleLevelFunction = find("autograd.function._SingleLevelFunction")
single_level_functions = find("_functorch.utils.enable_single_level_autograd_function")
is_functorch_active = find("_C._are_functorch_transforms_active")
extension_file = find("_C.__file__")
fused_dropout = find("_fused_dropout")
tracing_context = find("_guards.TracingContext").try_get
has_any_global_hook = find("nn.modules.module._has_any_global_hook")
is_wrapper = find("utils._python_dispatch.is_traceable_wrapper_subclass")
for _name in REASONS:
    if not _name.startswith("distributed."):
        find(_name)
del _name


def bits_of(*names: str) -> int:
    """Return the bits of these dispatch keys in a set of them."""
    keys, key_set, bits = find("_C.DispatchKey"), find("_C.DispatchKeySet"), 0
    for name in names:
        bits |= key_set(getattr(keys, name)).raw_repr()
    return bits


def is_forward_ad_on() -> bool:
    """Return whether tensors may have tangents."""
    return torch.autograd.forward_ad._current_level >= 0  # type: ignore[no-any-return]


def is_compiling() -> bool:
    """Return whether a compiler is at work, also where it runs what it has found in a program."""
    return tracing_context() is not None


def memory_budget() -> float:
    """Return which part of what a backward pass needs a compiler may save for it."""
    return torch._functorch.config.activation_memory_budget  # type: ignore[no-any-return]


def destroy(library: torch.library.Library) -> None:
    """Take back the kernels of a library."""
    library._destroy()


def forget_kernels(*operators: Any) -> None:
    """Let Python look once more for the kernels of operators."""
    for operator in operators:
        operator._dispatch_cache.clear()


def is_bare(module: torch.nn.Module) -> bool:
    """Return whether calling a module is no more than calling the `forward` of its class."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not hooks and "forward" not in module.__dict__


def is_cut_in_another_order(input: Any) -> bool:
    """Return whether a DTensor's axis is cut by one axis of the mesh after a later one."""
    return any(sorted(by) != list(by) for _, by in input._spec.shard_order or ())
