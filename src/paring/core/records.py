"""What a run leaves behind, as frozen values: train writes them, the report and the command line read them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paring.core.errors import DataError, near


@dataclass(frozen=True, kw_only=True)
class ModuleRecord:
    """One adapted module at the end of a run.

    Attributes:
        path: module path in the base model.
        in_features, out_features: the module's widths.
        start_rank: ranks it was given.
        live_rank: ranks that are left.
        entries: sparse entries of its weight, where the update is made of these and has no ranks.
        magnitudes: lengths of rows that are trained beside the update.
    """

    path: str
    in_features: int
    out_features: int
    start_rank: int
    live_rank: int
    entries: int = 0
    magnitudes: int = 0

    @property
    def parameters(self) -> int:
        """Adapter parameters left in this module, ``live_rank * (in + out)`` or its entries, and magnitudes."""
        return self.live_rank * (self.in_features + self.out_features) + self.entries + self.magnitudes

    @property
    def start_parameters(self) -> int:
        """Adapter parameters at the start, ``start_rank * (in + out)``; gates not counted."""
        return self.start_rank * (self.in_features + self.out_features) + self.entries + self.magnitudes


@dataclass(frozen=True, kw_only=True)
class Point:
    """What was logged at one step: ``{"loss": ..., "live_ranks": ..., "eval_accuracy": ...}``."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage of a path from the full adapter to smaller ones.

    Attributes:
        goal: what it was trained under: the most parameters, or a penalty.
        parameters: of the adapter after it.
        live_ranks: ranks over all modules after it.
        train: the metric on a sample of the training rows, larger is better.
        held_out: the same on rows that were not trained on, and by which the adapter is chosen.
        error: its standard error; ``None`` if unknown.
        memorization, generalization: ``train`` and ``held_out`` in percent of those of the first stage.
        seconds: wall time of its training.
        metrics: on the rows that the run is evaluated on.
        folder: where its adapter is, in the run's folder; ``None`` if it has none.
    """

    goal: float
    parameters: int
    live_ranks: int
    train: float
    held_out: float
    error: float | None
    memorization: float
    generalization: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class PathRecord:
    """A path from the full adapter to smaller ones.

    Attributes:
        metric: what ``train`` and ``held_out`` of the stages are.
        stages: the first is the training in full.
        tolerance: as it was given; ``None`` if nothing was to be chosen.
        floor: the lowest ``held_out`` inside the tolerance.
        chosen: index of the smallest stage inside.
    """

    metric: str
    stages: tuple[StageRecord, ...]
    tolerance: str | None = None
    floor: float | None = None
    chosen: int | None = None

    def verdict(self, index: int) -> str:
        """What became of a stage: ``chosen``, ``inside`` or ``outside`` the tolerance; empty where there was none."""
        if self.floor is None:
            return ""
        stage = self.stages[index]
        inside = stage.parameters > 0 and (index == 0 or stage.held_out >= self.floor)
        return "chosen" if index == self.chosen else "inside" if inside else "outside"


@dataclass(frozen=True, kw_only=True)
class WholeRecord:
    """What was trained of a model's own weights.

    Attributes:
        parameters: entries that were trained at some time.
        at_once: the most that were trained at one step.
        steps: optimizer steps of the training.
        blocks: of each block, by its path, the steps that it was trained for.
    """

    parameters: int
    at_once: int
    steps: int
    blocks: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that a report shows and that a repetition needs.

    Attributes:
        title: a short name of the run.
        method: the encoded method, or way to train the model's own weights, ``{"name", "version", ...}``.
        base_model: folder or hub id of the frozen model.
        command: the command line that repeats the run.
        started: ISO 8601 time, UTC.
        seconds: wall time of training.
        seed: the seed of the run.
        settings: all settings of the run, as plain data.
        versions: package name to version.
        machine: processor, cores, threads, accelerator, as plain data.
        history: logged values over steps. The keys that paring itself logs are ``loss``, ``learning_rate``, ``lambda``
            (penalty weight), ``live_ranks``, ``live_parameters``, ``sparsity`` (share of dead ranks) and ``eval_*``.
        modules: the adapted modules.
        metrics: final metrics, ``{"accuracy": 0.91}``.
        head_parameters: entries of the fully trained heads.
        files: files of the export by name, in bytes.
        main_metric: the key of ``metrics`` to look at first; ``None`` lets the report choose.
        base_parameters: entries of the frozen base model, if known.
        start_bytes: size that the adapter file would have with every rank of the start, in the same data type, if known.
        path: the stages that led to the adapter, where there was more than one.
        whole: what was trained of the model's own weights, where there is no adapter.
    """

    title: str
    method: Mapping[str, Any]
    base_model: str | None
    command: str
    started: str
    seconds: float
    seed: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    history: tuple[Point, ...]
    modules: tuple[ModuleRecord, ...]
    metrics: Mapping[str, float]
    head_parameters: int = 0
    files: Mapping[str, int] = field(default_factory=dict)
    main_metric: str | None = None
    base_parameters: int | None = None
    start_bytes: int | None = None
    path: PathRecord | None = None
    whole: WholeRecord | None = None

    @property
    def entries(self) -> int:
        """Sparse entries over all modules; 0 for adapters that are made of ranks."""
        return sum(module.entries for module in self.modules)

    @property
    def start_ranks(self) -> int:
        """Ranks over all modules at the start."""
        return sum(module.start_rank for module in self.modules)

    @property
    def live_ranks(self) -> int:
        """Ranks over all modules at the end."""
        return sum(module.live_rank for module in self.modules)

    @property
    def parameters(self) -> int:
        """Adapter parameters at the end, heads not counted."""
        return sum(module.parameters for module in self.modules)

    @property
    def start_parameters(self) -> int:
        """Adapter parameters at the start, heads and gates not counted."""
        return sum(module.start_parameters for module in self.modules)

    def to_json(self) -> str:
        """Write the record as JSON text, keys sorted."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, allow_nan=True, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: not JSON, a key is missing or unknown.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"This is not a run record: {error}.") from error
        if not isinstance(data, dict):
            raise DataError(f"This is not a run record: expected an object, found {type(data).__name__}.")
        known = {item.name for item in dataclasses.fields(cls)}
        for key in data:
            if key not in known:
                raise DataError(f"Unknown key {key!r} in the run record.{near(key, known)}")
        try:
            data["history"] = tuple(Point(**point) for point in data["history"])
            data["modules"] = tuple(ModuleRecord(**module) for module in data["modules"])
            if data.get("path") is not None:
                stages = tuple(StageRecord(**stage) for stage in data["path"]["stages"])
                data["path"] = PathRecord(**{**data["path"], "stages": stages})
            if data.get("whole") is not None:
                data["whole"] = WholeRecord(**data["whole"])
            return cls(**data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"The run record is incomplete: {error}.") from error
