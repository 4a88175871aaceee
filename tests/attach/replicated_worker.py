"""One of several processes that train replicas of a model (DDP), each on its share of the rows: started by test_replicated."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import paring
from paring.attach.find import slots
from paring.core.adapter import Adapter
from paring.method import Method
from paring.methods.adalora import AdaLoRA
from paring.methods.dylora import DyLoRA
from paring.methods.lora import LoRA
from paring.methods.lora_ga import LoRAGA
from paring.methods.nola import NOLA
from paring.methods.s2_lora import S2LoRA
from paring.methods.sora import SoRA
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Parameters
from paring.parts.parameterise.gated import Gated
from paring.train import create_optimizer
from tests.attach.lesson import MODULES, ROWS, STEPS, Net, loss, rows

WIDTH = 6
METHODS: dict[str, Method] = {
    "LoRA": LoRA(rank=4),
    "SoRA": SoRA(rank=4, penalty=0.9, gate_rate=0.1, fade=None),
    "S2-LoRA": S2LoRA(rank=4, penalty=0.9, gate_rate=0.1, fade=None),
    # Pays for one rank of three modules: at least one of them ends with none.
    "spectral": Spectral(rank=4, budget=Parameters(count=24), steps=STEPS),
    "AdaLoRA": AdaLoRA(rank=4, target=1, steps=STEPS, every=1, orthogonality=0.01),
    "DyLoRA": DyLoRA(rank=4),
    # The gradient of the last module has two directions, of which each rank takes two.
    "LoRA-GA": LoRAGA(rank=1, alpha=1),
    "NOLA": NOLA(bases=20, rank=4),
    "spectral by loss": Spectral(rank=4, budget=Parameters(count=24), steps=STEPS, score="loss", look=2),
}


EMPTY = {"SoRA", "S2-LoRA", "spectral", "spectral by loss"}
"""Those that end with an empty module."""


def build(method: Method) -> nn.Module:
    """The same model in every process; SoRA's second module is empty from the start."""
    torch.manual_seed(0)
    model = paring.adapt(Net(WIDTH), method, target_modules=list(MODULES), modules_to_save=["head"], seed=0)
    second = slots(model)["two"]
    if isinstance(second, Gated):
        with torch.no_grad():
            second.gate.zero_()
    return model


def begin(model: nn.Module, share: slice) -> None:
    """Give a start that needs a gradient that of a share of the rows; the processes put theirs together."""
    if any(slot.wants_calibration for slot in slots(model).values()):
        paring.calibrate(model, [x[share] for x in rows(WIDTH)], loss=loss)


def train(model: nn.Module, share: slice) -> None:
    """A few steps on a share of the rows."""
    optimizer = create_optimizer(model, torch.optim.SGD, lr=0.1, momentum=0.9)
    model.train()
    for x in rows(WIDTH):
        loss(model, x[share]).backward()
        optimizer.step()
        optimizer.zero_grad()


def main(rank: int, size: int, place: Path) -> None:
    """Train replicas on shares of the rows, and one model on all of them."""
    dist.init_process_group("gloo", init_method=f"file://{place / 'meet'}", rank=rank, world_size=size)
    found: dict[str, Adapter] = {}
    for name, method in METHODS.items():
        replica = build(method)
        share = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
        begin(replica, share)
        train(DistributedDataParallel(replica), share)
        mine = copy.deepcopy(replica.state_dict())
        for key, value in mine.items():
            every = [torch.zeros_like(value) for _ in range(size)]
            dist.all_gather(every, value)
            assert all(torch.equal(every[0], other) for other in every), f"{name}: {key} differs between the processes"
        ranks = paring.ranks(replica)
        if name in EMPTY:
            assert 0 in ranks.values(), f"{name}: no module is empty: {ranks}"
            assert any(ranks.values()), f"{name}: all modules are empty"
        found[name] = paring.snapshot(replica)
        dist.barrier()
    dist.destroy_process_group()
    for name, method in METHODS.items():
        whole = build(method)
        begin(whole, slice(None))
        train(whole, slice(None))
        wanted, got = paring.snapshot(whole), found[name]
        assert wanted.ranks == got.ranks, name
        # Updates, not factors: signs of singular vectors are anybody's.
        for path, factors in wanted.modules.items():
            off = (got.modules[path].materialise() - factors.materialise()).abs().max()
            assert off < 5e-5, f"{name}: {path} is off by {off}"
        for key, tensor in wanted.heads.items():
            torch.testing.assert_close(got.heads[key], tensor, atol=1e-5, rtol=1e-4)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
