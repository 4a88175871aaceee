"""Putting an adapter into its base model and taking it out again, in memory: sparse entries against a LoRA of as many parameters.

For each width some square modules; all contestants change the same number of them, in turn, each into a model of its own.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from environment import save
from peft import LoraConfig, PeftModel, ShiraConfig, get_peft_model
from torch import nn

import paring
from paring.attach.find import slots
from paring.methods.shira import SHiRA

OURS = "paring, entries"


def stack(width: int, count: int, dtype: torch.dtype) -> nn.Module:
    """Square modules without biases."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width, bias=False, dtype=dtype) for _ in range(count)))


def contestants(width: int, count: int, rank: int, dtype: torch.dtype) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """How each puts its adapter in, and takes it out."""
    base = stack(width, count, dtype)
    names = [str(index) for index in range(count)]
    trained = paring.adapt(copy.deepcopy(base), SHiRA(rank=rank), target_modules=names, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for slot in slots(trained).values():
            slot.get_parameter("values").normal_(generator=generator)
    adapter = paring.snapshot(trained)
    switch = paring.Switch(copy.deepcopy(base))
    found: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {OURS: (lambda: switch.to(adapter), switch.off)}
    for name, config in {
        "PEFT, LoRA": LoraConfig(r=rank, target_modules=names, init_lora_weights=False),
        "PEFT, SHiRA": ShiraConfig(r=rank, target_modules=names, init_weights=False),
    }.items():
        model = get_peft_model(copy.deepcopy(base), config)
        assert isinstance(model, PeftModel)
        found[name] = (model.merge_adapter, model.unmerge_adapter)
    return found


@torch.no_grad()
def main() -> None:
    """Time all in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--modules", type=int, default=4)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    rows = []
    for width in given.widths:
        for rank in given.ranks:
            for dtype in (torch.float32, torch.bfloat16):
                measured = contestants(width, given.modules, rank, dtype)
                times: dict[str, list[tuple[float, float]]] = {name: [] for name in measured}
                for number in range(given.rounds + 1):
                    for name, (into, out) in measured.items():
                        start = time.perf_counter()
                        into()
                        middle = time.perf_counter()
                        out()
                        if number:  # the first warms up
                            times[name].append((middle - start, time.perf_counter() - middle))
                row = {"width": width, "modules": given.modules, "rank": rank, "share": 2 * rank / width, "dtype": str(dtype)[6:]}
                for name, spent in times.items():
                    both = [sum(one) for one in spent]
                    ours = [sum(one) for one in times[OURS]]
                    row[name] = {
                        "into": statistics.median(one for one, _ in spent),
                        "out": statistics.median(one for _, one in spent),
                        "ratio": sorted(theirs / own for theirs, own in zip(both, ours, strict=True)),
                    }
                rows.append(row)
                shown = "  ".join(f"{name} {1e3 * row[name]['into']:.1f} + {1e3 * row[name]['out']:.1f} ms" for name in measured)
                print(f"{width:5} r {rank:3} {row['dtype']:9} {shown}", flush=True)
    save("switching", {"rows": rows})


if __name__ == "__main__":
    main()
