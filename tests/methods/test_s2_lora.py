"""S2-LoRA: factors that all modules of a shape share, and a sparse vector for each module."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

import paring
from paring.api import fuse
from paring.attach.find import slots
from paring.core.errors import SettingError, TargetError
from paring.methods.s2_lora import S2LoRA
from paring.parts.parameterise.shared import Shared
from paring.parts.update.revive import Always
from paring.train import create_optimizer
from tests.warm import Warm

RANK = 4
METHOD = S2LoRA(rank=RANK, alpha=6.0, revive=Always())
SQUARE, WIDE = ("one", "two", "three"), ("up", "last")
"""Modules of 6 x 6, and of 6 x 9."""
FACTORS = ("A", "B")


class Net(nn.Module):
    """Three modules of one shape, two of another, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(6, 6) for _ in range(3))
        self.up, self.last = nn.Linear(6, 9), nn.Linear(6, 9)
        self.head = nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All of them."""
        x = torch.tanh(self.three(torch.tanh(self.two(torch.tanh(self.one(x))))))
        y: Tensor = self.head(torch.tanh(self.up(x)) + torch.tanh(self.last(x))).squeeze(-1)
        return y


def net() -> Net:
    """The same each time, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double().eval()


def adapted(*, seed: int = 1, rough: bool = True, method: S2LoRA = METHOD) -> PeftModel:
    model = paring.adapt(net(), method, target_modules=[*SQUARE, *WIDE], seed=seed)
    if rough:
        roughen(model)
    return model


@torch.no_grad()
def roughen(model: PeftModel, adapter: str = "default", number: int = 0) -> None:
    """Factors and vectors as training might leave them, one module with a rank less, one with none."""
    generator = torch.Generator().manual_seed(number)
    for path, slot in shared(model, adapter).items():
        for parameter in slot.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        if path == "two":
            slot.gate[1] = 0.0
        if path == "last":
            slot.gate.zero_()


def shared(model: PeftModel, adapter: str = "default") -> dict[str, Shared]:
    return {path: slot for path, slot in slots(model, adapter).items() if isinstance(slot, Shared)}


def inputs(number: int = 0) -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(100 + number), dtype=torch.float64)


def loss(model: nn.Module, number: int = 0) -> Tensor:
    x = inputs(number)
    y: Tensor = model(x)
    return (y - torch.sin(3 * x[:, 0])).square().mean()


def train(model: PeftModel, start: int, stop: int, optimizer: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
    optimizer = optimizer or create_optimizer(model, lr=1e-2)
    model.train()
    for step in range(start, stop):
        loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def delta(slot: Shared) -> Tensor:
    return slot.factors().materialise(torch.float64)


def still_shared(model: PeftModel, adapter: str = "default") -> None:
    """Each group has one A and one B, and no others are parameters of the model."""
    found = shared(model, adapter)
    assert found.keys() == {*SQUARE, *WIDE}
    for name in FACTORS:
        ids = [{id(getattr(found[path], name)) for path in paths} for paths in (SQUARE, WIDE)]
        assert [len(one) for one in ids] == [1, 1]
        assert ids[0] != ids[1]
        assert sum(key.endswith(f".{adapter}.{name}") for key, _ in model.named_parameters(remove_duplicate=False)) == 2


def test_formula() -> None:
    for path, slot in shared(adapted(rough=False)).items():
        assert not delta(slot).any(), path
        assert (slot.gate != 0).all()
        assert len({value for other in shared(adapted(rough=False)).values() for value in other.gate.tolist()}) == RANK * 5
    model = adapted()
    for paths in (SQUARE, WIDE):
        holder = shared(model)[paths[0]]
        a, b = holder.A.detach().double(), holder.B.detach().double()
        for path in paths:
            wanted = 6.0 / RANK * b @ torch.diag(shared(model)[path].gate.detach().double()) @ a
            torch.testing.assert_close(delta(shared(model)[path]), wanted, rtol=1e-6, atol=1e-9)
            module, x = net().get_submodule(path), inputs()
            got = model.base_model.model.get_submodule(path)(x)
            torch.testing.assert_close(got, x @ (module.weight + wanted).T + module.bias, rtol=1e-6, atol=1e-9)


def dense_gradients(model: PeftModel) -> dict[str, Tensor]:
    """The gradient of each module's weight where the updates are merged into the base."""
    plain = net()
    for path, slot in shared(model).items():
        plain.get_submodule(path).weight.data += delta(slot)
    loss(plain).backward()
    return {path: weight.grad for path in shared(model) if (weight := plain.get_submodule(path).weight).grad is not None}


def test_gradients() -> None:
    model = adapted()
    loss(model).backward()
    wanted, found = dense_gradients(model), shared(model)
    for paths in (SQUARE, WIDE):
        holder = found[paths[0]]
        a, b, s = holder.A.detach().double(), holder.B.detach().double(), holder.scale
        sums = {name: torch.zeros_like(getattr(holder, name), dtype=torch.float64) for name in FACTORS}
        for path in paths:
            e, full = found[path].gate.detach().double(), wanted[path]
            closed = s * torch.einsum("or,oi,ri->r", b, full, a)
            assert found[path].gate.grad is not None
            torch.testing.assert_close(found[path].gate.grad.double(), closed, rtol=1e-5, atol=1e-8)
            sums["A"] += s * (b * e).T @ full
            sums["B"] += s * full @ a.T * e
        for name, total in sums.items():
            grad = getattr(holder, name).grad
            assert grad is not None
            torch.testing.assert_close(grad.double(), total, rtol=1e-5, atol=1e-8)
    # At the very start only B moves.
    model = adapted(rough=False)
    loss(model).backward()
    for slot in shared(model).values():
        assert not slot.A.grad.any()
        assert not slot.gate.grad.any()
        assert slot.B.grad.any()


def test_count() -> None:
    model = adapted(rough=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == RANK * (6 + 6) + RANK * (6 + 9) + 5 * RANK
    optimizer = create_optimizer(model, lr=1e-2)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, trained)), "each once"


def test_one_vector_one_module() -> None:
    model = adapted()
    for path, slot in shared(model).items():
        before = {other: delta(one) for other, one in shared(model).items()}
        with torch.no_grad():
            slot.gate.add_(1.0)
        changed = {other for other, one in shared(model).items() if not torch.equal(before[other], delta(one))}
        assert changed == {path}


def test_proximal() -> None:
    method = S2LoRA(rank=RANK, penalty=0.5, fade=None, gate_rate=0.1, revive=Always())
    model = adapted(method=method)
    optimizer = create_optimizer(model, torch.optim.SGD, lr=1e-3)
    model.train()
    for step in range(3):
        loss(model, step).backward()
        before = {path: (slot.gate.detach().clone(), slot.gate.grad.clone()) for path, slot in shared(model).items()}
        factors = {
            (paths[0], name): (getattr(slot, name).detach().clone(), getattr(slot, name).grad.clone())
            for paths in (SQUARE, WIDE)
            for name in FACTORS
            for slot in [shared(model)[paths[0]]]
        }
        optimizer.step()
        optimizer.zero_grad()
        for path, (gate, gradient) in before.items():
            v = gate - 0.1 * gradient
            wanted = torch.sign(v) * (v.abs() - 0.1 * 0.5).clamp(min=0)
            torch.testing.assert_close(shared(model)[path].gate.detach(), wanted, rtol=1e-5, atol=1e-7)
        for (path, name), (value, gradient) in factors.items():
            torch.testing.assert_close(getattr(shared(model)[path], name).detach(), value - 1e-3 * gradient, rtol=1e-5, atol=1e-7)
    assert 0 < sum(paring.ranks(model).values()) < 5 * RANK
    assert {int(slot.steps) for slot in shared(model).values()} == {3}


FRESH = """
import sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from paring.train import create_optimizer
from tests.methods.test_s2_lora import delta, net, shared, still_shared, train
for low in (False, True):
    model = PeftModel.from_pretrained(net(), sys.argv[1], is_trainable=True, low_cpu_mem_usage=low)
    still_shared(model)
    save_file({path: delta(slot) for path, slot in shared(model).items()}, sys.argv[1] + f"/deltas-{low}.safetensors")
optimizer = create_optimizer(model, lr=1e-2)
optimizer.load_state_dict(torch.load(sys.argv[1] + "/optimizer.pt"))
train(model, 3, 6, optimizer)
still_shared(model)
model.save_pretrained(sys.argv[1] + "/again")
"""


def test_shared_for_good(warm: Warm, tmp_path: Path) -> None:
    model = adapted(rough=False)
    still_shared(model)
    train(model, 0, 3)
    copies: dict[str, Callable[[], PeftModel]] = {
        "deepcopy": lambda: copy.deepcopy(model),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),  # noqa: S301 - of our own making
        "bfloat16": lambda: copy.deepcopy(model).to(torch.bfloat16).to(torch.float64),
        "meta": lambda: copy.deepcopy(model).to_empty(device="meta").to_empty(device="cpu"),
    }
    for name, make in copies.items():
        other = make()
        still_shared(other)
        mine, theirs = ({id(parameter) for parameter in one.parameters()} for one in (model, other))
        assert not mine & theirs, name
    with torch.no_grad():
        shared(copies["deepcopy"]())["one"].A.zero_()
    assert all(slot.A.any() for slot in shared(model).values())
    # Once in the state of the model, of the adapter and of the file.
    for state in (model.state_dict(), get_peft_model_state_dict(model)):
        for name in FACTORS:
            holders = [key.split(".paring_slot.")[0].rpartition(".")[2] for key in state if key.endswith(f".{name}")]
            assert holders == ["one", "up"]
    whole = adapted(rough=False)
    optimizer = train(whole, 0, 3)
    whole.save_pretrained(str(tmp_path))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(name.endswith(FACTORS) for name in saved) == 4
    train(whole, 3, 6, optimizer)
    wanted = {path: delta(slot) for path, slot in shared(PeftModel.from_pretrained(net(), str(tmp_path))).items()}
    warm.run(["-c", FRESH, tmp_path], cwd=Path(__file__).parents[2])
    for low in (False, True):
        there = load_file(tmp_path / f"deltas-{low}.safetensors")
        assert all(torch.equal(there[path], wanted[path]) for path in wanted)
    again, ours = load_file(tmp_path / "again" / "adapter_model.safetensors"), get_peft_model_state_dict(whole)
    assert again.keys() == ours.keys()
    assert [name for name in ours if not torch.equal(again[name], ours[name])] == []


def test_two_adapters() -> None:
    model = adapted()
    before = {path: delta(slot) for path, slot in shared(model).items()}
    model.add_adapter("second", paring.ParingConfig(method=METHOD, target_modules=[*SQUARE, *WIDE], seed=8))
    roughen(model, "second", 5)
    for name in ("default", "second"):
        still_shared(model, name)
    assert not {id(p) for slot in shared(model).values() for p in (slot.A, slot.B)} & {
        id(p) for slot in shared(model, "second").values() for p in (slot.A, slot.B)
    }
    model.set_adapter("second")
    train(model, 0, 2)
    assert all(torch.equal(delta(slot), before[path]) for path, slot in shared(model).items())
    model.delete_adapter("default")
    still_shared(model, "second")


def test_export(tmp_path: Path) -> None:
    model = adapted()
    train(model, 0, 2)
    model.eval()
    paring.export(model, tmp_path / "adapter")
    adapter = paring.read(tmp_path / "adapter")
    assert adapter.ranks == {path: rank for path, rank in paring.ranks(model).items() if rank}
    x = inputs()
    torch.testing.assert_close(fuse(net(), adapter)(x), model(x), rtol=0, atol=1e-6)
    for path, factors in adapter.modules.items():
        torch.testing.assert_close(factors.materialise(torch.float64), delta(shared(model)[path]), rtol=0, atol=1e-6)


def test_factors_on_another_device_are_refused() -> None:
    model = adapted()
    slot = shared(model)["two"].to("meta")
    with pytest.raises(TargetError, match="several devices"):
        slot(torch.zeros(2, 6), torch.zeros(2, 6))
    with pytest.raises(TargetError, match="several devices"):
        slot.fused(torch.zeros(2, 6), torch.zeros(6, 6), None)


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"alpha": 0.0}, {"penalty": -1.0}, {"fade": 0.0}, {"gate_rate": 0.0}, {"gate_memory": 1.0}]
)
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        S2LoRA(**settings)
