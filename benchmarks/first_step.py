"""How far LoRA-GA's first step is from what it promises, here and in PEFT, and what becomes of the start when the loss is multiplied.

For every adapted module of MiniLM on trec, in float64, in which a small step is not lost: the update after one step of gradient descent
against the truncated SVD of rank 2r of the full gradient of the same batches, up to a factor; and the norm of the start against the
weight's, for the loss and for a thousand times it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import torch
from environment import save
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from tasks import encoder, examples
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

import paring
from paring.attach.find import slots
from paring.core.linalg import truncated_svd
from paring.methods.lora_ga import LoRAGA
from paring.parts.parameterise.base import Slot
from paring.parts.parameterise.shifted import Shifted

RANK, ALPHA, RATE = 8, 16, 1e-4


def main() -> None:
    """Measure both, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder for each task, with train.tsv and dev.tsv")
    parser.add_argument("--batches", type=int, default=8)
    given = parser.parse_args()
    rows = examples(given.data, "trec", "train", 16 * given.batches)
    batches = [rows.batch(list(range(16 * k, 16 * k + 16))) for k in range(given.batches)]
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=rows.classes).double().eval()
    gradients = full(base, batches)
    targets = {path: truncated_svd(gradient, 2 * RANK).materialise() for path, gradient in gradients.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, begin in (("paring", ours), ("PEFT", theirs)):
        starts = {factor: begin(copy.deepcopy(base), batches, factor) for factor in (1.0, 1000.0)}
        model, updates = starts[1.0]
        before = updates(model)
        sizes = {f"{factor:g}": size(read(one), base) for factor, (one, read) in starts.items()}
        step(model, batches)
        after = updates(model)
        found[name] = {"missed": [missed(after[path] - before[path], targets[path]) for path in targets], "start": sizes}
        values = found[name]["missed"]
        print(f"{name:7} missed {statistics.median(values):.4f} (worst {max(values):.4f}), start {found[name]['start']}", flush=True)
    save("first-step", {"rank": RANK, "alpha": ALPHA, "batches": given.batches, "modules": len(targets), "found": found})


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The model's own."""
    result = model(**batch).loss
    assert isinstance(result, Tensor)
    return result


def full(base: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean gradient of every weight that all-linear adapts, by autograd."""
    model = copy.deepcopy(base)
    for batch in batches:
        (loss_of(model, batch) / len(batches)).backward()  # type: ignore[no-untyped-call]
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path != "classifier":
            assert module.weight.grad is not None
            found[path] = module.weight.grad
    return found


def _update(slot: Slot) -> Tensor:
    assert isinstance(slot, Shifted)
    return slot.scale * (slot.B @ slot.A).detach()


def ours(base: Any, batches: list[dict[str, Tensor]], factor: float) -> Any:
    """LoRA-GA here; the start is what has been taken away."""
    model = paring.adapt(base, LoRAGA(rank=RANK, alpha=ALPHA), task_type="SEQ_CLS", seed=0)
    paring.calibrate(model, batches, loss=lambda model, batch: factor * loss_of(model, batch))

    def updates(one: Any) -> dict[str, Tensor]:
        return {path: _update(slot) for path, slot in slots(one).items()}

    return model, updates


def theirs(base: Any, batches: list[dict[str, Tensor]], factor: float) -> Any:
    """PEFT's, as its documentation has it, at the same scale."""
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        use_rslora=True,
        target_modules=[name for name, module in base.named_modules() if isinstance(module, nn.Linear) and name != "classifier"],
        task_type="SEQ_CLS",
        init_lora_weights="lora_ga",  # type: ignore[arg-type]
        lora_ga_config=LoraGAConfig(stable_gamma=16),
    )

    def train_step() -> None:
        for batch in batches:
            (factor * loss_of(base, batch) / len(batches)).backward()  # type: ignore[no-untyped-call]

    preprocess_loraga(base, config, train_step)
    model = get_peft_model(base, config)

    def updates(one: Any) -> dict[str, Tensor]:
        layers = {name.removeprefix("base_model.model."): module for name, module in one.named_modules() if hasattr(module, "lora_A")}
        return {
            path: layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
            for path, layer in layers.items()
        }

    return model, updates


def step(model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
    """One step of gradient descent on the factors."""
    model.eval()
    factors = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad and "classifier" not in name]
    optimizer = torch.optim.SGD(factors, lr=RATE)
    optimizer.zero_grad()
    for batch in batches:
        (loss_of(model, batch) / len(batches)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def size(start: dict[str, Tensor], base: nn.Module) -> float:
    """The norm of the start as a share of the weight's, the median over modules."""
    weights = {path: base.get_parameter(f"{path}.weight").detach() for path in start}
    return statistics.median(float(update.norm() / weights[path].norm()) for path, update in start.items())


def missed(moved: Tensor, target: Tensor) -> float:
    """What is left of a move once the best multiple of the target is taken away, as a share of it."""
    best = (moved * target).sum() / target.square().sum()
    return float((moved - best * target).norm() / moved.norm())


if __name__ == "__main__":
    main()
