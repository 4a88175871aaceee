"""What a method is, and the table of methods by name.

A method is a frozen keyword-only dataclass that assembles parts. One published method is one file under
``paring/methods``; its class sets ``name`` to the file's stem. Another installed package adds one by an entry point in the
group ``paring.methods`` whose name is the method's name and whose value is its class.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch

from paring.core.coding import Coded, choice, number, positive_int
from paring.core.errors import SettingError, near
from paring.parts.parameterise.base import Role, Slot
from paring.parts.parameterise.followed import Leader
from paring.parts.shape import Shape
from paring.parts.update.proximal import Proximal

GROUP = "paring.methods"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How the parameters of one role are stepped.

    Attributes:
        fixed: their learning rate itself, whatever the main one is; ``None`` takes the main one, times ``multiple``.
        multiple: their learning rate as a multiple of the main rate, where it is not fixed.
        decay: their weight decay; ``None`` takes the main one.
        memory: both of Adam's betas for them; ``None`` takes the main ones. Optimizers without betas have no use for it.
    """

    fixed: float | None = None
    multiple: float = 1.0
    decay: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        if self.fixed is not None:
            number("fixed", self.fixed, low=0.0, open_low=True)
        number("multiple", self.multiple, low=0.0, open_low=True)
        if self.memory is not None:
            number("memory", self.memory, low=0.0, high=1.0, open_high=True)
        if self.decay is not None:
            number("decay", self.decay, low=0.0)


@dataclass(frozen=True, kw_only=True)
class About:
    """What the documentation, the README table and ``paring methods`` say of a method.

    Attributes:
        title: the method's full name.
        paper: its source, "arXiv 2311.11696", with the venue.
        kind: one of the families, "adaptive rank", "baseline", ...
        parameters: formula of the trainable parameters of one module.
        export: what the export is to those who load it; its update is the live model's.
        deviations: where the released code differs from the paper, and what paring does.
        verified: properties that tests prove beyond the contract tests.
        recipe: a few lines of Python that show it.
    """

    title: str
    paper: str
    kind: str
    parameters: str
    export: str = "plain LoRA"
    deviations: tuple[str, ...] = ()
    verified: tuple[str, ...] = ()
    recipe: str = ""


@dataclass(frozen=True, kw_only=True)
class Method(Coded, ABC):
    """A way to adapt linear modules: it builds a slot for each, and says how the slot's parameters are stepped.

    Subclasses are frozen keyword-only dataclasses that validate themselves in ``__post_init__``.
    """

    about: ClassVar[About]

    @abstractmethod
    def slot(self, shape: Shape, generator: torch.Generator) -> Slot:
        """The trainable module for one base layer, on the CPU in float32, all randomness from ``generator``.

        Raises:
            SettingError: the method cannot adapt a module of this shape; the message names the module.
        """

    @classmethod
    def all_members(cls) -> Mapping[str, type[Coded]]:
        """All methods by name."""
        return {name: load(name) for name in names()}

    @classmethod
    def find(cls, name: str) -> type[Coded] | None:
        """The method of a name; its file is looked for.

        Raises:
            SettingError: there is none.
        """
        return cls.members.get(name) or load(name)

    def check(self, shape: Shape) -> None:
        """Refuse a module that this method cannot adapt, before any module is touched.

        Raises:
            SettingError: names the module and what does not fit.
        """

    def rates(self) -> Mapping[Role, Rate]:
        """How each role is stepped; roles that are not listed take the main rate and weight decay."""
        return {}

    @property
    def update(self) -> Proximal | None:
        """The proximal step that must follow each optimizer step; ``None`` if there is none."""
        return None

    def join(self, slots: Mapping[str, Slot]) -> None:
        """Tie together the slots of one adapter, by module path, once all are there and before any is loaded or trained."""

    def lead(self, slots: Mapping[str, Slot], steps: int | None) -> Leader | None:
        """What acts on all slots together, around optimizer steps; they are told.

        Args:
            slots: of one adapter, by module path.
            steps: optimizer steps of the whole training; ``None`` where nobody has said yet, or the method's settings do.

        Returns:
            ``None`` if there is nothing of that kind, or it has to be said first how long the training will be.
        """
        return None

    @property
    def asks_for_steps(self) -> bool:
        """Whether it has to be said how long the training will be, since the settings don't."""
        return False

    def unfinished(self, slots: Mapping[str, Slot]) -> str | None:
        """Why slots as they are now are not yet what the method promises, in a sentence; ``None`` if they are."""
        return None

    @property
    def budgeted(self) -> bool:
        """Whether the adapter is cut down to a budget on the way, so that a checkpoint from before the last cut is too big."""
        return False

    def example(self) -> Method:
        """A small instance for tests and documentation: the defaults, but for what has none."""
        return self


def check_common(*, rank: int, alpha: float, dropout: float, scaling: str | None = None) -> None:
    """Refuse what is wrong for every method that has these settings.

    Raises:
        SettingError: names the setting.
    """
    positive_int("rank", rank)
    number("alpha", alpha, low=0.0, open_low=True)
    number("dropout", dropout, low=0.0, high=1.0, open_high=True)
    if scaling is not None:
        choice("scaling", scaling, ("standard", "rs"))


def check_gates(*, penalty: float, fade: float | None, gate_rate: float | None, gate_memory: float | None) -> None:
    """Refuse what is wrong for every method whose gates take a proximal step.

    Raises:
        SettingError: names the setting.
    """
    number("penalty", penalty, low=0.0)
    if fade is not None:
        number("fade", fade, low=0.0, open_low=True)
    if gate_rate is not None:
        number("gate_rate", gate_rate, low=0.0, open_low=True)
    if gate_memory is not None:
        number("gate_memory", gate_memory, low=0.0, high=1.0, open_high=True)


def check_rank(rank: int, shape: Shape) -> None:
    """Refuse a rank above what the module's weight can have.

    Raises:
        SettingError: names the module and its size.
    """
    limit = min(shape.in_features, shape.out_features)
    if rank > limit:
        raise SettingError(
            f"rank={rank} is above what {shape.path!r} can use: its weight is {shape.out_features} x {shape.in_features}, "
            f"so its rank is at most {limit}. Lower the rank, or leave the module out with exclude_modules; if it is the head of a "
            "classifier, task_type='SEQ_CLS' trains it fully in place of adapting it."
        )


def names() -> tuple[str, ...]:
    """The names of all methods, own files first, then those of other installed packages."""
    own = _own()
    return (*own, *sorted({item.name for item in entry_points(group=GROUP)} - set(own)))


def _own() -> list[str]:
    package = importlib.import_module("paring.methods")
    return sorted(item.name for item in pkgutil.iter_modules(package.__path__) if not item.name.startswith("_"))


def find(name: str) -> type[Method] | None:
    """The class of a method, or ``None`` where no method has this name.

    Raises:
        SettingError: the file of the method does not define it.
    """
    # The own folder first: to list what other packages bring is to read the metadata of all that is installed.
    own = name in _own()
    if not own and name not in names():
        return None
    if name not in Method.members:
        if own:
            # The one dynamic import of the package: a file name out of the folder's own listing, never a path out of a file.
            importlib.import_module(f"paring.methods.{name}")
        else:
            next(iter(entry_points(group=GROUP, name=name))).load()
    member = Method.members.get(name)
    if member is None or not issubclass(member, Method):
        raise SettingError(f"The file of method {name!r} defines no Method subclass with name = {name!r}.")
    return member


def load(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        SettingError: no method has this name (near names are shown), or its file does not define it.
    """
    member = find(name)
    if member is None:
        raise SettingError(f"Unknown method {name!r}.{near(name, names())} Known: {', '.join(names())}.")
    return member


def decode(data: Mapping[str, Any]) -> Method:
    """The method that a configuration describes.

    Raises:
        SettingError: an unknown method, a newer version, or an unknown key.
    """
    if not isinstance(data, Mapping):
        raise SettingError(f"Expected the settings of a method as a mapping with a 'name', got {data!r}.")
    name = data.get("name")
    if not isinstance(name, str):
        raise SettingError(f"A method's settings need a 'name', got the keys {sorted(map(str, data))}.")
    return Method.decode(data)


def part(family: type[Coded], **kwargs: Any) -> Any:
    """A dataclass field that holds a part of ``family``, so that a configuration can be read back."""
    return field(metadata={"family": family.__name__}, **kwargs)
