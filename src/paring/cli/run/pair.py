"""A model before and after a training in full, loaded alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from paring.cli.run.base import WEIGHTS, check_folder, loaded, place_of
from paring.core.errors import SettingError
from paring.exchange.layout import CONFIG


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two models.

    Attributes:
        base: before, with a head for the task, which may be drawn.
        tuned: after.
        name: folder or hub id of the base.
        task_type: PEFT's task type, or ``None`` for a bare encoder.
        drawn: tensors that the base has not got on disk.
    """

    base: PreTrainedModel
    tuned: PreTrainedModel
    name: str
    task_type: str | None
    drawn: frozenset[str]


def load_pair(base: str, tuned: str) -> Pair:
    """Load both as the class that the tuned one was saved as, each in the precision it is stored in.

    Raises:
        SettingError: one cannot be loaded, the two are of different kinds, or the tuned one lacks weights.
    """
    for name in (base, tuned):
        if (Path(name) / CONFIG).is_file() and not any((Path(name) / weights).is_file() for weights in WEIGHTS):
            raise SettingError(f"{name!r} is an adapter, not a model. Give two whole models; paring compress makes an adapter smaller.")
        check_folder(name)
    first, second = _config(base), _config(tuned)
    if first.model_type != second.model_type:
        raise SettingError(
            f"{base!r} is a {first.model_type} and {tuned!r} a {second.model_type}; give the model that training began with as the base."
        )
    kind, task_type = _kind(second, tuned)
    after, info = _load(kind, tuned, second)
    lost = [*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])]
    if lost:
        raise SettingError(f"The weights of {tuned!r} are incomplete: {len(lost)} tensors are missing (first: {min(lost)!r}).")
    if task_type == "SEQ_CLS":
        first.id2label, first.label2id, first.problem_type = second.id2label, second.label2id, second.problem_type
    before, info = _load(kind, base, first)
    drawn = frozenset((*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])))
    return Pair(base=before, tuned=after, name=place_of(base), task_type=task_type, drawn=drawn)


def _config(name: str) -> PretrainedConfig:
    place = place_of(name)
    found = loaded(lambda: AutoConfig.from_pretrained(place), place, "config")
    assert isinstance(found, PretrainedConfig)
    return found


def _kind(config: PretrainedConfig, name: str) -> tuple[Any, str | None]:
    """The class to load with, and the task that its head is for."""
    saved: str | None = next(iter(config.architectures or ()), None)
    if saved in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values():
        return AutoModelForSequenceClassification, "SEQ_CLS"
    if saved in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return AutoModelForCausalLM, "CAUSAL_LM"
    if saved is None or "For" not in saved:
        return AutoModel, None
    raise SettingError(
        f"{name!r} was saved as {saved}; the command line handles classifiers, causal language models and models without a head. In Python "
        "paring.extract_lora takes any two models."
    )


def _load(kind: Any, name: str, config: PretrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    place = place_of(name)
    settings = {"config": config, "dtype": "auto", "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = loaded(lambda: kind.from_pretrained(place, **settings), place, "model")
    return model.eval(), info
