"""The options of ``paring train``. Names are those of transformers and TRL where these have one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from paring.cli.flags import option

TaskName: TypeAlias = Literal["auto", "classification", "regression", "causal-lm"]
Interval: TypeAlias = Literal["no", "steps", "epoch"]
Layout: TypeAlias = Literal["compact", "uniform"]
DType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model."""

    model_name_or_path: str = option("folder or hub id of the pre-trained model")
    model_revision: str | None = option("its revision on the hub", default=None)
    dtype: DType = option("precision that the frozen weights are loaded in; auto takes the file's", default="auto")
    attn_implementation: str | None = option("attention implementation, as transformers names them", default=None)
    trust_remote_code: bool = option("run model code that comes with the weights", default=False)
    load_in_4bit: bool = option("quantise the frozen weights to 4 bit (bitsandbytes)", default=False)
    load_in_8bit: bool = option("quantise the frozen weights to 8 bit (bitsandbytes)", default=False)
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = option("4-bit number format", default="nf4")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data."""

    dataset_name: str = option("a .tsv, .csv, .jsonl, .json, .parquet or .txt file, a folder with train/dev files, or a hub id")
    dataset_config: str | None = option("configuration of a hub data set", default=None)
    dataset_train_split: str = option("split to train on", default="train")
    dataset_test_split: str | None = option("split to evaluate on; by default validation, dev or test if there is one", default=None)
    eval_dataset_name: str | None = option("another file, folder or hub id to evaluate on", default=None)
    eval_share: float = option("share of the rows held out, drawn by the seed, if nothing else is there to evaluate on", default=0.1)
    max_train_samples: int | None = option("train on so many rows, drawn by the seed", default=None)
    max_eval_samples: int | None = option("evaluate on so many rows, drawn by the seed", default=None)
    task: TaskName = option("what to learn; auto tells by the columns and labels", default="auto")
    text_columns: str | list[str] | None = option("the column with the text, or two for a pair: sentence1,sentence2", default=None)
    label_column: str | None = option("the column with the label", default=None)
    label_names: str | list[str] | None = option("names for labels that are numbers, in their order", default=None)
    max_length: int | None = option("tokens a row is cut at; by default 256, or 1024 for causal-lm; never above the model's", default=None)
    packing: bool = option("fill sequences with several rows (causal-lm)", default=False)
    chat_template_path: str | None = option("a Jinja file with the chat template, if the tokenizer has none (causal-lm)", default=None)


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Adapter."""

    method: str = option(
        "how modules are adapted, see `paring methods`; its settings are flags of their own. `--budget 40k` (or 30%, 2MB) alone asks for "
        "`spectral`, which keeps to that size",
        default="sora",
    )
    target_modules: str | list[str] = option("all-linear, names separated by commas, or a regular expression", default="all-linear")
    exclude_modules: str | list[str] | None = option("modules to leave out, as names or a regular expression", default=None)
    modules_to_save: str | list[str] | None = option("modules to train fully beside the adapter; a task's head always is", default=None)
    calibration_batches: int = option("batches that a start is read off, where the method starts from a gradient", default=8)
    init_adapter: str | None = option("start from this trained LoRA (a folder or hub id) and pare it down", default=None)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training."""

    learning_rate: float = option("main learning rate; a method may step some parameters at a rate of their own", default=5e-4)
    head_learning_rate: float | None = option(
        "learning rate of what is trained fully beside the adapter, a task's new head above all; by default the main one", default=None
    )
    num_train_epochs: float = option("passes over the data", default=3.0)
    max_steps: int = option("steps to take, in place of epochs; -1 is off", default=-1)
    per_device_train_batch_size: int = option("rows of a batch on one device", default=8)
    per_device_eval_batch_size: int | None = option("the same when evaluating; by default twice the training batch", default=None)
    gradient_accumulation_steps: int = option("batches whose gradients make one step", default=1)
    lr_scheduler_type: str = option("course of the learning rate", default="linear")
    warmup_steps: float = option("steps of rising learning rate; below 1 a share of all steps", default=0.0)
    weight_decay: float = option("weight decay of the factors and heads", default=0.0)
    max_grad_norm: float = option("clip the gradient's norm; 0 is off", default=1.0)
    optim: str | None = option("optimizer, as transformers names them", default=None)
    bf16: bool = option("compute in bfloat16 where it is safe (autocast)", default=False)
    fp16: bool = option("compute in float16 with loss scaling", default=False)
    gradient_checkpointing: bool = option("recompute activations to save memory", default=False)
    seed: int = option("seed of the head, the adapter, the order of rows and dropout", default=42)
    use_cpu: bool = option("stay on the CPU even if there is an accelerator", default=False)
    dataloader_num_workers: int = option("processes that load batches", default=0)
    training_arguments: dict[str, Any] = option("any further field of transformers' TrainingArguments, as a mapping", default={})


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Evaluation, checkpoints and logs."""

    eval_strategy: Interval = option("when to evaluate", default="epoch")
    eval_steps: int | None = option("steps between evaluations", default=None)
    save_strategy: Interval | None = option("when to save a checkpoint; by default when evaluating", default=None)
    save_steps: int | None = option("steps between checkpoints", default=None)
    save_total_limit: int | None = option("checkpoints to keep; the best one is always kept", default=2)
    logging_steps: int | None = option("steps between log lines; by default 10, or fewer in a short run", default=None)
    load_best_model_at_end: bool = option("export the best checkpoint, not the last; its ranks are those of its step", default=False)
    metric_for_best_model: str | None = option("what best means; by default the task's first metric", default=None)
    early_stopping_patience: int | None = option("stop after so many evaluations without a better one; exports the best", default=None)
    report_to: str | list[str] = option("trackers to log to: tensorboard, wandb, trackio, ...", default="none")
    run_name: str | None = option("the run's name in trackers and in the report", default=None)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output."""

    output_dir: str = option("folder for adapter/ (or model/), checkpoint-*/, run.json and report.html")
    overwrite: bool = option("replace an earlier run's files in it", default=False)
    resume_from_checkpoint: str | None = option("go on from this checkpoint folder, or from the `last` one in output_dir", default=None)
    layout: Layout = option("how the adapter is written: ragged ranks, or zero-padded to one rank", default="compact")
    export_dtype: DType = option("precision of the exported tensors; auto keeps the training's", default="auto")
    push_to_hub: bool = option("upload what was exported", default=False)
    hub_model_id: str | None = option("repository to upload it to; by default the name of output_dir", default=None)
    hub_private_repo: bool | None = option("make that repository private", default=None)

    @property
    def replaces(self) -> bool:
        """Whether what an earlier run exported may be replaced: asked for, or that run is gone on with."""
        return self.overwrite or self.resume_from_checkpoint is not None


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """Path to a smaller adapter: after the training in full, stages that each begin with half of the parameters."""

    tolerance: str | None = option(
        "export the smallest adapter that gives up no more: 1se (one standard error of the metric) or 0.5% (of the metric)", default=None
    )
    stages: int = option("stages after the training in full, at most", default=6)
    stage_share: float = option("length of each of these stages, as a share of the training in full", default=0.25)
    stage_factor: float = option("each may have so many times fewer parameters than the one before", default=2.0)
    penalties: str | list[float] | None = option(
        "ascending penalties, one for each stage, in place of cuts: SoRA's Algorithm 1 (--method sora)", default=None
    )
    choose_share: float = option("share of the training rows, drawn by the seed, that are held out to choose by", default=0.1)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """All options of a run, by group; the method's own settings come on top."""

    model: ModelOptions
    data: DataOptions
    adapter: AdapterOptions
    training: TrainingOptions
    watch: WatchOptions
    output: OutputOptions
    path: PathOptions = field(default_factory=PathOptions)
