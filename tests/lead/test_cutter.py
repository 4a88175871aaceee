"""Cuts to a budget in the loops that people write: when they come, what they leave, and that nothing about them can be forgotten."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import paring
from paring.api import fuse
from paring.attach.find import slots
from paring.core.errors import ExportError, SettingError, StepError, TargetError
from paring.lead.cutter import Cutter
from paring.methods.lora import LoRA
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Budget, Knee, Parameters, Share
from paring.parts.allocate.knee import knee
from paring.parts.parameterise.ordered import Ordered
from paring.parts.update.cut import Cut, Moments, Score
from paring.train import ParingCallback, ParingTrainer, create_optimizer, plan

WIDTH, STEPS = 12, 20
MODULES = ("first", "wide", "back")


class Net(nn.Module):
    """Three linear modules, of two costs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Linear(WIDTH, 2 * WIDTH)
        self.back = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.back(torch.tanh(self.wide(torch.tanh(self.first(x)))))
        return y


def adapted(**settings: Any) -> PeftModel:
    torch.manual_seed(0)
    return paring.adapt(Net(), Spectral(**{"rank": 4, "alpha": 8, **settings}), target_modules=list(MODULES), seed=0)


def ordered(model: nn.Module, adapter: str = "default") -> dict[str, Ordered]:
    return {path: slot for path, slot in slots(model, adapter).items() if isinstance(slot, Ordered)}


def left(model: nn.Module, adapter: str = "default") -> int:
    return sum(slot.cost * slot.left for slot in ordered(model, adapter).values())


START = 4 * (24 + 36 + 36)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return create_optimizer(model, lr=1e-2)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    *,
    accumulate: int = 1,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """The same batches whatever step it starts from."""
    model.train()
    for step in steps:
        for part in range(accumulate):
            generator = torch.Generator().manual_seed(step * accumulate + part)
            x = torch.randn(16, WIDTH, generator=generator)
            (model(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        after(step + 1)


# --- the schedule ------------------------------------------------------------------------------------------------------------


def test_cuts_are_evenly_spaced_and_each_keeps_the_same_share() -> None:
    cut = Cut(budget=Share(share=0.125), times=3, until=0.6)
    assert cut.marks(100) == [20, 40, 60]
    assert [cut.allowed(step, 100, 8000) for step in (0, 19, 20, 39, 40, 59, 60, 100)] == [8000, 8000, 4000, 4000, 2000, 2000, 1000, 1000]
    assert Cut(budget=Share(share=0.5), times=1, until=0.5).marks(7) == [4]
    # A size that is not known before cannot be walked down to.
    assert Cut(budget=Knee(), times=3, until=0.6).marks(100) == [60]


def test_a_budget_above_the_start_cuts_nothing() -> None:
    assert Cut(budget=Parameters(count=10**9)).allowed(100, 100, 8000) == 8000


@pytest.mark.parametrize(
    "settings",
    [{"times": 0}, {"until": 0.0}, {"until": 1.0}, {"steps": 0}, {"look": 0}, {"score": "best"}, {"moments": "kept"}, {"quicken": 1.5}],
    ids=str,
)
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        Cut(budget=Share(share=0.5), **settings)


# --- in a plain loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("score", ["size", "loss"])
@pytest.mark.parametrize("share", [0.5, 0.25, 0.125])
def test_the_budget_is_reached_in_time_and_kept(share: float, score: Score, accumulate: int) -> None:
    model = adapted(budget=Share(share=share), score=score)
    plan(model, steps=STEPS)
    allowed = ordered(model)["first"].update.allowed
    seen: list[int] = []

    def look(step: int) -> None:
        assert left(model) <= allowed(step, STEPS, START)
        seen.append(left(model))

    train(model, optimizer_of(model), range(STEPS), accumulate=accumulate, after=look)
    assert seen[:3] == [START] * 3, "three steps before the first cut"
    assert sorted(seen, reverse=True) == seen
    # No cheapest rank more would fit.
    assert share * START - 36 < seen[11] == seen[-1] <= share * START
    assert paring.snapshot(model).parameters == seen[-1]


def test_the_loss_goes_on_falling_after_the_last_cut() -> None:
    model = adapted(budget=Share(share=0.25))
    plan(model, steps=200)
    losses: list[float] = []

    def look(step: int) -> None:
        with torch.no_grad():
            x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(10**6))
            losses.append(float((model(x) - x.flip(1)).square().mean()))

    train(model, optimizer_of(model), range(200), after=look)
    assert losses[-1] < losses[120] < losses[0]


def test_a_loop_that_says_no_length_is_stopped_at_its_first_step() -> None:
    model = adapted()
    with pytest.raises(StepError, match=r"paring\.train\.plan\(model, steps="):
        train(model, optimizer_of(model), range(1))


def test_the_method_can_say_the_length_itself() -> None:
    model = adapted(budget=Share(share=0.25), steps=STEPS)
    train(model, optimizer_of(model), range(STEPS))
    assert left(model) <= 0.25 * START


def test_an_optimizer_of_something_else_counts_no_steps() -> None:
    model = adapted()
    plan(model, steps=STEPS)
    head = nn.Parameter(torch.ones(1))
    other = torch.optim.SGD([head], lr=0.1)
    model(torch.randn(2, WIDTH)).sum().backward()
    head.grad = torch.ones(1)
    other.step()
    assert {slot.taken for slot in ordered(model).values()} == {0}


def eight_bits(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=1e-3, min_8bit_size=1)
    return made


def lion(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    made: torch.optim.Optimizer = bitsandbytes.optim.Lion32bit(parameters, lr=1e-3)
    return made


MAKERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
    "AMSGrad": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, amsgrad=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9, centered=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-3),
    "Adadelta": lambda parameters: torch.optim.Adadelta(parameters, lr=1e-1),
    "Adamax": lambda parameters: torch.optim.Adamax(parameters, lr=1e-3),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-2),
    "8 bits": eight_bits,
    "Lion": lion,
}


@pytest.mark.parametrize("anew", [False, True], ids=["mode set once", "mode set at each step"])
@pytest.mark.parametrize("name", MAKERS)
def test_what_was_cut_stays_away_whatever_the_optimizer_remembers(name: str, anew: bool) -> None:
    model = adapted(budget=Share(share=0.25), steps=STEPS)
    optimizer = MAKERS[name]([parameter for parameter in model.parameters() if parameter.requires_grad])
    cutter = ordered(model)["first"].leader
    assert isinstance(cutter, Cutter)
    cuts: list[int | None] = []
    cut = cutter.cut

    def counted(budget: int | None = None, optimizer: torch.optim.Optimizer | None = None) -> bool:
        cuts.append(budget)
        return cut(budget, optimizer)

    cutter.cut = counted  # type: ignore[method-assign]

    def again(step: int) -> None:
        if anew:
            model.eval().train()

    train(model, optimizer, range(STEPS), after=again)
    assert len(cuts) == 3
    assert 0 < left(model.eval().train()) <= 0.25 * START
    for slot in ordered(model).values():
        assert not slot.A[slot.left :].any()
        assert not slot.B[:, slot.left :].any()


@pytest.mark.parametrize("name", ["8 bits", "Lion", "Adafactor"])
def test_memory_that_cannot_be_turned_is_forgotten(name: str) -> None:
    model = adapted(budget=Share(share=0.5), cuts=1, until=0.5, steps=4)
    optimizer = MAKERS[name]([parameter for parameter in model.parameters() if parameter.requires_grad])
    train(model, optimizer, range(1))
    slot = ordered(model)["wide"]
    assert optimizer.state[slot.A]
    assert isinstance(slot.leader, Cutter)
    assert slot.leader.cut(START // 2, optimizer)
    assert not {slot.A, slot.B} & set(optimizer.state)
    train(model, optimizer, range(1, 2))
    assert optimizer.state[slot.A]


@pytest.mark.parametrize("by", ["A apart from B", "module by module", "a module left out"])
def test_an_optimizer_that_holds_a_part_of_the_factors_is_refused(by: str) -> None:
    model = adapted(steps=STEPS)
    factors = {name: one for name, one in model.named_parameters() if one.requires_grad}
    held = [one for name, one in factors.items() if (name.endswith(".B") if by == "A apart from B" else "wide" in name)]
    if by == "a module left out":
        held = [one for one in factors.values() if not any(one is other for other in held)]
    assert 0 < len(held) < len(factors)
    with pytest.raises(StepError, match=r"SGD does not hold [AB] of '.*', and the ranks of all modules are chosen together"):
        train(model, torch.optim.SGD(held, lr=1e-2), range(1))


def test_a_factor_that_is_frozen_need_not_be_held() -> None:
    model = adapted(budget=Share(share=0.25), steps=STEPS)
    for slot in ordered(model).values():
        slot.A.requires_grad_(False)
    train(model, torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2), range(STEPS))
    assert 0 < left(model) <= 0.25 * START


def test_an_optimizer_that_averages_is_refused() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    model = adapted(steps=STEPS)
    optimizer = schedulefree.AdamWScheduleFree([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    optimizer.train()
    with pytest.raises(StepError, match="AdamWScheduleFree evaluates at an average"):
        train(model, optimizer, range(1))


@pytest.mark.parametrize("budget", [Share(share=0.25), Knee()], ids=["share", "knee"])
@pytest.mark.parametrize("score", ["size", "loss"])
def test_nothing_is_cut_while_nothing_has_been_learned(score: Score, budget: Budget) -> None:
    """A warm-up's first rate is zero, and a short training's first cut comes after its first step."""
    model = adapted(budget=budget, score=score, until=0.1, steps=5)
    optimizer = optimizer_of(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    seen: list[int] = []

    def look(step: int) -> None:
        seen.append(left(model))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 if step == 2 else group["lr"]

    train(model, optimizer, range(5), after=look)
    assert seen[:2] == [START] * 2
    assert 0 < seen[2] == seen[-1] < START
    assert seen[-1] <= 0.25 * START or not budget.known


def test_batches_that_reach_only_some_modules_do_not_empty_the_others() -> None:
    """What was not looked at has no known worth; that cut goes by size, in which all can be compared."""
    pair = [adapted(budget=Share(share=0.5), cuts=1, until=0.5, steps=4, look=1, score=score) for score in ("loss", "size")]
    for model in pair:
        train(model, optimizer_of(model), range(1))
        slots_of = ordered(model)
        if slots_of["wide"].update.score == "loss":
            slots_of["first"].inputs.fill_(1.0)
            slots_of["first"].rows.fill_(3)
        assert isinstance(slots_of["wide"].leader, Cutter)
        assert slots_of["wide"].leader.cut(START // 2)
    kept = [[slot.left for slot in ordered(model).values()] for model in pair]
    assert kept[0] == kept[1]
    assert all(kept[0])


def test_a_slot_is_looked_at_when_the_mode_changes_and_not_before_every_batch() -> None:
    slot = ordered(adapted(steps=STEPS))["wide"]
    slot.train()
    with torch.no_grad():
        slot.A.fill_(1.0)
    assert slot.left == 4
    with torch.no_grad():
        slot.A[2:].zero_()
    assert slot.train().left == 4, "the same mode: nobody looks"
    assert slot.eval().left == 2


@pytest.mark.parametrize("moments", ["turn", "reset"])
def test_the_optimizers_memory_is_turned_or_forgotten(moments: Moments) -> None:
    model = adapted(budget=Share(share=0.5), cuts=1, until=0.5, steps=4, moments=moments)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(1))
    slot = ordered(model)["wide"]
    twin = copy.deepcopy(slot)
    state = {key: optimizer.state[slot.A][key].clone() for key in ("exp_avg", "exp_avg_sq")}
    turn = twin.cut(twin.split(by_loss=False), 2)
    assert slot.leader is not None
    slot.leader.cut(START // 2, optimizer)  # type: ignore[attr-defined]
    if moments == "reset":
        assert slot.A not in optimizer.state
        return
    keep = slot.left
    after = optimizer.state[slot.A]
    count = min(keep, 2)
    assert count
    torch.testing.assert_close(after["exp_avg"][:count], (turn.q.T @ state["exp_avg"].double()).float()[:count])
    torch.testing.assert_close(after["exp_avg_sq"][:count], (turn.q.T.square() @ state["exp_avg_sq"].double()).float()[:count])
    assert not after["exp_avg"][keep:].any()
    assert int(after["step"]) == 1, "the optimizer's own count goes on"


@pytest.mark.parametrize("name", ["momentum", "foreach", "fused"])
@pytest.mark.parametrize("quicken", [0.5, 1.0])
def test_a_step_moves_a_module_that_was_cut_as_many_times_as_far_as_its_setting_says(name: str, quicken: float) -> None:
    make: Callable[[nn.Module], torch.optim.Optimizer] = {
        "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9),
        "foreach": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True),
        "fused": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True),
    }[name]
    plain, quick = (adapted(budget=Share(share=0.4), cuts=1, until=0.5, steps=4, quicken=value) for value in (0.0, quicken))
    optimizers = make(plain), make(quick)
    for model, optimizer in zip((plain, quick), optimizers, strict=True):
        train(model, optimizer, range(2))
    slots_of = ordered(plain), ordered(quick)
    before = {path: (slot.A.clone(), slot.B.clone()) for path, slot in slots_of[0].items()}
    for path, (a, b) in before.items():
        assert torch.equal(slots_of[1][path].A, a), "until there was a cut nothing is longer"
        assert torch.equal(slots_of[1][path].B, b)
    assert {slot.left for slot in slots_of[0].values()} != {4}
    for model, optimizer in zip((plain, quick), optimizers, strict=True):
        train(model, optimizer, range(2, 3))
    for path, (a, b) in before.items():
        one, other = slots_of[0][path], slots_of[1][path]
        times = (4 / one.left) ** quicken if one.left else 1.0
        torch.testing.assert_close(other.A - a, times * (one.A - a), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(other.B - b, times * (one.B - b), rtol=1e-4, atol=1e-7)
        assert one.left == 0 or not torch.equal(one.B, b)
        assert not other.A[other.left :].any()


# --- a size that nobody has said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["size", "loss"])
def test_without_a_budget_there_is_one_cut_to_the_knee(score: Score) -> None:
    model = adapted(budget=Knee(), score=score)
    plan(model, steps=STEPS)
    slots_of = ordered(model)
    sizes: list[int] = []
    wanted: list[int] = []

    def look(step: int) -> None:
        sizes.append(left(model))

    train(model, optimizer_of(model), range(11), after=look)
    assert sizes == [START] * 11
    cutter = slots_of["first"].leader
    assert cutter is not None
    cut = cutter.cut  # type: ignore[attr-defined]

    def watched(budget: int | None, optimizer: Any) -> bool:
        assert budget is None
        found = [slot.split(by_loss=score == "loss").s for slot in slots_of.values()]
        wanted.append(knee(found, [slot.cost for slot in slots_of.values()]))
        return bool(cut(budget, optimizer))

    cutter.cut = watched  # type: ignore[attr-defined]
    train(model, optimizer_of(model), range(11, STEPS), after=look)
    assert wanted == [left(model)]
    assert 0 < left(model) < START
    assert len(set(sizes[11:])) == 1
    assert paring.snapshot(model).parameters == left(model)


def test_a_size_that_was_not_found_yet_is_not_exported(tmp_path: Path) -> None:
    model = adapted(budget=Knee(), steps=STEPS)
    train(model, optimizer_of(model), range(10))
    with pytest.raises(ExportError, match="still to be cut"):
        paring.export(model, tmp_path / "adapter")
    train(model, optimizer_of(model), range(10, STEPS))
    paring.export(model, tmp_path / "adapter")
    assert paring.read(tmp_path / "adapter").parameters == left(model)


def test_where_nothing_stands_out_nothing_is_cut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = paring.adapt(Net(), Spectral(rank=1, budget=Knee(), steps=5), target_modules=["first"], seed=0)
    train(model, optimizer_of(model), range(5))
    assert paring.snapshot(model).parameters == 24
    paring.export(model, tmp_path / "adapter")


# --- going on where it was interrupted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [Share(share=0.25), Knee()], ids=["share", "knee"])
@pytest.mark.parametrize("score", ["size", "loss"])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 11, 12, 15])
def test_resumed_equals_uninterrupted(stop: int, score: Score, budget: Budget, tmp_path: Path) -> None:
    first, optimizer = unplanned(score, budget)
    plan(first, steps=STEPS)
    train(first, optimizer, range(stop))
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    again, optimizer = unplanned(score, budget)
    plan(again, steps=STEPS)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(again, optimizer, range(stop, STEPS))
    states = uninterrupted(score, budget), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def unplanned(score: Score, budget: Budget) -> tuple[PeftModel, torch.optim.Optimizer]:
    """A model at its start."""
    model = adapted(budget=budget, score=score, look=2, quicken=0.5 if score == "size" else 0.0)
    return model, optimizer_of(model)


@functools.cache
def uninterrupted(score: Score, budget: Budget) -> dict[str, Any]:
    """The state of a model that was trained without a stop."""
    model, optimizer = unplanned(score, budget)
    plan(model, steps=STEPS)
    train(model, optimizer, range(STEPS))
    return model.state_dict()


def test_a_training_that_is_made_shorter_is_cut_at_once(tmp_path: Path) -> None:
    model = adapted(budget=Share(share=0.25), score="loss")
    plan(model, steps=10 * STEPS)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(5))
    assert left(model) == START
    plan(model, steps=6)
    train(model, optimizer, range(5, 6))
    assert left(model) <= 0.25 * START


# --- several adapters, wrong budgets -------------------------------------------------------------------------------------------


def test_each_adapter_has_its_own_budget() -> None:
    model = adapted(budget=Share(share=0.5), steps=STEPS)
    paring.adapt(model, Spectral(rank=4, budget=Share(share=0.125), steps=STEPS), target_modules=list(MODULES), adapter="second", seed=1)
    model.base_model.set_adapter(["default", "second"])
    train(model, optimizer_of(model), range(STEPS))
    assert 0.5 * START - 36 < left(model) <= 0.5 * START
    assert 0.125 * START - 36 < left(model, "second") <= 0.125 * START


def test_a_budget_that_pays_for_nothing_is_refused_with_what_the_cheapest_costs() -> None:
    with pytest.raises(SettingError, match=r"budget of 20 parameters .* takes 24"):
        adapted(budget=Parameters(count=20), steps=STEPS)
    model = adapted(budget=Parameters(count=20))
    with pytest.raises(SettingError, match=r"budget of 20 parameters"):
        plan(model, steps=STEPS)


def test_a_plan_for_an_adapter_without_a_budget() -> None:
    model = paring.adapt(Net(), LoRA(rank=2), target_modules=list(MODULES))
    assert plan(model, steps=5) == {}
    with pytest.raises(TargetError, match="there is nothing to plan"):
        plan(model, steps=5, adapter="default")
    with pytest.raises(SettingError, match="steps=0"):
        plan(adapted(), steps=0)


# --- export ------------------------------------------------------------------------------------------------------------------


def test_an_export_before_the_last_cut_is_refused_unless_forced(tmp_path: Path) -> None:
    model = adapted(budget=Share(share=0.25), steps=STEPS)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(5))
    with pytest.raises(ExportError, match=r"after 5 optimizer steps the last cut has not been made"):
        paring.export(model, tmp_path / "early")
    paring.export(model, tmp_path / "forced", force=True)
    train(model, optimizer, range(5, STEPS))
    folder = paring.export(model, tmp_path / "done")
    written = paring.read(folder)
    assert written.parameters == left(model) <= 0.25 * START
    x = torch.randn(5, WIDTH)
    fused = fuse(_plain(), written)
    model.eval()
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)


def _plain() -> Net:
    torch.manual_seed(0)
    return Net()


# --- Trainer -----------------------------------------------------------------------------------------------------------------


class Labelled(Net):
    """With a loss, as Trainer wants it."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = super().forward(x)
        return {"loss": (y - x.flip(1)).square().mean(), "logits": y}


@pytest.mark.parametrize("plain", [False, True], ids=["ParingTrainer", "Trainer with the callback"])
def test_a_trainer_says_the_length(plain: bool, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = paring.adapt(Labelled(), Spectral(rank=4, budget=Share(share=0.25)), target_modules=list(MODULES), seed=0)
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", logging_steps=5,
    )  # fmt: skip
    data = [{"x": torch.randn(WIDTH), "labels": torch.zeros(())} for _ in range(8)]
    trainer = (
        Trainer(model=model, args=args, train_dataset=data, callbacks=[ParingCallback()])  # type: ignore[arg-type]
        if plain
        else ParingTrainer(model=model, args=args, train_dataset=data)  # type: ignore[arg-type]
    )
    trainer.train()
    assert left(model) <= 0.25 * START
    logged = [entry["live_parameters"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] > logged[-1] == left(model)
