"""The promises of dropfast.torch: PyTorch's own ways, dropfast's bits, and no mask kept anywhere."""

import copy
import doctest
import io
import pickle
import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import expected
import ml_dtypes
import numpy as np
import pytest
import torch
import torch._functorch.config
from cases import DTYPES, MODES, RATES, Shape, values
from expected import assert_same_bits
from processes import run_python
from test_docs import run, session_of
from torch import library, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import dropfast.torch
from dropfast import Mask

pytestmark = [
    pytest.mark.timeout(120),
    # PyTorch's own, in PyTorch's own code.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

KEY = 0xFEDCBA9876543210  # above 2**63, where a signed number would be negative
PAGE = Path(__file__).parent.parent.parent / "docs" / "torch.md"
TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPES}


def tensor(array: Any) -> torch.Tensor:
    """A tensor with the bits of an array."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def array(tensor: torch.Tensor) -> Any:
    """An array with the bits of a tensor."""
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def layer_like(layer: Any) -> Any:
    """A layer that will draw the same masks."""
    return copy.deepcopy(layer)


def next_mask(layer: Any, shape: Shape, **sharing: Any) -> Mask:
    return Mask(shape, layer.p, key=layer.key, draw=layer.draw, **sharing)


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


# ---- apply: the same bits as NumPy's -------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", RATES)
def test_apply_has_the_bits_of_numpy(backend: str, dtype: str, rate: str) -> None:
    shape = (33, 5, 7)
    mask, x = Mask(shape, RATES[rate], key=KEY, draw=3), values(shape, DTYPES[dtype])
    y = dropfast.torch.apply(mask, tensor(x))
    assert y.dtype is TORCH_DTYPES[dtype]
    assert_same_bits(array(y), mask.apply(x))
    assert_same_bits(array(y), expected.output(x, expected.keep(shape, RATES[rate], KEY, 3), RATES[rate]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_the_same_mask(backend: str, mode: str, dtype: str) -> None:
    shape = (6, 4, 5, 3)
    mask = Mask(shape, 0.3, key=KEY, **MODES[mode](shape))
    x, dy = tensor(np.ones(shape)).to(TORCH_DTYPES[dtype]).requires_grad_(), values(shape, DTYPES[dtype])
    dropfast.torch.apply(mask, x).backward(tensor(dy))
    assert x.grad is not None
    assert_same_bits(array(x.grad), mask.apply(dy))


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
def test_strides_do_not_matter(view: str, dtype: str) -> None:
    shape = (4, 3, 5, 6)
    x = VIEWS[view](tensor(values(shape, DTYPES[dtype])))
    mask = Mask(shape, 0.25, key=KEY)
    y = dropfast.torch.apply(mask, x)
    assert_same_bits(array(y), mask.apply(np.array(array(x), order="C")))
    if view == "channels-last":
        assert y.is_contiguous(memory_format=torch.channels_last)
    layer = dropfast.torch.Dropout2d(0.5)
    assert_same_bits(array(layer_like(layer)(x)), array(layer(x.contiguous())))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)], ids=str)
def test_shapes_without_much(shape: Shape) -> None:
    x = torch.ones(shape, requires_grad=True)
    mask = Mask(shape, 0.5, key=1)
    y = dropfast.torch.apply(mask, x)
    y.backward(torch.ones(shape))
    assert_same_bits(array(y), mask.apply(np.ones(shape, np.float32)))
    assert x.grad is not None
    assert x.grad.shape == shape


def test_shards_equal_the_whole() -> None:
    whole, x = Mask((64, 48), 0.3, key=KEY, draw=9), torch.randn(64, 48, requires_grad=True)
    y = dropfast.torch.apply(whole, x)
    parts = [
        dropfast.torch.apply(whole.window((row, column), (16, 24)), x[row : row + 16, column : column + 24])
        for row in range(0, 64, 16)
        for column in (0, 24)
    ]
    pairs = [torch.cat(parts[i : i + 2], 1) for i in range(0, 8, 2)]
    assert torch.equal(torch.cat(pairs), y)


# ---- the function --------------------------------------------------------------------------------


def test_function_repeats_by_manual_seed_and_moves_on() -> None:
    x = torch.ones(100)
    torch.manual_seed(7)
    first, second = dropfast.torch.dropout(x), dropfast.torch.dropout(x)
    torch.manual_seed(7)
    assert torch.equal(dropfast.torch.dropout(x), first)
    assert torch.equal(dropfast.torch.dropout(x), second)
    assert not torch.equal(first, second)


def test_function_takes_a_generator() -> None:
    x = torch.ones(100)
    before = torch.get_rng_state()
    a = dropfast.torch.dropout(x, generator=torch.Generator().manual_seed(1))
    b = dropfast.torch.dropout(x, generator=torch.Generator().manual_seed(1))
    c = dropfast.torch.dropout(x, generator=torch.Generator().manual_seed(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_have_all_64_bits() -> None:
    keys = [dropfast.torch.Dropout(generator=torch.Generator().manual_seed(seed)).key for seed in range(64)]
    assert all(0 <= key < 2**64 for key in keys)
    assert any(key >= 2**63 for key in keys)
    assert any(key < 2**63 for key in keys)
    seen = 0
    for key in keys:
        seen |= key
    assert seen == 2**64 - 1


@pytest.mark.parametrize("sharing", [{}, {"shared_axes": 0}, {"shared_axes": (0, -1)}, {"noise_shape": (None, 1, 6)}])
def test_function_and_layer_share_axes(sharing: dict[str, Any]) -> None:
    x = torch.randn(5, 4, 6)
    layer = dropfast.torch.Dropout(0.4, **sharing, generator=torch.Generator().manual_seed(3))
    mask = next_mask(layer, (5, 4, 6), **sharing)
    y = dropfast.torch.dropout(x, 0.4, **sharing, generator=torch.Generator().manual_seed(3))
    assert torch.equal(y, dropfast.torch.apply(mask, x))
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("inplace", [False, True])
def test_not_training_is_the_identity(inplace: bool) -> None:
    for x in (torch.ones(3), torch.ones(3, dtype=torch.int64), torch.ones(3, device="meta")):
        assert dropfast.torch.dropout(x, 0.5, False, inplace) is x
        layer = dropfast.torch.Dropout(0.5, inplace).eval()
        assert layer(x) is x
        assert layer.draw == 0


@pytest.mark.parametrize("p", [0, 1, 0.0, 1.0])
def test_p_at_its_ends(p: float) -> None:
    x = torch.tensor([1.0, -1.0, torch.inf, torch.nan])
    y = dropfast.torch.dropout(x, p)
    assert torch.equal(y.nan_to_num(7.0), (x if p == 0 else torch.zeros(4)).nan_to_num(7.0))


def test_dropped_is_plus_zero_whatever_it_was() -> None:
    """The difference from torch, where these give NaN and -0."""
    x = torch.tensor([-1.0, torch.inf, -torch.inf, torch.nan]).repeat(64)
    y = dropfast.torch.dropout(x)
    dropped = torch.from_numpy(~expected.bits(array(y)).astype(bool))  # all bits are 0
    assert 64 < int(dropped.sum()) < 192
    assert not (y[~dropped] == 0).any()
    assert nn.functional.dropout(x).isnan().sum() > 64


# ---- in place ------------------------------------------------------------------------------------


def test_in_place_writes_and_differentiates() -> None:
    leaf = torch.randn(50, 4, requires_grad=True)
    layer = dropfast.torch.Dropout(0.5, inplace=True)
    apart = layer_like(layer)
    apart.inplace = False
    h = leaf * 3
    y = layer(h)
    assert y is h
    assert torch.equal(y, apart(leaf * 3))
    y.sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, (y != 0) * 6.0)
    with torch.no_grad():
        z = torch.ones(50)
        assert dropfast.torch.dropout(z, inplace=True) is z
        assert 0 < int((z == 0).sum()) < 50


def test_in_place_is_noticed_by_autograd() -> None:
    h = torch.randn(8, requires_grad=True).exp()  # keeps its result for the backward pass
    with torch.no_grad():
        dropfast.torch.dropout(h, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


@pytest.mark.parametrize("which", ["leaf", "view"])
def test_in_place_on_a_leaf_is_refused_in_torchs_words(which: str) -> None:
    x = torch.ones(4, requires_grad=True)
    argument = x if which == "leaf" else x[:2]
    for function in (nn.functional.dropout, dropfast.torch.dropout):
        words = (
            f"a {'view of a ' if which == 'view' else ''}leaf Variable that requires grad is being used in an in-place"
        )
        with pytest.raises(RuntimeError, match=words):
            function(argument, 0.5, True, True)
    assert torch.equal(x, torch.ones(4))


# ---- layers --------------------------------------------------------------------------------------

CHANNELS: list[tuple[str, Shape, tuple[int, ...]]] = [
    ("Dropout1d", (8, 6, 5), (2,)),
    ("Dropout1d", (6, 5), (1,)),
    ("Dropout2d", (8, 6, 5, 4), (2, 3)),
    ("Dropout3d", (8, 6, 5, 4, 3), (2, 3, 4)),
    ("Dropout3d", (6, 5, 4, 3), (1, 2, 3)),
]


@pytest.mark.parametrize(("name", "shape", "shared_axes"), CHANNELS, ids=[f"{c[0]}-{len(c[1])}d" for c in CHANNELS])
def test_channels_are_dropped_as_torch_does(name: str, shape: Shape, shared_axes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = getattr(dropfast.torch, name)(0.5)
    mask = next_mask(layer, shape, shared_axes=shared_axes)
    x = torch.randn(shape)
    assert torch.equal(layer(x), dropfast.torch.apply(mask, x))
    theirs = getattr(nn, name)(0.5)(torch.ones(shape))
    rows = theirs.flatten(-len(shared_axes))
    assert bool((rows == rows[..., :1]).all())  # shared where ours is ...
    assert len(rows[..., 0].unique()) == 2  # ... and not elsewhere


UNUSUAL: list[tuple[str, Shape]] = [
    *[("Dropout1d", shape) for shape in ((5,), (2, 3, 4, 5))],
    *[("Dropout2d", shape) for shape in ((5,), (4, 5), (3, 4, 5), (2, 3, 4, 5, 6))],
    *[("Dropout3d", shape) for shape in ((3, 4, 5), (2, 3, 2, 3, 2, 3))],
]


@pytest.mark.parametrize(("name", "shape"), UNUSUAL, ids=[f"{name}-{len(shape)}d" for name, shape in UNUSUAL])
def test_unusual_inputs_get_torchs_words(name: str, shape: Shape) -> None:
    def said(layer: nn.Module) -> tuple[list[str], str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                y = layer(torch.ones(shape))
                last = str(tuple(y.shape))
            except RuntimeError as error:
                last = str(error)
        return [str(warning.message) for warning in caught], last

    ours, theirs = said(getattr(dropfast.torch, name)()), said(getattr(nn, name)())
    assert ours == theirs
    assert ours[0] or "Expected" in ours[1]


def test_layers_are_torchs_modules() -> None:
    for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d"):
        ours, theirs = getattr(dropfast.torch, name)(0.3, True), getattr(nn, name)(0.3, True)
        assert isinstance(ours, type(theirs))
        assert repr(ours) == repr(theirs)
    assert repr(dropfast.torch.Dropout(0.25, shared_axes=0)) == "Dropout(p=0.25, inplace=False, shared_axes=(0,))"
    assert repr(dropfast.torch.Dropout(noise_shape=(1, None))) == "Dropout(p=0.5, inplace=False, noise_shape=(1, None))"


def test_p_may_be_changed() -> None:
    layer = dropfast.torch.Dropout(0.5)
    layer.p = 1.0
    assert torch.equal(layer(torch.ones(9)), torch.zeros(9))
    layer.p = 1.5
    with pytest.raises(ValueError, match=exactly("dropout probability has to be between 0 and 1, but got 1.5")):
        layer(torch.ones(9))
    assert layer.draw == 1


def test_a_run_repeats_by_manual_seed() -> None:
    def run() -> torch.Tensor:
        torch.manual_seed(5)
        model = nn.Sequential(
            nn.Linear(10, 20), dropfast.torch.Dropout(0.3), nn.Linear(20, 4), dropfast.torch.Dropout()
        )
        x = torch.randn(16, 10)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(run(), run())


@pytest.mark.parametrize("way", ["state-dict", "saved", "pickle", "deepcopy", "assign"])
def test_a_restored_run_continues_bit_for_bit(way: str) -> None:
    def new() -> nn.Sequential:
        return nn.Sequential(nn.Linear(10, 20), dropfast.torch.Dropout(0.3), dropfast.torch.Dropout1d())

    x, model = torch.randn(16, 10), new()
    model(x)
    state = model.state_dict()
    if way == "deepcopy":
        again = copy.deepcopy(model)
    elif way == "pickle":
        again = pickle.loads(pickle.dumps(model))
    else:
        if way == "saved":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        again = new()
    want = [model(x), model(x)]
    if way not in ("deepcopy", "pickle"):
        again.load_state_dict(state, assign=way == "assign")
    assert all(torch.equal(again(x), y) for y in want)
    assert again[1].state_dict()["_extra_state"].tolist()[1] == 3


def test_bad_states_are_refused() -> None:
    layer = dropfast.torch.Dropout()
    key = layer.key
    for bad in (torch.zeros(3, dtype=torch.int64), torch.zeros(2), [1, 2], None):
        with pytest.raises(ValueError, match="the state of a layer must be an int64 tensor of key and draw, got"):
            layer.set_extra_state(bad)
    with pytest.raises(ValueError, match=exactly("draw must be in [0, 2**32] in a state, got -1")):
        layer.set_extra_state(torch.tensor([0, -1]))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"_extra_state\""):
        layer.load_state_dict({})
    assert (layer.key, layer.draw) == (key, 0)


def test_no_mask_is_drawn_twice() -> None:
    layer = dropfast.torch.Dropout()
    layer.set_extra_state(torch.tensor([-1, 2**32 - 1]))
    assert layer.key == 2**64 - 1
    layer(torch.ones(2))
    with pytest.raises(OverflowError, match="has given its 2\\*\\*32 masks"):
        layer(torch.ones(2))
    with pytest.raises(OverflowError, match="has given its 2\\*\\*32 masks"):
        torch.compile(layer, backend="eager", fullgraph=True)(torch.ones(2))


@pytest.mark.parametrize("kind", ["half", "double", "bfloat16", "meta"])
def test_state_survives_what_is_done_to_a_model(kind: str) -> None:
    layer = dropfast.torch.Dropout()
    key = layer.key
    layer.to("meta") if kind == "meta" else getattr(layer, kind)()
    layer(torch.ones(3))
    assert (layer.key, layer.draw) == (key, 1)


# ---- convert -------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.2), nn.Flatten())
        self.head = nn.ModuleDict({"drop": nn.Dropout(0.4), "one": nn.Dropout1d(), "three": nn.Dropout3d()})
        self.shared = self.head["drop"]
        self.alpha = nn.AlphaDropout()
        self.lstm = nn.LSTM(3, 3, num_layers=2, dropout=0.5)


def test_convert_replaces_all_and_says_which() -> None:
    model = Model()
    model.head["one"].eval()
    seen: list[int] = []
    model.shared.register_forward_hook(lambda *_: seen.append(1))
    assert dropfast.torch.convert(model) == ["features.1", "head.drop", "head.one", "head.three", "shared"]
    assert type(model.features[1]) is dropfast.torch.Dropout2d
    assert type(model.head["one"]) is dropfast.torch.Dropout1d
    assert type(model.head["three"]) is dropfast.torch.Dropout3d
    assert type(model.head["drop"]) is dropfast.torch.Dropout
    assert model.head["drop"] is model.shared
    assert type(model.alpha) is nn.AlphaDropout
    assert (model.features[1].p, model.shared.p) == (0.2, 0.4)
    assert not model.head["one"].training
    x = torch.ones(4)
    mask = next_mask(model.shared, (4,))
    assert torch.equal(model.shared(x), dropfast.torch.apply(mask, x))
    assert seen == [1]
    assert len({model.features[1].key, model.shared.key, model.head["one"].key, model.head["three"].key}) == 4
    assert dropfast.torch.convert(model) == []


def test_convert_of_a_layer_alone() -> None:
    layer = nn.Dropout(0.1)
    assert dropfast.torch.convert(layer) == [""]
    assert type(layer) is dropfast.torch.Dropout


def test_convert_reaches_all_of_a_transformer() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
    )
    names = dropfast.torch.convert(model)
    assert names == [f"layers.{i}.{name}" for i in (0, 1) for name in ("dropout", "dropout1", "dropout2")]
    model(torch.randn(2, 5, 16)).sum().backward()
    layers = [module for module in model.modules() if isinstance(module, dropfast.torch.Dropout)]
    assert [layer.draw for layer in layers] == [1] * 6
    assert len({layer.key for layer in layers}) == 6


# ---- operators -----------------------------------------------------------------------------------


def sample(requires_grad: bool = True, dtype: torch.dtype = torch.float64, shape: Shape = (3, 4)) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=requires_grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: str) -> None:
    state = torch.tensor([-5, 3, 17])
    apply = torch.ops.dropfast.apply.default
    for x in (sample(dtype=TORCH_DTYPES[dtype]), sample(False, TORCH_DTYPES[dtype]).t()):
        library.opcheck(apply, (x, state, (4, 1), 1 << 31))
    library.opcheck(apply, (sample(), state, (0, 1), 1 << 30))
    library.opcheck(torch.ops.dropfast.next.default, (torch.tensor([-5, 3]),))
    library.opcheck(torch.ops.dropfast.lanes.default, (state, torch.rand(0), 12))


def test_operators_are_pure() -> None:
    x, state, counter = sample(False), torch.tensor([-5, 3, 0]), torch.tensor([-5, 3])
    y = torch.ops.dropfast.apply(x, state, (4, 1), 1 << 31)
    assert torch.equal(torch.ops.dropfast.apply(x, state, (4, 1), 1 << 31), y)
    assert torch.equal(y, dropfast.torch.apply(Mask((3, 4), 0.5, key=2**64 - 5, draw=3), x))
    drawn, after = torch.ops.dropfast.next(counter)
    assert (drawn.tolist(), after.tolist(), counter.tolist()) == ([-5, 3, 0], [-5, 4], [-5, 3])


@pytest.mark.parametrize("inplace", [False, True])
def test_gradcheck(inplace: bool) -> None:
    layer = dropfast.torch.Dropout(0.4, inplace)

    def f(x: torch.Tensor) -> torch.Tensor:
        return layer_like(layer)(x * 1)

    assert torch.autograd.gradcheck(f, sample(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, sample())
    mask = Mask((3, 4), 0.4, key=KEY)
    assert torch.autograd.gradcheck(
        lambda x: torch.ops.dropfast.apply(x, torch.tensor([-5, 3, 0]), (4, 1), 9), sample()
    )
    assert torch.autograd.gradcheck(lambda x: dropfast.torch.apply(mask, x), sample(), check_batched_grad=True)


# ---- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("inplace", [False, True], ids=["new", "inplace"])
def test_compiled_layers_are_the_eager_ones(compiler: str, inplace: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    layers = nn.Sequential(
        dropfast.torch.Dropout(0.3, inplace, shared_axes=0), dropfast.torch.Dropout(noise_shape=(None, 1))
    )
    eager = copy.deepcopy(layers)
    compiled = torch.compile(layers, fullgraph=True, backend=compiler)
    for n in (8, 8, 8, 12, 16, 20):
        x = torch.randn(n, 5, requires_grad=True)
        dy = torch.randn(n, 5)
        a, b = compiled(x * 1), eager(x * 1)
        assert torch.equal(a, b)
        assert torch.equal(*(torch.autograd.grad(y, x, dy)[0] for y in (a, b)))
    assert [layer.draw for layer in layers] == [6, 6]
    # One graph for the first length, one for any: none for the steps.
    assert counters["stats"]["unique_graphs"] == 2


def test_eager_and_compiled_calls_take_turns() -> None:
    layer = dropfast.torch.Dropout()
    eager, compiled = layer_like(layer), torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.ones(64)
    for call in (layer, compiled, compiled, layer, compiled):
        assert torch.equal(call(x), eager(x))


def test_compiled_apply() -> None:
    torch._dynamo.reset()
    whole = Mask((8, 9), 0.3, key=KEY, draw=2**32 - 1)
    for mask in (whole, whole.window((2, 3), (4, 5))):
        x = torch.randn(mask.shape, requires_grad=True)
        compiled = torch.compile(
            lambda x, mask=mask: dropfast.torch.apply(mask, x), fullgraph=True, backend="aot_eager"
        )
        y = compiled(x)
        assert torch.equal(y, dropfast.torch.apply(mask, x))
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], dropfast.torch.apply(mask, torch.ones(mask.shape)))


def test_function_under_compile_is_refused_in_full_graphs_and_right_elsewhere() -> None:
    torch._dynamo.reset()
    x = torch.ones(100)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"compile a layer, as dropfast\.torch\.Dropout"):
        torch.compile(lambda x: dropfast.torch.dropout(x) + 1, fullgraph=True, backend="eager")(x)
    torch.manual_seed(1)
    y = torch.compile(lambda x: dropfast.torch.dropout(x) + 1, backend="eager")(x)
    torch.manual_seed(1)
    assert torch.equal(y, dropfast.torch.dropout(x) + 1)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(16, 32), nn.ReLU(), dropfast.torch.Dropout(0.5)),
        *(nn.Linear(32, 8), dropfast.torch.Dropout(0.25, shared_axes=0), nn.Tanh(), nn.Linear(8, 4)),
    )


def gradients(call: Callable[[torch.Tensor], torch.Tensor], model: nn.Module, steps: int = 3) -> list[torch.Tensor]:
    """The outputs and gradients of some steps; x needs one too."""
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        x = torch.randn(12, 16, generator=torch.Generator().manual_seed(step)).requires_grad_()
        model.zero_grad()
        y = call(x)
        y.square().sum().backward()
        assert x.grad is not None
        found += [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    return found


def assert_close(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    """Compilers may sum in another order; another mask would be far off."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("compiler", ["aot_eager_decomp_partition", "inductor"])
def test_memory_budgets_do_not_change_gradients(compiler: str, budget: float) -> None:
    torch._dynamo.reset()
    model, same = network(), network()
    with torch._functorch.config.patch(activation_memory_budget=budget):
        got = gradients(torch.compile(model, fullgraph=True, backend=compiler), model)
    assert_close(got, gradients(same, same))
    assert same[2].draw == model[2].draw == 3


# ---- checkpointing -------------------------------------------------------------------------------


@pytest.mark.parametrize("preserve", [True, False], ids=["preserve-rng", "no-rng"])
@pytest.mark.parametrize("what", ["layers", "compiled", "function", "apply"])
def test_checkpoints_do_not_change_gradients(what: str, preserve: bool) -> None:
    torch._dynamo.reset()
    model, same = network(), network()
    call: Callable[[torch.Tensor], torch.Tensor] = model
    if what == "compiled":
        call = torch.compile(model, fullgraph=True, backend="aot_eager")
    elif what == "function":
        model[2], same[2] = (Lambda(lambda x: dropfast.torch.dropout(x, 0.5)) for _ in range(2))
    elif what == "apply":
        mask = Mask((12, 32), 0.5, key=KEY)
        model[2], same[2] = (Lambda(lambda x: dropfast.torch.apply(mask, x)) for _ in range(2))

    def checkpointed(x: torch.Tensor) -> torch.Tensor:
        y = checkpoint(call, x, use_reentrant=False, preserve_rng_state=preserve)
        torch.rand(1)  # somebody else's, between forward and backward
        return y  # type: ignore[no-any-return]

    got = gradients(checkpointed, model)
    want = gradients(same, same)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert model[4].draw == same[4].draw == 3


class Lambda(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def test_many_regions_and_a_layer_used_many_times() -> None:
    model, same = network(), network()

    def twice(part: nn.Module, x: torch.Tensor, save: bool) -> torch.Tensor:
        for _ in range(2):
            x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False) if save else part(x)
        return x

    loop, loop_same = (nn.Sequential(nn.Linear(16, 16), layer := net[2], nn.Tanh(), layer) for net in (model, same))
    loop_same.load_state_dict(loop.state_dict())
    got = gradients(lambda x: twice(loop, x, True), loop)
    assert all(
        torch.equal(a, b) for a, b in zip(got, gradients(lambda x: twice(loop_same, x, False), loop_same), strict=True)
    )
    # Twice backward through one graph repeats twice.
    x = torch.randn(12, 16, requires_grad=True)
    y = twice(loop, x, True).sum()
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_what_cannot_be_repeated_is_refused() -> None:
    model, x = network(), torch.randn(12, 16, requires_grad=True)
    y = checkpoint(model, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="checkpoint with use_reentrant=False, and no region inside another"):
        y.sum().backward()
    inner = Lambda(lambda x: checkpoint(model, x, use_reentrant=False))
    y = checkpoint(nn.Sequential(inner, nn.Linear(4, 4)), x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="checkpoint with use_reentrant=False, and no region inside another"):
        y.sum().backward()


# ---- torch.func ----------------------------------------------------------------------------------


def test_vmap_same() -> None:
    layer, x = dropfast.torch.Dropout(), torch.randn(6, 4, 5)
    mask = next_mask(layer, (4, 5))
    y = torch.vmap(layer, randomness="same")(x)
    assert torch.equal(y, torch.stack([dropfast.torch.apply(mask, part) for part in x]))
    y = torch.vmap(dropfast.torch.dropout, randomness="same")(torch.ones(6, 4, 5))
    assert torch.equal(y, y[:1].expand_as(y))
    assert 0 < int((y[0] == 0).sum()) < 20


@pytest.mark.parametrize("sharing", [{}, {"shared_axes": 0}], ids=["per-sample", "shared"])
def test_vmap_different_is_a_call_with_the_whole_batch(sharing: dict[str, Any]) -> None:
    layer, x = dropfast.torch.Dropout(**sharing), torch.randn(6, 3, 4, 5)
    whole = {"shared_axes": 1} if sharing else {}
    want = dropfast.torch.apply(next_mask(layer, (6, 3, 4, 5), **whole), x)
    assert torch.equal(torch.vmap(layer_like(layer), randomness="different")(x), want)
    moved = torch.vmap(layer_like(layer), in_dims=2, out_dims=2, randomness="different")(x.movedim(0, 2))
    assert torch.equal(moved.movedim(2, 0), want)
    if not sharing:
        nested = torch.vmap(torch.vmap(layer_like(layer), randomness="different"), randomness="different")
        assert torch.equal(nested(x), want)


def test_vmap_different_in_one_level_and_same_in_the_other() -> None:
    layer, x = dropfast.torch.Dropout(), torch.randn(6, 3, 40)
    y = torch.vmap(torch.vmap(layer_like(layer), randomness="different"), randomness="same")(x)
    assert torch.equal(y, torch.stack([layer_like(layer)(part) for part in x]))
    y = torch.vmap(torch.vmap(layer_like(layer), randomness="same"), randomness="different")(x)
    assert torch.equal(y, dropfast.torch.apply(next_mask(layer, (6, 3, 40), shared_axes=1), x))


def test_vmap_different_of_an_input_without_the_axis() -> None:
    layer, x = dropfast.torch.Dropout(), torch.randn(40)
    y = torch.vmap(lambda i: layer_like(layer)(x) + 0 * i, randomness="different")(torch.zeros(6))
    assert torch.equal(y, layer(x.expand(6, 40)))


def test_vmap_different_functions_differ() -> None:
    y = torch.vmap(dropfast.torch.dropout, randomness="different")(torch.ones(6, 100))
    assert len({tuple(row) for row in y.tolist()}) == 6


def test_vmap_error_has_torchs_words() -> None:
    said = set()
    layer = dropfast.torch.Dropout()
    for function in (nn.functional.dropout, dropfast.torch.dropout, layer):
        with pytest.raises(RuntimeError, match="randomness error mode") as caught:
            torch.vmap(function)(torch.ones(3, 4))
        said.add(str(caught.value))
    assert len(said) == 1
    assert torch.equal(
        torch.vmap(lambda x: dropfast.torch.apply(Mask(4, key=1), x))(torch.ones(3, 4)),  # not random
        dropfast.torch.apply(Mask((3, 4), key=1, shared_axes=0), torch.ones(3, 4)),
    )


def test_gradients_per_sample() -> None:
    layer, x = dropfast.torch.Dropout(), torch.randn(6, 10)
    one = layer_like(layer)
    grads = torch.vmap(torch.func.grad(lambda x: (one(x) ** 2).sum()), randomness="different")(x)
    leaf = x.clone().requires_grad_()
    (layer(leaf) ** 2).sum().backward()
    assert torch.equal(grads, leaf.grad)
    jacobian = torch.func.jacrev(lambda x: dropfast.torch.apply(Mask(10, key=1), x))(x[0])
    scales = dropfast.torch.apply(Mask(10, key=1), torch.ones(10))
    assert torch.equal(jacobian, torch.diag(scales))
    hessian = torch.func.hessian(lambda x: (dropfast.torch.apply(Mask(10, key=1), x) ** 2).sum())(x[0])
    assert torch.equal(hessian, torch.diag(2 * scales**2))


def test_make_fx_sees_the_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: dropfast.torch.apply(Mask(10, key=1), x))(torch.ones(10))
    assert torch.ops.dropfast.apply.default in {node.target for node in graph.graph.nodes}
    assert torch.equal(graph(2 * torch.ones(10)), dropfast.torch.apply(Mask(10, key=1), 2 * torch.ones(10)))


# ---- memory --------------------------------------------------------------------------------------


def test_nothing_is_saved_for_backward() -> None:
    saved: list[torch.Tensor] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved.append(x)
        return x

    x = torch.randn(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        nn.functional.dropout(x)
        assert [t.numel() for t in saved] == [1000]
        saved.clear()
        dropfast.torch.dropout(x)
        dropfast.torch.Dropout()(x)
        dropfast.torch.apply(Mask(1000, key=1), x)
        assert saved == []
        torch.ops.dropfast.apply(x, torch.tensor([1, 2, 0]), (1,), 1 << 31)
        assert [t.numel() for t in saved] == [3]


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


# ---- errors --------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any], Any]] = {
    "dropout": dropfast.torch.dropout,
    "Dropout": lambda x: dropfast.torch.Dropout()(x),
    "apply": lambda x: dropfast.torch.apply(Mask((2, 3), key=1), x),
    "compiled": lambda x: torch.compile(dropfast.torch.Dropout(), backend="eager")(x),
}


@pytest.mark.parametrize("call", CALLS)
def test_bad_tensors(call: str) -> None:
    allowed = "torch.float16, torch.bfloat16, torch.float32 or torch.float64"
    for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=exactly(f"input must have dtype {allowed}, got {dtype}")):
            CALLS[call](torch.zeros(2, 3, dtype=dtype))
    with pytest.raises(ValueError, match=exactly("input must be on the CPU, got one on meta")):
        CALLS[call](torch.ones(2, 3, device="meta"))
    if call != "compiled":
        for bad in (np.ones((2, 3), np.float32), [1.0], None):
            with pytest.raises(TypeError, match=exactly(f"input must be a torch.Tensor, got {type(bad).__name__}")):
                CALLS[call](bad)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan"), float("inf")])
def test_bad_p_has_torchs_words(p: float) -> None:
    message = exactly(f"dropout probability has to be between 0 and 1, but got {p}")
    for call in (lambda: dropfast.torch.dropout(torch.ones(3), p), lambda: dropfast.torch.Dropout(p)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("p", [True, False])
def test_a_boolean_is_no_probability(p: bool) -> None:
    """dropout(x, True), where training was meant, would zero all."""
    for call in (lambda: dropfast.torch.dropout(torch.ones(3), p), lambda: dropfast.torch.Dropout(p)):
        with pytest.raises(TypeError, match=exactly(f"dropout probability has to be a number, but got {p}")):
            call()


@pytest.mark.parametrize("bad", [False, np.True_, torch.tensor(True), (True,)], ids=repr)
def test_a_boolean_is_no_axis(bad: Any) -> None:
    message = exactly(f"shared_axes must be an integer or a sequence of integers, got {bad!r}")
    for call in (lambda **to: dropfast.torch.dropout(torch.ones(3), **to), dropfast.torch.Dropout):
        with pytest.raises(TypeError, match=message):
            call(shared_axes=bad)
    message = exactly(f"noise_shape must be a sequence of integers and None, got {(bad, None)}")
    for call in (lambda **to: dropfast.torch.dropout(torch.ones(3, 2), **to), dropfast.torch.Dropout):
        with pytest.raises(TypeError, match=message):
            call(noise_shape=(bad, None))


@pytest.mark.parametrize("noise", [(20, -1, 10), (20, 0, 10)], ids=str)
def test_what_fits_no_tensor(noise: tuple[int, ...]) -> None:
    before = torch.get_rng_state()
    with pytest.raises(
        ValueError, match=exactly(f"noise_shape of a layer must have entries in [1, 2**63) or None, got {noise}")
    ):
        dropfast.torch.Dropout(noise_shape=noise)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=exactly("input must have the mask's shape (2, 3), got (3, 2)")):
        dropfast.torch.apply(Mask((2, 3), key=1), torch.ones(3, 2))
    x = torch.ones(2, 3)
    message = exactly("shared_axes must be in [-2, 2) for 2 axes, got 2")
    layer = dropfast.torch.Dropout(shared_axes=2)
    for call in (layer, lambda x: dropfast.torch.dropout(x, shared_axes=2)):
        with pytest.raises(ValueError, match=message):
            call(x)
    assert layer.draw == 0
    with pytest.raises(ValueError, match=exactly("give shared_axes or noise_shape, not both; got (0,) and (1, None)")):
        dropfast.torch.Dropout(shared_axes=0, noise_shape=(1, None))
    with pytest.raises(ValueError, match="noise_shape must have one entry an axis"):
        dropfast.torch.Dropout(noise_shape=(1, 4))(x)


# ---- processes -----------------------------------------------------------------------------------


def test_dataloader_workers_after_a_parallel_call() -> None:
    done = run_python(
        textwrap.dedent("""
            import warnings, torch, dropfast.torch
            from dropfast import Mask
            warnings.filterwarnings("ignore", "This DataLoader will create 2 worker processes")  # of few cores
            class Data(torch.utils.data.Dataset):
                def __len__(self):
                    return 4
                def __getitem__(self, i):
                    big = dropfast.torch.apply(Mask(1 << 19, key=1), torch.ones(1 << 19))
                    return big.sum(), dropfast.torch.dropout(torch.ones(100))
            def main():
                torch.manual_seed(0)
                want = dropfast.torch.apply(Mask(1 << 19, key=1), torch.ones(1 << 19)).sum()
                loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork", timeout=60)
                items = list(loader)
                assert all(item[0] == want for item in items)
                assert len({tuple(item[1][0].tolist()) for item in items}) == 4  # each worker and call its own
                print("done")
            main()
        """),
        env={"OMP_NUM_THREADS": "2"},
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_data_parallel_ranks_have_masks_of_their_own(tmp_path: Path) -> None:
    done = run_python(
        textwrap.dedent("""
            import datetime, os, sys, torch, torch.multiprocessing as mp, dropfast.torch
            import torch.distributed as dist
            from dropfast import Mask
            def main(rank, folder):
                dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2,
                                        timeout=datetime.timedelta(seconds=60))
                for case, seed in (("own", rank), ("equal", 0)):
                    torch.manual_seed(seed)
                    model = torch.nn.Sequential(torch.nn.Linear(50, 50), dropfast.torch.Dropout())
                    ddp = torch.nn.parallel.DistributedDataParallel(model)
                    for step in range(2):
                        ddp.zero_grad()
                        y = ddp(torch.ones(4, 50))
                        y.sum().backward()
                    dropped = [torch.empty(4, 50) for _ in range(2)]
                    dist.all_gather(dropped, (y == 0).float())
                    assert torch.equal(*dropped) == (case == "equal")
                    grads = [torch.empty(50, 50) for _ in range(2)]
                    dist.all_gather(grads, model[0].weight.grad)
                    assert torch.equal(*grads)
                    assert model[1].draw == 2
                # A batch in shards: one mask for all ranks.
                mask = Mask((8, 50), key=7)
                x = torch.arange(400.0).view(8, 50)
                part = dropfast.torch.apply(mask.window((4 * rank, 0), (4, 50)), x[4 * rank : 4 * rank + 4])
                parts = [torch.empty(4, 50) for _ in range(2)]
                dist.all_gather(parts, part)
                assert torch.equal(torch.cat(parts), dropfast.torch.apply(mask, x))
                dist.barrier()
                os._exit(0)  # what gloo does when it is taken down is not ours to wait for
            folder = sys.argv[1]
            context = mp.get_context("fork")
            ranks = [context.Process(target=main, args=(rank, folder)) for rank in range(2)]
            [rank.start() for rank in ranks]
            [rank.join(90) for rank in ranks]
            print([rank.exitcode for rank in ranks])
            [rank.kill() for rank in ranks if rank.exitcode is None]
        """),
        str(tmp_path),
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.endswith("[0, 0]\n"), done.stderr


def test_import_dropfast_does_not_import_torch() -> None:
    done = run_python("import sys, dropfast; print('torch' in sys.modules)")
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


# ---- the examples --------------------------------------------------------------------------------


def test_docstrings(backend: str) -> None:
    tests = doctest.DocTestFinder(exclude_empty=True).find(dropfast.torch, "dropfast.torch")
    assert {"dropfast.torch", *(f"dropfast.torch.{name}" for name in ("Dropout", "apply", "convert", "dropout"))} <= {
        test.name for test in tests if test.examples
    }
    for test in tests:
        run(test)


def test_page(backend: str) -> None:
    session = session_of(PAGE)
    assert session.examples
    run(session)
