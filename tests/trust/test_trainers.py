"""Every trainer: one proximal step after each step, restarts to the bit, mixed batches, and exports that stock PEFT reads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from torch import Tensor, nn

import paring
from tests.contract.cases import adapter_state, assert_close, names_that_differ
from tests.trust import language, proof
from tests.trust.grids import cell
from tests.trust.loops import Plan, Run, accelerated, checkpoint
from tests.trust.runs import WAYS, Way, transformers

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 4
SAVED = 2


def ways(column: str, quick: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Every way of training, as a cell of a column; those that take longer are slow, but for the rows that are quick here."""
    return pytest.mark.parametrize(
        "way",
        [
            pytest.param(
                way,
                id=way.row,
                marks=[cell("trainers", way.row, column), *([pytest.mark.slow] if way.slow and way.row not in quick else [])],
            )
            for way in WAYS
        ],
    )


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all that is not an adapter's, by the base model's own names."""
    return {
        name.replace(".base_layer", "").removeprefix("base_model.model."): value.clone()
        for name, value in model.state_dict().items()
        if "paring_slot." not in name
    }


def inner(model: nn.Module) -> nn.Module:
    """The model that transformers or PEFT knows: a SentenceTransformer has it inside."""
    found: object = model if isinstance(model, PeftModel) else model[0].model  # type: ignore[index]
    assert isinstance(found, nn.Module)
    return found


@torch.no_grad()
def outputs(model: nn.Module, **kwargs: object) -> Tensor:
    """Logits of a decoder, hidden states of an encoder."""
    found = model(input_ids=language.tokens(6, seed=99), **kwargs)
    result: Tensor = found.logits if "logits" in found else found.last_hidden_state
    return result


@ways("one proximal step a step", quick=("TRL SFTTrainer", "sentence-transformers"))
@pytest.mark.parametrize("plan", [Plan(steps=STEPS), Plan(steps=STEPS, schedule="linear", accumulate=2)], ids=["constant", "accumulated"])
def test_one_proximal_step_after_each_step(way: Way, plan: Plan, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    model = way.build()
    before = base_state(model)
    with proof.Watch(model) as watch:
        way.run(model, tmp_path, plan)
    record_property("trust", proof.check(watch, plan.steps))
    # Whatever the trainer did in between, such as generating: the base model is as it was.
    assert names_that_differ(base_state(model), before) == []


@ways("resumes")
def test_a_run_that_goes_on_ends_where_the_whole_one_does(way: Way, tmp_path: Path) -> None:
    whole = way.build(dropout=0.1)
    way.run(whole, tmp_path / "whole", Plan(steps=STEPS, schedule="linear", save_at=SAVED))
    again = way.build(dropout=0.1)
    # Another start, and another state of the generator: all of it has to come from what was saved.
    proof.start(again, seed=5)
    torch.manual_seed(99)
    with proof.Watch(again) as watch:
        way.run(again, tmp_path / "again", Plan(steps=STEPS, schedule="linear", resume=checkpoint(tmp_path / "whole", SAVED)))
    proof.check(watch, STEPS, begun=SAVED)
    assert names_that_differ(adapter_state(again), adapter_state(whole)) == []


@ways("mixed batch")
def test_each_row_gets_its_adapter(way: Way, tmp_path: Path) -> None:
    outer = (way.peft or way.build)()
    way.run(outer, tmp_path, Plan(steps=STEPS))
    model = inner(outer.eval())
    assert isinstance(model, PeftModel)
    model.add_adapter("second", model.peft_config["default"])
    proof.start(model, "second", seed=2)
    names = ["default", "second", "__base__", "second", "default", "__base__"]
    mixed = outputs(model, adapter_names=names)
    alone = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = outputs(model)
    with model.disable_adapter():
        alone["__base__"] = outputs(model)
    assert_close(mixed, torch.stack([alone[name][row] for row, name in enumerate(names)]))
    assert all((alone["default"] - alone[other]).abs().max() > 1e-3 for other in ("second", "__base__"))


@ways("export")
def test_stock_peft_computes_what_the_trained_model_does(way: Way, tmp_path: Path) -> None:
    outer = way.build()
    way.run(outer, tmp_path, Plan(steps=STEPS))
    model = inner(outer.eval())
    ranks = paring.ranks(model)
    assert all(0 < rank < proof.RANK for rank in ranks.values()), "some ranks have died, some are left"
    paring.export(model, tmp_path / "adapter")
    base = way.base()
    before = outputs(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert loaded.peft_config["default"].peft_type == "LORA"
    assert_close(outputs(loaded), outputs(model))
    assert (outputs(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=way.row, marks=cell("trainers", way.row, "one proximal step a step"))
        for way in WAYS
        if way.row in ("plain loop", "transformers Trainer", "accelerate", "Lightning")
    ],
)
def test_a_last_step_of_fewer_batches_counts_as_one(way: Way, tmp_path: Path) -> None:
    model = way.build()
    with proof.Watch(model) as watch:
        way.run(model, tmp_path, Plan(steps=STEPS, accumulate=3, short=2))
    proof.check(watch, STEPS)


@pytest.fixture
def _fresh() -> Iterator[None]:
    # One precision holds for all that accelerate makes in a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("run", "settings"),
    [
        pytest.param(accelerated, ("mixed_precision", "bf16"), marks=cell("trainers", "accelerate", "one proximal step a step")),
        pytest.param(transformers, ("bf16", True), marks=cell("trainers", "transformers Trainer", "one proximal step a step")),
    ],
    ids=["accelerate", "Trainer"],
)
def test_mixed_precision_leaves_the_thresholds_exact(run: Run, settings: tuple[str, object], tmp_path: Path) -> None:
    model = language.adapted()
    with proof.Watch(model) as watch:
        run(model, tmp_path, Plan(steps=STEPS, settings=(settings,)))
    proof.check(watch, STEPS)


@cell("trainers", "transformers Trainer", "resumes")
def test_the_best_checkpoint_comes_back_with_its_gates(tmp_path: Path) -> None:
    model = language.adapted()
    rows = [{"input_ids": row, "labels": row} for row in language.tokens(4, seed=50)]
    # What is best is turned round, so that it is not the last one.
    choice = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    settings = {"eval_strategy": "steps", "eval_steps": 1, **choice}
    trainer = transformers(model, tmp_path, Plan(steps=STEPS, save_at=1, settings=tuple(settings.items())), eval_dataset=rows)
    best = Path(trainer.state.best_model_checkpoint)
    step = int(best.name.rpartition("-")[2])
    assert step < STEPS
    saved = PeftModel.from_pretrained(language.llama(), str(best))
    assert names_that_differ(adapter_state(model), adapter_state(saved)) == []
    assert {int(slot.steps) for slot in proof.gates(model).values()} == {step}
    assert torch.equal(outputs(model.eval()), outputs(saved.eval()))
