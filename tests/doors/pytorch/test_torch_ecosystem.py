"""What others build on PyTorch: feature extractors, adapters, files and trainers take these masks as PyTorch's own."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import any_torchvision  # noqa: F401
import peft
import pytest
import pytorch_lightning as lightning
import torch
import transformers
from safetensors.torch import load_model, save_model
from tensors import next_mask
from torch import nn
from torch.distributed.pipelining import SplitPoint, pipeline
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.feature_extraction import create_feature_extractor

import dropfast.torch

pytestmark = pytest.mark.filterwarnings("ignore")  # of others there are too many

X = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
Y = torch.randint(4, (16,), generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    def __init__(self, dropout: Callable[[float], nn.Module] = nn.Dropout) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(12, 32), dropout(0.25), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.drop(self.first(x).relu()))
        return y


@pytest.fixture(params=["convert", "enable"])
def ours(request: pytest.FixtureRequest) -> Iterator[Callable[[nn.Module], Any]]:
    """What turns a model's dropout into dropfast's: a call, or all that is done in the test."""
    if request.param == "convert":
        yield lambda model: model if dropfast.torch.convert(model) else pytest.fail("nothing was converted")
    else:
        with dropfast.torch.enable():
            yield lambda model: model


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train(model: nn.Module, steps: int = 3) -> torch.Tensor:
    """Return the parameters after some steps, each with its own masks."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return parameters(model)


# ---- graphs --------------------------------------------------------------------------------------


def test_feature_extractors_have_a_layer_as_a_leaf(ours: Callable[[nn.Module], Any]) -> None:
    model = ours(Network())
    extractor = create_feature_extractor(model, return_nodes=["relu", "drop", "last"])
    mask = next_mask((16, 32), 0.25)
    found = extractor.train()(X)
    assert torch.equal(found["drop"], dropfast.torch.apply(mask, found["relu"]))
    assert not torch.equal(extractor(X)["drop"], found["drop"])
    found = extractor.eval()(X)
    assert torch.equal(found["drop"], found["relu"])
    assert torch.equal(found["last"], model.eval()(X))


def test_pipelines_have_the_masks_of_the_whole(ours: Callable[[nn.Module], Any]) -> None:
    model = ours(Network())
    stages = pipeline(model, mb_args=(X,), split_spec={"last": SplitPoint.BEGINNING})
    torch.manual_seed(2)
    y = stages.get_stage_module(1)(stages.get_stage_module(0)(X))
    torch.manual_seed(2)
    torch.testing.assert_close(y, model(X))


# ---- files, averages, adapters -------------------------------------------------------------------


def test_safetensors_go_both_ways(tmp_path: Path) -> None:
    ours, theirs, file = Network(dropfast.torch.Dropout), Network(), tmp_path / "model.safetensors"
    for one, other in ((ours, theirs), (theirs, ours)):
        train(one)
        assert not torch.equal(parameters(one), parameters(other))
        save_model(one, str(file))
        assert load_model(other, file, strict=True) == (set(), [])
        assert torch.equal(parameters(one), parameters(other))


def test_moving_averages(ours: Callable[[nn.Module], Any]) -> None:
    model = ours(Network())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(model)
    before = parameters(model)
    after = train(model)
    average.update_parameters(model)
    torch.testing.assert_close(parameters(average), 0.9 * before + 0.1 * after)
    mask = next_mask((16, 32), 0.25)
    y = average.module.last(dropfast.torch.apply(mask, average.module.first(X).relu()))
    assert torch.equal(average(X), y)


def test_lora(ours: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    base = Network()
    config = peft.LoraConfig(target_modules=["first", "last"], lora_dropout=0.5, init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    assert "base_model.model.first.lora_dropout.default" in dropfast.torch.convert(copy.deepcopy(model))
    model = ours(model)
    x = X.requires_grad_(False)
    mask, linear = next_mask((16, 12), 0.5), model.base_model.model.first
    low = linear.lora_B["default"](linear.lora_A["default"](dropfast.torch.apply(mask, x)))
    torch.testing.assert_close(linear(x), linear.base_layer(x) + low * linear.scaling["default"])
    before = parameters(model)
    assert not torch.equal(train(model), before)
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    assert torch.equal(again(x), model(x))
    torch.testing.assert_close(model.merge_and_unload()(x), again(x))


# ---- trainers ------------------------------------------------------------------------------------


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def on_train_batch_start(self, *_: Any) -> None:
        torch.manual_seed(self.global_step)  # Lightning's checkpoints have no random states

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def test_lightning_resumes(ours: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    def fit(epochs: int, resume: Path | None = None, saved: Path | None = None) -> torch.Tensor:
        lightning.seed_everything(5, verbose=False)
        module = Module(ours(Network()))
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(TensorDataset(X, Y), 4), ckpt_path=resume)
        if saved is not None:
            trainer.save_checkpoint(saved)
        return parameters(module)

    file = tmp_path / "half.ckpt"
    half, whole = fit(2, saved=file), fit(4)
    assert torch.equal(fit(4), whole)
    assert torch.equal(fit(4, resume=file), whole)
    assert not torch.equal(half, whole)


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, num_labels=4, max_position_embeddings=8, **sizes)
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def test_transformers_trainer_resumes(ours: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    rows = [{"input_ids": torch.randint(20, (8,)), "labels": label} for label in Y]

    def fit(seed: int, resume: str | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        model = ours(bert())
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=6,
            per_device_train_batch_size=4,
            save_steps=3,
            seed=seed,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        transformers.Trainer(model, arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        return parameters(model)

    whole = fit(1)
    assert torch.equal(fit(1), whole)
    assert torch.equal(fit(1, str(tmp_path / "checkpoint-3")), whole)
    assert not torch.equal(fit(2), whole)
