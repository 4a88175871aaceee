"""Any PEFT LoRA, and sparse entries that paring wrote, from a folder or the hub, as an adapter; what cannot be read is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import Tensor

from paring.core.adapter import Adapter, Metadata
from paring.core.errors import AdapterError, near
from paring.core.factors import Factors
from paring.exchange import settings, sparse
from paring.exchange.expressions import Clock
from paring.exchange.folder import check_links
from paring.exchange.heads import owner
from paring.exchange.layout import CONFIG, MAGNITUDE, PICKLE, PREFIX, SIDE, WEIGHTS, factor_key, magnitude_key, magnitude_keys, split_key
from paring.exchange.provenance import Provenance
from paring.exchange.tensors import FLOATS, Reader, opened

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PARTS = {
    "lora_magnitude_vector": "a DoRA magnitude, but use_dora is not set",
    "lora_embedding_": "an adapter of an embedding",
    "lora_A.bias": "a bias on lora_A (lora_bias)",
    "lora_B.bias": "a bias on lora_B (lora_bias)",
    "trainable_tokens_delta": "retrained token embeddings",
    "base_layer": "a weight of the base model",
}


def read(source: str | Path, *, revision: str | None = None) -> Adapter:
    """Read a PEFT LoRA into an adapter.

    Args:
        source: a local folder, which comes first, or a repository's id on the hub.
        revision: the adapter's revision on the hub (the base model's is in the adapter).

    Returns:
        The adapter, on the CPU, with dtypes as stored and each module's scale beside its factors. An export of paring also
        brings its method, and the modules whose ranks have all died.

    Raises:
        AdapterError: it is not there, is damaged, or holds what a plain LoRA cannot (the message names it).
    """
    files = _files(source, revision)
    config = settings.load(files.config)
    provenance = Provenance.load(files.side)
    if config.get("peft_type") == sparse.KIND:
        with opened(files.weights) as file, provenance.checking(files.weights):
            entries, trained = sparse.read(file, provenance.modules, settings.heads(config))
        return Adapter(entries=entries, heads=trained, metadata=_metadata(config, provenance, frozenset()))
    settings.refuse(config)
    clock = Clock()
    scales, selection, heads = settings.Scales(config, clock), settings.selection(config, clock), settings.heads(config)
    modules: dict[str, Factors] = {}
    magnitudes: dict[str, Tensor] = {}
    directed = settings.use_dora(config)
    trained = {}
    with opened(files.weights) as file, provenance.checking(files.weights):
        for key, names in _sorted(file, heads, directed).items():
            if isinstance(names, str):
                trained[names] = file.tensor(key)
                continue
            module, rank = names.module, scales.rank_of(names.module)
            if not selection.hits(module):
                raise AdapterError(f"{WEIGHTS} has factors of {module!r}, which {CONFIG} does not target, so PEFT would ignore them.")
            if names.rank != rank:
                raise AdapterError(
                    f"Module {module!r} has rank {names.rank} in {WEIGHTS}, but {CONFIG} says {rank}, so no loader takes it; save it again."
                )
            a, b = file.tensor(factor_key(module, "A")), file.tensor(factor_key(module, "B"))
            modules[module] = Factors(a=a, b=b, scale=scales.scale_of(module))
            if directed:
                magnitudes[module] = _magnitude(file, module)
    if not modules:
        raise AdapterError(f"{WEIGHTS} holds no LoRA factors; keys look like {factor_key('<module>', 'A')!r}.")
    transposed = frozenset(modules) if settings.fan_in_fan_out(config) else frozenset()
    metadata = _metadata(config, provenance, transposed)
    return Adapter(modules={**provenance.dead(modules), **modules}, heads=trained, magnitudes=magnitudes, metadata=metadata)


def _magnitude(file: Reader, module: str) -> Tensor:
    for key in magnitude_keys(module):
        if key in file.shapes:
            return file.tensor(key)
    raise AdapterError(f"use_dora is set, but {WEIGHTS} has no {magnitude_key(module)!r}; the file is incomplete.")


def _metadata(config: Mapping[str, Any], provenance: Provenance, transposed: frozenset[str]) -> Metadata:
    return Metadata(
        base_model=settings.text(config, "base_model_name_or_path"),
        revision=settings.text(config, "revision"),
        task_type=settings.text(config, "task_type"),
        method=provenance.method,
        fan_in_fan_out=transposed,
    )


@dataclass(frozen=True)
class _Files:
    config: Path
    weights: Path
    side: Path | None


def _files(source: str | Path, revision: str | None) -> _Files:
    folder = Path(source)
    if folder.is_file():
        raise AdapterError(f"{str(source)!r} is a file; give the folder that holds {CONFIG} and {WEIGHTS}.")
    if folder.is_dir():
        check_links(folder)
        if (folder / CONFIG).is_file() and not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
            raise AdapterError(_pickle(str(source)))
        side = folder / SIDE
        return _Files(folder / CONFIG, folder / WEIGHTS, side if side.is_file() else None)
    if not _HUB.fullmatch(str(source)):
        raise AdapterError(f"There is no folder {str(source)!r}, and it is no id of a repository on the hub either.")
    return _download(str(source), revision)


def _download(repository: str, revision: str | None) -> _Files:
    def fetch(name: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=revision))

    def present(name: str) -> Path | None:
        try:
            return fetch(name)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None

    try:
        config = fetch(CONFIG)
        weights = present(WEIGHTS)
        if weights is None and present(PICKLE) is not None:
            raise AdapterError(_pickle(repository))
        return _Files(config, weights or fetch(WEIGHTS), present(SIDE))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise AdapterError(f"There is no folder {repository!r}, and the hub did not give an adapter of that name ({reason}).") from error


def _pickle(source: str) -> str:
    return (
        f"{source!r} holds its weights as {PICKLE}, a pickle, which can run code when it is opened, so paring does not. If you trust it, "
        "convert it once: PeftModel.from_pretrained(base, folder).save_pretrained(new_folder) writes safetensors."
    )


@dataclass(frozen=True)
class _Module:
    module: str
    rank: int


def _sorted(file: Reader, heads: list[str], directed: bool) -> dict[str, _Module | str]:
    """What each key of the file is, by its header alone: a module (by the key of its A), or a head's tensor by its name."""
    found = file.shapes
    result: dict[str, _Module | str] = {}
    for key, (dtype, shape) in found.items():
        part = split_key(key)
        if part is None:
            if not (directed and key.removesuffix(".weight").endswith(f".{MAGNITUDE}")):
                result[key] = _head(key, heads)
            continue
        module, which = part
        other = factor_key(module, "B" if which == "A" else "A")
        if other not in found:
            raise AdapterError(f"Module {module!r} has lora_{which} but no lora_{'B' if which == 'A' else 'A'}; the file is incomplete.")
        if dtype not in FLOATS:
            raise AdapterError(f"Tensor {key!r} has dtype {dtype}; factors are read in {', '.join(FLOATS)}.")
        if len(shape) != 2 or 0 in shape:
            what = "of a convolution" if len(shape) == 4 else "not of a linear layer"
            raise AdapterError(f"Tensor {key!r} has shape {list(shape)}, {what}; only linear layers can be read.")
        if which == "A":
            columns = found[other][1]
            if len(columns) == 2 and columns[1] != shape[0]:
                raise AdapterError(f"Module {module!r}: lora_A {list(shape)} and lora_B {list(columns)} disagree on the rank.")
            result[key] = _Module(module, shape[0])
    return result


def _head(key: str, heads: list[str]) -> str:
    for part, what in _PARTS.items():
        if part in key:
            raise AdapterError(f"Tensor {key!r} is {what}, which a plain LoRA does not have; it cannot be read.")
    name = key.removeprefix(PREFIX)
    if name == key or owner(name, heads) is None:
        raise AdapterError(
            f"Unknown tensor {key[:120]!r} in {WEIGHTS}: neither a factor ({factor_key('<module>', 'A')}) nor in a fully trained module "
            f"(modules_to_save: {heads or 'none'}).{near(name, heads)}"
        )
    return name
