"""Planted ranks as a task: an encoder whose updates are known, to be found from its hidden states.

To each linear module of an encoder's blocks an update of known rank is added, with Gaussian factors and a share of the weight's Frobenius
norm. An adapter on the encoder without them learns the planted encoder's hidden states on plain texts. What it should find are the updates:
a relative error of zero on texts that it has not seen, and the ranks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from datasets import Dataset
from peft import AdaLoraConfig, LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModel,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import paring
from paring.attach.find import adapters
from paring.cli.data.task import Task
from paring.cli.flags import listed
from paring.cli.run.arguments import arguments
from paring.cli.run.base import Base, load_tokenizer, loaded, place_of
from paring.cli.run.options import TrainOptions
from paring.cli.run.prepare import Prepared, split
from paring.cli.run.trainer import Rows
from paring.cli.study import contestants
from paring.core.coding import natural, number
from paring.core.errors import DataError, SettingError, TargetError, near
from paring.train import ParingTrainerMixin
from paring.train.blocks import find_blocks

LENGTH = 64
"""Tokens that a text is cut at, where nothing else is said."""

METRICS = ("relative_error", "rank_error")
"""What such a task is scored in: the squared distance to the planted hidden states on unseen texts, divided by that of the bare encoder;
and the absolute differences of ranks, summed over modules and divided by the planted ranks."""


@dataclass(frozen=True, kw_only=True)
class Planting:
    """What is planted.

    Attributes:
        pattern: seed of the updates and their ranks.
        ranks: what a module's rank is drawn from.
        size: Frobenius norm of an update, as a share of the weight's.

    Raises:
        SettingError: a value is out of range.
    """

    pattern: int = 0
    ranks: tuple[int, ...] = (0, 0, 1, 2, 4)
    size: float = 0.08

    def __post_init__(self) -> None:
        natural("pattern", self.pattern)
        given: object = self.ranks
        if not isinstance(given, tuple) or not given:
            raise SettingError(f"ranks={self.ranks!r}: give a list of whole numbers of at least 0.")
        for rank in given:
            natural("ranks", rank)
        number("size", self.size, low=0.0, open_low=True)


def planting(given: Mapping[str, Any]) -> Planting:
    """What a study's file says of it.

    Raises:
        SettingError: an unknown key, or a value out of range.
    """
    known = [item.name for item in fields(Planting)]
    for name in given:
        if name not in known:
            raise SettingError(f"planted: unknown key {name!r}.{near(name, known)} Known: {', '.join(known)}.")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Planting(**values)


def places(model: nn.Module) -> dict[str, nn.Linear]:
    """The modules that are planted into: those of the model's blocks.

    Raises:
        TargetError: the model has no blocks that can be told.
    """
    path, _ = find_blocks(model)
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.startswith(f"{path}.")}


@torch.no_grad()
def plant(model: nn.Module, what: Planting) -> dict[str, int]:
    """Add the updates; the rank of each module.

    Raises:
        TargetError: a module is smaller than a rank.
    """
    generator = torch.Generator().manual_seed(1000 + what.pattern)
    found = {}
    for name, module in places(model).items():
        rank = what.ranks[int(torch.randint(len(what.ranks), (), generator=generator))]
        if rank > min(module.in_features, module.out_features):
            raise TargetError(f"planted: a rank of {rank} does not fit into {name!r}.")
        found[name] = rank
        if rank:
            b = torch.randn(module.out_features, rank, generator=generator)
            update = (b @ torch.randn(rank, module.in_features, generator=generator)).to(module.weight)
            module.weight += update * (what.size * module.weight.norm() / update.norm())
    return found


def left(model: PeftModel, names: Sequence[str]) -> dict[str, int] | None:
    """The rank that an adapter has at each module; ``None`` for adapters that are not made of ranks."""
    if adapters(model):
        adapter = paring.snapshot(model)
        return None if adapter.entries else {name: adapter.ranks.get(name, 0) for name in names}
    config = model.peft_config["default"]
    if isinstance(config, AdaLoraConfig):
        found = contestants.triplets(model)
        return {name: found[name].live if name in found else 0 for name in names}
    if isinstance(config, LoraConfig):
        inside = dict(model.named_modules())
        adapted = {name: f"{contestants.INSIDE}{name}.lora_A" in inside for name in names}
        return {name: (config.rank_pattern or {}).get(name, config.r) if adapted[name] else 0 for name in names}
    return None


class PlantedTrainer(Trainer):
    """Learns a planted encoder's hidden states.

    Args:
        teacher: the planted encoder.
        planted: the rank of each of its modules.
        given: all else as for ``Trainer``.
    """

    def __init__(self, *, teacher: PreTrainedModel, planted: Mapping[str, int], **given: Any) -> None:
        super().__init__(**given)
        self.teacher: Any = teacher.train(False).requires_grad_(False)
        self.teacher.to(self.args.device)
        self.planted = dict(planted)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Squared distance to the planted hidden states, summed over features, on the mean over tokens."""
        got, wanted, mask = self._states(model, inputs), self._wanted(inputs), inputs["attention_mask"]
        loss = ((got - wanted).square() * mask[..., None]).sum() / mask.sum() + contestants.extra_loss(model)
        return (loss, {"last_hidden_state": got}) if return_outputs else loss

    def _states(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        return found.float()

    @torch.no_grad()
    def _wanted(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._states(self.teacher, inputs)

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The relative error on texts that were not trained on, and how far the ranks are from the planted ones."""
        begun = time.perf_counter()
        model = self.model
        assert isinstance(model, PeftModel)
        mode = model.training
        model.eval()
        found, bare, tokens = 0.0, 0.0, 0
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = self._prepare_inputs(batch)
            got, wanted, mask = self._states(model, inputs), self._wanted(inputs), inputs["attention_mask"]
            with model.disable_adapter():
                without = self._states(model, inputs)
            found += float(((got - wanted).double().square() * mask[..., None]).sum())
            bare += float(((without - wanted).double().square() * mask[..., None]).sum())
            tokens += int(mask.sum())
        model.train(mode)
        metrics = {
            f"{metric_key_prefix}_loss": found / max(tokens, 1),
            f"{metric_key_prefix}_relative_error": found / bare if bare else float("nan"),
        }
        ranks, total = left(model, list(self.planted)), sum(self.planted.values())
        if ranks is not None and total:
            off = sum(abs(ranks[name] - rank) for name, rank in self.planted.items())
            metrics[f"{metric_key_prefix}_rank_error"] = off / total
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - begun
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class ParingPlantedTrainer(ParingTrainerMixin, PlantedTrainer):
    """The same for adapters of paring's own."""


def load_planted(options: TrainOptions, drawn: int | None) -> Prepared:
    """The texts and the bare encoder.

    Args:
        options: all options of the run.
        drawn: as for :func:`~paring.cli.run.prepare.split`.

    Raises:
        DataError: no texts.
        SettingError: the model cannot be loaded.
    """
    from paring.cli.data.read import read

    data = options.data
    rows = read(data.dataset_name, data.dataset_train_split, data.dataset_config, listed(data.text_columns))
    rows, held_out, origin = split(rows, data, options.training.seed, drawn)
    column = (listed(data.text_columns) or ["text"])[0]
    for part in (rows, held_out):
        if part is not None and column not in part.column_names:
            raise DataError(f"The data has no column {column!r}, only {', '.join(part.column_names)}; name it with text_columns.")
    name = place_of(options.model.model_name_or_path)
    tokenizer = load_tokenizer(name, options.model.model_revision)
    model = loaded(lambda: AutoModel.from_pretrained(name, dtype=torch.float32), name, "model")
    assert isinstance(model, PreTrainedModel)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what is to be found is exact
    return Prepared(
        task=Task(kind="regression", texts=(column,)),
        rows=Rows(train=rows, held_out=held_out, origin=origin),
        base=Base(model=model, tokenizer=tokenizer),
        model=model,
    )


def planted_options(options: TrainOptions, model: nn.Module) -> TrainOptions:
    """The options with the planted modules as targets, where nothing else was said."""
    if options.adapter.target_modules != "all-linear":
        return options
    return replace(options, adapter=replace(options.adapter, target_modules=list(places(model))))


def planted_trainer(
    options: TrainOptions, what: Planting, prepared: Prepared, model: PeftModel | PreTrainedModel, callbacks: Sequence[TrainerCallback]
) -> Trainer:
    """A trainer that is ready to run.

    Raises:
        SettingError: the model's own weights are to be trained: it is an adapter that ranks are found by.
    """
    if not isinstance(model, PeftModel):
        raise SettingError("A planted task is for adapters: what is to be found are ranks.")
    name = place_of(options.model.model_name_or_path)
    teacher = AutoModel.from_pretrained(name, dtype=torch.float32)
    ranks = plant(teacher, what)
    rows, limit = prepared.rows, options.data.max_length or LENGTH
    settings = arguments(
        options, prepared.task, TrainingArguments, rows=len(rows.train), evaluates=rows.held_out is not None, max_length=limit
    )
    settings.remove_unused_columns = False
    tokenizer = prepared.base.tokenizer
    kind = ParingPlantedTrainer if adapters(model) else PlantedTrainer
    return kind(
        teacher=teacher,
        planted=ranks,
        model=model,
        args=settings,
        train_dataset=_encoded(rows.train, prepared.task.texts[0], tokenizer, limit),
        eval_dataset=None if rows.held_out is None else _encoded(rows.held_out, prepared.task.texts[0], tokenizer, limit),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=list(callbacks),
    )


def _encoded(rows: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> Dataset:
    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        found = tokenizer([str(text) for text in batch[column]], truncation=True, max_length=limit)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    return rows.map(encode, batched=True, remove_columns=rows.column_names)
