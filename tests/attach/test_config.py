"""Settings of a LoraConfig that are somewhere else or nowhere, and values that make no sense."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from peft import LoraConfig

import paring
from paring.attach.config import LORA, NOT_HERE
from paring.core.errors import SettingError
from paring.methods.lora import LoRA
from paring.parts.initialise.base import Initialiser

METHOD = LoRA(rank=2, alpha=4)


def test_every_field_of_lora_config_is_known_moved_or_missing_for_a_reason() -> None:
    own = {item.name for item in dataclasses.fields(paring.ParingConfig)}
    theirs = {item.name for item in dataclasses.fields(LoraConfig)}
    assert theirs <= own | LORA.keys() | NOT_HERE.keys(), "say in attach/config.py where these went, or why they are not there"
    assert not own & (LORA.keys() | NOT_HERE.keys())
    assert not LORA.keys() & NOT_HERE.keys()


@pytest.mark.parametrize("key", [*LORA, *NOT_HERE])
def test_a_field_of_lora_config_is_refused_with_what_to_do(key: str) -> None:
    with pytest.raises(SettingError, match=rf"^{key}='given': {key} is a key of LoraConfig") as caught:
        paring.ParingConfig(method=METHOD, **{key: "given"})
    assert {**LORA, **NOT_HERE}[key] in str(caught.value)
    assert "upgrade" not in str(caught.value)


def test_the_starts_that_there_are_are_named() -> None:
    with pytest.raises(SettingError, match="init_lora_weights='pissa'") as caught:
        paring.ParingConfig(method=METHOD, init_lora_weights="pissa")
    starts = [start for start in Initialiser.members.values() if start.__module__.startswith("paring.")]
    assert len(starts) == 2
    assert all(start.__name__ in str(caught.value) for start in starts)


@pytest.mark.parametrize("seed", ["a", -1, 1.5, True])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(SettingError, match=f"seed={seed!r}: give a whole number of at least 0"):
        paring.ParingConfig(method=METHOD, seed=seed)
    assert paring.ParingConfig(method=METHOD, seed=0).seed == 0


def test_no_targets_are_refused() -> None:
    with pytest.raises(SettingError, match="target_modules=None.*'all-linear'"):
        paring.ParingConfig(method=METHOD, target_modules=None)


def test_one_module_to_save_needs_no_list() -> None:
    assert paring.ParingConfig(method=METHOD, modules_to_save="classifier").modules_to_save == ["classifier"]
