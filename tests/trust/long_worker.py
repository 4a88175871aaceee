"""Many optimizer steps in one process, with adapters that come, shrink, are exported, loaded and deleted: what the process holds over time.

    python tests/trust/long_worker.py FOLDER STEPS EVERY

Writes a sample for each so many steps into FOLDER/samples.jsonl, so that it holds none itself: resident bytes, open files, and all that
paring registers for the whole process.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

import paring
from paring import step
from paring.attach.find import slots
from paring.lead import hook
from paring.methods.sora import SoRA
from paring.parts.parameterise.followed import followed_slots
from paring.parts.parameterise.gated import gated_slots
from paring.train import create_optimizer

WIDTH = 16
METHOD = SoRA(rank=8, penalty=0.9, gate_rate=0.05, fade=None, dropout=0.1)
# A gate that has died does not come back, so the adapter that lasts has weaker ones than those that live for a moment.
LASTING = SoRA(rank=8, penalty=0.5, gate_rate=0.001, dropout=0.1)


def base() -> nn.Module:
    """Two linear modules to adapt, and a head."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def train(model: PeftModel, adapter: str, optimizer: torch.optim.Optimizer, steps: int, batches: torch.Generator) -> None:
    """So many steps of one adapter."""
    model.set_adapter(adapter)
    model.train()
    for _ in range(steps):
        x = torch.randn(8, WIDTH, generator=batches)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def cycle(model: PeftModel, lasting: torch.optim.Optimizer, folder: Path, steps: int, batches: torch.Generator) -> int:
    """Train what lasts and what is new; export, load and delete the new one. Returns how many of its ranks have died."""
    train(model, "lasting", lasting, steps // 2, batches)
    paring.adapt(model, METHOD, target_modules=["0", "2"], adapter="new", seed=1)
    optimizer = create_optimizer(model, lr=1e-2)
    train(model, "new", optimizer, steps - steps // 2, batches)
    found = slots(model, "new")
    live = paring.ranks(model, "new")
    paring.export(model, folder / "export", adapter="new", overwrite=True)
    assert paring.read(folder / "export").ranks == live
    model.save_pretrained(str(folder / "saved"), selected_adapters=["new"])
    model.load_adapter(str(folder / "saved" / "new"), "loaded")
    model.set_adapter("loaded")
    x = torch.randn(4, WIDTH, generator=batches)
    ours = answer(model, x)
    torch.testing.assert_close(ours, answer(PeftModel.from_pretrained(copy.deepcopy(base()), str(folder / "export")), x))
    for name in ("new", "loaded"):
        model.delete_adapter(name)
    return sum(slot.delta().rank for slot in found.values()) - sum(live.values())


@torch.no_grad()
def answer(model: PeftModel, x: Tensor) -> Tensor:
    """In evaluation."""
    found: Tensor = model.eval()(x)
    return found


def sample(model: nn.Module) -> dict[str, int]:
    """What the process holds."""
    gc.collect()
    tables = (step._checked, step._held, step._decay_warned, step._sharing_warned)
    return {
        "resident": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - a folder that changes while it is listed
        "hooks": len(_global_optimizer_post_hooks) + len(_global_optimizer_pre_hooks) + len(step._installed) + len(hook._installed),
        "slots": len(list(gated_slots())) + len(list(followed_slots())),
        "tables": sum(map(len, tables)),
        "inside tables": sum(len(ids) for ids in step._checked.values()) + sum(len(held) for held in step._held.values()),
        "module hooks": sum(
            len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks) for part in model.modules()
        ),
        "modules": len(list(model.modules())),
    }


def main(folder: Path, steps: int, every: int) -> None:
    """Train."""
    torch.set_num_threads(1)
    batches = torch.Generator().manual_seed(2)
    model = paring.adapt(base(), LASTING, target_modules=["0", "2"], adapter="lasting", seed=0)
    optimizer = create_optimizer(model, lr=1e-3)
    gc.collect()
    gc.freeze()
    died = 0
    for _ in range(steps // every):
        died += cycle(model, optimizer, folder, every, batches)
        with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample(model)) + "\n")
    print(json.dumps({"died": died, "lasting": sum(paring.ranks(model, "lasting").values())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
