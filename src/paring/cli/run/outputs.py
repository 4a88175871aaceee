"""What a model says: logits of texts, losses of language rows, continuations of prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from paring.cli.data.encode import IGNORED
from paring.core.errors import DataError, SettingError


def check_counts(**flags: int | None) -> None:
    """Refuse counts below 1; ``None`` is a default that is known later.

    Raises:
        SettingError: names the flag.
    """
    for name, value in flags.items():
        if value is not None and value < 1:
            raise SettingError(f"--{name} {value}: give at least 1.")


def check_chat(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a tokenizer that cannot lay out conversations.

    Raises:
        SettingError: says where a template can come from.
    """
    if tokenizer.chat_template is None:
        raise SettingError(
            f"The tokenizer that goes with {source!r} has no chat template, so conversations cannot be laid out. Put one into the "
            "adapter's folder as chat_template.jinja beside its tokenizer, or train with --chat_template_path, which exports it."
        )


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next(model.parameters()).device


@torch.inference_mode()
def logits(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], max_length: int, batch_size: int = 32
) -> Tensor:
    """The head's outputs, ``(n, labels)``, float32, on the CPU.

    Args:
        model: with a sequence-classification head, in evaluation mode.
        tokenizer: its tokenizer.
        texts: one column of texts, or two for pairs.
        max_length: tokens a row is cut at.
        batch_size: rows at a time; rows of like length go together, so that little is padded.
    """
    order = sorted(range(len(texts[0])), key=lambda row: sum(len(column[row]) for column in texts))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        columns = [[column[row] for row in rows] for column in texts]
        batch = tokenizer(*columns, truncation=True, max_length=max_length, padding=True, return_tensors="pt").to(device_of(model))
        found |= dict(zip(rows, model(**batch).logits.float().cpu(), strict=True))
    return torch.stack([found[row] for row in range(len(order))])


@torch.inference_mode()
def language_losses(model: nn.Module, rows: Dataset, max_length: int, batch_size: int = 1) -> tuple[Tensor, Tensor]:
    """The summed loss of the tokens that count, and their number, of each row, ``(n,)``, float64.

    Args:
        model: a causal language model in evaluation mode.
        rows: with ``input_ids`` and ``labels``.
        max_length: tokens a row is cut at.
        batch_size: rows at a time; rows of like length go together, padded on the right. One at a time nothing is padded.
    """
    device = device_of(model)
    cut = [tuple(torch.tensor(row[name][:max_length]) for name in ("input_ids", "labels")) for row in rows]
    losses, tokens = torch.zeros(len(cut), dtype=torch.float64), torch.zeros(len(cut), dtype=torch.float64)
    order = sorted(range(len(cut)), key=lambda row: len(cut[row][0]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, labels = (
            nn.utils.rnn.pad_sequence([cut[row][part] for row in chosen], batch_first=True, padding_value=filler).to(device)
            for part, filler in ((0, 0), (1, IGNORED))
        )
        lengths = torch.tensor([len(cut[row][0]) for row in chosen], device=device)
        # The first token is predicted from nothing.
        wanted = labels[:, 1:]
        if not bool((wanted != IGNORED).any()):
            continue
        mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        scores = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        each = nn.functional.cross_entropy(scores.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
        losses[chosen], tokens[chosen] = each.double().sum(1).cpu(), (wanted != IGNORED).double().sum(1).cpu()
    return losses, tokens


def language_scores(model: nn.Module, rows: Dataset, max_length: int) -> dict[str, float]:
    """Mean loss of the tokens that count, over all rows, and its exponential, the perplexity; one row at a time, so without padding."""
    losses, tokens = language_losses(model, rows, max_length)
    total = float(tokens.sum())
    loss = float(losses.sum()) / total if total else math.nan
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": total}


@torch.inference_mode()
def continuations(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int, chat: bool) -> Iterator[str]:
    """What the model writes after each prompt, choosing the likeliest token.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: texts, or what a user says where ``chat`` is set.
        new_tokens: at most so many tokens.
        chat: lay each prompt out by the chat template.

    Raises:
        DataError: a prompt without a single token, after which nothing can be written.
    """
    for place, prompt in enumerate(prompts, start=1):
        text = prompt
        if chat:
            text = str(tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True))
        batch = tokenizer(text, return_tensors="pt", add_special_tokens=not chat).to(device_of(model))
        if batch["input_ids"].shape[1] == 0:
            raise DataError(
                f"Text {place} ({prompt!r}) is no token to the model, so it cannot be continued; give some words, or leave it out."
            )
        batch.pop("token_type_ids", None)
        written = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        yield str(tokenizer.decode(written[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
