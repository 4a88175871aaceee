"""Who is trained on planted ranks, and what belongs to each beside its model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import AdaLoraConfig, get_peft_model
from torch import Tensor, nn
from variants import VARIANTS, Look, Variant, varied

import paring
from paring.attach.find import slots
from paring.cli.study.planted import Planting, places, plant
from paring.core.adapter import Adapter
from paring.core.linalg import truncated_svd
from paring.lead.cutter import Cutter
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Parameters, Share
from paring.parts.parameterise.ordered import Ordered
from paring.train import plan

SHARES = (0.5, 0.25, 0.125, 0.0625)
"""Sizes beside the planted one, as shares of a LoRA of rank 8."""

TARGETS = r".*encoder\.layer\..*\.(query|key|value|dense)"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        contestant: a name of :data:`CONTESTANTS`.
        budget: parameters, as a share of the planted ones; ``None`` for those that have none.
        share: the same, as a share of those that a LoRA of rank 8 has.
        norm: Frobenius norm of a planted update, as a share of the weight's.
        pattern: seed of the planted updates.
        seed: of the adapter's start and the order of the texts.
        rate, steps, size: main learning rate, optimizer steps, texts a step.
        layers: of the encoder that are taken, from the first on; ``None`` takes all.
        device, dtype: where, and ``bf16`` for autocast.
    """

    contestant: str
    budget: float | None
    share: float | None = None
    norm: float = Planting().size
    pattern: int
    seed: int
    rate: float = 3e-3
    steps: int = 600
    size: int
    layers: int | None = None
    device: str
    dtype: str


class After:
    """What belongs to a contestant beside its model."""

    ours = True
    trained = True

    def step(self, model: Any, step: int) -> None:
        """Called after each optimizer step."""

    def extra(self, model: Any) -> Tensor | float:
        """Added to the loss."""
        return 0.0

    def adapter(self, model: Any) -> Adapter:
        """What is left at the end."""
        return paring.snapshot(model)

    def cuts(self, model: Any, planted: int, start: int) -> Iterable[tuple[dict[str, float | None], tuple[nn.Module, Adapter]]]:
        """What else is made of it at the end, and where that stands."""
        return ()


class Cut(After):
    """Cut at the end, to the planted size and to shares of a LoRA of rank 8."""

    def cuts(self, model: Any, planted: int, start: int) -> Iterator[tuple[dict[str, float | None], tuple[nn.Module, Adapter]]]:
        """Each of the whole adapter."""
        for budget, share in ((1.0, None), *((None, share) for share in SHARES)):
            one = copy.deepcopy(model)
            cutter = plan(one, steps=1)["default"]
            assert isinstance(cutter, Cutter)
            cutter.cut(planted if share is None else round(share * start))
            yield {"budget": budget, "share": share}, (one, paring.snapshot(one))


class Known(Cut):
    """What was planted, cut to each size: nothing is learned."""

    trained = False


class Ada(After):
    """PEFT's AdaLoRA, with the calls that it needs, at LoRA's scale."""

    ours = False

    def step(self, model: Any, step: int) -> None:
        """Update scores and masks."""
        model.base_model.update_and_allocate(step + 1)

    def extra(self, model: Any) -> Tensor:
        """Its orthogonality term, which PEFT adds to a loss of the model's own."""
        terms = [
            torch.norm(
                p @ p.T - torch.eye(p.shape[0], device=p.device) if "lora_A" in name else p.T @ p - torch.eye(p.shape[1], device=p.device)
            )
            for name, p in model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]
        result: Tensor = 0.5 * torch.stack(terms).mean()
        return result

    def adapter(self, model: Any) -> Adapter:
        """The triplets whose singular value is not zero."""
        modules = {}
        for name, module in model.named_modules():
            if hasattr(module, "lora_E"):
                path = name.removeprefix("base_model.model.")
                modules[path] = paring.core.factors.Factors(
                    a=module.lora_A["default"].detach().cpu(),
                    b=module.lora_B["default"].detach().cpu(),
                    gate=module.lora_E["default"].detach().flatten().cpu(),
                )
        return Adapter(modules=modules)


Built = tuple[Any, After]


Contestant = Callable[[nn.Module, Job, int | None, Look], Built]


def ours(make: Callable[[int | None], Any]) -> Contestant:
    """A contestant of paring's own."""

    def build(model: nn.Module, job: Job, budget: int | None, look: Look) -> Built:
        adapted = paring.adapt(model, make(budget), target_modules=TARGETS, seed=job.seed)
        plan(adapted, steps=job.steps)
        return adapted, After()

    return build


def whole(model: nn.Module, job: Job, budget: int | None, look: Look) -> Built:
    """LoRA of rank 8, which the spectral cut is until it cuts: not before the training is over."""
    adapted = paring.adapt(model, Spectral(budget=Share(share=1.0)), target_modules=TARGETS, seed=job.seed)
    plan(adapted, steps=job.steps)
    return adapted, Cut()


@torch.no_grad()
def known(model: nn.Module, job: Job, budget: int | None, look: Look) -> Built:
    """LoRA of rank 8 that holds the planted updates."""
    teacher = copy.deepcopy(model)
    plant(teacher, Planting(pattern=job.pattern, size=job.norm))
    adapted, _ = whole(model, job, budget, look)
    for path, slot in slots(adapted).items():
        assert isinstance(slot, Ordered)
        after, before = (one.get_submodule(path).weight for one in (teacher, model))
        assert isinstance(after, Tensor)
        assert isinstance(before, Tensor)
        update = after - before
        found = truncated_svd(update, len(slot.A))
        slot.A.copy_(found.vt)
        slot.B.copy_(found.u * found.s / slot.scale)
    return adapted, Known()


def adalora(model: nn.Module, job: Job, budget: int | None, look: Look) -> Built:
    """AdaLoRA from rank 8 to the mean rank that the budget pays for."""
    assert budget is not None
    mean = sum(m.in_features + m.out_features for m in places(model).values())
    torch.manual_seed(job.seed)
    config = AdaLoraConfig(
        init_r=8,
        target_r=max(1, round(budget / mean)),
        lora_alpha=16,
        total_step=job.steps,
        tinit=job.steps // 10,
        tfinal=job.steps * 4 // 10,
        deltaT=10,
        target_modules=TARGETS,
    )
    return get_peft_model(model, config), Ada()


def cut(variant: Variant) -> Contestant:
    """The spectral cut, plain or as it was tried."""

    def build(model: nn.Module, job: Job, budget: int | None, look: Look) -> Built:
        size = Parameters(count=budget or 1)
        return varied(model, variant, size, steps=job.steps, seed=job.seed, look=look, target_modules=TARGETS), After()

    return build


CONTESTANTS: dict[str, Contestant] = {
    "LoRA r 1": ours(lambda _: LoRA(rank=1, alpha=2)),
    "LoRA r 2": ours(lambda _: LoRA(rank=2, alpha=4)),
    "LoRA r 8": whole,
    "planted updates": known,
    "SoRA": ours(lambda _: SoRA(rank=8, alpha=16)),
    "AdaLoRA": adalora,
    "spectral": cut(Variant()),
    "spectral, knee": ours(lambda _: Spectral(quicken=0.0)),
    "spectral, r 16, knee": ours(lambda _: Spectral(rank=16, quicken=0.0)),
    **{f"spectral, {name}": cut(variant) for name, variant in VARIANTS.items()},
}

PEERS = ("LoRA r 1", "LoRA r 2", "LoRA r 8", "SoRA", "AdaLoRA", "spectral, longer steps", "spectral", "spectral, by loss")
"""What is run unless it is said otherwise; the cut as paring offers it is the one with longer steps."""

UNTRAINED = frozenset({"planted updates"})
"""Those that learn nothing: what a size costs whoever knows the updates. No peers."""

FIXED = frozenset({"LoRA r 1", "LoRA r 2", "LoRA r 8", "SoRA", *UNTRAINED, *(name for name in CONTESTANTS if name.endswith("knee"))})
"""Those that are not told a size."""
