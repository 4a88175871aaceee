"""The model card: what the adapter is, its ranks, the command, and how to load it with plain transformers and PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCardData

from paring.core.adapter import Adapter, natural
from paring.exchange.layout import split_layer


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a task type of PEFT is called elsewhere.

    Attributes:
        pipeline: the hub's pipeline tag.
        auto: the class of transformers that loads the base model.
        head: the name that the task's head usually has; its last weight has a row for each label.
    """

    pipeline: str | None
    auto: str
    head: tuple[str, ...] = ()


TASKS: Mapping[str, Task] = {
    "SEQ_CLS": Task(pipeline="text-classification", auto="AutoModelForSequenceClassification", head=("classifier", "score")),
    "TOKEN_CLS": Task(pipeline="token-classification", auto="AutoModelForTokenClassification", head=("classifier", "score")),
    "CAUSAL_LM": Task(pipeline="text-generation", auto="AutoModelForCausalLM"),
    "SEQ_2_SEQ_LM": Task(pipeline="text2text-generation", auto="AutoModelForSeq2SeqLM"),
    "QUESTION_ANS": Task(pipeline="question-answering", auto="AutoModelForQuestionAnswering"),
    "FEATURE_EXTRACTION": Task(pipeline="feature-extraction", auto="AutoModel"),
}
"""PEFT's task types."""

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WIDEST = 16


def model_card(
    adapter: Adapter,
    *,
    command: str | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    labels: Sequence[str] | None = None,
    tokenizer: bool = False,
) -> str:
    """The text of ``README.md``: front matter for the hub, then ranks, command, and five lines that load it.

    Args:
        adapter: the adapter.
        command: the command line that trained it.
        metrics: final metrics by name.
        license: licence of the weights, as the hub spells it.
        labels: names of the classes, in order.
        tokenizer: whether the folder holds the tokenizer; if not, the card loads the base model's.
    """
    meta = adapter.metadata
    task = TASKS.get(meta.task_type or "", Task(pipeline=None, auto="AutoModel"))
    # A path of this machine means nothing to others, and the hub refuses it.
    base = meta.base_model if meta.base_model is not None and _HUB.fullmatch(meta.base_model) else None
    method = str(meta.method["name"]) if meta.method is not None and "name" in meta.method else None
    kind = "shira" if adapter.entries else "dora" if adapter.magnitudes else "lora"
    front = ModelCardData(
        base_model=base,
        library_name="peft",
        license=license,
        pipeline_tag=task.pipeline,
        tags=[kind, "paring", *([method] if method is not None else []), "peft", "transformers"],
    )
    heads = f" and {adapter.head_parameters:,} in fully trained modules" if adapter.heads else ""
    title, said = _described(adapter, heads)
    sections = [
        f"---\n{front.to_yaml().strip()}\n---",
        f"# {title}",
        f"Trained with paring{f' ({method})' if method else ''} on {f'`{base}`' if base else 'a local base model'}: {said}",
        f"## Load it\n\n```python\n{_loading(adapter, task, base, labels, tokenizer)}\n```",
    ]
    if metrics:
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items()))
        sections.append(f"## Metrics\n\n| metric | value |\n| --- | ---: |\n{rows}")
    if not adapter.entries:
        sections.append(f"## Ranks\n\n{rank_table(adapter)}")
    if command is not None:
        sections.append(f"## Trained by\n\n```bash\n{command}\n```")
    sections.append(
        "## Training on\n\nThe exported scale is 1, whatever it was in training, so choose the learning rate anew; a rank that was padded "
        "with zeros (uniform layout) stays zero."
        if not adapter.entries
        else "## Training on\n\nPEFT trains the values on; where they belong stays as it is."
    )
    return "\n\n".join(sections) + "\n"


def _described(adapter: Adapter, heads: str) -> tuple[str, str]:
    """A title, and what the adapter is made of."""
    if adapter.entries:
        return "A sparse adapter (SHiRA)", (
            f"{adapter.parameters:,} entries of the weights of {len(adapter.entries)} modules{heads}. Its update has no low rank, so it is "
            "no LoRA; PEFT loads it as SHiRA, and engines that know LoRA alone want it merged into its base model."
        )
    start, live = sum(factors.rank for factors in adapter.modules.values()), sum(adapter.ranks.values())
    kind, what = "LoRA", "It is a plain LoRA"
    if adapter.magnitudes:
        kind, what = "DoRA", "It is a DoRA, which PEFT loads, and engines that serve plain LoRA want merged"
    return f"A {kind} adapter that found its own ranks" if live != start else f"A {kind} adapter", (
        f"{live} of {start} ranks are left in {len(adapter.modules)} modules, {adapter.parameters:,} parameters{heads}. {what}; "
        "the scale is folded in."
    )


def rank_table(adapter: Adapter) -> str:
    """Live ranks as Markdown: a row for each layer and a column for each module in it, or a row for each module if that is too wide."""
    cells: dict[tuple[str, int | None], dict[str, int]] = {}
    for path, rank in adapter.ranks.items():
        before, index, after = split_layer(path)
        cells.setdefault((before, index), {})[after] = rank
    columns = list(dict.fromkeys(name for row in cells.values() for name in row))
    if len(columns) > _WIDEST or all(index is None for _, index in cells):
        rows = [f"| `{path}` | {rank} |" for path, rank in sorted(adapter.ranks.items(), key=lambda item: natural(item[0]))]
        return "\n".join(["| module | rank |", "| --- | ---: |", *rows])
    head = ["| layer | " + " | ".join(f"`{name}`" for name in columns) + " |", "| --- |" + " ---: |" * len(columns)]
    several = len({before for before, index in cells if index is not None}) > 1
    for (before, index), row in cells.items():
        name = "-" if index is None else f"{before}.{index}" if several else str(index)
        head.append(f"| {name} | " + " | ".join(str(row[column]) if column in row else "" for column in columns) + " |")
    return "\n".join(head)


def _loading(adapter: Adapter, task: Task, base: str | None, labels: Sequence[str] | None, tokenizer: bool) -> str:
    arguments = [repr(base or "path/to/the/base/model")]
    if adapter.metadata.revision is not None:
        arguments.append(f"revision={adapter.metadata.revision!r}")
    # From a folder with a config.json and no tokenizer, transformers makes an empty one without a word: all words are unknown to it.
    words = '"path/to/this/folder"' if tokenizer else ", ".join(arguments)
    if labels is not None:
        arguments.append(f"id2label={dict(enumerate(labels))!r}")
    else:
        rows = [
            tensor.shape[0]
            for name, tensor in adapter.heads.items()
            if tensor.ndim == 2 and name.endswith(".weight") and any(part in task.head for part in name.split("."))
        ]
        if rows:
            arguments.append(f"num_labels={rows[-1]}")
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {task.auto}, AutoTokenizer",
            f"base = {task.auto}.from_pretrained({', '.join(arguments)})",
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
            f"tokenizer = AutoTokenizer.from_pretrained({words})",
        ]
    )
