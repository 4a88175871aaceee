"""Trainers that compare the policy with a reference: TRL's second adapter is the policy as it was, and stays so."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import paring
from paring import method as methods
from paring.attach.find import slots
from tests.contract.cases import example, roughen
from tests.trust import language, proof
from tests.trust.grids import cell
from tests.trust.loops import Plan
from tests.trust.runs import dpo_trainer, grpo_trainer

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
STEPS = 4
LOGGED = (("logging_strategy", "steps"), ("logging_steps", 1))

both = pytest.mark.parametrize(
    ("make", "first"),
    [
        # Where policy and reference agree: the loss of DPO is log 2, and the divergence is none.
        pytest.param(dpo_trainer, ("loss", math.log(2.0)), id="DPO", marks=cell("trainers", "TRL DPOTrainer", "one proximal step a step")),
        pytest.param(grpo_trainer, ("kl", 0.0), id="GRPO", marks=cell("trainers", "TRL GRPOTrainer", "one proximal step a step")),
    ],
)
Make = Callable[..., Any]


def _state(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    return {
        f"{path}.{name}": parameter.detach().clone() for path, slot in slots(model, adapter).items() for name, parameter, _ in slot.roles()
    }


@torch.no_grad()
def _outputs(model: PeftModel, adapter: str) -> Tensor:
    mode, active = model.training, model.active_adapter
    model.eval().set_adapter(adapter)
    found: Tensor = model(input_ids=language.tokens(6, seed=99)).logits
    model.train(mode).set_adapter(active)
    return found


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@both
def test_the_reference_is_the_policy_at_the_start_and_stays_as_it_was(make: Make, first: tuple[str, float], tmp_path: Path) -> None:
    model = language.adapted(dropout=0.3)
    before, start = _outputs(model, "default"), _state(model, "default")
    trainer = make(model, tmp_path, Plan(steps=STEPS, settings=(*LOGGED, ("disable_dropout", True))))
    assert set(model.peft_config) == {"default", "ref"}
    assert _same(_state(model, "ref"), start), "gates and factors were copied"
    assert torch.equal(_outputs(model, "ref"), before)
    with proof.Watch(model) as watch:
        trainer.train()
    proof.check(watch, STEPS)
    assert _same(_state(model, "ref"), start), "the reference was trained, or its gates were shrunk"
    assert torch.equal(_outputs(model, "ref"), before)
    assert {int(slot.steps) for slot in proof.gates(model, "ref").values()} == {0}
    assert not _same(_state(model, "default"), start)
    assert (_outputs(model, "default") - before).abs().max() > 1e-3
    # What is trained afterwards is the policy alone.
    assert model.active_adapter == "default"
    assert {name.split(".")[-2] for name, parameter in model.named_parameters() if parameter.requires_grad} == {"default"}
    key, value = first
    assert trainer.state.log_history[0][key] == pytest.approx(value, abs=1e-5)


@both
def test_a_new_adapter_is_compared_with_the_base_model(make: Make, first: tuple[str, float], tmp_path: Path) -> None:
    config = paring.ParingConfig(method=proof.method(), task_type="CAUSAL_LM", seed=language.SEED)
    trainer = make(language.llama(), tmp_path, Plan(steps=STEPS, settings=LOGGED), peft_config=config)
    model = trainer.model
    assert set(model.peft_config) == {"default"}
    with torch.no_grad():
        for slot in proof.gates(model).values():
            slot.gate[: len(proof.LONE)] = torch.tensor(proof.LONE)
            slot.A[: len(proof.LONE)] = 0.0
    with proof.Watch(model) as watch:
        trainer.train()
    # B starts at zero, so the other gates have no gradient at the first step.
    proof.check(watch, STEPS, still=1)
    key, value = first
    assert trainer.state.log_history[0][key] == pytest.approx(value, abs=1e-5)


@cell("trainers", "TRL DPOTrainer", "one proximal step a step")
def test_a_reference_computed_beforehand_is_the_policy_at_the_start(tmp_path: Path) -> None:
    model = language.adapted()
    trainer = dpo_trainer(model, tmp_path, Plan(steps=STEPS, settings=(*LOGGED, ("precompute_ref_log_probs", True))))
    with proof.Watch(model) as watch:
        trainer.train()
    proof.check(watch, STEPS)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-5)


@cell("trainers", "TRL DPOTrainer", "one proximal step a step")
@pytest.mark.parametrize("name", methods.names())
def test_the_reference_of_every_method_stays_as_it_was(name: str, tmp_path: Path) -> None:
    model = paring.adapt(language.llama(), example(name), task_type="CAUSAL_LM", seed=language.SEED)
    roughen(model, torch.Generator().manual_seed(1))
    before, start = _outputs(model, "default"), _state(model, "default")
    trainer = dpo_trainer(model, tmp_path, Plan(steps=2, settings=LOGGED))
    trainer.train()
    assert _same(_state(model, "ref"), start)
    assert torch.equal(_outputs(model, "ref"), before)
    assert not _same(_state(model, "default"), start)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-5)
