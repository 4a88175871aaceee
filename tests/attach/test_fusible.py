"""Which path a layer takes: one function where nothing can tell, base and slot called where something can. Gradients are equal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

import paring
from paring.attach import layer as layers
from paring.attach.layer import ParingLinear
from paring.kernels import adapted
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.parts.parameterise.gated import Gated


class Net(nn.Module):
    """One linear module."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.fc = linear

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        return self.fc(x)


class Own(nn.Linear):
    """A subclass may do anything in its forward."""


class Identity(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is."""
        return weight


def net(linear: nn.Module | None = None, **settings: Any) -> tuple[nn.Module, ParingLinear]:
    torch.manual_seed(0)
    model = paring.adapt(
        Net(nn.Linear(6, 5) if linear is None else linear), SoRA(rank=2, alpha=4, **settings), target_modules=["fc"], seed=0
    )
    found = next(module for module in model.modules() if isinstance(module, ParingLinear))
    slot = found.slot("default")
    assert isinstance(slot, Gated)
    slot.B.data.normal_(generator=torch.Generator().manual_seed(1))
    return model.train(), found


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradients of what is trained."""
    given = x.clone().requires_grad_(True)
    y = model(given)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [given, *wanted])]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each use of the function that fuses."""
    noted: list[str] = []
    apply = adapted._Adapted.apply

    def counted(*args: Any) -> Any:
        noted.append("fused")
        return apply(*args)

    monkeypatch.setattr(adapted._Adapted, "apply", counted)
    return noted


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 6, generator=generator)


def plain(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor) -> list[Tensor]:
    """The same with base and slot called."""
    with monkeypatch.context() as patch:
        patch.setattr(layers, "fusible", lambda *_: False)
        return gradients(model, x)


def conv1d() -> Conv1D:
    return Conv1D(5, 6)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Linear(6, 5, bias=False), conv1d])
def test_a_plain_frozen_linear_is_fused(
    make: Callable[[], nn.Module], calls: list[str], x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, _ = net(make())
    got = gradients(model, x)
    assert calls == ["fused"]
    torch.testing.assert_close(got, plain(monkeypatch, model, x))
    assert calls == ["fused"]


def test_no_gradient_for_the_base_is_asked_for(calls: list[str], x: Tensor) -> None:
    model, layer = net()
    model(x).sum().backward()
    assert calls
    assert all(parameter.grad is None for parameter in layer.base_layer.parameters())


def hooked(model: nn.Module, layer: ParingLinear) -> None:
    layer.base_layer.register_forward_hook(lambda module, args, output: output)


def hooked_before(model: nn.Module, layer: ParingLinear) -> None:
    layer.base_layer.register_forward_pre_hook(lambda module, args: None)


def hooked_backward(model: nn.Module, layer: ParingLinear) -> None:
    layer.base_layer.register_full_backward_hook(lambda module, before, after: None)


def hooked_slot(model: nn.Module, layer: ParingLinear) -> None:
    layer.paring_slot["default"].register_forward_hook(lambda module, args, output: output)


def hooked_by_accelerate(model: nn.Module, layer: ParingLinear) -> None:
    add_hook_to_module(layer.base_layer, ModelHook())


def parametrised(model: nn.Module, layer: ParingLinear) -> None:
    parametrize.register_parametrization(layer.base_layer, "weight", Identity())
    layer.base_layer.requires_grad_(False)


def trained_base(model: nn.Module, layer: ParingLinear) -> None:
    layer.base_layer.requires_grad_(True)


def trained_bias(model: nn.Module, layer: ParingLinear) -> None:
    layer.base_layer.get_parameter("bias").requires_grad_(True)


def other_type(model: nn.Module, layer: ParingLinear) -> None:
    # As bfloat16 base weights with float32 factors are, without autocast; float64 keeps the comparison exact.
    layer.base_layer.double()


EXCLUDED = [
    hooked,
    hooked_before,
    hooked_backward,
    hooked_slot,
    hooked_by_accelerate,
    parametrised,
    trained_base,
    trained_bias,
]


@pytest.mark.parametrize("change", EXCLUDED)
def test_what_something_could_tell_is_called(
    change: Callable[..., None], calls: list[str], x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer = net()
    wanted = gradients(model, x)
    assert calls == ["fused"]
    change(model, layer)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "paring_" in name}
    got = gradients(model, x)
    assert calls == ["fused"]
    kept = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ours = [got[0], got[1], *(value for name, value in zip(kept, got[2:], strict=True) if name in names)]
    torch.testing.assert_close(ours, wanted)


def test_a_subclass_is_called(calls: list[str], x: Tensor) -> None:
    torch.manual_seed(0)
    got = gradients(net(Own(6, 5))[0], x)
    assert calls == []
    torch.manual_seed(0)
    torch.testing.assert_close(got, gradients(net(nn.Linear(6, 5))[0], x))
    assert calls == ["fused"]


def test_another_type_is_called(calls: list[str], x: Tensor) -> None:
    model, layer = net()
    other_type(model, layer)
    assert model(x.double()).dtype == torch.float64
    assert calls == []


def test_dropout_on_the_update_is_fused_in_training(calls: list[str], x: Tensor) -> None:
    model, _ = net(dropout=0.5)
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(2)
    assert not torch.equal(model(x), first)
    model.eval()
    assert torch.equal(model(x), model(x))
    assert calls == ["fused"] * 4


def test_a_global_hook_sees_the_base(calls: list[str], x: Tensor) -> None:
    model, layer = net()
    seen: list[nn.Module] = []
    handle = register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        model(x)
    finally:
        handle.remove()
    assert layer.base_layer in seen
    assert calls == []


def test_under_a_function_transform_both_are_called(calls: list[str], x: Tensor) -> None:
    model, _ = net()
    state = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (row,)).square().sum()

    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, x)
    assert calls == []
    name = next(name for name in state if name.endswith("gate"))
    wanted = torch.stack([torch.func.grad(loss)(state, row)[name] for row in x])
    torch.testing.assert_close(rows[name], wanted)


def test_two_active_adapters_are_called(calls: list[str], x: Tensor) -> None:
    model, _ = net()
    model.add_adapter("second", paring.ParingConfig(method=LoRA(rank=1, alpha=1), target_modules=["fc"], seed=1))
    model.base_model.set_adapter(["default", "second"])
    model(x)
    assert calls == []


def test_merged_and_disabled_layers_are_the_base_alone(calls: list[str], x: Tensor) -> None:
    model, layer = net()
    with model.disable_adapter():
        assert torch.equal(model(x), layer.base_layer(x))
    model.merge_adapter()
    assert torch.equal(model(x), layer.base_layer(x))
    assert calls == []


@pytest.mark.slow
def test_a_compiled_model_is_traced_whole() -> None:
    """In a process of its own: the annotations that are checked in tests do not compile."""
    code = """
import torch, paring
from torch import nn
from paring.methods.sora import SoRA
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)
    def forward(self, x):
        return self.fc(x)
torch.manual_seed(0)
model = paring.adapt(Net(), SoRA(rank=2, alpha=4), target_modules=["fc"], seed=0)
for name, p in model.named_parameters():
    if name.endswith("B"):
        torch.nn.init.normal_(p)
model.train()
x = torch.randn(3, 6)
model(x).square().sum().backward()
wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
model.zero_grad()
torch.compile(model, fullgraph=True)(x).square().sum().backward()
print(all(torch.allclose(p.grad, wanted[n], rtol=1e-5) for n, p in model.named_parameters() if p.grad is not None))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"], done.stderr[-2000:]
