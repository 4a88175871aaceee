"""One of several processes that hand a training over from layout to layout, by its checkpoint: started by test_distributed.

Layouts are one process on all rows, replicas (DDP) and shards (FSDP2) on a share each. A checkpoint is what torch's own functions give:
all tensors of model and optimizer in one piece, by name.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import paring
from paring.attach.find import sharded, slots
from paring.method import Method
from paring.methods.adalora import AdaLoRA
from paring.methods.sora import SoRA
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Parameters
from paring.parts.parameterise.gated import Gated
from paring.train import create_optimizer, plan
from tests.attach.lesson import MODULES, ROWS, STEPS, Net, loss, rows
from tests.trust.methods_worker import WIDTH, same

Layout = Literal["one process", "DDP", "FSDP2"]
HALF = STEPS // 2
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

METHODS: dict[str, tuple[Method, tuple[Layout, ...]]] = {
    # Its penalty fades with the way that B has gone, so a checkpoint that forgot the way would end with other gates.
    "SoRA": (SoRA(rank=4, penalty=0.9, gate_rate=0.3), ("one process", "DDP", "FSDP2")),
    "spectral": (Spectral(rank=4, budget=Parameters(count=96), steps=STEPS), ("one process", "DDP")),
    "AdaLoRA": (AdaLoRA(rank=4, target=2, steps=STEPS, every=1, orthogonality=0.01), ("one process", "DDP")),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training in one layout.

    Attributes:
        model: the adapted model.
        trains: what is called, which may be a wrapper around it.
        optimizer: of the model.
        share: the rows of this process.
    """

    model: nn.Module
    trains: nn.Module
    optimizer: Optimizer
    share: slice

    def train(self, start: int, stop: int) -> None:
        """Take the steps from ``start`` to before ``stop``."""
        self.trains.train()
        for x in list(rows(WIDTH))[start:stop]:
            loss(self.trains, x[self.share]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self, path: Path) -> None:
        """Model and optimizer into one file, in the way of any layout."""
        model, optimizer = get_state_dict(self.trains, self.optimizer, options=WHOLE)
        if dist.get_rank() == 0:
            torch.save({"model": model, "optimizer": optimizer}, path)
        dist.barrier()

    def load(self, path: Path) -> None:
        """Go on from such a file."""
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        set_state_dict(self.trains, self.optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"], options=WHOLE)


def begun(method: Method, layout: Layout) -> Run:
    """A training before its first step."""
    torch.manual_seed(0)
    model = paring.adapt(Net(WIDTH), method, target_modules=list(MODULES), modules_to_save=["head"], seed=0)
    share = slice(None)
    trains: nn.Module = model
    if layout != "one process":
        size, rank = dist.get_world_size(), dist.get_rank()
        share = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    if layout == "DDP":
        trains = DistributedDataParallel(model)
    elif layout == "FSDP2":
        for name in ("one", "two", "three"):
            fully_shard(model.get_submodule(f"base_model.model.{name}"))
        fully_shard(model)
    plan(model, steps=STEPS)
    return Run(model=model, trains=trains, optimizer=create_optimizer(model, lr=0.02, weight_decay=0.01), share=share)


def counters(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """What the proximal step has counted in each module: steps, and the way that B has gone."""
    return {path: (slot.taken, int(slot.steps), int(slot.travel)) for path, slot in slots(model).items() if isinstance(slot, Gated)}


def exported(run: Run, folder: Path) -> Path:
    """The export, as it is written in each layout: shards by all processes together, anything else by one."""
    if sharded(run.model) or dist.get_rank() == 0:
        paring.export(run.model, folder)
    dist.barrier()
    return folder


def same_files(got: Path, wanted: Path) -> None:
    """Two exports have the same files, settings and tensors, up to the order of sums."""
    assert {path.name for path in got.iterdir()} == {path.name for path in wanted.iterdir()}
    configs = [json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")) for folder in (got, wanted)]
    assert configs[0] == configs[1]
    tensors: list[dict[str, Tensor]] = [load_file(folder / "adapter_model.safetensors") for folder in (got, wanted)]
    assert {key: tensor.shape for key, tensor in tensors[0].items()} == {key: tensor.shape for key, tensor in tensors[1].items()}
    one, other = paring.read(got), paring.read(wanted)
    same(one, other, str(got))


def main(rank: int, size: int, place: Path) -> None:
    """From each layout to each layout, against one training that nobody interrupts."""
    dist.init_process_group("gloo", init_method=f"file://{place / 'meet'}", rank=rank, world_size=size)
    for name, (method, layouts) in METHODS.items():
        straight = begun(method, "one process")
        straight.train(0, STEPS)
        wanted, counted = paring.snapshot(straight.model), counters(straight.model)
        assert 0 < sum(wanted.ranks.values()) < 12, f"{name} shows nothing with ranks {wanted.ranks}"
        reference = exported(straight, place / name / "reference")
        for before in layouts:
            first = begun(method, before)
            first.train(0, HALF)
            checkpoint = place / f"{name} {before}.pt"
            first.save(checkpoint)
            for after in layouts:
                what = f"{name}, {before} -> {after}"
                second = begun(method, after)
                second.load(checkpoint)
                assert counters(second.model) == counters(first.model), what
                second.train(HALF, STEPS)
                same(paring.snapshot(second.model), wanted, what)
                assert counters(second.model) == counted, what
                same_files(exported(second, place / name / f"{before}-{after}"), reference)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
