"""Adapter folders as engines may be handed them, and an engine's own loader in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from paring.exchange.contents import Contents
from paring.exchange.layout import factor_key
from paring.exchange.write import write
from tests.answering import Answering
from tests.exchange.helpers import change, config_of, llama_like, put, tensors_of

KINDS = tuple(f"self_attn.{name}_proj" for name in "qkvo") + tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
LAYERS = 3


class OwnLoader:
    """A long-lived process that runs an engine's files."""

    def __init__(self, folder: Path) -> None:
        self._process = Answering(["-m", "tests.trust.engine_worker", folder])

    def load(self, folder: Path) -> dict[str, Tensor] | str:
        """The update of each module as this engine would add it, or what it says when it refuses."""
        said: str = self._process.ask(str(folder))
        return said or dict(load_file(folder / "answer.safetensors"))

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _patterns(folder: Path, generator: torch.Generator) -> None:
    """Alphas of their own for some modules, as users set them."""
    names = sorted({key.rsplit(".", 3)[1] for key in tensors_of(folder)})
    chosen = names[int(torch.randint(len(names), (), generator=generator))]
    change(folder, alpha_pattern={chosen: 3 * config_of(folder)["r"]})


def _without_patterns(folder: Path, generator: torch.Generator) -> None:
    change(folder, rank_pattern={}, alpha_pattern={})


def _classifier(folder: Path, generator: torch.Generator) -> None:
    put(folder, {**tensors_of(folder), "base_model.model.classifier.weight": torch.zeros(2, 8)})
    change(folder, modules_to_save=["classifier"])


def _other_head(folder: Path, generator: torch.Generator) -> None:
    put(folder, {**tensors_of(folder), "base_model.model.lm_head.weight": torch.zeros(2, 8)})
    change(folder, modules_to_save=["lm_head"])


def _extra(folder: Path, generator: torch.Generator) -> None:
    put(folder, {**tensors_of(folder), "base_model.model.model.layers.0.self_attn.q_proj.gate": torch.zeros(3)})


def _with(**keys: Any) -> Callable[[Path, torch.Generator], None]:
    def changed(folder: Path, generator: torch.Generator) -> None:
        change(folder, **keys)

    return changed


CHANGES: Mapping[str, Callable[[Path, torch.Generator], None]] = MappingProxyType(
    {
        "as exported": _with(),
        "lora_alpha": _with(lora_alpha=7),
        "use_rslora": _with(use_rslora=True),
        "alpha_pattern": _patterns,
        "no patterns": _without_patterns,
        "use_dora": _with(use_dora=True),
        "bias": _with(bias="all"),
        "lora_bias": _with(lora_bias=True),
        "PiSSA": _with(init_lora_weights="pissa"),
        "Gaussian": _with(init_lora_weights="gaussian"),
        "classifier": _classifier,
        "other head": _other_head,
        "extra tensor": _extra,
        "layer_replication": _with(layer_replication=[[0, 2], [1, 3]]),
    }
)
"""What others do to a folder, each of which some engine refuses, heeds or overlooks."""


def adapter_folder(folder: Path, name: str, seed: int) -> Path:
    """A random adapter of a small decoder, exported and changed."""
    generator = torch.Generator().manual_seed(seed)
    kinds = tuple(kind for kind in KINDS if torch.rand((), generator=generator) < 0.7) or KINDS[:1]
    even = bool(torch.rand((), generator=generator) < 0.5)
    least, most = (4, 5) if even else (0, 6)
    ranks = torch.randint(least, most, (LAYERS * len(kinds),), generator=generator).tolist()
    ranks[0] = max(ranks[0], 1)
    layout = "uniform" if torch.rand((), generator=generator) < 0.5 else "compact"
    write(llama_like(ranks, kinds), folder, layout=layout)  # type: ignore[arg-type]
    CHANGES[name](folder, generator)
    return folder


def contents(folder: Path) -> Contents:
    """What a rule is given."""
    return Contents(config=config_of(folder), shapes={key: tuple(tensor.shape) for key, tensor in tensors_of(folder).items()})


def stored(folder: Path) -> dict[str, Tensor]:
    """B A of every module of a folder, at no scale."""
    tensors = tensors_of(folder)
    return {module: tensors[factor_key(module, "B")] @ tensors[factor_key(module, "A")] for module in contents(folder).ranks}
