"""What a training step keeps, needs at most and computes: saved bytes, profiler peak and FLOPs of each contestant.

Saved bytes are those of the tensors that autograd keeps for the backward, each storage once, without parameters and their transposes. The
peak is that of torch's profiler over one step, or of the accelerator's allocator, above what was allocated before it. FLOPs are those
of the matrix products, forward and backward. All three are exact, so one step each is enough.
"""

from __future__ import annotations

import argparse
import copy
import gc
from typing import Any

import torch
from contestants import CONTESTANTS, DEAD, DTYPES, FURTHER, LIMIT, SHAPES, Contestant, base, batch
from environment import save
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from paring.parts.update.revive import RECOUNT

PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)

SETTLED = {"cpu": 1, "cuda": RECOUNT + 2}
"""Steps before: the optimizer's state is made at the first, and an accelerator counts dead ranks now and then. The next is no look."""


def saved(one: Contestant) -> int:
    """Bytes that the forward leaves for the backward."""
    own = {parameter.untyped_storage().data_ptr() for parameter in one.model.parameters()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> int | Tensor:
        if tensor.layout is not torch.strided:
            return tensor  # sparse ones have no storage to be told by, and few entries
        place = tensor.untyped_storage().data_ptr()
        held.setdefault(place, tensor)
        return place

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda place: place if isinstance(place, Tensor) else held[place]):
        one.loss()
    total = sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in own)
    # The nodes of the graph hold the two hooks, the hooks what is held, and that the nodes: no collector sees all of this circle.
    held.clear()
    return total


def peak(one: Contestant) -> int:
    """Most bytes that a step has allocated at a time, above what was there before it."""
    if next(one.model.parameters()).is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        one.step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        one.step()
    assert profiler.profiler is not None
    kineto = profiler.profiler.kineto_results
    assert kineto is not None
    events = sorted((event for event in kineto.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return most


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of matrix products by torch's own formulas; its FlopCounterMode puts hooks on modules, which our function minds.

    Attention in one kernel is left out: it is the same for all, and torch's formula refuses heads in groups.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and count one operation."""
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet is torch.ops.aten.addmm_:
            self.total += 2 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
        elif packet in PRODUCTS:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out


def flops(one: Contestant) -> int:
    """FLOPs of forward and backward."""
    counter = Counter()
    with counter:
        one.step()
    return counter.total


def main() -> None:
    """Count, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["bert", "llama"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS | FURTHER, default=list(CONTESTANTS))
    parser.add_argument("--device", choices=SETTLED, default="cpu")
    parser.add_argument("--name", default="memory", help="of the file of results")
    given = parser.parse_args()
    cells = []
    for model in given.models:
        data = batch(model, given.device)
        for dtype in given.dtypes:
            source = base(model, dtype).to(given.device)
            for rank in given.ranks:
                found: dict[str, dict[str, int]] = {}
                for name in dict.fromkeys([LIMIT, *given.contestants]):
                    one = (CONTESTANTS | FURTHER)[name](copy.deepcopy(source), data, rank, dtype != "fp32")
                    for _ in range(SETTLED[given.device]):
                        one.step()
                    found[name] = {"saved": saved(one), "peak": peak(one), "flops": flops(one)}
                    del one
                    gc.collect()  # Models are full of cycles.
                cells.append({"model": model, "tokens": SHAPES[model], "dtype": dtype, "rank": rank, "contestants": found})
                print(f"{model} {dtype} r {rank}")
                for name, row in found.items():
                    shares = "  ".join(f"{key} {value / found[LIMIT][key]:.3f}" for key, value in row.items())
                    print(
                        f"  {name:40} saved {row['saved'] / 2**20:8.2f} MiB  peak {row['peak'] / 2**20:8.2f} MiB  over the limit: {shares}"
                    )
    save(given.name, {"cells": cells, "dead": DEAD})


if __name__ == "__main__":
    main()
