"""A Trainer and a hand-written loop give the same bits."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from tests.contract.cases import Case, adapter_state, names_that_differ, roughen, trained_names
from tests.contract.training import Reseed, by_hand, trainer, with_dropout


def _start(case: Case) -> PeftModel:
    model = case.adapted(method=with_dropout(case.method))
    roughen(model, torch.Generator().manual_seed(1))
    return model


def test_trainer_and_hand_loop_give_the_same_bits(case: Case, tmp_path: Path) -> None:
    _same_bits(case, tmp_path, accumulate=1)


def test_trainer_and_hand_loop_give_the_same_bits_when_they_accumulate(plain: Case, tmp_path: Path) -> None:
    _same_bits(plain, tmp_path, accumulate=2)


def _same_bits(case: Case, tmp_path: Path, accumulate: int) -> None:
    by_trainer, written_out = _start(case), _start(case)
    before = adapter_state(by_trainer)
    run = trainer(case, by_trainer, tmp_path, 2, gradient_accumulation_steps=accumulate)
    run.add_callback(Reseed())
    run.train()
    by_hand(case, written_out, 2, accumulate=accumulate)
    trained = adapter_state(by_trainer)
    assert names_that_differ(trained, adapter_state(written_out)) == []
    changed = names_that_differ(trained, before)
    assert {name.rsplit(".", 1)[-1] for name in changed} >= trained_names(by_trainer)
