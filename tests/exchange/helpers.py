"""Small adapters and models that the tests of exchange share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paring.core.adapter import Adapter, Metadata
from paring.core.factors import Factors


def factors(generator: torch.Generator, start: int, live: int, width: int = 8, height: int = 6, scale: float = 2.0) -> Factors:
    """Gated factors of which ``live`` ranks are left, spread out."""
    gate = torch.zeros(start)
    gate[torch.randperm(start, generator=generator)[:live]] = torch.rand(live, generator=generator) + 0.5
    return Factors(
        a=torch.randn(start, width, generator=generator), b=torch.randn(height, start, generator=generator), gate=gate, scale=scale
    )


def adapter(ranks: Mapping[str, int], *, start: int = 8, heads: Mapping[str, Tensor] | None = None, **metadata: Any) -> Adapter:
    """An adapter with these live ranks."""
    generator = torch.Generator().manual_seed(7)
    modules = {path: factors(generator, start, rank) for path, rank in ranks.items()}
    return Adapter(modules=modules, heads=heads or {}, metadata=Metadata(**metadata))


def llama_like(ranks: Iterable[int], kinds: Iterable[str] = ("self_attn.q_proj", "self_attn.v_proj")) -> Adapter:
    """Ranks dealt out to the projections of a decoder, layer by layer."""
    kinds = tuple(kinds)
    names = (f"model.layers.{index // len(kinds)}.{kinds[index % len(kinds)]}" for index in range(10**6))
    return adapter(dict(zip(names, ranks, strict=False)), base_model="some/decoder", task_type="CAUSAL_LM")


def config_of(folder: Path) -> dict[str, Any]:
    """The folder's configuration."""
    loaded: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return loaded


def change(folder: Path, **keys: Any) -> Path:
    """Change keys of the folder's configuration; returns the folder."""
    (folder / "adapter_config.json").write_text(json.dumps({**config_of(folder), **keys}))
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """The folder's tensors."""
    return dict(load_file(folder / "adapter_model.safetensors"))


def put(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Replace the folder's tensors, and drop the side file that speaks of the old ones; returns the folder."""
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors", metadata={"format": "pt"}
    )
    (folder / "paring.json").unlink(missing_ok=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
