"""Flags out of dataclasses: a command's options are a frozen dataclass, and so are a method's settings.

jsonargparse parses, types and checks them, from the command line and from a YAML file; this module only walks the fields.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import yaml
from jsonargparse import ActionYesNo, ArgumentParser, Namespace, get_loader, set_loader

T = TypeVar("T")

MODE = "paring"
"""How parsers of the command line read values: as YAML, with Python's ``None`` beside YAML's ``null``."""

_FLAG = re.compile(r"--?[A-Za-z][\w.+-]*(=.*)?", re.DOTALL)


def _load(text: str) -> Any:
    # Where only text is expected, the parser keeps the words as they are: `--report_to none` stays none.
    return None if text.strip() in ("None", "none") else get_loader("yaml")(text)


set_loader(MODE, _load, exceptions=(yaml.YAMLError,))


@dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand.

    Attributes:
        name: what is typed after ``paring``.
        summary: one line, shown by ``paring --help``.
        fill: adds the flags to a parser; it also gets the command line, for flags that depend on others.
        run: does the work and returns the exit status. Heavy packages are imported here, not with the module.
    """

    name: str
    summary: str
    fill: Callable[[ArgumentParser, Sequence[str]], None]
    run: Callable[[Namespace], int]


def option(help: str, *, default: Any = dataclasses.MISSING, positional: bool = False, many: bool = False) -> Any:
    """A dataclass field that becomes a flag.

    Args:
        help: shown by ``--help``.
        default: without one the flag is required.
        positional: given by place, not by name.
        many: a positional that takes any number of values.
    """
    metadata = {"help": help, "positional": positional, "many": many}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def add(parser: ArgumentParser, options: type[Any]) -> None:
    """Give ``parser`` a flag for every field of the dataclass; a field that is a dataclass itself becomes a titled group."""
    hints = typing.get_type_hints(options)
    # Where words stand by place, `--json FOLDER` must not take the folder for its value.
    worded = not any(item.metadata.get("positional") for item in dataclasses.fields(options))
    for item in dataclasses.fields(options):
        hint = hints[item.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            _add_group(parser, hint)
        else:
            _add_flag(parser, item.name, hint, default_of(item), item.metadata, worded)


def _add_group(parser: ArgumentParser, options: type[Any]) -> None:
    title = (options.__doc__ or options.__name__).splitlines()[0].rstrip(".")
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(options)
    for item in dataclasses.fields(options):
        _add_flag(group, item.name, hints[item.name], default_of(item), item.metadata, worded=True)


def _add_flag(parser: Any, name: str, hint: Any, default: Any, metadata: Mapping[str, Any], worded: bool) -> None:
    help = str(metadata.get("help", ""))
    if metadata.get("positional"):
        if metadata.get("many"):
            parser.add_argument(name, nargs="*", type=str, help=help)
        elif default is dataclasses.MISSING:
            parser.add_argument(name, type=hint, help=help)
        else:
            parser.add_argument(name, nargs="?", type=hint, default=default, help=help)
    elif hint is bool:
        parser.add_argument(f"--{name}", default=default, help=help, **yes_or_no(worded))
    elif default is dataclasses.MISSING:
        parser.add_argument(f"--{name}", type=hint, required=True, help=help)
    else:
        parser.add_argument(f"--{name}", type=hint, default=default, help=help)


def yes_or_no(worded: bool) -> dict[str, Any]:
    """How a switch is spelled: both ``--bf16`` and, as in a YAML file, ``--bf16 true``; ``--no_bf16`` undoes what a file says."""
    return {"action": ActionYesNo(yes_prefix="", no_prefix="no_"), **({"nargs": "?"} if worded else {})}


def default_of(item: dataclasses.Field[Any]) -> Any:
    """A field's default, made afresh where it has a factory; ``dataclasses.MISSING`` where it has none."""
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def take(options: type[T], values: Namespace) -> T:
    """The dataclass filled from parsed flags, its groups included."""
    hints = typing.get_type_hints(options)
    filled: dict[str, Any] = {}
    for item in dataclasses.fields(options):  # type: ignore[arg-type]
        hint = hints[item.name]
        filled[item.name] = take(hint, values) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else values[item.name]
    return options(**filled)


def simple(name: str, summary: str, options: type[T], run: Callable[[T], int]) -> Command:
    """A command whose flags are the fields of one dataclass."""

    def fill(parser: ArgumentParser, argv: Sequence[str]) -> None:
        add(parser, options)

    return Command(name=name, summary=summary, fill=fill, run=lambda values: run(take(options, values)))


def hyphens(argv: Sequence[str]) -> list[str]:
    """Spell ``--load-in-4bit`` as ``--load_in_4bit``: transformers and TRL use underscores, many fingers use hyphens."""
    spelled: list[str] = []
    for index, word in enumerate(argv):
        if word == "--":
            return [*spelled, *argv[index:]]
        if re.match(r"--[A-Za-z]", word):
            flag, equals, value = word.partition("=")
            word = "--" + flag[2:].replace("-", "_") + equals + value
        spelled.append(word)
    return spelled


def flags_first(parser: ArgumentParser, words: Sequence[str]) -> list[str]:
    """The words after a command with those that stand by place behind all flags: argparse gives up on places after the first flag."""
    takes = {name: action.nargs is None for action in parser._actions for name in action.option_strings}
    if all(action.option_strings for action in parser._actions):
        return list(words)
    flags: list[str] = []
    placed: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            placed += rest
        elif _FLAG.fullmatch(word):
            flags += [word, *islice(rest, int(takes.get(word, False)))]
        else:
            placed.append(word)
    return [*flags, "--", *placed] if placed else flags


def listed(value: str | Sequence[str] | None) -> list[str] | None:
    """``"query,value"`` or a list, as a list of names; ``None`` stays ``None``."""
    if value is None:
        return None
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
