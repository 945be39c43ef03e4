"""PyTorch's own tests of its operators, from the installed package, with dropfast in the place of its dropout."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tensors import IGNORE_THEIR_WARNINGS
from torch.nn import functional
from torch.testing import assert_close
from torch.testing._internal import composite_compliance, optests
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_utils import TestGradients as Gradients
from torch.testing._utils import wrapper_set_seed

import dropfast.torch

pytestmark = [*IGNORE_THEIR_WARNINGS, pytest.mark.filterwarnings("ignore:dropout2d. Received a 3D input")]

Call = Callable[..., Any]


def call_of(layer: type[torch.nn.Module]) -> Call:
    def call(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        y: torch.Tensor = layer(p, inplace).train(training)(x)
        return y

    return call


def dropping(*names: str) -> list[Any]:
    """PyTorch's descriptions of operators, with their samples."""
    return [op for op in op_db if op.name.removeprefix("nn.functional.") in names]


OURS = {
    "dropout": dropfast.torch.dropout,
    "dropout2d": call_of(dropfast.torch.Dropout2d),
    "dropout3d": call_of(dropfast.torch.Dropout3d),
}
OTHERS = "alpha_dropout", "feature_alpha_dropout", "scaled_dot_product_attention"
# How it is called, PyTorch's description, and the call without a seed.
CASES: dict[str, tuple[str, Any, Call]] = {
    f"{way}-{op.name.removeprefix('nn.functional.')}{'-' * bool(op.variant_test_name)}{op.variant_test_name}": (
        way,
        op,
        OURS[name] if way == "ours" else getattr(functional, name),
    )
    for way, names in (("ours", OURS), ("enable", (*OURS, *OTHERS)))
    for op in dropping(*names)
    for name in [op.name.removeprefix("nn.functional.")]
}
assert len(CASES) == 3 + 3 + 4


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Call]]:
    """PyTorch's description of an operator with our call in it, each with the same seed; and the call without one."""
    way, op, call = CASES[request.param]
    op = copy.copy(op)
    op.op = lambda *args, **kwargs: wrapper_set_seed(call, *args, **kwargs)
    if op.inplace_variant is not None:
        op.inplace_variant = lambda *args, **kwargs: wrapper_set_seed(call, *args, **kwargs, inplace=True)
    if op.name == "nn.functional.scaled_dot_product_attention":  # of 25, those that drop, and are small
        make = op.sample_inputs
        op.sample_inputs = lambda *args, **kwargs: [
            sample for sample in make(*args, **kwargs) if sample.kwargs["dropout_p"] > 0 and sample.input.ndim == 3
        ][:3]
    with dropfast.torch.enable() if way == "enable" else nullcontext():
        yield op, call


def samples(op: Any, dtype: torch.dtype = torch.float64, *, requires_grad: bool = True) -> list[Any]:
    found = list(op.sample_inputs("cpu", dtype, requires_grad=requires_grad))
    assert found
    return found


def test_values(case: tuple[Any, Call]) -> None:
    """In each dtype that PyTorch has it for: what is kept is scaled, also of views, and in place."""
    op, _ = case
    for dtype in sorted(op.supported_dtypes("cpu"), key=str):
        for sample in samples(op, dtype, requires_grad=False):
            args, kwargs = (sample.input, *sample.args), sample.kwargs
            y = op.op(*args, **kwargs)
            assert y.dtype is dtype
            strided = sample.noncontiguous()
            assert_close(op.op(strided.input, *strided.args, **strided.kwargs), y)
            if op.inplace_variant is not None:
                assert torch.equal(y, op.inplace_variant(sample.input.clone(), *sample.args, **kwargs))
            if op.name == "nn.functional.dropout":
                p, training = kwargs.get("p", 0.5), kwargs.get("training", True)
                kept = y != 0
                assert_close(y[kept], (sample.input / ((1 - p) if training and p < 1 else 1))[kept])
                assert bool(kept.all()) or (training and p > 0)


@pytest.mark.parametrize("check", ["gradcheck", "bwgrad_bwgrad", "fwgrad_bwgrad"])
def test_gradients(case: tuple[Any, Call], check: str) -> None:
    op, _ = case
    checks = Gradients()
    with_tangents = check == "gradcheck" and op.supports_forward_ad
    for call in (op.op, op.inplace_variant and checks._get_safe_inplace(op.inplace_variant)):
        if call is not None:
            checks._check_helper("cpu", torch.float64, op, call, check, check_forward_ad=with_tangents)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_proxy_tensors(case: tuple[Any, Call], mode: str) -> None:
    op, call = case
    for sample in samples(op):
        optests.make_fx_check(call, (sample.input.detach(), *sample.args), sample.kwargs, mode, randomize_data=True)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_aotdispatch(case: tuple[Any, Call], dynamic: bool) -> None:
    op, call = case
    for sample in samples(op):
        optests.aot_autograd_check(
            call, (sample.input, *sample.args), sample.kwargs, dynamic, try_check_data_specialization=True
        )


def test_fake_tensors(case: tuple[Any, Call]) -> None:
    op, call = case
    for sample in samples(op, requires_grad=False):
        optests.fake_check(call, (sample.input, *sample.args), sample.kwargs)


def test_compliance(case: tuple[Any, Call]) -> None:
    """What is made of other operators works for tensors that only look like one: results and gradients."""
    op, _ = case
    for sample in samples(op):
        args, kwargs = (sample.input, *sample.args), sample.kwargs
        composite_compliance.check_with_mode(op.op, args, kwargs, assert_close)
        if sample.args:  # attention's: too many permutations
            continue
        composite_compliance.check_all_permutations(op.op, args, kwargs, assert_close)
        composite_compliance.check_backward_formula(op.op, args, kwargs, assert_equal_fn=assert_close)
        if op.supports_forward_ad:
            composite_compliance.check_forward_ad_formula(op.op, args, kwargs, assert_equal_fn=assert_close)


def test_vmap(case: tuple[Any, Call]) -> None:
    """Equal examples stay equal where they are to have the same mask, and else do not."""
    op, call = case
    for sample in samples(op, requires_grad=False):

        def alone(x: torch.Tensor, sample: Any = sample) -> torch.Tensor:
            y: torch.Tensor = call(x, *sample.args, **sample.kwargs)
            return y

        x = sample.input.expand(20, *sample.input.shape)
        same = torch.vmap(alone, randomness="same")(x)
        different = torch.vmap(alone, randomness="different")(x)
        assert torch.equal(same, same[:1].expand_as(same))
        is_random = len({tuple(alone(sample.input).flatten().tolist()) for _ in range(20)}) > 1
        assert torch.equal(different, different[:1].expand_as(different)) != is_random
