"""A method's settings as flags, out of its dataclass: a new method file brings its own flags."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, Namespace

from paring.cli.flags import default_of, yes_or_no
from paring.cli.plain import PlainLoader
from paring.cli.run.budgets import entry_bytes, plain_data
from paring.cli.run.parts import as_flag, part_of, transient
from paring.cli.words import plain
from paring.core.errors import SettingError, near

if TYPE_CHECKING:
    from paring.core.adapter import Adapter
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
    from paring.method import find, names

    method = find(name)
    if method is not None:
        return method
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
    from paring.parts.allocate.budget import Budget

    kind = kind_of(method)
    families = {family.__name__: family for family in Coded.__subclasses__()}
    data: dict[str, Any] = {"name": method}
    for item in dataclasses.fields(kind):
        if item.metadata.get("transient"):
            continue
        flag = flag_name(method, item.name, taken)
        family = families.get(str(item.metadata.get("family", "")))
        if family is None or values[flag] is None:
            data[item.name] = values[flag]
        elif family is Budget:
            data[item.name] = plain_data(values[flag], entry_bytes(values["export_dtype"]))
        else:
            data[item.name] = part_of(flag, values[flag], family)
        started = None if start is None else vars(start)[item.name]
        if isinstance(started, Coded) and transient(type(started)) and data[item.name] != as_flag(started):
            raise SettingError(f"--{flag} {values[flag]!r} and --init_adapter both say where the adapter starts; leave one of them out.")
    decoded = kind.decode(data)
    if start is None:
        return decoded
    # A part that holds a trained adapter is no plain data: what was not said otherwise stays the object that it is.
    kept = {key: value for key, value in vars(start).items() if data.get(key) == as_flag(value)}
    return dataclasses.replace(decoded, **kept)


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
