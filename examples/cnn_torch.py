"""The CNN in PyTorch with three dropouts: dropfast for each sample, dropfast shared by the batch, and PyTorch's own.

python examples/cnn_torch.py
"""

from collections.abc import Callable

import cnn_common
import numpy as np
import torch
from cnn_common import BATCH, OWN, PER_SAMPLE, RATE, SHARED, UNITS
from torch import Tensor, nn

import dropfast.torch

DROPOUTS: dict[str, Callable[[], nn.Module]] = {
    PER_SAMPLE: lambda: dropfast.torch.Dropout(RATE),
    SHARED: lambda: dropfast.torch.Dropout(RATE, shared_axes=0),
    OWN: lambda: nn.Dropout(RATE),
}


class Network:
    """See `cnn_common.Network`."""

    def __init__(self, dropout: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.dropout = DROPOUTS[dropout]()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(5 * 5 * 64, UNITS),
            self.dropout,
            nn.Linear(UNITS, 10),
        )
        torch.manual_seed(seed)  # again: the same weights, whatever the layers drew for themselves
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.optimizer = torch.optim.Adam(self.layers.parameters(), lr=1e-3)

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        self.layers.train()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self._forward(images), torch.from_numpy(labels))
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        self.layers.eval()
        logits, targets = self._forward(images), torch.from_numpy(labels)
        accuracy = (logits.argmax(dim=1) == targets).double().mean()
        return nn.functional.cross_entropy(logits, targets).item(), accuracy.item()

    def dropout_alone(self) -> Callable[[], object]:
        self.layers.train()
        x, gradient = torch.randn(BATCH, UNITS, requires_grad=True), torch.ones(BATCH, UNITS)
        return lambda: torch.autograd.grad(self.dropout(x), x, gradient)

    def _forward(self, images: np.ndarray) -> Tensor:
        return self.layers(torch.from_numpy(images)[:, None])  # N, C, H, W


if __name__ == "__main__":
    cnn_common.main("PyTorch", "torch.nn.Dropout", "forward and backward", Network)
