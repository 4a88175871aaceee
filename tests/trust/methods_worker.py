"""One of several processes that train every method in shards (FSDP2), as one unit and module by module: started by test_distributed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import paring
from paring import method as methods
from paring.attach.find import slots
from paring.core.adapter import Adapter
from paring.core.errors import ParingError
from paring.methods.lora_ga import LoRAGA
from paring.train import create_optimizer, plan
from tests.attach.lesson import MODULES, ROWS, STEPS, Net, loss, rows
from tests.contract.cases import example

WIDTH = 12

REFUSED = dict.fromkeys(("adalora", "dylora", "gs_lora", "spectral"), "cannot be cut, weighed or held together yet")
"""Methods that need whole factors at each step, and what they are refused with."""

REFUSED_BY_MODULE = {**REFUSED, "s2_lora": "sharded module by module"}
"""The same where each module is put together for its own time."""


def made(name: str) -> methods.Method:
    """A small instance of a method; the last gradient has two directions, of which LoRA-GA's one rank takes all."""
    return LoRAGA(rank=1, alpha=1) if name == "lora_ga" else example(name)


def trained(name: str, share: slice, units: tuple[str, ...] | None) -> nn.Module:
    """A model after a few steps.

    Args:
        name: the method's.
        share: of the rows.
        units: modules that are sharded by themselves, before all the rest is; ``None`` shards nothing.
    """
    torch.manual_seed(0)
    model = paring.adapt(Net(WIDTH), made(name), target_modules=list(MODULES), modules_to_save=["head"], seed=0)
    if any(slot.wants_calibration for slot in slots(model).values()):
        paring.calibrate(model, [x[share] for x in rows(WIDTH)], loss=loss)
    if units is not None:
        for unit in units:
            fully_shard(model.get_submodule(f"base_model.model.{unit}"))
        fully_shard(model)
    plan(model, steps=STEPS)
    optimizer = create_optimizer(model, torch.optim.AdamW, lr=0.01)
    model.train()
    for x in rows(WIDTH):
        loss(model, x[share]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def same(got: Adapter, wanted: Adapter, what: str) -> None:
    """Ranks and updates, not factors: signs of singular vectors are anybody's."""
    assert got.ranks == wanted.ranks, what
    assert got.updates.keys() == wanted.updates.keys(), what
    for path, update in wanted.updates.items():
        close(got.updates[path].materialise(), update.materialise(), f"{what}: {path}")
    for found, expected in ((got.magnitudes, wanted.magnitudes), (got.heads, wanted.heads)):
        assert found.keys() == expected.keys(), what
        for key, tensor in expected.items():
            close(found[key], tensor, f"{what}: {key}")


def close(got: Tensor, wanted: Tensor, what: str) -> None:
    """To what sums in another order differ by."""
    torch.testing.assert_close(got, wanted, atol=5e-6, rtol=1e-4, msg=lambda text: f"{what}: {text}")


def main(rank: int, size: int, place: Path) -> None:
    """Each method in shards on shares of the rows, against the whole on all of them; or its refusal."""
    dist.init_process_group("gloo", init_method=f"file://{place / 'meet'}", rank=rank, world_size=size)
    share = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    for name in methods.names():
        whole = paring.snapshot(trained(name, slice(None), None))
        for units, refused in (((), REFUSED), (MODULES, REFUSED_BY_MODULE)):
            what = f"{name}, {'module by module' if units else 'as one unit'}"
            if name in refused:
                with pytest.raises(ParingError, match=refused[name]):
                    trained(name, share, units)
                continue
            model = trained(name, share, units)
            same(paring.snapshot(model), whole, what)
            folder = place / name / str(len(units))
            paring.export(model, folder, force=True)
            dist.barrier()
            there = paring.read(folder).updates
            assert there, what
            for path, update in there.items():
                close(update.materialise(), whole.updates[path].materialise(), f"{what}, exported: {path}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
