"""One of several processes that train a sharded (FSDP2) model, each on its share of the rows.

Started by test_sharded with its rank, their number and a folder; or by torchrun, which tells the two itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import paring
from paring.attach.find import slots
from paring.core.errors import TargetError
from paring.method import Method
from paring.methods.s2_lora import S2LoRA
from paring.methods.sora import SoRA
from paring.parts.parameterise.gated import Gated
from paring.train import create_optimizer
from paring.train.look import tally, trained

ROWS = 32
Seen = dict[str, tuple[torch.Tensor, int]]
"""Gate and live rank of each module, as one process sees them."""

METHODS: dict[str, Method] = {
    "sora": SoRA(rank=5, penalty=0.9, gate_rate=0.1),
    "s2_lora": S2LoRA(rank=5, penalty=0.9, gate_rate=0.1),
}


class Net(nn.Module):
    """Two adapted linear modules and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All three."""
        return self.head(self.two(torch.relu(self.one(x))))


def build(method: Method, shard: bool) -> nn.Module:
    """The same model with and without shards."""
    torch.manual_seed(0)
    model = paring.adapt(Net(), method, target_modules=["one", "two"], modules_to_save=["head"], seed=0)
    if shard:
        fully_shard(model)
    return model


def train(model: nn.Module, share: slice) -> None:
    """A few steps on a share of the rows."""
    optimizer = create_optimizer(model, torch.optim.SGD, lr=0.1)
    x = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))[share]
    model.train()
    for _ in range(6):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def main(rank: int, size: int, place: Path) -> None:
    """Train shards on shares of the rows and the whole on all of them, compare, export from all processes at once."""
    dist.init_process_group("gloo", init_method=f"file://{place / 'meet'}", rank=rank, world_size=size)
    for name, method in METHODS.items():
        compare(method, place / name, slice(rank * ROWS // size, (rank + 1) * ROWS // size))
    refused(METHODS["s2_lora"])
    dist.destroy_process_group()


def compare(method: Method, folder: Path, share: slice) -> None:
    """Shards and the whole."""
    whole, sharded = build(method, shard=False), build(method, shard=True)
    train(whole, slice(None))
    train(sharded, share)
    wanted, got = paring.snapshot(whole), paring.snapshot(sharded)
    assert got.ranks == wanted.ranks == paring.ranks(sharded), (got.ranks, wanted.ranks)
    assert 0 < sum(got.ranks.values()) < 10, got.ranks
    agreed: list[Seen] = [{}] * dist.get_world_size()
    dist.all_gather_object(agreed, {path: (factors.gate, got.ranks[path]) for path, factors in got.modules.items()})
    assert all(same(agreed[0], other) for other in agreed), "the processes see different gates"
    assert tally(trained(sharded)).live_ranks == sum(got.ranks.values())
    for path, factors in wanted.modules.items():
        torch.testing.assert_close(got.modules[path].materialise(), factors.materialise())
        assert torch.equal(got.modules[path].gate == 0, factors.gate == 0)
    for name, tensor in wanted.heads.items():
        torch.testing.assert_close(got.heads[name], tensor)
    assert all(isinstance(slot, Gated) and int(slot.steps) == 6 for slot in slots(sharded).values())
    paring.export(sharded, folder)
    dist.barrier()
    assert paring.read(folder).ranks == {path: count for path, count in got.ranks.items() if count}


def same(one: Seen, other: Seen) -> bool:
    """Whether two processes see the same gates and ranks."""
    return all(torch.equal(one[path][0], gate) and one[path][1] == rank for path, (gate, rank) in other.items())


def refused(method: Method) -> None:
    """Factors that modules share, where each module is put together for its own time."""
    model = build(method, shard=False)
    for part in (model.get_submodule("base_model.model.one"), model.get_submodule("base_model.model.two"), model):
        fully_shard(part)
    with pytest.raises(TargetError, match="sharded module by module"):
        train(model, slice(None))


if __name__ == "__main__":
    told = sys.argv[1:3] if len(sys.argv) > 2 else (os.environ["RANK"], os.environ["WORLD_SIZE"])
    main(int(told[0]), int(told[1]), Path(sys.argv[-1]))
