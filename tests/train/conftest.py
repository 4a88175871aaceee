"""A small adapted model that Trainer trains in a moment."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import TrainingArguments

from paring.attach.config import ParingConfig
from paring.methods.sora import SoRA

WIDTH = 6


class Net(nn.Module):
    """Two linear modules to adapt, a norm and a head to train."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.out(self.norm(self.second(torch.tanh(self.first(x))))).squeeze(-1)
        return {"loss": (y - labels).square().mean() if labels is not None else y.mean(), "logits": y}


@pytest.fixture(scope="session", autouse=True)
def _frozen() -> None:
    # Every Trainer collects garbage before it starts; what was imported is not garbage, and looking at it takes most of a test's time.
    gc.collect()
    gc.freeze()


@pytest.fixture
def adapted() -> Callable[..., Any]:
    """Make an adapted model: ``adapted(method)``."""

    def make(method: Any = None, **config: Any) -> Any:
        torch.manual_seed(0)
        settings = {"target_modules": ["first", "second"], "modules_to_save": ["out", "norm"], "seed": 0, **config}
        return get_peft_model(Net(), ParingConfig(method=method or SoRA(rank=4), **settings))

    return make


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """Training arguments for a quiet run of a few steps on the CPU."""

    def make(**settings: Any) -> TrainingArguments:
        defaults = {
            "output_dir": str(tmp_path / "out"), "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
            "report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "seed": 0,
        }  # fmt: skip
        return TrainingArguments(**{**defaults, **settings})

    return make


@pytest.fixture
def data() -> list[dict[str, Tensor]]:
    """Thirty-two examples."""
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(WIDTH, generator=generator), "labels": torch.randn((), generator=generator)} for _ in range(32)]
