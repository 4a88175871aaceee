r"""An adapter to disk, as a plain LoRA in PEFT's layout; sparse entries as PEFT's SHiRA (:mod:`paring.exchange.sparse`).

With gates :math:`g`, scale :math:`s` and :math:`I = \{i : g_i \neq 0\}`,

.. math:: A' = A_I, \qquad B' = s\, B_I\, \mathrm{diag}(g_I)

folded in float32 and then cast, so that alpha equals the rank wherever a loader looks and every scale is 1:

- ``compact``: rank-0 modules are left out; ``r = lora_alpha = R``, the largest rank; ``rank_pattern = alpha_pattern``.
- ``uniform``: every module that training targeted, zero-padded to one rank; ``r = lora_alpha = R``, no patterns.

Training on from an export has scale 1, not :math:`s`, and a padded rank (both factors zero) never trains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from paring.core.adapter import Adapter
from paring.core.coding import choice, positive_int
from paring.core.errors import ExportError, SettingError, near
from paring.core.factors import Factors
from paring.core.heads import IMPLIED
from paring.exchange import sparse
from paring.exchange.card import TASKS, model_card
from paring.exchange.folder import replacing, store
from paring.exchange.heads import modules_to_save
from paring.exchange.layout import CARD, CONFIG, LAYOUTS, OWN_FILES, PREFIX, SIDE, TOKENIZER, WEIGHTS, Layout, factor_key, magnitude_key
from paring.exchange.patterns import Plan, plan
from paring.exchange.tensors import Entry, cast, save

__all__ = ["Layout", "write"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def write(
    adapter: Adapter,
    folder: str | Path,
    *,
    layout: Layout = "compact",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    module_names: Sequence[str] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    card: str | None = None,
    command: str | None = None,
    pad_to: int | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Write a folder that stock PEFT loads, whole or not at all; the same input gives the same bytes.

    Args:
        adapter: what to write.
        folder: where to; its parents are made.
        layout: ``"compact"``, or ``"uniform"`` for engines that want one rank everywhere.
        dtype: of all floating-point tensors, heads included; ``None`` keeps each as it is.
        overwrite: replace a folder that an earlier export wrote, once the new one is complete.
        module_names: all module names of the base model, so that targets and patterns are checked against all of them.
        extra_files: further files by relative path (tokenizer, labels).
        card: the model card; ``None`` writes one.
        command: the command line that trained it, for the card and the side file.
        pad_to: with ``"uniform"``, the rank to pad to, where an engine wants more than the largest.
        check: called with the complete folder before it takes its place; whatever it raises stops the export.

    Returns:
        The folder.

    Raises:
        ExportError: no rank is left, names cannot be told apart, a value does not fit ``dtype``, or the disk is full.
        OutputExistsError: the folder is there and ``overwrite`` is off, or it holds what no export wrote.
        SettingError: a setting is out of range.
    """
    choice("layout", layout, LAYOUTS)
    if dtype is not None and dtype not in _DTYPES:
        raise SettingError(f"dtype={dtype}: choose one of {', '.join(map(str, _DTYPES))}.")
    extra_files = dict(extra_files or {})
    _check_files(extra_files)
    meta = adapter.metadata
    if meta.task_type is not None and meta.task_type not in TASKS:
        raise ExportError(f"PEFT knows no task type {meta.task_type!r}.{near(meta.task_type, TASKS)} Known: {', '.join(TASKS)}, or None.")
    ranks = _entry_ranks(adapter, pad_to) if adapter.entries else _ranks(adapter, layout, pad_to)
    heads = modules_to_save(adapter.heads, meta.task_type, module_names)
    planned = plan(ranks, module_names, {*heads, *IMPLIED.get(meta.task_type or "", ())})
    if adapter.magnitudes and adapter.magnitudes.keys() != adapter.updates.keys():
        missing = next(path for path in adapter.updates if path not in adapter.magnitudes)
        raise ExportError(f"Module {missing!r} has no magnitudes where others do, which PEFT does not read: it wants them for all or none.")
    own = sparse.config(ranks, planned) if adapter.entries else _config(adapter, ranks, planned)
    files = {
        CONFIG: _json(_common(adapter, planned, heads) | own),
        CARD: (card if card is not None else model_card(adapter, command=command, tokenizer=TOKENIZER in extra_files)).encode(),
        **extra_files,
    }
    side = _side(adapter, layout, command, sorted({*OWN_FILES, *extra_files}))
    with replacing(Path(folder), overwrite, ask="overwrite=True (--overwrite on the command line)") as fresh:
        for name, data in files.items():
            store(fresh / name, data)
        written = save(list(_entries(adapter, ranks, dtype)), fresh / WEIGHTS)
        store(fresh / SIDE, _json({**side, "sha256": {WEIGHTS: written}}))
        if check is not None:
            check(fresh)
    return Path(folder)


def _entry_ranks(adapter: Adapter, pad_to: int | None) -> dict[str, int]:
    """The r of PEFT's SHiRA, one for all modules, whatever the layout."""
    if pad_to is not None:
        raise SettingError(f"pad_to={pad_to} is for ranks, and sparse entries have none; leave it out.")
    return dict.fromkeys(adapter.entries, sparse.rank_of(adapter))


def _ranks(adapter: Adapter, layout: Layout, pad_to: int | None) -> dict[str, int]:
    """The rank that each exported module gets."""
    largest = adapter.max_rank
    if largest == 0:
        raise ExportError(
            f"No rank is left in any of the {len(adapter.modules)} modules (every gate is zero), so there is nothing to export. Lower the "
            "penalty (SoRA's penalty) or the gates' learning rate (gate_rate), or train for fewer steps, and train again."
        )
    if pad_to is not None:
        positive_int("pad_to", pad_to)
        if layout != "uniform" or pad_to < largest:
            raise SettingError(f"pad_to={pad_to} needs layout='uniform' and at least the largest rank, {largest}.")
    if layout == "uniform":
        return dict.fromkeys(adapter.modules, pad_to or largest)
    # A module without a rank still has its magnitudes, which PEFT keeps beside at least one.
    return {path: rank or 1 for path, rank in adapter.ranks.items() if rank > 0 or path in adapter.magnitudes}


def _common(adapter: Adapter, planned: Plan, heads: list[str]) -> dict[str, Any]:
    """What every configuration of PEFT has."""
    meta = adapter.metadata
    return {
        "auto_mapping": None,
        "base_model_name_or_path": meta.base_model,
        "inference_mode": True,
        "modules_to_save": heads or None,
        "revision": meta.revision,
        "target_modules": list(planned.target_modules),
        "task_type": meta.task_type,
    }


def _config(adapter: Adapter, ranks: Mapping[str, int], planned: Plan) -> dict[str, Any]:
    """A LoRA's own keys: only those that PEFT has known for long, since older releases refuse to read any other."""
    largest = max(ranks.values())
    config: dict[str, Any] = {
        "alpha_pattern": dict(planned.rank_pattern),
        "bias": "none",
        "fan_in_fan_out": not adapter.metadata.fan_in_fan_out.isdisjoint(ranks),
        "init_lora_weights": True,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": largest,
        "rank_pattern": dict(planned.rank_pattern),
        "use_rslora": False,
    }
    if adapter.magnitudes:
        config["use_dora"] = True
    if planned.exclude_modules is not None:
        config["exclude_modules"] = planned.exclude_modules
    return config


def _side(adapter: Adapter, layout: Layout, command: str | None, files: list[str]) -> dict[str, Any]:
    """Where the adapter comes from."""
    return {
        "format": 1,
        "layout": layout,
        "method": None if adapter.metadata.method is None else dict(adapter.metadata.method),
        "modules": {
            path: {
                "in_features": update.in_features,
                "out_features": update.out_features,
                "start_rank": update.rank,
                "live_rank": update.live_rank,
            }
            for path, update in adapter.updates.items()
        },
        "versions": dict(_versions()),
        "command": command,
        "files": files,
    }


@cache
def _versions() -> Mapping[str, str]:
    """Of what runs here; read once, for what is imported stays."""
    found = {}
    for name in ("paring", "torch", "transformers", "peft", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _entries(adapter: Adapter, ranks: Mapping[str, int], dtype: torch.dtype | None) -> Iterator[Entry]:
    if adapter.entries:
        yield from sparse.tensors(adapter, max(ranks.values()), dtype)
    for path in sorted(ranks.keys() & adapter.modules.keys()):
        factors, rank = adapter.modules[path], ranks[path]
        kept = dtype or factors.a.dtype
        down, up = _factors(factors, rank, kept, path)
        yield Entry(key=factor_key(path, "A"), dtype=kept, shape=(rank, factors.in_features), tensor=down)
        yield Entry(key=factor_key(path, "B"), dtype=kept, shape=(factors.out_features, rank), tensor=up)
        if path in adapter.magnitudes:
            magnitude, wide = adapter.magnitudes[path], dtype or adapter.magnitudes[path].dtype
            yield Entry(key=magnitude_key(path), dtype=wide, shape=tuple(magnitude.shape), tensor=cast(magnitude.detach, wide, path))
    for name, tensor in adapter.heads.items():
        kept = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        yield Entry(key=PREFIX + name, dtype=kept, shape=tuple(tensor.shape), tensor=cast(tensor.detach, kept, name))


def _factors(factors: Factors, rank: int, dtype: torch.dtype, path: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """What computes A' and B' when they are written, so that only one of them exists at a time."""

    def live() -> Factors:
        return factors.prune().to(device="cpu").pad(rank)

    precise = torch.promote_types(torch.float32, factors.b.dtype)
    return cast(lambda: live().a, dtype, path), cast(lambda: live().fold(precise).b, dtype, path)


def _check_files(files: Mapping[str, bytes]) -> None:
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name or ":" in name:
            raise SettingError(f"extra_files: {name!r} is not a relative path inside the folder.")
        if name in OWN_FILES or name.endswith((".safetensors", ".bin", ".pt", ".pth", ".pkl")):
            raise SettingError(f"extra_files: {name!r} would stand beside or replace what the export itself writes; leave it out.")


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
