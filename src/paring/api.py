"""The Python surface: attach, export, read, verify, ranks. The only place where attach, exchange and methods meet."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from paring.attach.calibrate import calibrate
from paring.attach.config import ParingConfig
from paring.attach.difference import Extraction, extract_lora
from paring.attach.find import method_of, module_names, root, sharded, slots, snapshot
from paring.attach.fuse import fuse_into
from paring.attach.register import register
from paring.core.adapter import Adapter
from paring.core.errors import ExportError, SettingError
from paring.exchange.card import model_card
from paring.exchange.compare import check_written
from paring.exchange.engines import Finding, lint
from paring.exchange.layout import TOKENIZER
from paring.exchange.read import read
from paring.exchange.write import Layout, write
from paring.method import Method
from paring.parts.parameterise.nested import Nested

__all__ = [
    "Extraction",
    "Finding",
    "adapt",
    "calibrate",
    "export",
    "extract_lora",
    "fuse",
    "ranks",
    "read",
    "set_rank",
    "snapshot",
    "verify",
]


class Saves(Protocol):
    """What a tokenizer or processor can do that the export needs."""

    def save_pretrained(self, save_directory: str) -> Any:
        """Write its files into a folder."""


def adapt(
    model: nn.Module,
    method: Method,
    *,
    target_modules: str | Sequence[str] = "all-linear",
    task_type: str | None = None,
    adapter: str = "default",
    modules_to_save: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] | None = None,
    seed: int | None = None,
) -> PeftModel:
    """Put an adapter beside the linear modules of a pre-trained model.

    Args:
        model: the model to adapt; it is changed in place. A PeftModel gets one more adapter.
        method: ``SoRA(rank=8, alpha=16)``, ``LoRA(rank=8)``, or any other method.
        target_modules: ``"all-linear"``, names or suffixes of modules, or a regular expression over full names.
        task_type: PEFT's task type. With ``"SEQ_CLS"`` and ``"TOKEN_CLS"`` the head is trained too.
        adapter: the adapter's name.
        modules_to_save: further modules to train fully and to save along; one name or several.
        exclude_modules: modules to leave out.
        seed: seed of the factors' start; ``None`` draws one from torch's default generator and keeps it in the configuration.

    Returns:
        A PeftModel: train it in any loop, with Trainer or with TRL. The first output equals the frozen model's for methods that
        start at zero.

    Raises:
        TargetError: a name matches nothing, a target cannot be adapted, or a pattern is none.
        SettingError: the method does not fit a module, or a setting makes no sense.
    """
    _check_model(model)
    if not isinstance(method, Method):
        raise SettingError(f"method={method!r}: give a method, such as SoRA(rank=8, alpha=16) from paring.methods.sora.")
    register()
    config = ParingConfig(
        method=method,
        target_modules=_names(target_modules),
        exclude_modules=_names(exclude_modules),
        modules_to_save=_names(modules_to_save),
        task_type=task_type,
        seed=seed,
    )
    if isinstance(model, PeftModel):
        model.add_adapter(adapter, config)
        model.set_adapter(adapter)
        return model
    adapted = get_peft_model(model, config, adapter_name=adapter)
    assert isinstance(adapted, PeftModel)
    return adapted


def _check_model(model: object) -> None:
    """Refuse a name in the place of a model.

    Raises:
        SettingError: with what to load it with.
    """
    if not isinstance(model, nn.Module):
        name = repr(model) if isinstance(model, str) else "name"
        raise SettingError(f"model={model!r}: give the model itself, such as AutoModelForSequenceClassification.from_pretrained({name}).")


def _names(given: str | Sequence[str] | None) -> str | list[str] | None:
    return given if given is None or isinstance(given, str) else list(given)


def ranks(model: nn.Module, adapter: str = "default") -> dict[str, int]:
    """The live rank of every adapted module: ranks whose gate is not exactly zero.

    Sparse entries have no ranks, so theirs is 0.

    Raises:
        TargetError: the model has no such adapter.
    """
    return {path: slot.delta().live_rank for path, slot in slots(model, adapter).items()}


def set_rank(model: nn.Module, rank: int, *, adapter: str = "default") -> None:
    """Use the first so many ranks of an adapter that was trained for any rank, in evaluation, export and merging.

    Training goes on drawing ranks. The choice is not saved with a checkpoint; an export has it.

    Args:
        model: the adapted model.
        rank: from 1 to the largest that was trained.
        adapter: the adapter's name.

    Raises:
        SettingError: the adapter's ranks are not nested, or there are not so many.
        TargetError: the model has no such adapter.
    """
    found = slots(model, adapter).values()
    nested = [slot for slot in found if isinstance(slot, Nested)]
    if len(nested) < len(found):
        raise SettingError(
            f"rank={rank}: the ranks of adapter {adapter!r} are not nested, so its first ones are no adapter of their own; "
            "method=DyLoRA(...) trains such. Any exported adapter can be cut by its singular values: paring compress, or "
            "paring.compress.compress(adapter, ToRank(rank=...))."
        )
    for slot in nested:
        slot.use(rank)


def export(
    model: nn.Module,
    folder: str | Path,
    *,
    adapter: str = "default",
    layout: Layout = "compact",
    pad_to: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    force: bool = False,
    tokenizer: Saves | None = None,
    command: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    r"""Write the adapter as a plain LoRA that stock PEFT, transformers and vLLM load.

    With :math:`I = \{i : g_i \ne 0\}`, each module is written as :math:`A' = A_I`, :math:`B' = s\,B_I\,\mathrm{diag}(g_I)` with scale 1,
    folded in float32 and then cast. What was written is read back and compared with the live model before it takes its place.

    Args:
        model: the adapted model.
        folder: where to; created, never overwritten unless asked.
        adapter: the adapter's name.
        layout: ``"compact"`` (each module its own rank) or ``"uniform"`` (zero-padded to one rank, for engines that need it).
        pad_to: with ``"uniform"``, the rank to pad to, where an engine wants more than the largest live rank; ``verify`` says which.
        dtype: type of the tensors written; ``None`` keeps that of the trained ones.
        overwrite: replace an existing folder.
        force: export although the method's promise is not kept yet: no proximal step ran, or the budget is not reached.
        tokenizer: saved along, with its chat template; without it the model card loads the base model's.
        command: the command line that repeats the run, for the model card.
        metrics: final metrics, for the model card.

    Returns:
        The folder.

    Raises:
        ExportError: every gate is zero, the proximal step never ran, the budget has not been reached, or what was written differs from
            the live model.
        OutputExistsError: the folder exists and ``overwrite`` is False.
        SettingError: ``pad_to`` without the uniform layout, or below the largest live rank.
    """
    if isinstance(model, AveragedModel):
        raise ExportError(
            "This is an average of models over steps (torch.optim.swa_utils.AveragedModel): exact zeros do not survive averaging, so no "
            "rank would be gone. Export the model that was trained, not its average."
        )
    live = snapshot(model, adapter)
    why = method_of(model, adapter).unfinished(slots(model, adapter))
    if why is not None and not force:
        raise ExportError(f"{why}, or pass force=True to export it as it is.")

    if sharded(model) and torch.distributed.get_rank() != 0:
        return Path(folder)  # All processes have gathered the shards above; one of them writes.

    companions = _companions(model, tokenizer)

    def check(written: Path) -> None:
        check_written(read(written), live, dtype)

    return write(
        live,
        folder,
        layout=layout,
        pad_to=pad_to,
        dtype=dtype,
        overwrite=overwrite,
        module_names=module_names(model),
        extra_files=companions,
        card=model_card(live, command=command, metrics=metrics, tokenizer=TOKENIZER in companions),
        command=command,
        check=check,
    )


def _companions(model: nn.Module, tokenizer: Saves | None) -> dict[str, bytes]:
    """The files that travel with an adapter: the model's configuration with its labels, and the tokenizer with its chat template."""
    found: dict[str, bytes] = {}
    config = vars(root(model)).get("config")
    if config is not None and hasattr(config, "to_json_string"):
        found["config.json"] = config.to_json_string(use_diff=True).encode()
    if tokenizer is not None:
        with tempfile.TemporaryDirectory() as place:
            tokenizer.save_pretrained(place)
            found |= {item.name: item.read_bytes() for item in sorted(Path(place).iterdir()) if item.is_file()}
    return found


def verify(folder: str | Path, model: nn.Module | None = None, *, adapter: str = "default") -> list[Finding]:
    """Say what each inference engine would make of an exported adapter.

    Args:
        folder: an adapter in PEFT's LoRA layout.
        model: the live model it was exported from; its updates are then the truth that the engines are compared with.
        adapter: the adapter's name on that model.

    Returns:
        Findings by engine; an engine that is right has one of level "ok".

    Raises:
        AdapterError: the folder is not a readable LoRA adapter.
    """
    return lint(folder, truth=None if model is None else snapshot(model, adapter))


@torch.no_grad()
def fuse(model: nn.Module, adapter: Adapter) -> nn.Module:
    r"""Add an adapter's updates into the weights of its base model, in place: :math:`W \leftarrow W + s\,B\,\mathrm{diag}(g)\,A`.

    Args:
        model: the base model, without adapters.
        adapter: what :func:`read` or :func:`snapshot` returned.

    Returns:
        The model, stand-alone.

    Raises:
        TargetError: a weight is quantised, or a module is not linear.
        AdapterError: the adapter belongs to another base model: a module is missing or has other widths.
    """
    return fuse_into(model, adapter)
