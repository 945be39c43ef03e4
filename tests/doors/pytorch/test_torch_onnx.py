"""Both exporters to ONNX: dropout is ONNX's own there, and nothing in evaluation, as with PyTorch's modules."""

import io
import logging
from collections.abc import Callable
from contextlib import nullcontext

import onnx
import onnxruntime
import pytest
import torch
from tensors import IGNORE_THEIR_WARNINGS
from torch import nn

import dropfast.torch

pytestmark = [*IGNORE_THEIR_WARNINGS, pytest.mark.filterwarnings("ignore")]  # of exporters there are too many
logging.getLogger("torch.onnx").setLevel(logging.ERROR)


class Function(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropfast.torch.dropout(x, 0.5, self.training)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "enable": nn.Dropout,
    "layer": dropfast.torch.Dropout,
    "function": Function,
}
X = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))


def export(model: nn.Module, training: bool, exporter: str) -> bytes:
    if exporter == "dynamo":
        program = torch.onnx.export(model, (X,), dynamo=True, verbose=False)
        return bytes(program.model_proto.SerializeToString())
    file, modes = io.BytesIO(), torch.onnx.TrainingMode
    torch.onnx.export(model, (X,), file, dynamo=False, training=modes.TRAINING if training else modes.EVAL)
    return file.getvalue()


@pytest.mark.parametrize("exporter", ["dynamo", "script"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("module", MODULES)
def test_onnx(module: str, training: bool, exporter: str) -> None:
    model = nn.Sequential(nn.Linear(50, 50), MODULES[module](), nn.Tanh()).train(training)
    with dropfast.torch.enable() if module == "enable" else nullcontext():
        exported = export(model, training, exporter)
    graph = onnx.load_from_string(exported).graph
    assert [node.op_type for node in graph.node].count("Dropout") == training
    assert {node.domain for node in graph.node} == {""}
    if not training:
        session = onnxruntime.InferenceSession(exported)
        (y,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(X))


@pytest.mark.parametrize("exporter", ["dynamo", "script"])
def test_shared_axes_are_refused_in_training_alone(exporter: str) -> None:
    layer = dropfast.torch.Dropout(shared_axes=0)
    # The newer one tries it another way then, and fails at dropfast's operators.
    words = "axes cannot be shared in what is exported to ONNX" if exporter == "script" else "Failed to convert the"
    with pytest.raises(Exception, match=words):
        export(layer, True, exporter)
    export(nn.Sequential(layer, nn.Tanh()).eval(), False, exporter)
