"""Layers are PyTorch's modules with another dropout inside; `convert` and `revert` exchange them in a model."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cases import Shape
from tensors import next_mask
from torch import nn

import dropfast.torch

CHANNELS: list[tuple[str, Shape, tuple[int, ...]]] = [
    ("Dropout1d", (8, 6, 5), (2,)),
    ("Dropout1d", (6, 5), (1,)),
    ("Dropout2d", (8, 6, 5, 4), (2, 3)),
    ("Dropout3d", (8, 6, 5, 4, 3), (2, 3, 4)),
    ("Dropout3d", (6, 5, 4, 3), (1, 2, 3)),
]
LAYERS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d")


@pytest.mark.parametrize(("name", "shape", "shared_axes"), CHANNELS, ids=[f"{c[0]}-{len(c[1])}d" for c in CHANNELS])
def test_channels_are_dropped_as_torch_does(name: str, shape: Shape, shared_axes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mask = next_mask(shape, shared_axes=shared_axes)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(getattr(dropfast.torch, name)(0.5)(x), dropfast.torch.apply(mask, x))
    theirs = getattr(nn, name)(0.5)(torch.ones(shape))
    rows = theirs.flatten(-len(shared_axes))
    assert bool((rows == rows[..., :1]).all())  # shared where ours is ...
    assert len(rows[..., 0].unique()) == 2  # ... and not elsewhere


@pytest.mark.parametrize(("name", "shape", "shared_axes"), CHANNELS[::2], ids=[c[0] for c in CHANNELS[::2]])
def test_channels_may_be_those_of_a_batch(name: str, shape: Shape, shared_axes: tuple[int, ...]) -> None:
    layer = getattr(dropfast.torch, name)(0.5, shared_axes=0)
    assert repr(layer) == f"{name}(p=0.5, inplace=False, shared_axes=(0,))"
    x = torch.randn(shape)
    mask = next_mask(shape, shared_axes=(0, *shared_axes))
    assert torch.equal(layer(x), dropfast.torch.apply(mask, x))
    assert layer(x.to("meta")).shape == shape
    with pytest.raises(TypeError, match="knows no shared_axes"):
        layer.__prepare_scriptable__()


UNUSUAL: list[tuple[str, Shape]] = [
    *[("Dropout1d", shape) for shape in ((5,), (2, 3, 4, 5))],
    *[("Dropout2d", shape) for shape in ((5,), (4, 5), (3, 4, 5), (2, 3, 4, 5, 6))],
    *[("Dropout3d", shape) for shape in ((3, 4, 5), (2, 3, 2, 3, 2, 3))],
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("name", "shape"), UNUSUAL, ids=[f"{name}-{len(shape)}d" for name, shape in UNUSUAL])
def test_unusual_inputs_get_torchs_words(name: str, shape: Shape, device: str) -> None:
    def said(layer: nn.Module) -> tuple[list[str], str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                y = layer(torch.ones(shape, device=device))
                last = str(tuple(y.shape))
            except RuntimeError as error:
                last = str(error)
        return [str(warning.message) for warning in caught], last

    ours, theirs = said(getattr(dropfast.torch, name)()), said(getattr(nn, name)())
    assert ours == theirs
    assert ours[0] or "Expected" in ours[1]


def test_layers_are_torchs_modules() -> None:
    for name in LAYERS:
        ours, theirs = getattr(dropfast.torch, name)(0.3, True), getattr(nn, name)(0.3, True)
        assert isinstance(ours, type(theirs))
        assert repr(ours) == repr(theirs)
        assert ours.state_dict() == theirs.state_dict() == {}
    assert repr(dropfast.torch.Dropout(0.25, shared_axes=0)) == "Dropout(p=0.25, inplace=False, shared_axes=(0,))"
    assert repr(dropfast.torch.Dropout(noise_shape=(1, None))) == "Dropout(p=0.5, inplace=False, noise_shape=(1, None))"


def test_p_may_be_changed() -> None:
    layer = dropfast.torch.Dropout(0.5)
    layer.p = 1.0
    assert torch.equal(layer(torch.ones(9)), torch.zeros(9))
    layer.p = 1.5
    with pytest.raises(ValueError, match=re.escape("dropout probability has to be between 0 and 1, but got 1.5")):
        layer(torch.ones(9))


# ---- convert and revert --------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.2), nn.Flatten())
        self.head = nn.ModuleDict({"drop": nn.Dropout(0.4), "one": nn.Dropout1d(), "three": nn.Dropout3d()})
        self.shared = self.head["drop"]
        self.off = nn.Dropout(0.0)


def test_convert_turns_all_and_says_which() -> None:
    model = Model()
    model.head["one"].eval()
    seen: list[int] = []
    model.shared.register_forward_hook(lambda *_: seen.append(1))
    turned = ["features.1", "head.drop", "head.one", "head.three", "shared"]
    assert dropfast.torch.convert(model) == turned
    assert type(model.features[1]) is dropfast.torch.Dropout2d
    assert type(model.head["one"]) is dropfast.torch.Dropout1d
    assert type(model.head["three"]) is dropfast.torch.Dropout3d
    assert type(model.head["drop"]) is dropfast.torch.Dropout
    assert model.head["drop"] is model.shared
    assert type(model.off) is nn.Dropout
    assert (model.features[1].p, model.shared.p) == (0.2, 0.4)
    assert not model.head["one"].training
    x = torch.ones(4)
    mask = next_mask((4,), 0.4)
    assert torch.equal(model.shared(x), dropfast.torch.apply(mask, x))
    assert seen == [1]
    assert dropfast.torch.convert(model) == []


def test_revert_undoes_convert() -> None:
    model = Model()
    before = [(name, type(module), dict(module.__dict__)) for name, module in model.named_modules()]
    turned = dropfast.torch.convert(model)
    assert dropfast.torch.revert(model) == turned
    assert [(name, type(module), dict(module.__dict__)) for name, module in model.named_modules()] == before
    assert dropfast.torch.revert(model) == []
    layer: Any = dropfast.torch.Dropout(0.3, shared_axes=0, generator=torch.Generator())
    assert dropfast.torch.revert(layer) == [""]
    assert layer.__dict__.keys() == nn.Dropout(0.3).__dict__.keys()


class Own(nn.Dropout):
    """Somebody's own."""


def test_convert_says_what_it_leaves(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 3, num_layers=2, dropout=0.5),
            "calm": nn.LSTM(3, 3),
            "attention": nn.MultiheadAttention(4, 2, dropout=0.1),
            "alpha": nn.AlphaDropout(),
            "own": Own(0.2),
            "off": nn.Dropout(0),
            "drop": nn.Dropout(0.1),
        }
    )
    assert dropfast.torch.convert(model) == ["drop"]
    (record,) = caplog.records
    assert record.name == "dropfast.torch"
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "convert leaves lstm (LSTM, dropout=0.5), attention (MultiheadAttention, dropout=0.1), "
        "alpha (AlphaDropout, p=0.5), own (Own, p=0.2) as it is; dropfast.torch.enable() reaches every dropout"
    )
    caplog.clear()
    dropfast.torch.convert(Model())
    assert not caplog.records


def test_convert_of_a_layer_alone() -> None:
    layer = nn.Dropout(0.1)
    assert dropfast.torch.convert(layer) == [""]
    assert type(layer) is dropfast.torch.Dropout


def test_convert_reaches_all_modules_of_a_transformer() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
    )
    names = dropfast.torch.convert(model)
    assert names == [f"layers.{i}.{name}" for i in (0, 1) for name in ("dropout", "dropout1", "dropout2")]
    model(torch.randn(2, 5, 16)).sum().backward()


# ---- errors --------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit() -> None:
    x = torch.ones(2, 3)
    message = "^" + re.escape("shared_axes must be in [-2, 2) for 2 axes, got 2") + "$"
    for call in (dropfast.torch.Dropout(shared_axes=2), lambda x: dropfast.torch.dropout(x, shared_axes=2)):
        state = torch.get_rng_state()
        with pytest.raises(ValueError, match=message):
            call(x)
        assert torch.equal(torch.get_rng_state(), state)
    both = re.escape("give shared_axes or noise_shape, not both; got (0,) and (1, None)")
    with pytest.raises(ValueError, match=both):
        dropfast.torch.Dropout(shared_axes=0, noise_shape=(1, None))
    with pytest.raises(ValueError, match="noise_shape must have one entry an axis"):
        dropfast.torch.Dropout(noise_shape=(1, 4))(x)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan"), float("inf")])
def test_bad_p_has_torchs_words(p: float) -> None:
    message = "^" + re.escape(f"dropout probability has to be between 0 and 1, but got {p}") + "$"
    for call in (lambda: dropfast.torch.dropout(torch.ones(3), p), lambda: dropfast.torch.Dropout(p)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("p", [True, False])
def test_a_boolean_is_no_probability(p: bool) -> None:
    """dropout(x, True), where training was meant, would zero all."""
    for call in (lambda: dropfast.torch.dropout(torch.ones(3), p), lambda: dropfast.torch.Dropout(p)):
        with pytest.raises(TypeError, match=f"^dropout probability has to be a number, but got {p}$"):
            call()


@pytest.mark.parametrize("bad", [False, np.True_, torch.tensor(True), (True,)], ids=repr)
def test_a_boolean_is_no_axis(bad: Any) -> None:
    message = re.escape(f"shared_axes must be an integer or a sequence of integers, got {bad!r}")
    for call in (lambda **to: dropfast.torch.dropout(torch.ones(3), **to), dropfast.torch.Dropout):
        with pytest.raises(TypeError, match=message):
            call(shared_axes=bad)
    message = re.escape(f"noise_shape must be a sequence of integers and None, got {(bad, None)}")
    for call in (lambda **to: dropfast.torch.dropout(torch.ones(3, 2), **to), dropfast.torch.Dropout):
        with pytest.raises(TypeError, match=message):
            call(noise_shape=(bad, None))


@pytest.mark.parametrize("noise", [(20, -1, 10), (20, 0, 10)], ids=str)
def test_what_fits_no_tensor(noise: tuple[int, ...]) -> None:
    message = re.escape(f"noise_shape must have entries in [1, 2**63) or None in a layer, got {noise}")
    with pytest.raises(ValueError, match=message):
        dropfast.torch.Dropout(noise_shape=noise)


@pytest.mark.parametrize("p", ["0.5", None, [0.5]])
def test_p_that_is_no_number(p: Any) -> None:
    for call in (lambda: dropfast.torch.dropout(torch.ones(3), p), lambda: dropfast.torch.Dropout(p)):
        with pytest.raises(TypeError, match=r"^p must be a real number, or a tensor or an array scalar of one, got "):
            call()
