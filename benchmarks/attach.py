"""Attaching, exporting, reading and loading: the time of each beside PEFT's, and beside the disk.

Attach: paring.adapt on a stack of linear modules against PEFT's LoRA on the same, taking turns, at 200 and at 2,000 modules. The base is
built anew for each turn, outside the clock.

Files: an adapter of the shape that a 7B Llama has (224 modules, rank 64) is exported, saved, read and loaded; the limit is writing as
many bytes with safetensors alone, until the disk has them, and reading them.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from environment import save
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import paring
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA

WIDTH, RANK = 64, 8
# query, key, value, output: 4096 x 4096; gate, up: 11008 x 4096; down: 4096 x 11008; 32 layers of them.
LAYER = {
    "q": (4096, 4096),
    "k": (4096, 4096),
    "v": (4096, 4096),
    "o": (4096, 4096),
    "gate": (4096, 11008),
    "up": (4096, 11008),
    "down": (11008, 4096),
}


class Stack(nn.Module):
    """Layers of linear modules with names of the usual form."""

    def __init__(self, layers: int, shapes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({name: _linear(i, o) for name, (i, o) in shapes.items()}) for _ in range(layers))


def _linear(i: int, o: int) -> nn.Linear:
    """A linear module whose weight is never read: one entry stands in for all of them."""
    module = nn.Linear(1, 1, bias=False)
    module.in_features, module.out_features = i, o
    module.weight = nn.Parameter(torch.zeros(1).expand(o, i), requires_grad=False)
    return module


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call, with the garbage collector still."""
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    gc.enable()
    return seconds


def attach(modules: int, rounds: int) -> dict[str, float]:
    """Median seconds of attaching, by contestant."""
    shapes = {f"proj{index}": (WIDTH, WIDTH) for index in range(10)}
    targets = sorted(shapes)
    works: dict[str, Callable[[nn.Module], object]] = {
        "PEFT LoRA": lambda model: get_peft_model(model, LoraConfig(r=RANK, target_modules=targets)),
        "LoRA": lambda model: paring.adapt(model, LoRA(rank=RANK), target_modules=targets, seed=0),
        "SoRA": lambda model: paring.adapt(model, SoRA(rank=RANK), target_modules=targets, seed=0),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            model = Stack(modules // 10, shapes)
            seconds = timed(lambda work=work, model=model: work(model))  # type: ignore[misc]
            if turn:
                times[name].append(seconds)
    return {name: float(np.median(values)) for name, values in times.items()}


def files(rounds: int, rank: int = 64) -> dict[str, float]:
    """Median seconds of what is done with a 7B-shaped adapter on disk."""
    model = paring.adapt(Stack(32, LAYER), SoRA(rank=rank, alpha=2 * rank), target_modules=sorted(LAYER), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_()
    peer = get_peft_model(Stack(32, LAYER), LoraConfig(r=rank, target_modules=sorted(LAYER)))
    times: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        times.setdefault(name, []).append(timed(work))

    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder, copy = Path(place) / "adapter", Path(place) / "copy.safetensors"
            note("export", lambda folder=folder: paring.export(model, folder, force=True))  # type: ignore[misc]
            note("read", lambda folder=folder: paring.read(folder))  # type: ignore[misc]
            tensors = load_file(folder / "adapter_model.safetensors")
            note("safetensors: write", lambda tensors=tensors, copy=copy: _write(tensors, copy))  # type: ignore[misc]
            note("safetensors: read", lambda copy=copy: [tensor.clone() for tensor in load_file(copy).values()])  # type: ignore[misc]
            size = copy.stat().st_size
            note("PEFT: load", lambda folder=folder: _load(folder))  # type: ignore[misc]
            note("PEFT: save", lambda place=place: peer.save_pretrained(place + "/peer"))  # type: ignore[misc]
            note("save", lambda place=place: model.save_pretrained(place + "/own"))  # type: ignore[misc]
            note("load", lambda place=place: _load(Path(place) / "own"))  # type: ignore[misc]
    return {"bytes": float(size), **{name: float(np.median(values)) for name, values in times.items()}}


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _load(folder: Path) -> object:
    return PeftModel.from_pretrained(Stack(32, LAYER), str(folder))


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no_files", action="store_true")
    given = parser.parse_args()
    attached = {}
    for modules in given.modules:
        attached[modules] = attach(modules, given.rounds)
        peer = attached[modules]["PEFT LoRA"]
        print(
            f"{modules} modules: "
            + "  ".join(f"{name} {1e3 * value:.0f} ms ({value / peer:.2f})" for name, value in attached[modules].items()),
            flush=True,
        )
    on_disk = {} if given.no_files else files(min(given.rounds, 3))
    for name, value in on_disk.items():
        print(f"{name}: {value / 2**20:.0f} MiB" if name == "bytes" else f"{name}: {value:.2f} s")
    save("attach", {"attach": attached, "files": on_disk, "rounds": given.rounds, "width": WIDTH, "rank": RANK})


if __name__ == "__main__":
    main()
