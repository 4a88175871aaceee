"""A run that trains the model's own weights, and leaves a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from paring.cli.console import say
from paring.cli.flags import default_of
from paring.cli.run.checkpoints import check_resume_whole
from paring.cli.run.finish import finish
from paring.cli.run.models import write_model
from paring.cli.run.options import AdapterOptions, OutputOptions, PathOptions, TrainOptions
from paring.cli.run.output import MODEL
from paring.cli.run.prepare import Prepared, load, where
from paring.cli.run.subject import Subject
from paring.core.errors import SettingError
from paring.core.records import RunRecord
from paring.train import Recorder
from paring.train.whole import Whole

LEARNING_RATE = 5e-5
"""The default, which is transformers' own; that of an adapter is ten times as large."""


def refuse_head_rate(options: TrainOptions, whole: Whole) -> None:
    """Refuse a learning rate for heads where all weights are trained, and none is told from the others.

    Raises:
        SettingError: there is one.
    """
    if options.training.head_learning_rate is not None:
        raise SettingError(
            f"--head_learning_rate is for what is trained fully beside an adapter, and {whole.name} trains the model's own weights, all at "
            "--learning_rate; leave it out."
        )


def precise(options: TrainOptions) -> TrainOptions:
    """The options with weights in float32, where nothing else was said: what is trained takes steps that bfloat16 rounds away."""
    if options.model.dtype != "auto":
        return options
    return replace(options, model=replace(options.model, dtype="float32"))


class OwnWeights(Subject):
    """The model's own weights.

    Args:
        options: all options of the run.
        whole: how they are trained.
    """

    def __init__(self, options: TrainOptions, whole: Whole) -> None:
        super().__init__(options)
        self._whole = whole

    @property
    def whole(self) -> Whole:
        """How they are trained."""
        return self._whole

    def check(self) -> None:
        """Refuse what is said of an adapter, and quantised weights."""
        groups: tuple[tuple[Any, type[Any], Sequence[str]], ...] = (
            (self.options.adapter, AdapterOptions, [item.name for item in fields(AdapterOptions) if item.name != "method"]),
            (self.options.path, PathOptions, [item.name for item in fields(PathOptions)]),
            (self.options.output, OutputOptions, ["layout", "export_dtype"]),
        )
        for given, kind, names in groups:
            defaults = {item.name: default_of(item) for item in fields(kind)}
            for name in names:
                if vars(given)[name] != defaults[name]:
                    raise SettingError(
                        f"--{name} is said of an adapter, and {self.whole.name} trains the model's own weights, without one; leave it out. "
                        "A LoRA can be cut out of the trained model afterwards: paring extract."
                    )
        refuse_head_rate(self.options, self._whole)
        for name in ("load_in_4bit", "load_in_8bit"):
            if vars(self.options.model)[name]:
                raise SettingError(
                    f"--{name} freezes weights in a few bits, and {self.whole.name} trains them; leave it out, or train an adapter."
                )

    def prepare(self, resume: Path | None) -> Prepared:
        """The model, its weights in a precision that takes small steps."""
        if resume is not None:
            check_resume_whole(resume, self.whole)
        dtype = self.options.model.dtype
        if dtype not in ("auto", "float32"):
            say(
                f"paring: --dtype {dtype}: steps of the weights that are smaller than its rounding are lost; float32 with --bf16 computes "
                "as fast and keeps them"
            )
        return load(precise(self.options), resume)

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What trains."""
        return (self.whole.callback(),)

    def begin(self, trainer: Trainer, prepared: Prepared, *, resumes: bool) -> None:
        """Say what is about to be trained."""
        found = self.whole.trained(prepared.base.model, 1)
        total = sum(parameter.numel() for parameter in prepared.model.parameters())
        say(
            f"model: {self.whole.about.title}, {found.at_once:,} of {total:,} parameters at the first step, "
            f"{sum(steps > 0 for steps in found.blocks.values())} of {len(found.blocks)} blocks; {where(trainer)}"
        )

    def finish(
        self, prepared: Prepared, recorder: Recorder, command: str, metrics: Mapping[str, float], settings: Mapping[str, Any]
    ) -> RunRecord:
        """Save the model."""

        def save() -> Path:
            place = Path(self.options.output.output_dir) / MODEL
            told = {"command": command, "trained": self.whole.encode(), "base": self.options.model.model_name_or_path}
            return write_model(prepared.base.model, prepared.base.tokenizer, place, overwrite=self.options.output.replaces, source=told)

        return finish(self.options, prepared, recorder, command, metrics, settings, save=save, whole=self.whole)
