"""Adapters of PEFT's own as contestants, each in its best shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    AdaLoraConfig,
    EvaConfig,
    LoraConfig,
    LoraGAConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    initialize_lora_eva_weights,
    preprocess_loraga,
)
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paring.attach.config import ParingConfig
from paring.attach.targets import find_targets
from paring.core.errors import SettingError, near
from paring.methods.lora import LoRA

BEGIN, END, EVERY = 0.1, 0.4, 10
"""AdaLoRA's schedule where the file leaves it open: shares of all steps before it prunes and after it has, and steps between."""


INSIDE = "base_model.model."
"""What the names of a model's modules begin with in a PeftModel."""

GRADIENT, INPUTS = "lora_ga", "eva"
"""Starts of PEFT's that are read off batches: LoRA-GA off the gradient, EVA off the modules' inputs."""


def check_peft(given: Mapping[str, Any]) -> None:
    """Refuse a configuration that PEFT does not know.

    Raises:
        SettingError: in a sentence.
    """
    config(given, steps=1000)


def config(given: Mapping[str, Any], steps: int) -> PeftConfig:
    """PEFT's configuration; AdaLoRA's schedule is that of a training of so many steps.

    Raises:
        SettingError: no such type, or settings that it refuses.
    """
    known = {kind.value: cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = str(given.get("peft_type"))
    if kind not in known:
        raise SettingError(f"peft_type={kind!r}: PEFT has no such type.{near(kind, known)}")
    values = {name: value for name, value in given.items() if name != "peft_type"}
    if values.get("init_lora_weights") == "corda":
        raise SettingError("peft: a study does not make the covariances that CorDA starts from; leave it out.")
    if values.get("init_lora_weights") == GRADIENT:
        values.setdefault("lora_ga_config", LoraGAConfig())
    if values.get("init_lora_weights") == INPUTS:
        values.setdefault("eva_config", EvaConfig())
    made = known[kind]
    if issubclass(made, AdaLoraConfig):
        shape = {"total_step": steps, "tinit": int(BEGIN * steps), "tfinal": int(END * steps), "deltaT": EVERY}
        values = {**shape, **values}
    try:
        return made(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise SettingError(f"peft: {kind} refuses these settings: {error}.") from error


def adapt(
    model: PreTrainedModel,
    given: Mapping[str, Any],
    *,
    steps: int,
    targets: str | list[str],
    task_type: str | None,
    saved: list[str] | None,
    seed: int,
    batches: Sequence[Mapping[str, Any]] = (),
) -> PeftModel:
    """The model with PEFT's adapter on it.

    Args:
        model: the model.
        given: PEFT's configuration, with its ``peft_type``.
        steps: of the training.
        targets: modules to adapt, where the configuration names none.
        task_type: PEFT's name of the task.
        saved: modules to train in full beside it, where the configuration names none.
        seed: of its start.
        batches: of the training data, for starts that are read off them (:func:`needs_batches`).

    Raises:
        SettingError: PEFT refuses the settings or the modules.
    """
    made = config(given, steps)
    if not made.is_prompt_learning:
        vars(made)["target_modules"] = vars(made).get("target_modules") or targets
        vars(made)["modules_to_save"] = vars(made).get("modules_to_save") or saved
    vars(made)["task_type"] = task_type
    torch.manual_seed(seed)  # PEFT draws from the default generator
    try:
        if isinstance(made, LoraConfig) and made.init_lora_weights == GRADIENT:
            made.target_modules = _named(model, targets, task_type)
            preprocess_loraga(model, made, lambda: _backward(model, batches))
        found = get_peft_model(model, made)
        if isinstance(made, LoraConfig) and made.init_lora_weights == INPUTS:
            masked = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
            _eva(found, masked)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise SettingError(f"peft: {error}") from error
    assert isinstance(found, PeftModel)
    if isinstance(made, AdaLoraConfig):
        _penalise_training_alone(found)
    return found


def _penalise_training_alone(model: PeftModel) -> None:
    """Leave AdaLoRA's orthogonality term out of the loss on held-out rows, to which PEFT adds it as well: no other contestant has one."""
    tuner: Any = model.base_model
    penalised = tuner.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return penalised(*args, **kwargs) if tuner.training else tuner.model(*args, **kwargs)

    tuner.forward = forward


def _named(model: PreTrainedModel, targets: str | list[str], task_type: str | None) -> list[str]:
    wanted = ParingConfig(method=LoRA(), target_modules=targets, task_type=task_type)
    return list(find_targets(wanted, model))


def _backward(model: PreTrainedModel, batches: Sequence[Mapping[str, Any]]) -> None:
    call: Any = model
    for batch in batches:
        call(**batch).loss.backward()


def _eva(model: PeftModel, batches: Sequence[Mapping[str, Any]]) -> None:
    try:
        initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    except (RuntimeError, ValueError, IndexError) as error:
        raise SettingError(
            f"peft: EVA could not be started ({error}). It wants modules that see a vector for each token: name such ones by "
            "target_modules, poolers left out."
        ) from error


def needs_batches(given: Mapping[str, Any]) -> bool:
    """Whether the adapter's start is read off a few batches, which PEFT leaves to its caller; without them it would be another start."""
    return given.get("init_lora_weights") in (GRADIENT, INPUTS)


def parameters(model: PeftModel, *, start: bool = False) -> int:
    """Adapter parameters: those that are trained but for heads; of AdaLoRA two vectors for each triplet, after the start the live ones'.

    Args:
        model: with PEFT's adapter on it.
        start: before the first step, at which all of AdaLoRA's singular values are still zero.
    """
    if isinstance(model.peft_config["default"], AdaLoraConfig):
        return sum((one.all if start else one.live) * one.widths for one in triplets(model).values())
    return sum(
        parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad and "modules_to_save" not in name
    )


@dataclass(frozen=True, kw_only=True)
class Triplets:
    """AdaLoRA's at one module: how many there are, how many of them live, and the parameters of one, singular value left out."""

    all: int
    live: int
    widths: int


def triplets(model: PeftModel) -> dict[str, Triplets]:
    """AdaLoRA's triplets by module path."""
    found = {}
    for name, module in model.named_modules():
        if name.endswith(".lora_E") and isinstance(module, torch.nn.ParameterDict):
            path = name.removesuffix(".lora_E")
            values = module["default"]
            live = int((values != 0).sum())
            found[path.removeprefix(INSIDE)] = Triplets(all=values.numel(), live=live, widths=_widths(model, path))
    return found


def extra_loss(model: torch.nn.Module) -> Tensor | float:
    """What PEFT adds to the loss of a model that has one: AdaLoRA's orthogonality term."""
    if not isinstance(model, PeftModel):
        return 0.0
    made = model.peft_config["default"]
    if not isinstance(made, AdaLoraConfig):
        return 0.0
    terms = []
    for name, factor in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            square = factor @ factor.T if ".lora_A." in name else factor.T @ factor
            terms.append(torch.linalg.norm(square - torch.eye(square.shape[0], device=square.device)))
    return made.orth_reg_weight * torch.stack(terms).mean()


def _widths(model: PeftModel, path: str) -> int:
    layer = model.get_submodule(path)
    a, b = (layer.get_submodule(name) for name in ("lora_A", "lora_B"))
    assert isinstance(a, torch.nn.ParameterDict)
    assert isinstance(b, torch.nn.ParameterDict)
    return int(a["default"].shape[1] + b["default"].shape[0])


def callbacks(model: PeftModel) -> list[TrainerCallback]:
    """What has to follow the training of such an adapter."""
    return [Allocate(model)] if isinstance(model.peft_config["default"], AdaLoraConfig) else []


class Allocate(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """The call that AdaLoRA needs after each optimizer step, without which it never prunes."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The gradients are still there."""
        tuner: Any = self.model.base_model
        tuner.update_and_allocate(state.global_step)
