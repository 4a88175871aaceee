"""A trained adapter with its base model, ready to use: from an export, and from a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

import paring
from paring.attach.fuse import check_fit
from paring.attach.register import register
from paring.cli.data.task import Columns, Kind, Task
from paring.cli.run.base import DTYPES, Base, check_folder, check_loaded, load_base, load_tokenizer, loaded, place_of
from paring.cli.run.checkpoints import read_task
from paring.cli.run.options import DType, ModelOptions
from paring.cli.run.output import check_checkpoint, check_exported
from paring.cli.run.pair import class_of, is_model, load_complete, read_config
from paring.core.adapter import Adapter
from paring.core.errors import AdapterError, SettingError
from paring.core.reading import json_object


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A trained model.

    Attributes:
        source: where it was read from.
        model: the model, with the head that its task needs.
        tokenizer: its tokenizer.
        kind: what it was trained for.
        names: the labels by class index.
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    names: tuple[str, ...]

    def joined(self) -> PreTrainedModel | PeftModel:
        """What answers, in evaluation mode."""
        return self.model

    def task(self, columns: Columns) -> Task:
        """The task for rows with these columns."""
        # Labels may stand in a file by their number where their names are words.
        numbered = tuple(str(index) for index in range(len(self.names)))
        words = not any(name.lstrip("-").replace(".", "", 1).isdigit() for name in self.names)
        return Task(
            kind=self.kind, texts=columns.texts, label=columns.label, form=columns.form, names=self.names, values=numbered if words else ()
        )


@dataclass(frozen=True, kw_only=True)
class Trained(Ready):
    """An adapter and the frozen model that it belongs to, not yet joined; the tokenizer is the adapter's own, or else the base's.

    Attributes:
        adapter: the adapter.
    """

    adapter: Adapter

    def joined(self) -> PeftModel:
        """The base with the adapter on it, as stock PEFT puts it there, in evaluation mode."""
        check_fit(self.model, self.adapter)
        return PeftModel.from_pretrained(self.model, self.source).eval()


def load_any(source: str, *, base: str | None = None, dtype: DType = "auto") -> Ready:
    """An exported adapter on its base model, or a whole model with a head, such as one that was trained or fused.

    Args:
        source: folder or hub id of the adapter, or folder of the model.
        base: folder or hub id of an adapter's base model; by default what the adapter says.
        dtype: precision of the model's weights.

    Raises:
        AdapterError: not a readable adapter, or one of another base model.
        SettingError: something cannot be loaded, or the task is none that the command line handles.
    """
    if not is_model(source):
        return load_trained(source, base=base, dtype=dtype)
    if base is not None:
        raise SettingError(f"{source!r} is a whole model, which stands on no other; leave out --model_name_or_path.")
    return load_whole(source, dtype)


def load_whole(source: str, dtype: DType = "auto") -> Ready:
    """A whole model with the head that it was saved with.

    Raises:
        SettingError: it cannot be loaded, or has no head that the command line handles.
    """
    check_folder(source)
    config = read_config(source)
    kind, task_type = class_of(config, source)
    if task_type is None:
        raise SettingError(
            f"{source!r} has no head, so it says nothing of a text; give a model that was trained for a task, or an adapter."
        )
    model: Any = load_complete(kind, source, config, dtype=DTYPES[dtype])
    tokenizer = load_tokenizer(place_of(source))
    model.config.pad_token_id = tokenizer.pad_token_id
    names = tuple(map(str, dict(config.id2label or {}).values())) if task_type == "SEQ_CLS" else ()
    place = torch.accelerator.current_accelerator() or torch.device("cpu")
    return Ready(source=source, model=model.to(place), tokenizer=tokenizer, kind=_headed(task_type, names), names=names)


def _headed(task_type: str, names: tuple[str, ...]) -> Kind:
    if task_type == "CAUSAL_LM":
        return "causal-lm"
    return "regression" if len(names) == 1 else "classification"


def load_trained(source: str, *, base: str | None = None, dtype: DType = "auto", device: str | None = None) -> Trained:
    """Read an exported adapter and load its base model.

    Args:
        source: folder or hub id of the adapter.
        base: folder or hub id of the base model; by default what the adapter says.
        dtype: precision of the base's weights.
        device: where to; by default an accelerator if there is one.

    Raises:
        AdapterError: not a readable adapter, or one of another base model.
        SettingError: the base is unknown or cannot be loaded, or the task is none that the command line handles.
    """
    check_exported(source)
    adapter = paring.read(source)
    name = base or adapter.metadata.base_model
    if name is None:
        raise SettingError(f"The adapter {source!r} does not say which model it belongs to; give it with --model_name_or_path.")
    try:
        check_folder(name)
    except SettingError as error:
        hint = " The adapter names it as its base model; if that has moved, give it with --model_name_or_path." if base is None else ""
        raise SettingError(f"{error}{hint}") from error
    name = place_of(name)
    place = torch.device(device) if device else torch.accelerator.current_accelerator() or torch.device("cpu")
    own = Path(source)
    tokenizer = load_tokenizer(source if (own / "tokenizer_config.json").is_file() else name)
    revision = adapter.metadata.revision if base is None else None
    common: dict[str, Any] = {"dtype": DTYPES[dtype], **({"revision": revision} if revision else {})}
    kind = _kind(adapter)
    if kind == "causal-lm":
        model, info = loaded(lambda: AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **common), name, "model")
        check_loaded(model, info, name)
        names: tuple[str, ...] = ()
    else:
        config = loaded(lambda: AutoConfig.from_pretrained(name, **({"revision": revision} if revision else {})), name, "config")
        config.id2label = labels_of(own, _outputs(adapter, config.num_labels))
        config.label2id = {label: index for index, label in config.id2label.items()}
        settings = {**common, "config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = loaded(lambda: AutoModelForSequenceClassification.from_pretrained(name, **settings), name, "model")
        check_loaded(model, info, name)
        names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        kind = _headed("SEQ_CLS", names)
    model.config.pad_token_id = tokenizer.pad_token_id
    check_fit(model, adapter)
    return Trained(adapter=adapter, source=source, model=model.to(place).eval(), tokenizer=tokenizer, kind=kind, names=names)


def labels_of(folder: Path, count: int) -> dict[int, str]:
    """The labels that travel with an adapter, by class index; numbered names where there are none, or not so many."""
    try:
        stored = json_object(folder / "config.json")["id2label"]
        found = {int(index): str(label) for index, label in stored.items()}
    except (ValueError, KeyError, AttributeError):  # an AdapterError is a ValueError
        found = {}
    return found if sorted(found) == list(range(count)) else {index: f"LABEL_{index}" for index in range(count)}


def _kind(adapter: Adapter) -> Kind:
    kinds: Mapping[str | None, Kind] = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}
    task = adapter.metadata.task_type
    if task not in kinds:
        raise SettingError(
            f"The adapter's task type is {task!r}; the command line handles {', '.join(map(str, kinds))}. Use PEFT in Python."
        )
    return kinds[task]


def _outputs(adapter: Adapter, otherwise: int) -> int:
    rows = [tensor.shape[0] for name, tensor in adapter.heads.items() if name.endswith(".weight") and tensor.ndim == 2]
    return rows[-1] if rows else otherwise


def load_checkpoint(folder: Path, base: str | None = None, *, trust_remote_code: bool = False) -> tuple[PeftModel, Base]:
    """The model of a training checkpoint, gates and all.

    Args:
        folder: the checkpoint.
        base: folder or hub id of the base model; by default what the checkpoint says.
        trust_remote_code: run code that comes with the base model. What the checkpoint's own file says of that is not enough.

    Raises:
        AdapterError: the weights are damaged, or belong to another base model.
        DataError: no task beside the checkpoint.
        SettingError: the base cannot be loaded, or the configuration holds what this release does not know.
    """
    check_checkpoint(folder)
    task, options = read_task(folder)
    given = {**options, "model_name_or_path": base or options["model_name_or_path"], "trust_remote_code": trust_remote_code}
    # An attention of that form is a repository on the hub, whose kernels are run.
    if not trust_remote_code and (options.get("trust_remote_code") or "/" in str(options.get("attn_implementation"))):
        raise SettingError(
            f"The checkpoint {str(folder)!r} was trained with code that comes with its model, {given['model_name_or_path']!r}; if you "
            "trust both, allow it to run with --trust_remote_code."
        )
    found = load_base(ModelOptions(**given), task, seed=0)
    register()
    try:
        model = PeftModel.from_pretrained(found.model, str(folder), is_trainable=False)
    except SafetensorError as error:
        raise AdapterError(f"The weights in {str(folder)!r} are damaged ({error}); use another checkpoint of the run.") from error
    except RuntimeError as error:
        text = str(error).strip().splitlines()
        raise AdapterError(f"The checkpoint {str(folder)!r} does not fit {given['model_name_or_path']!r}: {text[-1].strip()}") from error
    return model.eval(), found
