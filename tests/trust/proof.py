"""The proof that the proximal step ran exactly once after each step of an optimizer, whoever made the loop.

A rank whose row of A and column of B are zero has no gradient: Adam leaves its factors and its gate where they are, and the proximal step
alone moves the gate. So it is zero after exactly ``ceil(|g0| / t)`` steps: earlier if a step was taken twice, later if one was left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from paring.attach.find import slots
from paring.methods.sora import SoRA
from paring.parts.parameterise.gated import Gated

# Powers of two, so that float32 is exact at a constant rate.
PENALTY = 0.5
GATE_RATE = 2.0**-6
THRESHOLD = GATE_RATE * PENALTY
LONE = (0.0, 1.5 * THRESHOLD, -2.5 * THRESHOLD, 3.0 * THRESHOLD, 40.0 * THRESHOLD)
"""The gates without a gradient: one dead, three that die within a few steps, one that lives."""
RANK = len(LONE) + 3


def method(**settings: Any) -> SoRA:
    """SoRA with a penalty that stays, so that at a constant rate all thresholds are alike."""
    return SoRA(rank=RANK, alpha=RANK, **{"penalty": PENALTY, "fade": None, "gate_rate": GATE_RATE, **settings})


@torch.no_grad()
def start(model: nn.Module, adapter: str = "default", seed: int = 0) -> None:
    """Give an adapter an effect, and each of its slots the gates of :data:`LONE`, with nothing around them."""
    generator = torch.Generator().manual_seed(seed)
    for slot in gates(model, adapter).values():
        for factor in (slot.A, slot.B):
            factor.add_(torch.randn(factor.shape, generator=generator).to(factor), alpha=0.3)
        slot.gate.copy_(torch.tensor([*LONE, *(0.5 + torch.rand(RANK - len(LONE), generator=generator)).tolist()]))
        slot.A[: len(LONE)] = slot.B[:, : len(LONE)] = 0.0


def gates(model: nn.Module, adapter: str = "default") -> dict[str, Gated]:
    """The slots of an adapter, all of which have gates; there is more than one."""
    found = {path: slot for path, slot in slots(model, adapter).items() if isinstance(slot, Gated)}
    assert len(found) > 1
    return found


class Watch:
    """What every step of an optimizer that holds the gates finds: their values and their rate. To be used as a context.

    Args:
        model: what is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.rates: list[float] = []
        self.history: list[Mapping[str, Tensor]] = []

    def __enter__(self) -> Watch:
        self._handle = register_optimizer_step_pre_hook(self._before)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handle.remove()
        self.history.append(self._now())

    def _now(self) -> dict[str, Tensor]:
        return {path: slot.gate.detach().clone() for path, slot in gates(self.model).items()}

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        first = next(iter(gates(self.model).values())).gate
        for group in optimizer.param_groups:
            if any(parameter is first for parameter in group["params"]):
                self.rates.append(float(group["lr"]))
                self.history.append(self._now())


def check(watch: Watch, steps: int, *, begun: int = 0, still: int = 0) -> str:
    """Hold what was watched against what one proximal step after each step makes of the lone gates.

    Args:
        watch: of a whole run, or of one that went on.
        steps: how many steps the run was to take.
        begun: how many of them were taken before.
        still: at how many of the first steps the other gates have no gradient either.

    Returns:
        What was seen, for the docs.
    """
    assert len(watch.rates) == steps - begun, "the trainer took another number of steps"
    constant = len(set(watch.rates)) == 1
    lone = len(LONE)
    found = gates(watch.model)
    for path, slot in found.items():
        assert int(slot.steps) == steps, f"{path}: {int(slot.steps)} proximal steps in {steps} steps"
        expected = watch.history[0][path][:lone]
        for step, rate in enumerate(watch.rates, start=1):
            before, gate = watch.history[step - 1][path], watch.history[step][path]
            expected = shrunk(expected, rate)
            if constant:
                assert torch.equal(gate[:lone], expected), f"{path}, step {step}"
            else:
                torch.testing.assert_close(gate[:lone], expected, rtol=0, atol=1e-6)
            # The others go where their gradients lead them as well.
            assert step <= still or (gate[lone:] - shrunk(before[lone:], rate)).abs().max() > 1e-2 * rate, (
                f"{path}, step {step}: not trained"
            )
        for index, gate in enumerate(watch.history[0][path][:lone].tolist()):
            died = next((step for step, seen in enumerate(watch.history) if seen[path][index] == 0), None)
            assert died == _dies(abs(gate), watch.rates), f"{path}: gate {index}"
    rate = f"a constant rate of {watch.rates[0]:g}" if constant else f"rates from {max(watch.rates):g} to {min(watch.rates):g}"
    return f"{lone * len(found)} gates over {steps - begun} steps at {rate}"


def shrunk(gate: Tensor, rate: float) -> Tensor:
    """The gates after the proximal step alone."""
    return torch.sign(gate) * (gate.abs() - rate * PENALTY).clamp_min(0.0)


def _dies(size: float, rates: list[float]) -> int | None:
    """After how many steps a gate without a gradient is zero; ``None`` if it lives."""
    if len(set(rates)) == 1:
        steps = math.ceil(size / (rates[0] * PENALTY))
        return steps if steps <= len(rates) else None
    for step in range(len(rates) + 1):
        if size <= math.fsum(rate * PENALTY for rate in rates[:step]):
            return step
    return None
