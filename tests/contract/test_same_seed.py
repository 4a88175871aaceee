"""The same seed gives the same bits, and takes none from torch's own generator."""

from __future__ import annotations

import random

import numpy as np
import torch

from paring import train
from tests.contract.cases import Case, adapted_paths, adapter_state, names_that_differ, same_bits


def test_same_seed_same_bits(case: Case) -> None:
    torch.manual_seed(1)
    first = adapter_state(case.adapted(seed=5))
    torch.manual_seed(2)
    second = adapter_state(case.adapted(seed=5))
    assert names_that_differ(first, second) == []


def test_other_seed_other_bits(case: Case) -> None:
    assert not same_bits(adapter_state(case.adapted(seed=5)), adapter_state(case.adapted(seed=6)))


def test_a_seed_leaves_every_global_generator_alone(case: Case, unchecked: None) -> None:
    # Unchecked: the checks of annotations pick the items that they look at with Python's generator.
    base = case.base()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    case.adapted(base=base, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tobytes() == before[2]  # noqa: NPY002


def test_without_a_seed_one_is_drawn_and_kept(case: Case) -> None:
    torch.manual_seed(11)
    model = case.adapted(seed=None)
    kept = model.peft_config["default"].seed
    assert isinstance(kept, int)
    torch.manual_seed(12)
    again = case.adapted(seed=None)
    assert again.peft_config["default"].seed != kept
    assert names_that_differ(adapter_state(model), adapter_state(case.adapted(seed=kept))) == []


def test_a_module_starts_by_its_name_alone(case: Case) -> None:
    whole = adapter_state(case.adapted())
    last = adapted_paths(case.adapted())[-1]
    part = adapter_state(case.adapted(target_modules=[last]))
    slots = {name: value for name, value in part.items() if "paring_slot" in name}
    assert slots
    assert [name for name, value in slots.items() if not torch.equal(value, whole[name])] == []


def test_training_bits_follow_from_the_seeds(plain: Case) -> None:
    def trained() -> dict[str, torch.Tensor]:
        model = plain.adapted().train()
        optimizer = train.create_optimizer(model, lr=1e-2)
        torch.manual_seed(4)
        for step in range(3):
            optimizer.zero_grad()
            model(**plain.kind.batch(seed=step)).loss.backward()
            optimizer.step()
        return adapter_state(model)

    assert names_that_differ(trained(), trained()) == []
