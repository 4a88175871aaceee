"""What jsonargparse says of flags, as a sentence about them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from contextlib import suppress

from paring.cli.run.options import AdapterOptions
from paring.cli.run.settings import flag_name, peek
from paring.core.errors import ParingError, near


def reworded(text: str, known: Sequence[str], words: Sequence[str]) -> str:
    """A message of jsonargparse as a sentence about a flag, with near names for an unknown one."""
    shapes = (
        r"unrecognized arguments: (.*)",
        r"does not accept (?:option|nested key) '([^']*)'",
        r"(?:Key|Option) '([^']*)' is not (?:expected|accepted)",
    )
    unknown = re.search("|".join(shapes), text)
    if unknown:
        word = next(group for group in unknown.groups() if group)
        flag = word.split()[0].lstrip("-").partition("=")[0]
        owners = _owners(flag) if "method" in known else []
        if owners:
            chosen = peek(words, "method") or AdapterOptions().method
            return f"--{flag} is a setting of {', '.join(owners)}, not of {chosen}. Leave it out, or give --method {owners[0]}."
        return f"Unknown flag or key {flag!r}.{near(flag, known)}"
    required = re.search(r"following arguments are required: (.*)", text)
    if required:
        names = [name.rpartition(".")[2] for name in required[1].split(", ")]
        shown = [f"--{name}" if name in known else name.upper() for name in names]
        return f"{', '.join(shown)} must be given, here or in the --config file."
    wrong = re.match(r'Parser key "([^"]*)":\s*(.*)', text, re.DOTALL)
    if not wrong:
        return text
    flag = wrong[1].rpartition(".")[2]
    value = re.search(r"(?:Got value|Given value): (.*)", wrong[2])
    expected = [_plain(kind) for kind in re.findall(r"Expected an? (.*?)(?:\. Got value|\n|$)", wrong[2])]
    if value is None or not expected:
        return f"--{flag}: {wrong[2]}"
    return f"--{flag} {value[1].strip()!r}: expected {' or '.join(dict.fromkeys(expected))}."


def _owners(flag: str) -> list[str]:
    """The methods that have a setting of this flag."""
    from paring.cli.commands.train import TAKEN
    from paring.cli.run.settings import kind_of
    from paring.method import names
    from paring.train.whole import Whole

    owners = []
    for name in (*names(), *Whole.members):
        # A method of another package that cannot be loaded has no part in this.
        with suppress(ParingError, ImportError):
            settings = [item.name for item in dataclasses.fields(kind_of(name)) if not item.metadata.get("transient")]
            if flag in (flag_name(name, setting, TAKEN) for setting in settings):
                owners.append(name)
    return owners


def _plain(kind: str) -> str:
    """A Python type as a user would say it."""
    literal = re.match(r"(?:typing\.)?Literal\[(.*)\]", kind)
    if literal:
        return f"one of {literal[1]}"
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "none"}
    name = re.sub(r"<class '([^']*)'>", r"\1", kind).strip()
    return words.get(name, name)
