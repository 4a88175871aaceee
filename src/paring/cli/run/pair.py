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
    first, second = read_config(base), read_config(tuned)
    if first.model_type != second.model_type:
        raise SettingError(
            f"{base!r} is a {first.model_type} and {tuned!r} a {second.model_type}; give the model that training began with as the base."
        )
    kind, task_type = class_of(second, tuned)
    after = load_complete(kind, tuned, second)
    if task_type == "SEQ_CLS":
        first.id2label, first.label2id, first.problem_type = second.id2label, second.label2id, second.problem_type
    before, drawn = _load(kind, base, first, "auto")
    return Pair(base=before, tuned=after, name=place_of(base), task_type=task_type, drawn=drawn)


def is_model(source: str) -> bool:
    """Whether a folder holds a whole model, and not an adapter."""
    folder = Path(source)
    return any((folder / weights).is_file() for weights in WEIGHTS) and not (folder / CONFIG).is_file()


def read_config(name: str) -> PretrainedConfig:
    """A model's configuration.

    Raises:
        SettingError: it cannot be read.
    """
    place = place_of(name)
    found = loaded(lambda: AutoConfig.from_pretrained(place), place, "config")
    assert isinstance(found, PretrainedConfig)
    return found


def class_of(config: PretrainedConfig, name: str) -> tuple[Any, str | None]:
    """The class to load with, and the task that its head is for.

    Raises:
        SettingError: a head that the command line does not handle.
    """
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


def load_complete(kind: Any, name: str, config: PretrainedConfig, *, dtype: Any = "auto") -> PreTrainedModel:
    """The model as ``kind``, in evaluation mode.

    Raises:
        SettingError: it cannot be loaded, or lacks weights.
    """
    model, lost = _load(kind, name, config, dtype)
    if lost:
        raise SettingError(f"The weights of {name!r} are incomplete: {len(lost)} tensors are missing (first: {min(lost)!r}).")
    return model


def _load(kind: Any, name: str, config: PretrainedConfig, dtype: Any) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model, and the names of the weights that were not there, or of another shape."""
    place = place_of(name)
    settings = {"config": config, "dtype": dtype, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = loaded(lambda: kind.from_pretrained(place, **settings), place, "model")
    return model.eval(), frozenset((*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])))
