"""Who takes part in the benchmarks of speed and memory: the frozen model as the limit, peers, and our methods, on one model and batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, PeftConfig, ShiraConfig, get_peft_model
from tasks import encoder
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import paring
from paring.attach.find import slots
from paring.method import Method
from paring.methods.dora import DoRA
from paring.methods.lora import LoRA
from paring.methods.shira import SHiRA
from paring.methods.sora import SoRA
from paring.parts.parameterise.gated import Gated
from paring.parts.update.revive import Always, Every, Never, Revive
from paring.train.groups import create_optimizer

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]

SHAPES: dict[str, tuple[int, int]] = {
    "bert": (32, 64),
    "llama": (8, 256),
    "minilm": (16, 32),
    "llama-wide": (4, 512),
    "llama-wide-8k": (16, 512),
}
"""Rows and tokens of a batch for each model; the wide ones have the layers of a 7B model, four of them, and are meant for accelerators."""

DTYPES = ("fp32", "bf16", "bf16-weights")
"""Type of the products; the last has the frozen weights in bfloat16 too, as most language models come, under autocast all the same."""

LINEAR = ["query", "key", "value", "dense"]
"""The linear modules of an encoder, for methods of PEFT that do not find them by themselves."""

DEAD = 0.7
"""Share of the ranks, or of the modules, that are dead where a contestant says so."""

RATE = 1e-3


def base(name: str, dtype: str = "fp32") -> nn.Module:
    """A model of one of the shapes; MiniLM with its own weights, the others random."""
    return _built(name).to(torch.bfloat16 if dtype == "bf16-weights" else torch.float32)


def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "minilm":
        found: nn.Module = AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=2)
        return found
    if name == "bert":
        return BertForSequenceClassification(
            BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=8192)
        )
    width, heads, groups, inner = (4096, 32, 8, 11008) if name.startswith("llama-wide") else (768, 12, 4, 2048)
    return LlamaForSequenceClassification(  # type: ignore[no-untyped-call]
        LlamaConfig(
            hidden_size=width,
            num_hidden_layers=4,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            intermediate_size=inner,
            vocab_size=8192,
            pad_token_id=0,
        )
    )


def batch(name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Random tokens and labels."""
    rows, width = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1, 8192, (rows, width), generator=generator).to(device),
        "labels": torch.randint(0, 2, (rows,), generator=generator).to(device),
    }


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A model that is ready to train, and its step.

    Attributes:
        model: with its adapter, in training mode.
        step: forward, backward and all that the method does after it.
        loss: the forward alone.
    """

    model: nn.Module
    step: Callable[[], None]
    loss: Callable[[], torch.Tensor]


class Build(Protocol):
    """Makes a contestant out of a fresh base model."""

    def __call__(self, model: nn.Module, given: dict[str, torch.Tensor], rank: int, autocast: bool) -> Contestant:
        """``rank`` is what each module starts with; ``autocast`` runs the forward in bfloat16."""
        ...


def contestant(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    given: dict[str, torch.Tensor],
    autocast: bool,
    after: Callable[[int], None] | None = None,
) -> Contestant:
    """One training step: forward, backward, optimizer, and what a method calls ``after`` the optimizer with the step's number."""
    model.train()
    taken = 0

    def loss() -> torch.Tensor:
        with torch.autocast(given["labels"].device.type, torch.bfloat16, enabled=autocast):
            value: torch.Tensor = model(**given).loss
        return value

    def step() -> None:
        nonlocal taken
        loss().backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()
        if after is not None:
            after(taken)
        model.zero_grad()
        taken += 1

    return Contestant(model=model, step=step, loss=loss)


def limit(model: nn.Module, given: dict[str, torch.Tensor], rank: int, autocast: bool) -> Contestant:
    """The frozen model's forward and backward, to the embeddings' output and to the head."""
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier", "score")):
            parameter.requires_grad_(True)
    assert isinstance(model, transformers.PreTrainedModel)
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    return contestant(model, None, given, autocast)


def full(model: nn.Module, given: dict[str, torch.Tensor], rank: int, autocast: bool) -> Contestant:
    """Full fine-tuning."""
    return contestant(model, torch.optim.AdamW(model.parameters(), lr=RATE), given, autocast)


def peft_lora(model: nn.Module, given: dict[str, torch.Tensor], rank: int, autocast: bool) -> Contestant:
    """PEFT's LoRA on the same modules."""
    assert isinstance(model, transformers.PreTrainedModel)
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="SEQ_CLS"))
    return contestant(adapted, _adamw(adapted), given, autocast)


def peft_adalora(model: nn.Module, given: dict[str, torch.Tensor], rank: int, autocast: bool) -> Contestant:
    """PEFT's AdaLoRA from the same rank to half of it, with the call that updates its scores and masks."""
    assert isinstance(model, transformers.PreTrainedModel)
    config = AdaLoraConfig(
        init_r=rank,
        target_r=max(1, rank // 2),
        lora_alpha=2 * rank,
        total_step=1000,
        tinit=1,
        tfinal=100,
        deltaT=10,
        target_modules="all-linear",
        task_type="SEQ_CLS",
    )
    adapted = get_peft_model(model, config)
    allocate: Callable[[int], None] = adapted.base_model.update_and_allocate  # type: ignore[assignment]
    return contestant(adapted, _adamw(adapted), given, autocast, lambda step: allocate(step + 1))


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=RATE)


def peft(config: Callable[[int], PeftConfig]) -> Build:
    """Another method of PEFT on the same modules; the configuration follows from the rank."""

    def build(model: nn.Module, given: dict[str, torch.Tensor], rank: int, autocast: bool) -> Contestant:
        assert isinstance(model, transformers.PreTrainedModel)
        adapted = get_peft_model(model, config(rank))
        return contestant(adapted, _adamw(adapted), given, autocast)

    return build


def ours(method: Callable[[int], Method]) -> Build:
    """Another method of ours; its settings follow from the rank."""

    def build(model: nn.Module, given: dict[str, torch.Tensor], rank: int, autocast: bool) -> Contestant:
        return _ours(method(rank), model, given, autocast)

    return build


def lora(model: nn.Module, given: dict[str, torch.Tensor], rank: int, autocast: bool) -> Contestant:
    """Our LoRA."""
    return _ours(LoRA(rank=rank, alpha=2 * rank), model, given, autocast)


def sora(revive: Revive, kill: Callable[[nn.Module], None] | None = None) -> Build:
    """Our SoRA; the gates' rate is zero, so that those that are dead stay so and the others live."""

    def build(model: nn.Module, given: dict[str, torch.Tensor], rank: int, autocast: bool) -> Contestant:
        return _ours(SoRA(rank=rank, alpha=2 * rank, revive=revive), model, given, autocast, kill)

    return build


def _ours(
    method: Method, model: nn.Module, given: dict[str, torch.Tensor], autocast: bool, kill: Callable[[nn.Module], None] | None = None
) -> Contestant:
    adapted = paring.adapt(model, method, task_type="SEQ_CLS", seed=0)
    if kill is not None:
        kill(adapted)
    optimizer = create_optimizer(adapted, lr=RATE)
    for group in optimizer.param_groups:
        if group["role"] == "gate":
            group["lr"] = 0.0
    return contestant(adapted, optimizer, given, autocast)


@torch.no_grad()
def some_ranks(model: nn.Module) -> None:
    """Set the gates of 70% of all ranks to zero, drawn at random over all modules."""
    gates = [slot.gate for slot in slots(model).values() if isinstance(slot, Gated)]
    sizes = [gate.numel() for gate in gates]
    dead = torch.zeros(sum(sizes), dtype=torch.bool)
    dead[torch.randperm(len(dead), generator=torch.Generator().manual_seed(0))[: round(DEAD * len(dead))]] = True
    for gate, part in zip(gates, torch.split(dead, sizes), strict=True):
        gate[part.to(gate.device)] = 0.0


@torch.no_grad()
def some_modules(model: nn.Module) -> None:
    """Set all gates of 70% of the modules to zero, drawn at random."""
    gates = [slot.gate for slot in slots(model).values() if isinstance(slot, Gated)]
    for index in torch.randperm(len(gates), generator=torch.Generator().manual_seed(0))[: round(DEAD * len(gates))].tolist():
        gates[index].zero_()


LIMIT = "frozen model"
CONTESTANTS: dict[str, Build] = {
    LIMIT: limit,
    "full fine-tuning": full,
    "PEFT LoRA": peft_lora,
    "PEFT AdaLoRA": peft_adalora,
    "LoRA": lora,
    "SoRA": sora(Always()),
    "SoRA, 70% dead, always": sora(Always(), some_ranks),
    "SoRA, 70% dead, every 8": sora(Every(period=8), some_ranks),
    "SoRA, 70% dead, never": sora(Never(), some_ranks),
    "SoRA, 70% of modules empty, every 8": sora(Every(period=8), some_modules),
}

FURTHER: dict[str, Build] = {
    "SHiRA": ours(lambda rank: SHiRA(rank=rank)),
    "PEFT SHiRA": peft(lambda rank: ShiraConfig(r=rank, target_modules=LINEAR, task_type="SEQ_CLS", random_seed=0)),
    "DoRA": ours(lambda rank: DoRA(rank=rank, alpha=2 * rank)),
    "PEFT DoRA": peft(
        lambda rank: LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="SEQ_CLS", use_dora=True)
    ),
}
"""Those that take part only where they are asked for by name."""
