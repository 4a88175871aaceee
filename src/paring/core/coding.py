"""Parts and methods as plain data: ``{"name", "version", fields...}``, written into configurations and read back.

Only registered names are decoded, never a dotted path out of a file, and every error is a ``ValueError``: PEFT's loader
answers a ``TypeError`` by trying again without the key.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, TypeGuard, TypeVar

from paring.core.errors import SettingError, near

T = TypeVar("T", bound="Coded")


class Coded:
    """Base of all frozen keyword-only dataclasses that appear in a configuration.

    A subclass sets ``name`` (unique within its family) and ``version`` (raised when a stored value changes its meaning).
    A family is a direct subclass of ``Coded``; its members are registered when their class is made.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    members: ClassVar[dict[str, type[Coded]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Coded in cls.__bases__:
            cls.members = {}
        elif "name" in cls.__dict__:
            cls.members[cls.name] = cls

    @classmethod
    def all_members(cls) -> Mapping[str, type[Coded]]:
        """All members of the family by name; some families have to look for theirs."""
        return cls.members

    @classmethod
    def find(cls, name: str) -> type[Coded] | None:
        """The member of a name, if there is one."""
        return cls.members.get(name)

    def encode(self) -> dict[str, Any]:
        """Write this value, and the values inside it, as plain data."""
        return {"name": self.name, "version": self.version, **{key: _plain(value) for key, value in self._fields().items()}}

    def _fields(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {item.name: vars(self)[item.name] for item in fields if not item.metadata.get("transient")}

    @classmethod
    def decode(cls: type[T], data: Mapping[str, Any]) -> T:
        """Build the value that ``data`` describes.

        Raises:
            SettingError: the name is unknown, the version is newer than this release, or a key is unknown.
        """
        if not isinstance(data, Mapping):
            raise SettingError(f"Expected the settings of a {cls.__name__.lower()} as a mapping with a 'name', got {data!r}.")
        rest = dict(data)
        name = rest.pop("name", None)
        member = cls.find(name) if isinstance(name, str) else None
        if member is None:
            raise SettingError(f"Unknown {cls.__name__.lower()} name {name!r}.{near(str(name), cls.members)}")
        version = rest.pop("version", 1)
        if not is_whole(version, 0, member.version):
            raise SettingError(
                f"{name!r} was written as version {version!r}, but this release of paring reads up to version "
                f"{member.version}. Upgrade paring to load it."
            )
        known = {item.name: item for item in dataclasses.fields(member) if not item.metadata.get("transient")}  # type: ignore[arg-type]
        for key in rest:
            if key not in known:
                raise SettingError(f"Unknown key {key!r} in the settings of {name!r}.{near(str(key), known)}")
        families = {family.__name__: family for family in Coded.__subclasses__()}
        values: dict[str, Any] = {}
        for key, value in rest.items():
            family = families.get(str(known[key].metadata.get("family", "")))
            values[key] = family.decode(value) if family is not None and isinstance(value, Mapping) else value
        try:
            result = member(**values)
        except TypeError as error:
            raise SettingError(f"The settings of {name!r} do not fit: {error}.") from error
        assert isinstance(result, cls)
        return result


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        # As a file gives it back.
        return [_plain(item) for item in value]
    return value.encode() if isinstance(value, Coded) else value


def choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value outside a closed set of names.

    Raises:
        SettingError: with the names that are allowed.
    """
    if value not in allowed:
        raise SettingError(f"{name}={value!r}: choose one of {', '.join(map(repr, allowed))}.{near(str(value), allowed)}")


def member(name: str, value: object, family: type[Coded]) -> None:
    """Refuse a value that is not a part of ``family``.

    Raises:
        SettingError: with what was given.
    """
    if not isinstance(value, family):
        raise SettingError(f"{name}={value!r}: give an instance of {family.__name__}, one of {', '.join(sorted(family.members))}.")


def is_whole(value: object, low: int, high: float = float("inf")) -> TypeGuard[int]:
    """Whether a value is a whole number from ``low`` to ``high``; true and false, which Python counts among them, are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def positive_int(name: str, value: object) -> None:
    """Refuse anything but a whole number >= 1.

    Raises:
        SettingError: with what was given.
    """
    if not is_whole(value, 1):
        raise SettingError(f"{name}={value!r}: give a whole number of at least 1.")


def natural(name: str, value: object) -> None:
    """Refuse anything but a whole number >= 0.

    Raises:
        SettingError: with what was given.
    """
    if not is_whole(value, 0):
        raise SettingError(f"{name}={value!r}: give a whole number of at least 0.")


def number(name: str, value: object, *, low: float, high: float = float("inf"), open_low: bool = False, open_high: bool = False) -> None:
    """Refuse anything but a finite number inside an interval.

    Raises:
        SettingError: with the interval.
    """
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if fits:
        assert isinstance(value, int | float)
        # A whole number may be larger than any that is computed with.
        fits = abs(value) <= sys.float_info.max
    if fits:
        assert isinstance(value, int | float)
        above = value > low if open_low else value >= low
        below = value < high if open_high or high == float("inf") else value <= high
        fits = above and below
    if not fits:
        left, right = ("(" if open_low else "["), (")" if open_high or high == float("inf") else "]")
        raise SettingError(f"{name}={value!r}: give a number in {left}{low:g}, {high:g}{right}.")
