"""From the full adapter down: what each stage has, what is kept, what is chosen, and that a walk goes on where it was."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback

import paring
from paring.attach.find import slots
from paring.core.adapter import Adapter
from paring.core.errors import DataError, OutputExistsError, SettingError
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Share
from paring.path import Walked, descend, pare
from paring.train import Halve, ParingCallback, ParingTrainer, Rise, Scores, Stage, StandardErrors, Within, create_optimizer
from paring.train.down import given_up, knee_of, shrink
from paring.train.family import trained_state
from paring.train.tolerance import choose
from tests.train.conftest import Net

Make = Callable[..., Any]
FULL = Spectral(rank=4, budget=Share(share=1.0))
# Two modules of 6 x 6: 12 parameters a rank, 96 in all.
HALVES = Halve(stages=3, knee=False)


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scored(*values: float, error: float | None = None) -> Callable[[], Scores]:
    """One score after the other."""
    left = iter(values)
    return lambda: Scores(train=1.0, validation=next(left), error=error)


def learn(model: Any, steps: int = 3) -> Callable[[int, float], None]:
    """A loop of a few steps."""

    def train_stage(index: int, goal: float) -> None:
        optimizer = create_optimizer(model, lr=0.05)
        generator = torch.Generator().manual_seed(index)
        model.train()
        for _ in range(steps):
            x = torch.randn(8, 6, generator=generator)
            model(x=x, labels=x.sum(1))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

    return train_stage


def walked(model: Any, folder: Path, *values: float, **settings: Any) -> Walked:
    """A walk with a loop of its own."""
    given: dict[str, Any] = {"tolerance": None, "descent": HALVES, **settings}
    return descend(model, learn(model), scored(*values), folder=folder, **given)


def update(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {path: factors.materialise() for path, factors in adapter.modules.items()}


def test_each_stage_has_at_most_half_of_the_one_before_and_starts_from_its_weights(adapted: Make, tmp_path: Path) -> None:
    model = adapted(FULL)
    begun = []

    def train_stage(index: int, goal: float) -> None:
        begun.append((goal, update(paring.snapshot(model))))
        learn(model)(index, goal)

    found = descend(model, train_stage, scored(0.9, 0.8, 0.7, 0.6), folder=tmp_path / "f", tolerance=None, descent=HALVES)
    assert [stage.goal for stage in found.stages] == [96, 48, 24, 12]
    assert [stage.parameters for stage in found.stages] == [96, 48, 24, 12]
    assert found.chosen is None
    for (goal, start), before in zip(begun[1:], found.stages, strict=False):
        # The best of that size: over both modules, the squared singular values that were cut are the squared distance.
        spectra = torch.cat([torch.linalg.svdvals(value) for value in update(before.adapter).values()])
        kept = spectra.sort(descending=True).values[: int(goal) // 12]
        lost = sum(float((start[path] - value).square().sum()) for path, value in update(before.adapter).items())
        assert lost == pytest.approx(float(spectra.square().sum() - kept.square().sum()), rel=1e-4)


def test_the_sizes_meet_the_knee_of_the_full_adapter(adapted: Make, tmp_path: Path) -> None:
    model = adapted(Spectral(rank=6, budget=Share(share=1.0)))
    found = walked(model, tmp_path / "f", *[0.5] * 9, descent=Halve(stages=8))
    size = knee_of(found.stages[0].adapter)
    assert 12 <= size < 144
    goals = [stage.goal for stage in found.stages]
    assert size in goals[1:]
    assert goals[1] <= 144 / 2**0.5
    assert all(later * 2 == earlier for earlier, later in itertools.pairwise(goals[1:]))
    # Its size does not depend on what the others' sizes are.
    third = walked(adapted(Spectral(rank=6, budget=Share(share=1.0))), tmp_path / "g", *[0.5] * 9, descent=Halve(factor=3.0, stages=8))
    assert any(goal == pytest.approx(size) for goal in [stage.goal for stage in third.stages[1:]] + [third.stages[-1].goal / 3])


def test_the_walk_ends_where_a_rank_cannot_be_paid_for(adapted: Make, tmp_path: Path) -> None:
    found = walked(adapted(FULL), tmp_path / "f", *[0.5] * 9, descent=Halve(stages=8, knee=False))
    assert [stage.parameters for stage in found.stages] == [96, 48, 24, 12]
    found = walked(adapted(FULL), tmp_path / "g", *[0.5] * 9, descent=Halve(factor=4.0, stages=8, knee=False))
    assert [stage.parameters for stage in found.stages] == [96, 24]


def test_the_smallest_inside_the_tolerance_is_chosen_and_in_the_model(adapted: Make, tmp_path: Path) -> None:
    model = adapted(FULL)
    found = walked(model, tmp_path / "f", 0.9, 0.92, 0.88, 0.7, tolerance=Within(share=0.05))
    assert found.chosen is not None
    assert (found.chosen.index, found.floor) == (2, pytest.approx(0.855))
    assert paring.snapshot(model).parameters == 24
    live, kept = update(paring.snapshot(model)), update(found.chosen.adapter)
    assert all(torch.equal(live[path], kept[path]) for path in kept)
    heads = paring.snapshot(model).heads
    assert all(torch.equal(heads[name], value) for name, value in found.chosen.adapter.heads.items())


def test_every_stage_is_a_plain_lora_that_answers_as_the_model_did(adapted: Make, tmp_path: Path) -> None:
    # Stock PEFT takes `lora_dropout` for a head that is called `out`.
    model = adapted(FULL, modules_to_save=["norm"])
    x, answers = torch.randn(5, 6), []

    def evaluate() -> Scores:
        model.eval()
        answers.append(model(x=x)["logits"].detach())
        return Scores(train=1.0, validation=1.0)

    found = descend(model, learn(model), evaluate, folder=tmp_path / "f", tolerance=None, descent=Halve(stages=2, knee=False))
    for stage, wanted in zip(found.stages, answers, strict=True):
        torch.manual_seed(0)
        plain = PeftModel.from_pretrained(Net(), found.adapter(stage)).eval()
        assert torch.allclose(plain(x=x)["logits"], wanted, atol=1e-6)


def test_two_stages_in_a_row_outside_end_the_walk_and_one_does_not(adapted: Make, tmp_path: Path) -> None:
    wide = Spectral(rank=6, budget=Share(share=1.0))
    found = walked(
        adapted(wide), tmp_path / "f", 1.0, 0.5, 1.0, 0.5, 0.5, tolerance=Within(share=0.1), descent=Halve(factor=1.5, stages=9, knee=False)
    )
    assert [stage.index for stage in found.stages] == [0, 1, 2, 3, 4]
    assert found.chosen is found.stages[2]


def stage(index: int, parameters: int, validation: float, error: float | None = None) -> Stage:
    """A stage whose adapter has one module of 1 x 1."""
    from paring.core.factors import Factors

    rank = parameters // 2
    modules = {"m": Factors(a=torch.ones(rank, 1), b=torch.ones(1, rank))} if rank else {}
    scores = Scores(train=1.0, validation=validation, error=error)
    return Stage(index=index, goal=1.0, scores=scores, memorization=100.0, generalization=100.0, adapter=Adapter(modules=modules))


@pytest.mark.parametrize(
    ("tolerance", "wanted"),
    [
        (Within(share=0.0), 1),
        (Within(share=0.01), 1),
        (Within(share=0.03), 2),
        (StandardErrors(count=1.0), 2),
        (StandardErrors(count=3.0), 3),
        (StandardErrors(count=0.0), 1),
    ],
)
def test_what_is_inside_a_tolerance(tolerance: Within | StandardErrors, wanted: int) -> None:
    stages = [stage(0, 8, 0.90, 0.02), stage(1, 6, 0.90), stage(2, 4, 0.88), stage(3, 2, 0.85), stage(4, 0, 0.89)]
    # The last is an empty adapter, of which there is nothing to export.
    assert choose(stages, tolerance).index == wanted


def test_a_share_of_a_negative_metric_allows_what_is_lower() -> None:
    assert Within(share=0.1).floor(Scores(train=0.0, validation=-2.0)) == pytest.approx(-2.2)


def test_scores_that_are_no_numbers_are_never_inside() -> None:
    stages = [stage(0, 8, 0.9), stage(1, 6, math.nan)]
    assert choose(stages, Within(share=1.0)).index == 0
    assert given_up([stages[0], stages[1], stages[1]], Within(share=1.0))
    with pytest.raises(DataError, match="no smaller one can be compared"):
        choose([stage(0, 8, math.nan)], Within(share=0.1))
    with pytest.raises(DataError, match="needs one"):
        choose(stages, StandardErrors(count=1.0))


def test_scores_that_cannot_be_compared_cost_no_further_stage(adapted: Make, tmp_path: Path) -> None:
    for name, tolerance, values, said in (
        ("no error", StandardErrors(count=1.0), (0.9,), "needs one"),
        ("no number", Within(share=0.1), (math.nan,), "no smaller one can be compared"),
    ):
        with pytest.raises(DataError, match=said):
            walked(adapted(FULL), tmp_path / name, *values, tolerance=tolerance)
        # What was trained is there for another tolerance.
        assert (tmp_path / name / "stage-00" / "stage.json").is_file()
        assert not (tmp_path / name / "stage-01").exists()
    again = walked(adapted(FULL), tmp_path / "no error", 0.8, 0.7, 0.6, tolerance=Within(share=0.5), resume=True)
    assert len(again.stages) == 4


class Killed(Exception):
    """The process has gone."""


def test_a_walk_that_was_cut_off_between_stages_ends_with_the_same_bits(adapted: Make, tmp_path: Path) -> None:
    whole = adapted(FULL)
    first = walked(whole, tmp_path / "whole", 0.9, 0.8, 0.7, 0.6)

    model = adapted(FULL)

    def dies(index: int, goal: float) -> None:
        learn(model)(index, goal)
        if index == 2:
            raise Killed

    with pytest.raises(Killed):
        descend(model, dies, scored(0.9, 0.8), folder=tmp_path / "cut", tolerance=None, descent=HALVES)
    again = adapted(FULL)
    second = walked(again, tmp_path / "cut", 0.7, 0.6, resume=True)
    assert [(one.goal, one.scores) for one in first.stages] == [(one.goal, one.scores) for one in second.stages]
    state, other = trained_state(whole), trained_state(again)
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    for index in range(4):
        one, two = (tmp_path / name / f"stage-{index:02d}" / "state.safetensors" for name in ("whole", "cut"))
        assert one.read_bytes() == two.read_bytes()


def test_a_finished_walk_trains_nothing_again_and_may_be_chosen_from_anew(adapted: Make, tmp_path: Path) -> None:
    walked(adapted(FULL), tmp_path / "f", 0.9, 0.89, 0.7, 0.6, tolerance=Within(share=0.05))
    model = adapted(FULL)

    def fails(*_: Any) -> Any:
        pytest.fail("trained or scored again")

    found = descend(model, fails, fails, folder=tmp_path / "f", tolerance=Within(share=0.5), descent=HALVES, resume=True)
    assert found.chosen is found.stages[3]
    assert paring.snapshot(model).parameters == 12
    # More stages than before are walked on to.
    wide = walked(adapted(FULL), tmp_path / "g", 0.9, 0.8, descent=Halve(stages=1, knee=False))
    assert len(wide.stages) == 2
    assert len(walked(adapted(FULL), tmp_path / "g", 0.7, descent=Halve(stages=2, knee=False), resume=True).stages) == 3


def test_another_walk_does_not_go_on_from_these_stages(adapted: Make, tmp_path: Path) -> None:
    walked(adapted(FULL), tmp_path / "f", *[0.5] * 4)
    with pytest.raises(OutputExistsError, match="earlier walk"):
        walked(adapted(FULL), tmp_path / "f", *[0.5] * 4)
    for model, settings, said in (
        (adapted(replace(FULL, alpha=8.0)), {}, "method is"),
        (adapted(FULL, target_modules=["first"]), {}, "targets is"),
        (adapted(FULL), {"descent": Halve(factor=3.0, knee=False)}, "descent is"),
        (adapted(FULL), {"settings": {"data": "other"}}, "data is 'other' but was None"),
    ):
        with pytest.raises(SettingError, match=said):
            walked(model, tmp_path / "f", *[0.5] * 4, resume=True, **settings)


def test_a_damaged_family_says_which_file(adapted: Make, tmp_path: Path) -> None:
    walked(adapted(FULL), tmp_path / "f", *[0.5] * 4)
    (tmp_path / "f" / "stage-01" / "stage.json").write_text("{")
    with pytest.raises(DataError, match="stage-01/stage.json' is damaged"):
        walked(adapted(FULL), tmp_path / "f", *[0.5] * 4, resume=True)
    (tmp_path / "f" / "stage-00" / "state.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="stage-00/state.safetensors' is damaged"):
        walked(adapted(FULL), tmp_path / "f", *[0.5] * 4, resume=True)
    (tmp_path / "f" / "family.json").write_text("{")
    with pytest.raises(DataError, match="family.json' is damaged"):
        walked(adapted(FULL), tmp_path / "f", *[0.5] * 4, resume=True)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        (LoRA(rank=4), {}, "Only an adapter of method spectral"),
        (SoRA(rank=4), {}, "Rise"),
        (Spectral(rank=4, budget=Share(share=0.5)), {}, "start with all"),
        (Spectral(rank=4, budget=Share(share=1.0), score="loss"), {}, "score='loss'"),
        (FULL, {"descent": Rise(penalties=(0.1, 0.2))}, "without gates"),
    ],
    ids=["lora", "sora", "budget", "by loss", "penalties without gates"],
)
def test_what_cannot_be_made_smaller(adapted: Make, tmp_path: Path, method: Any, settings: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        walked(adapted(method), tmp_path / "f", 0.5, **settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Halve(factor=1.0),
        lambda: Halve(stages=0),
        lambda: Rise(penalties=()),
        lambda: Rise(penalties=(0.2, 0.1)),
        lambda: Within(share=-0.1),
        lambda: StandardErrors(count=-1.0),
    ],
)
def test_settings_out_of_range(make: Callable[[], object]) -> None:
    with pytest.raises(SettingError):
        make()


def test_shrink_says_what_is_left_and_what_cannot_be(adapted: Make) -> None:
    model = adapted(FULL)
    assert shrink(model, 96) == 96
    with pytest.raises(SettingError, match="Train the adapter first"):
        shrink(model, 50.5)
    assert paring.snapshot(model).parameters == 96
    for slot in slots(model).values():
        torch.nn.init.normal_(slot.B, generator=torch.Generator().manual_seed(0))
    assert shrink(model, 50.5) <= 48
    with pytest.raises(SettingError, match="do not pay for one rank"):
        shrink(model, 11)


def test_penalties_walk_down_too_and_an_empty_adapter_ends_it(adapted: Make, tmp_path: Path) -> None:
    model = adapted(SoRA(rank=4, gate_rate=1.0))
    found = descend(
        model,
        learn(model),
        scored(*[0.9] * 4),
        folder=tmp_path / "f",
        tolerance=Within(share=0.1),
        descent=Rise(penalties=(1e-4, 0.1, 9.0, 99.0)),
    )
    ranks = [sum(one.adapter.ranks.values()) for one in found.stages]
    assert ranks[0] >= ranks[1] > ranks[2] == 0
    assert len(found.stages) == 3
    assert not (tmp_path / "f" / "stage-02" / "adapter").exists()
    assert found.chosen is found.stages[1]


class Kill(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Ends the process after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("plain", [False, True], ids=["ParingTrainer", "Trainer"])
def test_with_trainers_a_walk_goes_on_in_the_midst_of_a_stage(
    adapted: Make, arguments: Make, data: Any, tmp_path: Path, plain: bool
) -> None:
    rates: list[list[float]] = []

    class Rates(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rates.append([])

        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            rates[-1].append(optimizer.param_groups[0]["lr"])

    def going(name: str, kill: int | None, resume: bool) -> tuple[Any, Walked]:
        model = adapted(FULL)

        def make(index: int, goal: float) -> Trainer:
            args = arguments(
                output_dir=str(tmp_path / name / f"trainer-{index}"),
                max_steps=4,
                save_strategy="steps",
                save_steps=1,
                seed=index,
                learning_rate=0.08,
            )
            watch = [Rates(), *([Kill(3)] if index == kill else [])]
            if plain:
                return Trainer(model=model, args=args, train_dataset=data, callbacks=[ParingCallback(), *watch])
            return ParingTrainer(model=model, args=args, train_dataset=data, callbacks=watch)

        def evaluate() -> Scores:
            return Scores(train=0.5, validation=1.0)

        found = pare(
            model,
            make,
            evaluate,
            folder=tmp_path / name / "family",
            descent=Halve(stages=2, knee=False),
            tolerance=Within(share=0.5),
            resume=resume,
        )
        return model, found

    whole, first = going("whole", None, False)
    assert [len(each) for each in rates] == [4, 4, 4]
    assert rates[0] == rates[1] == rates[2] == pytest.approx([0.08, 0.06, 0.04, 0.02])
    with pytest.raises(Killed):
        going("cut", 1, False)
    rates.clear()
    again, second = going("cut", None, True)
    # The third step was killed before its checkpoint was written; the first stage is not trained again.
    assert [len(each) for each in rates] == [2, 4]
    assert [one.parameters for one in first.stages] == [one.parameters for one in second.stages] == [96, 48, 24]
    state, other = trained_state(whole), trained_state(again)
    assert all(torch.equal(state[key], other[key]) for key in state)
    kept = json.loads((tmp_path / "cut" / "family" / "stage-01" / "stage.json").read_text())
    assert [point["step"] for point in kept["history"]] == [1, 2, 3, 4]


def test_stages_in_one_folder_could_not_be_told_apart(adapted: Make, arguments: Make, data: Any, tmp_path: Path) -> None:
    model = adapted(FULL)

    def make(index: int, goal: float) -> Trainer:
        return ParingTrainer(model=model, args=arguments(max_steps=1), train_dataset=data)

    with pytest.raises(SettingError, match="a folder of its own"):
        pare(model, make, lambda: Scores(train=1.0, validation=1.0), folder=tmp_path / "f", resume=True)


def test_what_was_logged_is_kept(adapted: Make, tmp_path: Path) -> None:
    from paring.core.records import Point

    model = adapted(FULL)

    def train_stage(index: int, goal: float) -> Sequence[Point]:
        for slot in slots(model).values():
            torch.nn.init.normal_(slot.B, generator=torch.Generator().manual_seed(index))
        return [Point(step=1, values={"loss": float(index)})]

    settings: dict[str, Any] = {"folder": tmp_path / "f", "tolerance": None, "descent": Halve(stages=1, knee=False)}
    descend(model, train_stage, scored(0.5, 0.5), **settings)
    found = descend(adapted(FULL), train_stage, scored(), resume=True, **settings)
    assert [one.history[0].values for one in found.stages] == [{"loss": 0.0}, {"loss": 1.0}]
