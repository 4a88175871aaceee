"""A small model in float64, where an equation holds to many digits, and a few steps on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import paring
from paring import train
from paring.attach.find import slots
from paring.method import Method

WIDTHS = {"first": (10, 8), "second": (8, 12)}
"""(in, out) of the modules that are adapted."""


class Net(nn.Module):
    """Two linear modules to adapt, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(*WIDTHS["first"])
        self.second = nn.Linear(*WIDTHS["second"])
        self.head = nn.Linear(12, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The prediction, and its squared error."""
        y = self.head(torch.tanh(self.second(torch.tanh(self.first(x))))).squeeze(-1)
        return {"logits": y} | ({} if labels is None else {"loss": (y - labels).square().mean()})


def net() -> Net:
    """The same model each time, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double().eval()


def batch(number: int = 0, rows: int = 16) -> dict[str, Tensor]:
    """One batch of a task that can be learned."""
    generator = torch.Generator().manual_seed(100 + number)
    x = torch.randn(rows, 10, generator=generator, dtype=torch.float64)
    return {"x": x, "labels": torch.sin(x[:, 0]) + x[:, 1] * x[:, 2]}


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    """Several."""
    return [batch(number) for number in range(count)]


def adapted(method: Method, *, seed: int = 1, calibrated: bool = True, base: Net | None = None) -> PeftModel:
    """The model with an adapter on both modules, calibrated where need be, in training mode."""
    model = paring.adapt(base or net(), method, target_modules=list(WIDTHS), seed=seed)
    if calibrated and any(slot.wants_calibration for slot in slots(model).values()):
        paring.calibrate(model, batches())
    return model.train()


def full_gradients(count: int = 3) -> dict[str, Tensor]:
    """The mean gradient of each module's weight over :func:`batches`, by autograd."""
    model = net()
    (sum(model(**one)["loss"] for one in batches(count)) / count).backward()
    return {path: weight.grad for path in WIDTHS if (weight := model.get_submodule(path).weight).grad is not None}


def steps(
    model: PeftModel, count: int, *, lr: float = 1e-2, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, start: int = 0
) -> Iterator[tuple[int, float]]:
    """Train, and give the number and the loss of each step after it."""
    made = train.create_optimizer(model, optimizer, lr=lr)
    for step in range(start, count):
        loss = model(**batch(step))["loss"]
        loss.backward()
        made.step()
        made.zero_grad()
        yield step, float(loss.detach())


def run(model: PeftModel, count: int, **settings: Any) -> list[float]:
    """Train to the end; the losses."""
    return [loss for _, loss in steps(model, count, **settings)]


def delta(model: nn.Module, path: str) -> Tensor:
    """The dense update of a module, float64."""
    return slots(model)[path].delta().materialise(torch.float64)


def kept(method: Method | PeftConfig) -> int:
    """Entries that one module of 64 to 48 keeps for the backward of 100 rows, parameters aside."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(64, 48))
    if isinstance(method, Method):
        model: nn.Module = paring.adapt(base, method, target_modules=["0"], seed=0).train()
    else:
        model = get_peft_model(base, method)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided and tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    x = torch.randn(100, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    y.sum().backward()
    return sum(sizes.values())
