"""AdaLoRA: PEFT's trajectory without its allocator call, and what the paper asks for where the two differ."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model

import paring
from paring import train
from paring.attach.find import slots
from paring.core.errors import ExportError, SettingError, StepError
from paring.lead.allocator import Allocator, defect_gradient
from paring.methods.adalora import AdaLoRA
from paring.parts.allocate.sensitivity import Sensitivity, best
from tests.methods.small import WIDTHS, adapted, batch, delta, net, run, steps

RANK, TARGET, STEPS = 6, 3, 40
METHOD = AdaLoRA(rank=RANK, target=TARGET, initial=0.1, final=0.4, every=3)


def planned(method: AdaLoRA = METHOD, count: int = STEPS) -> PeftModel:
    model = adapted(method)
    train.plan(model, steps=count)
    return model


def test_first_step_moves_e_alone() -> None:
    model = planned(AdaLoRA(rank=RANK, target=TARGET, orthogonality=0.0))
    assert not any(delta(model, path).any() for path in WIDTHS)
    model(**batch())["loss"].backward()
    for slot in slots(model).values():
        assert not slot.A.grad.any()
        assert not slot.B.grad.any()
        assert (slot.E.grad != 0).all()


def test_budget() -> None:
    # t_i = 10, t_f = 20, T = 100, from 24 to 16.
    update = Sensitivity(target=8, initial=0.1, final=0.2)
    assert [update.budget(t, 100, 24, 16) for t in (10, 11, 30, 55, 79, 80, 81)] == [24, 23, 18, 16, 16, 16, 16]
    model = planned()
    start, goal = RANK * len(WIDTHS), TARGET * len(WIDTHS)
    seen = []
    for step, _ in steps(model, STEPS):
        if step % METHOD.every == 0 or step >= METHOD.allocation.end(STEPS):
            seen.append(sum(paring.ranks(model).values()))
            assert seen[-1] == METHOD.allocation.budget(step, STEPS, start, goal)
    assert seen[0] == start
    assert seen[-1] == goal
    assert sorted(seen, reverse=True) == seen
    assert len(set(seen)) > 3


def peft_model() -> Any:
    config = AdaLoraConfig(
        init_r=RANK,
        target_r=TARGET,
        lora_alpha=24,
        tinit=4,
        tfinal=16,
        deltaT=3,
        total_step=STEPS,
        target_modules=list(WIDTHS),
        orth_reg_weight=0.3,
    )
    return get_peft_model(net(), config).train().double()


def test_peft_trajectory() -> None:
    ours = planned(AdaLoRA(rank=RANK, target=TARGET, alpha=24, initial=0.1, final=0.4, every=3, orthogonality=0.3, form="released"))
    theirs = peft_model()
    layers = {path: theirs.base_model.model.get_submodule(path) for path in WIDTHS}
    for path, slot in slots(ours).items():
        with torch.no_grad():
            layers[path].lora_A["default"].copy_(slot.A)
            layers[path].lora_B["default"].copy_(slot.B)
            layers[path].lora_E["default"].zero_()
    mine = torch.optim.AdamW([parameter for parameter in ours.parameters() if parameter.requires_grad], lr=1e-2)
    other = torch.optim.AdamW([parameter for name, parameter in theirs.named_parameters() if "lora_" in name], lr=1e-2)
    masked = 0
    for step in range(STEPS):
        ours(**batch(step))["loss"].backward()
        mine.step()
        # PEFT's model adds its regulariser only to outputs with a loss attribute.
        regulariser = _regulariser(layers)
        (theirs(**batch(step))["loss"] + 0.3 * regulariser).backward()
        other.step()
        theirs.base_model.update_and_allocate(step)
        for path, slot in slots(ours).items():
            layer = layers[path]
            e = layer.lora_E["default"].detach().squeeze(1)
            assert torch.equal(slot.E == 0, e == 0), f"step {step}: another choice in {path}"
            masked += int((e == 0).sum())
            torch.testing.assert_close(slot.E.detach(), e, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(slot.A.detach(), layer.lora_A["default"].detach(), rtol=1e-4, atol=1e-6)
            allocator = theirs.base_model.rankallocator
            name = next((key for key in allocator.exp_avg_ipt if key.endswith(f"{path}.lora_A.default")), "")
            if step < 24:
                torch.testing.assert_close(slot.get_buffer("mean_A"), allocator.exp_avg_ipt[name], rtol=1e-3, atol=1e-9)
                torch.testing.assert_close(slot.get_buffer("spread_A"), allocator.exp_avg_unc[name], rtol=1e-3, atol=1e-9)
        mine.zero_grad()
        other.zero_grad()
    assert masked > 50


def _regulariser(layers: dict[str, Any]) -> torch.Tensor:
    factors = [matrix for layer in layers.values() for matrix in (layer.lora_A["default"], layer.lora_B["default"].T)]
    return torch.stack([(matrix @ matrix.T - torch.eye(RANK, dtype=matrix.dtype)).norm() for matrix in factors]).mean()


def test_ties_leave_the_budget() -> None:
    kept = best([torch.zeros(3), torch.tensor([1.0, 0.0])], 2)
    assert [part.tolist() for part in kept] == [[True, False, False], [True, False]]
    assert sum(int(part.sum()) for part in best([torch.ones(4), torch.ones(4)], 5)) == 5


def test_masked_triplets_may_come_back() -> None:
    model = planned()
    leader = slots(model)["first"].leader
    assert isinstance(leader, Allocator)
    walk = steps(model, STEPS)
    for step, _ in walk:
        if step == METHOD.every * 3:
            dead = {path: slot.E.detach() == 0 for path, slot in slots(model).items()}
            assert any(part.any() for part in dead.values())
        elif step == METHOD.every * 3 + 1:
            # Between two choices every triplet is free to move.
            assert all((slot.E.detach()[dead[path]] != 0).all() for path, slot in slots(model).items())
        if step >= METHOD.allocation.end(STEPS):
            final = {path: slot.E.detach() == 0 for path, slot in slots(model).items()}
            break
    assert sum(int(part.sum()) for part in final.values()) == (RANK - TARGET) * len(WIDTHS)
    for _ in walk:
        assert all(torch.equal(slot.E.detach() == 0, final[path]) for path, slot in slots(model).items())


@pytest.mark.parametrize("form", ["squared", "released"])
def test_orthogonality(form: Any) -> None:
    update, generator = Sensitivity(target=1, weight=0.3, form=form), torch.Generator().manual_seed(0)
    factors = [torch.randn(3, n, dtype=torch.float64, generator=generator) for n in (7, 9)]
    leaves = [factor.clone().requires_grad_() for factor in factors]
    norms = [torch.linalg.matrix_norm(leaf @ leaf.T - torch.eye(3, dtype=torch.float64)) for leaf in leaves]
    (0.3 * (sum(norm**2 for norm in norms) if form == "squared" else sum(norms) / 2)).backward()
    for factor, leaf in zip(factors, leaves, strict=True):
        torch.testing.assert_close(defect_gradient(factor, update, 2), leaf.grad, rtol=1e-10, atol=1e-12)
    assert not defect_gradient(torch.eye(3, 7, dtype=torch.float64), update, 2).any()
    # It is part of the step, and pulls factors towards being orthonormal.
    defects = []
    for weight in (0.0, 1.0):
        model = planned(AdaLoRA(rank=RANK, target=TARGET, orthogonality=weight, form=form))
        run(model, 30)
        defects.append(sum(float((slot.A @ slot.A.T - torch.eye(RANK)).norm()) for slot in slots(model).values()))
    assert defects[1] < 0.8 * defects[0]


@pytest.mark.parametrize("stop", [2, 10, 17, 30])
def test_resume(stop: int) -> None:
    model = planned()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)

    def go_on(one: PeftModel, made: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            one(**batch(step))["loss"].backward()
            made.step()
            made.zero_grad()

    go_on(model, optimizer, 0, stop)
    state, memory = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    go_on(model, optimizer, stop, STEPS)
    again = planned()
    again.load_state_dict(state)
    other = torch.optim.AdamW([parameter for parameter in again.parameters() if parameter.requires_grad], lr=1e-2)
    other.load_state_dict(memory)
    go_on(again, other, stop, STEPS)
    wanted = model.state_dict()
    assert [name for name, value in again.state_dict().items() if not torch.equal(value, wanted[name])] == []


def test_export(tmp_path: Path) -> None:
    model = planned()
    run(model, STEPS // 2)
    with pytest.raises(ExportError, match="not been chosen for good after 20 optimizer steps"):
        paring.export(model.eval(), tmp_path / "early")
    run(model.train(), STEPS, start=STEPS // 2)
    paring.export(model.eval(), tmp_path / "adapter")
    adapter = paring.read(tmp_path / "adapter")
    assert sum(adapter.ranks.values()) == TARGET * len(WIDTHS)
    x = batch(9)["x"]
    again = PeftModel.from_pretrained(net(), str(tmp_path / "adapter")).double()
    torch.testing.assert_close(again(x)["logits"], model(x)["logits"], rtol=1e-5, atol=1e-6)


def test_an_unplanned_training_is_refused() -> None:
    with pytest.raises(StepError, match=r"paring\.train\.plan"):
        run(adapted(METHOD), 1)
    run(adapted(AdaLoRA(rank=RANK, target=TARGET, steps=5)), 1)


def test_a_target_of_all_cuts_nothing() -> None:
    model = planned(AdaLoRA(rank=RANK, target=RANK))
    run(model, STEPS)
    assert set(paring.ranks(model).values()) == {RANK}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_trainings_of_a_few_steps_end_at_the_target(count: int) -> None:
    model = planned(count=count)
    run(model, count)
    assert sum(paring.ranks(model).values()) == TARGET * len(WIDTHS)


def test_a_skipped_step_weighs_nothing() -> None:
    model = planned()
    run(model, 3)
    slot = slots(model)["first"]
    before = slot.get_buffer("mean_A").clone()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2, fused=True)
    model(**batch())["loss"].backward()
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(slot.get_buffer("mean_A"), before)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank="),
        ({"target": 0}, "target="),
        ({"rank": 4, "target": 5}, "above rank"),
        ({"initial": 0.5, "final": 0.5}, "below 1"),
        ({"every": 0}, "every="),
        ({"beta1": 1.0}, "beta1="),
        ({"beta2": 0.0}, "beta2="),
        ({"orthogonality": -1.0}, "orthogonality="),
        ({"form": "sum"}, "form="),
        ({"steps": 0}, "steps="),
        ({"alpha": 0.0}, "alpha="),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], said: str, unchecked: None) -> None:
    with pytest.raises(SettingError, match=said):
        AdaLoRA(**settings)


def test_sensitivities_stay_float32_on_a_bfloat16_base() -> None:
    model = paring.adapt(net().bfloat16(), METHOD, target_modules=list(WIDTHS), seed=0).train()
    train.plan(model, steps=STEPS)
    for step in range(3):
        model(**{key: value.bfloat16() for key, value in batch(step).items()})["loss"].backward()
        if not step:
            optimizer = train.create_optimizer(model, lr=1e-2)
        optimizer.step()
        optimizer.zero_grad()
    for slot in slots(model).values():
        assert {buffer.dtype for name, buffer in slot.named_buffers() if name.startswith(("mean", "spread"))} == {torch.float32}
        assert slot.get_buffer("mean_A").any()


def test_an_optimizer_for_a_part_of_the_triplets_is_refused() -> None:
    model = paring.adapt(net(), METHOD, target_modules=list(WIDTHS), seed=0).train()
    train.plan(model, steps=STEPS)
    model(**batch(0))["loss"].backward()
    parts = [[one for name, one in model.named_parameters() if one.requires_grad and name.endswith(end)] for end in (".A", ".B", ".E")]
    assert all(parts)
    with pytest.raises(StepError, match="AdamW does not hold [AE] of .*, and the ranks of all modules are chosen together"):
        torch.optim.AdamW(parts[1], lr=1e-2).step()
