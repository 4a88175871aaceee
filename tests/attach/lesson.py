"""What the processes of the distributed tests learn: a small model, the same rows for all of them, and a loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

STEPS, ROWS = 12, 32
MODULES = ("one", "two", "three")


class Net(nn.Module):
    """Three linear modules to adapt, and a head to train."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(width, width) for _ in MODULES)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """All of them."""
        y: Tensor = self.head(self.three(torch.tanh(self.two(torch.tanh(self.one(x))))))
        return y


def rows(width: int) -> Iterator[Tensor]:
    """The same batches in every process."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield torch.randn(ROWS, width, generator=generator)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Something to learn."""
    return (model(x) - x[:, :2].flip(1)).square().mean()
