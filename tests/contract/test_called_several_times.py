"""A module that is called several times in one forward is one module: one mark, one proximal step, gradients that add up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paring
from paring import train
from paring.attach.find import layers, slots
from paring.attach.layer import ParingLinear
from tests.contract.cases import Case, gated_slots, roughen


class Recurrent(nn.Module):
    """One linear module, applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Three rounds."""
        for _ in range(3):
            x = torch.tanh(self.fc(x))
        return x


def _calls(model: nn.Module) -> dict[str, int]:
    counts: dict[str, int] = {}

    def count(module: nn.Module, args: object) -> None:
        assert isinstance(module, ParingLinear)
        counts[module.shape.path] = counts.get(module.shape.path, 0) + 1

    for layer in layers(model).values():
        layer.register_forward_pre_hook(count)
    return counts


def test_a_shared_module_is_adapted_once(shared: Case) -> None:
    model = shared.roughened()
    counts = _calls(model)
    with torch.no_grad():
        model(**shared.kind.inputs())
    assert sum(times == 4 for times in counts.values()) == 6
    assert len(paring.ranks(model)) == len(counts) == len(list(layers(model)))


def test_a_shared_module_gets_one_proximal_step(shared: Case) -> None:
    model = shared.roughened()
    gates = gated_slots(model)
    with torch.no_grad():
        for slot in gates.values():
            slot.A[0], slot.B[:, 0], slot.gate[0] = 0.0, 0.0, 0.5
    optimizer = train.create_optimizer(model, lr=1e-2)
    rate = next(group["lr"] for group in optimizer.param_groups if group["role"] == "gate")
    model.train()
    expected = torch.tensor(0.5)
    for step in range(2):
        model(**shared.kind.batch(rows=2, seed=step)).loss.backward()
        some = next(iter(gates.values()))
        expected = some.update.apply(expected, some.update.threshold(rate, some.penalty))
        optimizer.step()
        optimizer.zero_grad()
        assert {int(slot.steps) for slot in gates.values()} == {step + 1}
        assert all(slot.gate[0] == expected for slot in gates.values())


def test_gradients_of_several_calls_add_up(plain: Case) -> None:
    torch.manual_seed(0)
    base = Recurrent()
    weight, bias = base.fc.weight.detach().clone(), base.fc.bias.detach().clone()
    model = paring.adapt(base, plain.method, target_modules=["fc"], seed=1)
    roughen(model, torch.Generator().manual_seed(1))
    model.eval()
    slot = slots(model)["fc"]
    names = [name for name, parameter, _ in slot.roles() if parameter.requires_grad]
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad(model(x).square().sum(), [slot.get_parameter(name) for name in names])
    # The same by hand: three copies of the dense weight, each with a gradient of its own; their sum goes back through the update.
    delta = slot(torch.zeros(12, 12), torch.eye(12)).T
    copies = [(weight + delta.detach()).requires_grad_() for _ in range(3)]
    y = x
    for one in copies:
        y = torch.tanh(F.linear(y, one, bias))
    parts = torch.autograd.grad(y.square().sum(), copies)
    assert all(part.abs().max() > 1e-3 for part in parts)
    expected = torch.autograd.grad(delta, [slot.get_parameter(name) for name in names], torch.stack(parts).sum(0))
    for name, got, wanted in zip(names, ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
