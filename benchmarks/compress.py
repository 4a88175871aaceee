"""Compressing an adapter of the shape that a 7B Llama has, from rank 64: seconds, seconds per GB, memory beside the adapter's own."""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
from attach import LAYER
from environment import save

from paring.compress import Target, ToBudget, ToEnergy, ToRank, compress
from paring.core.adapter import Adapter
from paring.core.factors import Factors
from paring.parts.allocate.budget import Share

RANK, LAYERS = 64, 32
TARGETS: dict[str, Target] = {
    "rank 16": ToRank(rank=16),
    "energy .95": ToEnergy(share=0.95),
    "budget 1/4": ToBudget(budget=Share(share=0.25)),
}


def llama(dtype: torch.dtype) -> Adapter:
    """224 modules with falling singular values, as trained updates have."""
    generator = torch.Generator().manual_seed(0)
    fall = torch.logspace(0, -2, RANK)
    modules = {
        f"model.layers.{layer}.{name}": Factors(
            a=torch.randn(RANK, width, generator=generator).mul_(fall[:, None]).to(dtype),
            b=torch.randn(height, RANK, generator=generator).to(dtype),
            scale=0.5,
        )
        for layer in range(LAYERS)
        for name, (width, height) in LAYER.items()
    }
    return Adapter(modules=modules)


def main() -> None:
    """Time each target, several rounds in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        adapter = llama(dtype)
        size = sum(t.numel() * t.element_size() for factors in adapter.modules.values() for t in (factors.a, factors.b))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds: dict[str, list[float]] = {name: [] for name in TARGETS}
        kept: dict[str, int] = {}
        for _ in range(given.rounds):
            for name, target in TARGETS.items():
                started = time.perf_counter()
                kept[name] = compress(adapter, target)[0].parameters
                seconds[name].append(time.perf_counter() - started)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        for name, times in seconds.items():
            row = {
                "target": name,
                "dtype": str(dtype).removeprefix("torch."),
                "bytes": size,
                "parameters": [adapter.parameters, kept[name]],
                "seconds": statistics.median(times),
                "rounds": times,
                "per_gb": statistics.median(times) / (size / 1e9),
                "peak_beside": more,
            }
            rows.append(row)
            spent = f"{row['seconds']:.1f} s, {row['per_gb']:.1f} s/GB, {more / 1e9:.2f} GB beside"
            print(f"{name:11} {row['dtype']:9} {size / 1e9:.2f} GB: {spent}", flush=True)
    save("compress", {"rows": rows, "rank": RANK, "modules": LAYERS * len(LAYER)})


if __name__ == "__main__":
    main()
