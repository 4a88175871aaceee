"""A method's settings as flags, out of its dataclass: a new method file brings its own flags."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, Namespace

from paring.cli.flags import default_of, yes_or_no
from paring.cli.plain import PlainLoader
from paring.cli.run.budgets import entry_bytes, written
from paring.cli.words import plain
from paring.core.errors import SettingError, near

if TYPE_CHECKING:
    from paring.core.adapter import Adapter
    from paring.core.coding import Coded
    from paring.method import Method
    from paring.train.whole import Whole


def peek(argv: Sequence[str], flag: str) -> str | None:
    """What a command line, or the file given by its ``--config``, says for ``flag``: which other flags exist depends on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{flag}", nargs="?", dest="value")
    parser.add_argument("--config", nargs="?", action="append")
    known, _ = parser.parse_known_args(list(argv))
    if known.value:
        return str(known.value)
    for path in reversed(known.config or []):
        if path and Path(path).is_file():
            content = PlainLoader(Path(path).read_text(encoding="utf-8")).get_single_data()
            if isinstance(content, dict) and isinstance(content.get(flag), str | int | float):
                return str(content[flag])
    return None


def kind_of(name: str) -> type[Method] | type[Whole]:
    """What ``--method`` means: a method to adapt modules, or a way to train the model's own weights.

    Raises:
        SettingError: there is neither of this name.
    """
    from paring.method import load, names

    if name in names():
        return load(name)
    # Only for what is no method: this import takes seconds.
    from paring.train.whole import Whole

    found = Whole.members.get(name)
    if found is None:
        known = (*names(), *Whole.members)
        raise SettingError(f"Unknown method {name!r}.{near(name, known)} Known: {', '.join(known)}.")
    assert issubclass(found, Whole)
    return found


def is_whole(name: str) -> bool:
    """Whether the model's own weights are trained, and no adapter.

    Raises:
        SettingError: there is nothing of this name.
    """
    from paring.method import Method

    return not issubclass(kind_of(name), Method)


def flag_name(method: str, field: str, taken: frozenset[str]) -> str:
    """A setting's flag: its own name, or ``METHOD_NAME`` where the run has a flag of that name already."""
    return f"{method}_{field}" if field in taken else field


def add_settings(parser: ArgumentParser, method: str, taken: frozenset[str], start: Method | Whole | None = None) -> None:
    """Give ``parser`` a flag for every setting of ``method``.

    Args:
        parser: gets the flags.
        method: its name.
        taken: the flags that ``parser`` has already.
        start: where given, its values are the defaults.

    Raises:
        SettingError: there is no such method.
    """
    kind = kind_of(method)
    described = {item.arg_name: plain(item.description or "") for item in parse_docstring(kind.__doc__ or "").params}
    hints = typing.get_type_hints(kind)
    group = parser.add_argument_group(f"Settings of {method} ({kind.about.title})")
    for item in dataclasses.fields(kind):
        if item.metadata.get("transient"):
            continue
        hint, default = hints[item.name], default_of(item) if start is None else vars(start)[item.name]
        if "family" in item.metadata:
            # A part: its name, its spelling in Python, or a mapping with its name and its own settings.
            hint, default = (str | dict[str, Any] if default is not None else str | dict[str, Any] | None), as_flag(default)
            default = default["name"] if isinstance(default, dict) and set(default) == {"name"} else default
        keywords = {"required": True} if default is dataclasses.MISSING else {"default": default}
        spelling = yes_or_no(worded=True) if hint is bool else {"type": hint}
        group.add_argument(f"--{flag_name(method, item.name, taken)}", help=described.get(item.name, ""), **spelling, **keywords)


def take_settings(values: Namespace, method: str, taken: frozenset[str], start: Method | None = None) -> Method | Whole:
    """The method, or the way to train the model's own weights, with the parsed settings.

    Raises:
        SettingError: a setting is out of range, a part has an unknown name, or it would replace the adapter of ``start``.
    """
    from paring.core.coding import Coded

    kind = kind_of(method)
    families = {family.__name__: family for family in Coded.__subclasses__()}
    data: dict[str, Any] = {"name": method}
    for item in dataclasses.fields(kind):
        if item.metadata.get("transient"):
            continue
        flag = flag_name(method, item.name, taken)
        family = families.get(str(item.metadata.get("family", "")))
        short = _short(family, values[flag], values)
        data[item.name] = short or (values[flag] if family is None or values[flag] is None else part_of(flag, values[flag], family))
        started = None if start is None else vars(start)[item.name]
        if isinstance(started, Coded) and _transient(type(started)) and data[item.name] != as_flag(started):
            raise SettingError(f"--{flag} {values[flag]!r} and --init_adapter both say where the adapter starts; leave one of them out.")
    decoded = kind.decode(data)
    if start is None:
        return decoded
    # A part that holds a trained adapter is no plain data: what was not said otherwise stays the object that it is.
    kept = {key: value for key, value in vars(start).items() if data.get(key) == as_flag(value)}
    return dataclasses.replace(decoded, **kept)


def _short(family: type[Coded] | None, value: Any, values: Namespace) -> dict[str, Any] | None:
    """A part out of a notation of its own, where its family has one and this is it."""
    from paring.parts.allocate.budget import Budget

    if family is not Budget or not isinstance(value, str):
        return None
    return written(value, each=entry_bytes(values["export_dtype"]))


def part_of(flag: str, value: str | Mapping[str, Any], family: type[Coded]) -> dict[str, Any]:
    """A part as plain data, out of its name (``every``), its spelling in Python (``Every(period=4)``) or a mapping with its name.

    Raises:
        SettingError: the family has no such part; says which ones it has.
    """
    data = _called(value) if isinstance(value, str) else dict(value)
    members = family.all_members()
    known = {_squashed(word): name for name, member in members.items() for word in (member.__name__, name)}
    name = known.get(_squashed(str(data.get("name"))))
    if name is None:
        given = [_spelled(member) for member in members.values() if not _transient(member)]
        raise SettingError(
            f"--{flag} {value!r}: there is no such {family.__name__.lower()}.{near(str(data.get('name')), members)} "
            f"Give one of {', '.join(sorted(given))}."
        )
    return {**data, "name": name}


def _called(text: str) -> dict[str, Any]:
    try:
        found = ast.parse(text.strip(), mode="eval").body
        if isinstance(found, ast.Call) and isinstance(found.func, ast.Name) and not found.args:
            return {"name": found.func.id, **{str(word.arg): ast.literal_eval(word.value) for word in found.keywords}}
    except (SyntaxError, ValueError):  # no call in Python, so at best a name
        pass
    return {"name": text}


def _spelled(member: type[Coded]) -> str:
    fields = dataclasses.fields(member)  # type: ignore[arg-type]
    return f"{member.__name__}({', '.join(f'{item.name}={default_of(item)!r}' for item in fields if item.init)})"


def _squashed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _transient(member: type[Coded]) -> bool:
    """Whether a part holds what no plain data can say."""
    return any(item.metadata.get("transient") for item in dataclasses.fields(member))  # type: ignore[arg-type]


def as_flag(value: Any) -> Any:
    """A setting's value as it is written on the command line: a part without settings of its own by its name."""
    from paring.core.coding import Coded

    if not isinstance(value, Coded):
        return value
    data = value.encode()
    return {"name": data["name"]} if set(data) == {"name", "version"} else data


def taken_names(options: type[Any]) -> frozenset[str]:
    """The flags of a dataclass and its groups."""
    hints = typing.get_type_hints(options)
    names: set[str] = {"config", "help"}
    for item in dataclasses.fields(options):
        hint = hints[item.name]
        names |= taken_names(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else {item.name}
    return frozenset(names)


@runtime_checkable
class StartsFromAdapter(Protocol):
    """A method's class that can start from a trained adapter."""

    def from_adapter(self, adapter: Adapter, source: str | None = None, **settings: Any) -> Method:
        """The method, with the settings that such a start asks for."""


def starting_method(method: str, source: str) -> Method:
    """``method`` set up to start from the adapter at ``source``.

    Raises:
        SettingError: the method cannot.
        AdapterError: the adapter cannot be read.
    """
    import paring
    from paring.cli.run.output import check_exported
    from paring.method import load, names

    kind: object = kind_of(method)
    if not isinstance(kind, StartsFromAdapter):
        able = [name for name in names() if isinstance(load(name), StartsFromAdapter)]
        raise SettingError(f"Method {method!r} cannot start from a trained adapter (--init_adapter); these can: {', '.join(able)}.")
    check_exported(source)
    return kind.from_adapter(paring.read(source), source=source)
