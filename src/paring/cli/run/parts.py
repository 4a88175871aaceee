"""A method's parts as they are written on the command line: by name, in Python's spelling, or as a mapping."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paring.cli.flags import default_of
from paring.core.errors import SettingError, near

if TYPE_CHECKING:
    from paring.core.coding import Coded


def find_part(value: str | Mapping[str, Any], family: type[Coded]) -> dict[str, Any] | None:
    """A part as plain data, out of its name (``every``), its spelling in Python (``Every(period=4)``) or a mapping with its name.

    ``None`` where the family has no such part.
    """
    data = _called(value) if isinstance(value, str) else dict(value)
    known = {_squashed(word): name for name, member in family.all_members().items() for word in (member.__name__, name)}
    name = known.get(_squashed(str(data.get("name"))))
    return None if name is None else {**data, "name": name}


def part_of(flag: str, value: str | Mapping[str, Any], family: type[Coded]) -> dict[str, Any]:
    """The same, and an error where the family has no such part.

    Raises:
        SettingError: says which parts the family has.
    """
    found = find_part(value, family)
    if found is None:
        members = family.all_members()
        name = _called(value)["name"] if isinstance(value, str) else value.get("name")
        given = [_spelled(member) for member in members.values() if not transient(member)]
        raise SettingError(
            f"--{flag} {value!r}: there is no such {family.__name__.lower()}.{near(str(name), members)} "
            f"Give one of {', '.join(sorted(given))}."
        )
    return found


def transient(member: type[Coded]) -> bool:
    """Whether a part holds what no plain data can say."""
    return any(item.metadata.get("transient") for item in dataclasses.fields(member))  # type: ignore[arg-type]


def as_flag(value: Any) -> Any:
    """A setting's value as it is written on the command line: a part without settings of its own by its name."""
    from paring.core.coding import Coded

    if not isinstance(value, Coded):
        return value
    data = value.encode()
    return {"name": data["name"]} if set(data) == {"name", "version"} else data


def _called(text: str) -> dict[str, Any]:
    try:
        found = ast.parse(text.strip(), mode="eval").body
        if isinstance(found, ast.Call) and isinstance(found.func, ast.Name) and not found.args:
            return {"name": found.func.id, **{str(word.arg): ast.literal_eval(word.value) for word in found.keywords}}
    except (SyntaxError, ValueError):  # no call in Python, so at best a name
        pass
    return {"name": text}


def _spelled(member: type[Coded]) -> str:
    fields = [item for item in dataclasses.fields(member) if item.init]  # type: ignore[arg-type]
    values = {item.name: default_of(item) for item in fields}
    words = [f"{name}={'...' if value is dataclasses.MISSING else repr(value)}" for name, value in values.items()]
    return f"{member.__name__}({', '.join(words)})"


def _squashed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
