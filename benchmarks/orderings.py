"""What an entry costs that the orders of the adapted linear read and write once more: the table in ``paring.kernels.orders``.

Three products take turns, round after round: the frozen linear's own, ``W + B A``, and ``Y += S B`` in place. Each is timed at several
ranks, and a line through the times over the FLOPs of rank r gives what is left at rank 0: the memory traffic, said here in FLOPs of the
large product for each entry. The processor's time is taken, not the wall's, so that other work on the machine disturbs less; one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from environment import save

SHAPES = ((2048, 384, 384), (2048, 384, 1536), (2048, 1536, 384), (2048, 768, 768))
RANKS = (2, 8, 16, 64)


def products(rows: int, width: int, height: int, rank: int) -> dict[str, Callable[[], object]]:
    """The three products on random matrices."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    dy, weight, a, up, inner, y = (
        random(rows, height),
        random(height, width),
        random(rank, width),
        random(rank, height),
        random(rows, rank),
        random(rows, height),
    )
    return {
        "dense": lambda: dy @ weight,
        "merge": lambda: torch.addmm(weight, up.t(), a),
        "add": lambda: y.addmm_(inner, up),
    }


def main() -> None:
    """Time, fit, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = []
    for rows, width, height in SHAPES:
        flops: dict[str, list[float]] = {"merge": [], "add": []}
        for rank in RANKS:
            found = products(rows, width, height, rank)
            times: dict[str, list[float]] = {name: [] for name in found}
            for turn in range(given.rounds + 3):
                for name, product in found.items():
                    started = time.thread_time()
                    product()
                    if turn >= 3:
                        times[name].append(time.thread_time() - started)
            speed = 2 * rows * width * height / float(np.median(times["dense"]))
            flops["merge"].append(float(np.median(times["merge"])) * speed / (width * height))
            flops["add"].append(float(np.median(times["add"])) * speed / (rows * height))
        fits = {name: np.polyfit([2 * rank for rank in RANKS], values, 1) for name, values in flops.items()}
        cell = {
            "rows": rows,
            "in": width,
            "out": height,
            "weight": float(fits["merge"][1]),
            "output": float(fits["add"][1]),
            "flops": flops,
        }
        cells.append(cell)
        print(f"{rows} x {width} -> {height}: an entry of W + BA costs {cell['weight']:.0f} + 2r x {fits['merge'][0]:.2f} FLOPs, "
              f"of Y += SB {cell['output']:.0f} + 2r x {fits['add'][0]:.2f}", flush=True)  # fmt: skip
    medians = {name: float(np.median([cell[name] for cell in cells])) for name in ("weight", "output")}
    print(f"medians: {medians}")
    save("orderings", {"cells": cells, "medians": medians, "ranks": RANKS, "rounds": given.rounds})


if __name__ == "__main__":
    main()
