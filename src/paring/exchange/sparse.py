"""Sparse entries to and from disk, in the layout of PEFT's SHiRA.

.. code-block:: text

    adapter_config.json          r, targets: each module has r (in + out) entries
    adapter_model.safetensors    base_model.model.<module path>.shira_weight    (n,)
                                 base_model.model.<module path>.shira_indices   (2, n) int32, rows over columns
                                 base_model.model.<head tensor>                 modules_to_save

Twelve bytes an entry, as PEFT wants them; a training checkpoint has six. The file does not say how wide a module is: that is in the side
file, without which it is not read.

Source: peft 0.21, tuners/shira, read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from paring.core.adapter import Adapter
from paring.core.coding import is_whole
from paring.core.entries import Entries
from paring.core.errors import AdapterError, ExportError
from paring.exchange.heads import owner
from paring.exchange.layout import PREFIX, SIDE, WEIGHTS
from paring.exchange.patterns import Plan
from paring.exchange.tensors import FLOATS, Entry, Reader, cast

KIND = "SHIRA"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.shira_(?P<which>weight|indices)")


def rank_of(adapter: Adapter) -> int:
    """The ``r`` that PEFT is told: with it every module has a place for each of its entries.

    Raises:
        ExportError: PEFT's SHiRA does not take a module, or the adapter holds factors as well.
    """
    if adapter.magnitudes:
        raise ExportError(
            "PEFT's SHiRA has no magnitudes, so these sparse entries cannot be exported with theirs; fuse them into the base model."
        )
    if adapter.modules:
        raise ExportError(
            f"The adapter holds factors ({next(iter(adapter.modules))!r}) and sparse entries ({next(iter(adapter.entries))!r}), which no "
            "file of PEFT does; export the two apart, or fuse them into the base model."
        )
    stored = sorted(adapter.metadata.fan_in_fan_out & adapter.entries.keys())
    if stored:
        raise ExportError(
            f"PEFT's SHiRA adapts nn.Linear only, and {stored[0]!r} stores its weight the other way round (GPT-2's Conv1D). Merge the "
            "adapter into its base model (merge_and_unload), or keep the checkpoint (save_pretrained)."
        )
    rank = max(entries.equivalent_rank for entries in adapter.entries.values())
    for path, entries in adapter.entries.items():
        if rank * (entries.in_features + entries.out_features) > entries.in_features * entries.out_features:
            raise ExportError(
                f"PEFT gives every module r (in + out) entries, and with the r = {rank} that the largest needs, {path!r} does not have so "
                "many. Fuse the adapter into its base model."
            )
    return rank


def config(ranks: Mapping[str, int], planned: Plan) -> dict[str, Any]:
    """SHiRA's own keys; the mask is in the file.

    Raises:
        ExportError: a module would have to be left out by name.
    """
    if planned.exclude_modules is not None:
        raise ExportError(
            f"PEFT's SHiRA cannot leave modules out by name, and the targets {list(planned.target_modules)} also mean "
            f"{planned.exclude_modules!r}. Adapt these too, or merge the adapter into its base model."
        )
    return {
        "fan_in_fan_out": False,
        "init_weights": True,
        "mask_type": "random",
        "peft_type": KIND,
        "r": max(ranks.values()),
        "random_seed": None,
    }


def tensors(adapter: Adapter, rank: int, dtype: torch.dtype | None) -> Iterator[Entry]:
    """What is written: values and places of each module, padded to the same r with entries that are zero."""
    for path, entries in adapter.entries.items():
        count, kept = rank * (entries.in_features + entries.out_features), dtype or entries.values.dtype
        full = entries.to(device="cpu").pad(count)
        places = torch.stack([full.index // full.in_features, full.index % full.in_features]).to(torch.int32)
        yield Entry(key=f"{PREFIX}{path}.shira_weight", dtype=kept, shape=(count,), tensor=cast(lambda full=full: full.values, kept, path))  # type: ignore[misc]
        yield Entry(key=f"{PREFIX}{path}.shira_indices", dtype=torch.int32, shape=(2, count), tensor=lambda places=places: places)  # type: ignore[misc]


def read(file: Reader, modules: Mapping[str, Mapping[str, Any]] | None, heads: list[str]) -> tuple[dict[str, Entries], dict[str, Tensor]]:
    """The entries of every module, and the heads' tensors by name.

    Args:
        file: the weights.
        modules: widths by module path, out of the side file.
        heads: the entries of ``modules_to_save``.

    Raises:
        AdapterError: widths are missing, or the file holds something else.
    """
    if not modules:
        raise AdapterError(
            f"A SHiRA file does not say how wide its modules are, and {SIDE}, which does, is not there: paring reads those that it wrote. "
            "Load this one with PEFT."
        )
    found: dict[str, Entries] = {}
    trained: dict[str, Tensor] = {}
    for key, (kind, _) in file.shapes.items():
        match = _KEY.fullmatch(key)
        name = key.removeprefix(PREFIX)
        if match is None:
            if owner(name, heads) is None:
                raise AdapterError(
                    f"Unknown tensor {key[:120]!r} in {WEIGHTS}: neither a module's entries nor in {heads or 'modules_to_save'}."
                )
            trained[name] = file.tensor(key)
            continue
        if match["which"] == "indices":
            continue
        path, other = match["module"], f"{PREFIX}{match['module']}.shira_indices"
        widths = [modules.get(path, {}).get(name) for name in ("in_features", "out_features")]
        if other not in file.shapes or not all(is_whole(width, 1) for width in widths) or kind not in FLOATS:
            raise AdapterError(
                f"Module {path!r} lacks its indices, its widths in {SIDE}, or values of a floating-point type; export it again."
            )
        found[path] = _entries(file.tensor(key), file.tensor(other).long(), *widths)  # type: ignore[arg-type]
    if not found:
        raise AdapterError(f"{WEIGHTS} holds no sparse entries; keys look like {PREFIX}<module>.shira_weight.")
    return found, trained


def _entries(values: Tensor, places: Tensor, in_features: int, out_features: int) -> Entries:
    if places.ndim != 2 or places.shape[0] != 2:
        raise AdapterError(f"Places of sparse entries have the shape (2, n), got {tuple(places.shape)}.")
    rows, columns = places
    inside = (rows >= 0) & (rows < out_features) & (columns >= 0) & (columns < in_features)
    if not bool(inside.all()):
        raise AdapterError(f"A sparse entry lies outside of its weight, which is {out_features} x {in_features}; the file is damaged.")
    index, order = torch.sort(rows * in_features + columns)
    return Entries(index=index, values=values[order], in_features=in_features, out_features=out_features)
