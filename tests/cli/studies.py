"""A small study, and runs of every kind, for the tests of `paring study`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paring.study.records import Job, Phase

FILE = """\
settings:
  model_name_or_path: $base
  per_device_train_batch_size: 16
  num_train_epochs: 2
tasks:
  moods: {dataset_name: $data, metric: accuracy}
contestants:
  LoRA: {method: lora, rank: 2}
  SoRA: {method: sora, rank: 4}
search:
  learning_rate: [1e-3, 1e-2]
  evaluations: 2
  held: 0.25
seeds: 1
"""

CONTESTANTS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 2},
    "lora with dropout": {"method": "lora", "rank": 2, "dropout": 0.5},
    "spectral": {"method": "spectral", "rank": 4, "budget": "50%"},
    "lora_ga": {"method": "lora_ga", "rank": 2},
    "lisa": {"method": "lisa", "layers": 1, "interval": 2},
    "PEFT's LoRA": {"peft": {"peft_type": "LORA", "r": 2, "lora_dropout": 0.3}},
    "PEFT's AdaLoRA": {"peft": {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "deltaT": 1}},
    "PEFT's LoRA-GA": {"peft": {"peft_type": "LORA", "r": 2, "init_lora_weights": "lora_ga"}},
    "PEFT's EVA": {"peft": {"peft_type": "LORA", "r": 2, "init_lora_weights": "eva"}, "target_modules": ["query", "value"]},
    "PEFT's DoRA": {"peft": {"peft_type": "LORA", "r": 2, "use_dora": True}},
    "PEFT's VeRA": {"peft": {"peft_type": "VERA", "r": 4}, "target_modules": ["query", "value"]},
}


def job(bert: Path, moods: Path, contestant: str, *, phase: Phase = Phase.FINAL, seed: int = 0, **flags: Any) -> Job:
    base = {"model_name_or_path": str(bert), "dataset_name": str(moods), "per_device_train_batch_size": 16, "num_train_epochs": 2}
    settings: dict[str, Any] = {"flags": {**base, **CONTESTANTS[contestant], **flags}, "values": {"learning_rate": 3e-3}}
    if phase is Phase.SEARCH:
        settings["search"] = {"held": 0.25, "held_seed": 0, "evaluations": 2}
    return Job(contestant=contestant, task="moods", budget=None, phase=phase, seed=seed, settings=settings)
