"""What a run trains and leaves: an adapter, or (:mod:`paring.cli.run.whole`) the model's own weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from paring.cli.run.checkpoints import check_resume
from paring.cli.run.finish import finish, saves_adapter
from paring.cli.run.options import TrainOptions
from paring.cli.run.prepare import Prepared, describe, prepare
from paring.cli.run.start import calibrated
from paring.core.errors import SettingError
from paring.core.records import RunRecord
from paring.method import Method
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Bytes
from paring.train import Recorder
from paring.train.whole import Whole


class Subject(ABC):
    """What a run trains and leaves.

    Args:
        options: all options of the run.
    """

    def __init__(self, options: TrainOptions) -> None:
        self.options = options

    @property
    def whole(self) -> Whole | None:
        """How the model's own weights are trained; ``None`` where an adapter is."""
        return None

    @abstractmethod
    def check(self) -> None:
        """Refuse options that make no sense for it, before anything is read.

        Raises:
            SettingError: names the flag.
        """

    @abstractmethod
    def prepare(self, resume: Path | None) -> Prepared:
        """Read the data, load the model, make it ready for its first step or for the one after a checkpoint's last.

        Raises:
            ParingError: bad options, data or model, or a checkpoint of another run.
        """

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What follows the training beside the run's own callbacks."""
        return ()

    @abstractmethod
    def begin(self, trainer: Trainer, prepared: Prepared, *, resumes: bool) -> None:
        """Say what is about to be trained, and do what has to be done before the first step."""

    @abstractmethod
    def finish(
        self, prepared: Prepared, recorder: Recorder, command: str, metrics: Mapping[str, float], settings: Mapping[str, Any]
    ) -> RunRecord:
        """Write what was trained, the record and the report.

        Raises:
            ExportError: there is nothing to export, or the disk is full.
        """


class Adapting(Subject):
    """An adapter.

    Args:
        options: all options of the run.
        method: how modules are adapted.
    """

    def __init__(self, options: TrainOptions, method: Method) -> None:
        super().__init__(options)
        self.method = method

    def check(self) -> None:
        """Refuse to choose a checkpoint from before a budget was reached."""
        watch = self.options.watch
        if self.method.budgeted and (watch.load_best_model_at_end or watch.early_stopping_patience is not None):
            raise SettingError(
                "--load_best_model_at_end and --early_stopping_patience may export a checkpoint from before the last cut, which is larger "
                f"than {self.method.name} is to be; leave them out."
            )
        if isinstance(self.method, Spectral) and isinstance(self.method.budget, Bytes) and self.options.output.layout == "uniform":
            raise SettingError(
                "A --budget in bytes counts ranks as they are, and --layout uniform fills every module up with zeros to the largest one. "
                "Leave out --layout, or give the budget in parameters (40k) or as a share (30%)."
            )

    def prepare(self, resume: Path | None) -> Prepared:
        """The frozen model with the adapter on it."""
        if resume is not None:
            check_resume(resume, self.method)
        return prepare(self.options, self.method, resume)

    def begin(self, trainer: Trainer, prepared: Prepared, *, resumes: bool) -> None:
        """Read the start off a gradient, where the method wants it."""
        describe(trainer, prepared, self.method)
        if not resumes:
            calibrated(trainer, prepared.adapted, self.options.adapter.calibration_batches)

    def finish(
        self, prepared: Prepared, recorder: Recorder, command: str, metrics: Mapping[str, float], settings: Mapping[str, Any]
    ) -> RunRecord:
        """Export the adapter."""
        save = saves_adapter(self.options, prepared, command, metrics)
        return finish(self.options, prepared, recorder, command, metrics, settings, save=save)
