"""LoRA+: B's learning rate is the ratio times A's, wherever the optimizer comes from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import paring
from paring.attach.find import slots
from paring.core.errors import SettingError
from paring.method import decode
from paring.methods.lora import LoRA
from paring.methods.lora_plus import LoRAPlus
from paring.train import ParingTrainer, create_optimizer, parameter_groups

RATIO = 8.0


class Net(nn.Module):
    """A linear module to adapt, and a head with a bias to train."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.head(torch.tanh(self.inner(x))).squeeze(-1)
        return {"loss": (y - labels).square().mean() if labels is not None else y.mean(), "logits": y}


def adapted(method: Any = None) -> Any:
    torch.manual_seed(0)
    return paring.adapt(Net(), method or LoRAPlus(rank=2, ratio=RATIO), target_modules=["inner"], modules_to_save=["head"], seed=0)


def rates(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rate of A, of B, and of the head."""
    home = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    slot: Any = slots(model)["inner"]
    heads = {home[id(parameter)] for name, parameter in model.named_parameters() if "modules_to_save" in name}
    assert len(heads) == 1
    return {"A": home[id(slot.A)], "B": home[id(slot.B)], "head": heads.pop()}


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int = 3, schedule: Any = None) -> None:
    model.train()
    for step in range(steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        model(x=x, labels=x.sum(1))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
            found = rates(model, optimizer)
            assert found["B"] == pytest.approx(RATIO * found["A"])


def test_b_has_its_own_rate_under_any_schedule() -> None:
    model = adapted()
    optimizer = create_optimizer(model, lr=1e-3)
    assert rates(model, optimizer) == {"A": 1e-3, "B": 8e-3, "head": 1e-3}
    train(model, optimizer, 5, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10))


def test_the_groups_are_those_of_peft_but_for_vectors() -> None:
    ours = parameter_groups(adapted(), lr=1e-3)
    found = {(tuple(parameter.shape), group["lr"]) for group in ours for parameter in group["params"]}
    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["inner"], modules_to_save=["head"]))
    peft = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=RATIO)
    theirs = {(tuple(parameter.shape), group["lr"]) for group in peft.param_groups for parameter in group["params"]}
    # The head's bias, of shape (1,).
    assert found - theirs == {((1,), 1e-3)}
    assert theirs - found == {((1,), 8e-3)}


def test_the_first_step_moves_b_by_the_ratio_as_far_and_a_not_at_all() -> None:
    moved = []
    for method in (LoRA(rank=2), LoRAPlus(rank=2, ratio=RATIO)):
        model = adapted(method)
        slot: Any = slots(model)["inner"]
        start = slot.A.detach().clone()
        train(model, create_optimizer(model, torch.optim.SGD, lr=1e-2), 1)
        assert torch.equal(slot.A, start), "B is zero, so A has no gradient"
        moved.append(slot.B.detach().clone())
    torch.testing.assert_close(moved[1], RATIO * moved[0])


def test_a_ratio_of_one_is_lora_bit_for_bit() -> None:
    ends = []
    for method in (LoRA(rank=2), LoRAPlus(rank=2, ratio=1)):
        model = adapted(method)
        train(model, create_optimizer(model, lr=1e-2))
        ends.append({path: slot.factors() for path, slot in slots(model).items()})
    assert torch.equal(ends[0]["inner"].a, ends[1]["inner"].a)
    assert torch.equal(ends[0]["inner"].b, ends[1]["inner"].b)


class Rates(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Keeps the rates at each step."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        self.found.append(rates(model, optimizer))


@pytest.mark.parametrize("ours", [True, False])
def test_with_a_trainer(ours: bool, tmp_path: Path) -> None:
    model, watch = adapted(), Rates()
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    data = [{"x": torch.ones(6) * i, "labels": torch.tensor(float(i))} for i in range(8)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (ParingTrainer if ours else Trainer)(model=model, args=args, train_dataset=data, callbacks=[watch]).train()  # type: ignore[arg-type]
    told = [one for one in said if "times the rate of A" in str(one.message)]
    if ours:
        assert not told
        assert all(found["B"] == pytest.approx(RATIO * found["A"]) for found in watch.found)
        assert watch.found[0]["A"] == 1e-2
    else:
        # A trainer that knows nothing of it trains plain LoRA, and says so.
        assert len(told) == 1


@pytest.mark.parametrize("ratio", [0.5, -1.0, float("nan"), float("inf")])
def test_ratios_that_are_none(ratio: float) -> None:
    with pytest.raises(SettingError, match="ratio"):
        LoRAPlus(ratio=ratio)


def test_it_travels_as_plain_data() -> None:
    assert decode(LoRAPlus(ratio=4.0, rank=3).encode()) == LoRAPlus(ratio=4.0, rank=3)
