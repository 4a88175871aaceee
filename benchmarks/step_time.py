"""A training step of our LoRA and SoRA beside PEFT's LoRA, over the frozen model's own forward and backward.

All contestants live in one process and take turns, round after round, so that a machine whose speed drifts treats them alike. What is
compared is the ratio of medians to the limit: the frozen model's forward and its backward to the embeddings, without any adapter.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from environment import save
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

import paring
from paring.method import Method
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.train.groups import create_optimizer

SHAPES: dict[str, tuple[int, int]] = {"bert": (32, 64), "llama": (8, 256)}


def base(name: str) -> nn.Module:
    """A random model of one of the two shapes."""
    torch.manual_seed(0)
    if name == "bert":
        return BertForSequenceClassification(
            BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=8192)
        )
    return LlamaForSequenceClassification(
        LlamaConfig(
            hidden_size=768,
            num_hidden_layers=4,
            num_attention_heads=12,
            num_key_value_heads=4,
            intermediate_size=2048,
            vocab_size=8192,
            pad_token_id=0,
        )
    )


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer | None, batch: dict[str, Any], autocast: bool) -> Callable[[], None]:
    """One training step, as a function without arguments."""
    model.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        else:
            model.zero_grad()

    return step


def limit(model: nn.Module, batch: dict[str, Any], autocast: bool) -> Callable[[], None]:
    """The frozen model's forward and backward, to the embeddings' output and to the head."""
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier", "score")):
            parameter.requires_grad_(True)
    assert hasattr(model, "get_input_embeddings")
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    return stepper(model, None, batch, autocast)


def ours(model: nn.Module, method: Method, batch: dict[str, Any], autocast: bool) -> Callable[[], None]:
    """A step with one of our methods."""
    adapted = paring.adapt(model, method, task_type="SEQ_CLS", seed=0)
    return stepper(adapted, create_optimizer(adapted, lr=1e-3), batch, autocast)


def peft(model: nn.Module, rank: int, batch: dict[str, Any], autocast: bool) -> Callable[[], None]:
    """A step with PEFT's LoRA on the same modules."""
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="SEQ_CLS"))
    return stepper(adapted, torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3), batch, autocast)


def interval(times: np.ndarray, reference: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """Ratio of medians with a 95% bootstrap interval over rounds."""
    generator = np.random.default_rng(0)
    index = generator.integers(0, len(times), (draws, len(times)))
    ratios = np.median(times[index], axis=1) / np.median(reference[index], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(times) / np.median(reference)), float(low), float(high)


def main() -> None:
    """Measure every cell and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--models", nargs="+", default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    given = parser.parse_args()
    cells = []
    for name in given.models:
        rows, width = SHAPES[name]
        source = base(name)
        batch = {"input_ids": torch.randint(1, 8192, (rows, width)), "labels": torch.randint(0, 2, (rows,))}
        for dtype in given.dtypes:
            autocast = dtype == "bf16"
            for rank in given.ranks:
                steps = {
                    "limit": limit(copy.deepcopy(source), batch, autocast),
                    "PEFT LoRA": peft(copy.deepcopy(source), rank, batch, autocast),
                    "paring LoRA": ours(copy.deepcopy(source), LoRA(rank=rank, alpha=2 * rank), batch, autocast),
                    "paring SoRA": ours(copy.deepcopy(source), SoRA(rank=rank, alpha=2 * rank, penalty=0.0), batch, autocast),
                }
                times: dict[str, list[float]] = {key: [] for key in steps}
                for turn in range(given.rounds + 3):
                    for key, step in steps.items():
                        started = time.perf_counter()
                        step()
                        if turn >= 3:
                            times[key].append(time.perf_counter() - started)
                arrays = {key: np.array(value) for key, value in times.items()}
                ratios = {key: interval(value, arrays["limit"]) for key, value in arrays.items() if key != "limit"}
                direct = interval(arrays["paring LoRA"], arrays["PEFT LoRA"])
                cells.append(
                    {
                        "model": name,
                        "tokens": [rows, width],
                        "dtype": dtype,
                        "rank": rank,
                        "limit_seconds": float(np.median(arrays["limit"])),
                        "over_limit": ratios,
                        "paring_lora_over_peft_lora": direct,
                    }
                )
                said = "  ".join(f"{key} {value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]" for key, value in ratios.items())
                print(f"{name:6} {dtype} r {rank:3d}  {said}  ours/PEFT {direct[0]:.3f} [{direct[1]:.3f}, {direct[2]:.3f}]", flush=True)
    save("lora-step-time", {"cells": cells, "rounds": given.rounds})


if __name__ == "__main__":
    main()
