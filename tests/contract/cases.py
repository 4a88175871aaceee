"""Every method on every kind of model: the one place that the contract tests are parametrised from.

A test asks for one of the names in :data:`GROUPS` and is run for every case of that group.
"""

from __future__ import annotations

import copy
import functools
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import paring
from paring import method as methods
from paring.attach.find import layers, slots
from paring.method import Method
from paring.parts.parameterise.base import Role, Slot
from paring.parts.parameterise.gated import Gated
from paring.parts.parameterise.waiting import Waiting
from paring.parts.shape import Shape
from tests.contract.models import KINDS, Kind, save
from tests.releases import HEADS, older

SEED = 7
PLAIN = "twin"
EVERYWHERE = ("lora", "sora", "spectral")


@dataclass(frozen=True, kw_only=True, repr=False)
class Case:
    """One method on one kind of model."""

    method_name: str
    kind: Kind

    def __repr__(self) -> str:
        return f"{self.method_name}-{self.kind.name}"

    def quick(self, group: str) -> bool:
        """Whether the case is among those that every change must pass; the others take their turn in ``make test-slow``.

        The methods that others are built of run on every kind of model. Each of the rest runs on the plain module, and where a test is of
        transformers on one kind of them, so that every kind has its share.
        """
        if self.method_name in EVERYWHERE or self.kind.name == PLAIN:
            return True
        if group == "case":
            return False
        kinds = [name for name in KINDS if name != PLAIN]
        return self.kind.name == kinds[zlib.crc32(self.method_name.encode()) % len(kinds)]

    @property
    def method(self) -> Method:
        """A small instance of the method."""
        return example(self.method_name)

    def base(self) -> nn.Module:
        """A fresh copy of the base model, in evaluation mode."""
        return copy.deepcopy(cached_base(self.kind.name)[0])

    @property
    def folder(self) -> str:
        """Where the base model lies on disk."""
        return cached_base(self.kind.name)[1]

    @property
    def settings(self) -> dict[str, Any]:
        """What an adapter on this model is attached with, beside its method."""
        return {"target_modules": self.kind.targets, "task_type": self.kind.task, "modules_to_save": list(self.kind.heads) or None}

    def config(self, seed: int = SEED) -> paring.ParingConfig:
        """The same as a configuration."""
        return paring.ParingConfig(method=self.method, seed=seed, **self.settings)

    def adapted(self, *, method: Method | None = None, base: nn.Module | None = None, **changed: Any) -> PeftModel:
        """A fresh base with one adapter, as attached, in evaluation mode."""
        given = {"seed": SEED, **self.settings, **changed}
        model = paring.adapt(self.base() if base is None else base, method or self.method, **given)
        model.eval()
        begin(model, given.get("adapter", "default"))
        return model

    def roughened(self) -> PeftModel:
        """A fresh base with an adapter that has an effect: see :func:`roughen`."""
        return copy.deepcopy(_roughened(self))


def begin(model: nn.Module, adapter: str = "default") -> None:
    """Give the slots whose start needs a gradient one that follows from the module's name; paring.calibrate has tests of its own."""
    for path, slot in slots(model, adapter).items():
        if slot.wants_calibration:
            shape = slot.delta().out_features, slot.delta().in_features
            generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))
            slot.begin(torch.randn(shape, generator=generator), generator)


def trained_names(model: nn.Module) -> set[str]:
    """The names, without their path, of all that is trained: those of heads too."""
    return {name.rsplit(".", 1)[-1] for name, parameter in model.named_parameters() if parameter.requires_grad}


def example(name: str) -> Method:
    """A small instance of a method."""
    return methods.load(name)().example()


@functools.cache
def _roughened(case: Case) -> PeftModel:
    model = case.adapted()
    roughen(model, torch.Generator().manual_seed(1))
    return model


@functools.cache
def cached_base(kind_name: str) -> tuple[nn.Module, str]:
    """A base model, made once in a process, with the folder it was saved to. Never handed out itself."""
    kind = KINDS[kind_name]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = kind.build()
    torch.set_rng_state(state)
    folder = Path(scratch()) / "base" / kind_name
    save(model, folder)
    return kind.read(str(folder)).eval(), str(folder)


_place: list[tempfile.TemporaryDirectory[str]] = []


def scratch() -> str:
    """A folder that lives as long as this process."""
    if not _place:
        _place.append(tempfile.TemporaryDirectory(prefix="contract-"))
    return _place[0].name


CASES = tuple(Case(method_name=name, kind=kind) for name in methods.names() for kind in KINDS.values())


def _those(fits: Callable[[Kind], bool]) -> tuple[Case, ...]:
    return tuple(case for case in CASES if fits(case.kind))


GROUPS: Mapping[str, tuple[Case, ...]] = MappingProxyType(
    {
        "case": CASES,
        # What transformers itself hosts.
        "transformer": _those(lambda kind: kind.vocabulary > 0),
        # What generates text; both share the output layer's weight with the embedding.
        "decoder": _those(lambda kind: kind.task == "CAUSAL_LM"),
        # What calls one module several times in a forward.
        "shared": _those(lambda kind: kind.name == "albert"),
        # What belongs to a method alone is shown on the smallest model.
        "plain": _those(lambda kind: kind.name == PLAIN),
    }
)
"""The names that a test may ask for, each with the cases that it is then run for."""


# -- looking at models -----------------------------------------------------------------------------------------------------


@functools.cache
def has_gates(name: str) -> bool:
    """Whether a method's slots have gates."""
    slot = example(name).slot(Shape(path="fc", in_features=12, out_features=12), torch.Generator().manual_seed(0))
    return any(role is Role.GATE for _, _, role in slot.roles())


def gated_slots(model: nn.Module, adapter: str = "default") -> dict[str, Gated]:
    """The slots with gates; there must be some."""
    found = {path: slot for path, slot in slots(model, adapter).items() if isinstance(slot, Gated)}
    assert found, "this method has no gates"
    return found


@torch.no_grad()
def logits(model: nn.Module, inputs: Mapping[str, Tensor], **kwargs: Any) -> Tensor:
    """What the model says to a batch without labels."""
    result = model(**inputs, **kwargs).logits
    assert isinstance(result, Tensor)
    return result


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all that the adapters of a model hold: slots and heads."""
    return {name: value.clone() for name, value in model.state_dict().items() if "paring_slot." in name or ".modules_to_save." in name}


def same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def names_that_differ(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """For messages, and to assert on: the tensors that two states do not share to the bit."""
    return sorted(
        name for name in left.keys() | right.keys() if name not in left or name not in right or not torch.equal(left[name], right[name])
    )


def needs_heads(case: Case) -> None:
    """Skip where this transformers does not load the trained head of such a model."""
    if case.kind.task == "SEQ_CLS" and older("transformers", "5.18"):
        pytest.skip(HEADS)  # not with the pinned release, which loads them


def assert_close(got: Tensor, wanted: Tensor, share: float = 1e-5) -> None:
    """Equal but for rounding: no entry differs by more than a share of the largest one."""
    assert got.shape == wanted.shape
    distance, size = float((got - wanted).abs().max()), float(wanted.abs().max())
    assert distance <= share * size, f"differ by {distance:.2e}, where the largest entry is {size:.2e}"


# -- giving an adapter an effect -----------------------------------------------------------------------------------------------


@torch.no_grad()
def roughen(model: nn.Module, generator: torch.Generator, adapter: str = "default", heads: bool = True) -> None:
    """Put an adapter where training might have led it.

    Factors get noise by their role; gates are drawn anew, one rank more exactly zero in each module than in the one before, and all of
    them in the third module. Fully trained heads get noise too.
    """
    begin(model, adapter)
    for index, slot in enumerate(slots(model, adapter).values()):
        _roughen_slot(slot, index, generator)
    if heads:
        for name, parameter in model.named_parameters():
            if f".modules_to_save.{adapter}." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def _roughen_slot(slot: Slot, index: int, generator: torch.Generator) -> None:
    # Where the other factor is as large as the weight, little is much: several calls in a row would amplify rounding itself.
    noise = 0.03 if isinstance(slot, Waiting) else 0.3
    for _, parameter, role in slot.roles():
        if role.factor:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise / parameter.shape[-1] ** 0.5)
        elif role is Role.GATE:
            gate = torch.randn(parameter.shape, generator=generator)
            # Away from zero, so that a rank that lives has an effect.
            gate += 0.2 * torch.sign(gate)
            dead = len(gate) if index == 2 else index % len(gate)
            gate[torch.randperm(len(gate), generator=generator)[:dead]] = 0.0
            parameter.copy_(gate)


def adapted_paths(model: nn.Module) -> list[str]:
    """The paths of the adapted modules."""
    return list(layers(model))
