r"""Regular expressions out of a file, matched in bounded time, and the keys that are made of them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import regex  # type: ignore[import-untyped]

from paring.core.errors import AdapterError

LONGEST = 1000
"""Characters that an expression out of a file may have."""

_UNTIMED = 256
"""Places of dots that are looked up without a look at the clock: keys that are names have few."""

# A name, with its dots escaped or not and anchored or not: no repetition, so the standard engine is quick with it.
_PLAIN = re.compile(r"\^?(?:[\w.-]|\\[.-])*\$?")


# What the standard engine takes for letters, and the ``regex`` package for an inexact match or a class of letters by name.
_OTHERWISE = re.compile(r"(?<!\\)\{(?!\d*(?:,\d*)?\})|\[:")


_TIMES = re.compile(r"\{(\d{0,9})\d*(?:,(\d{0,9})\d*)?\}")
_MOST_TIMES = 10_000
"""The product of an expression's repetitions."""


class Clock:
    """Seconds that matching the expressions of one file may take in all, however hostile they are."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left.

        Raises:
            AdapterError: none.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise AdapterError("Matching the name patterns of the adapter's configuration takes too long; write them as plain names.")
        return left


class Expression:
    """A regular expression out of a file, matched from a name's start.

    Plain names go through the standard library. Everything else goes through the ``regex`` package, which gives up when its
    time is over: backtracking can be exponential, and the standard engine cannot be stopped.

    Args:
        source: the expression as it stands in the file.
        before: what PEFT puts in front of it.
        after: what PEFT puts behind it.
        clock: the time that is left.

    Raises:
        AdapterError: not a regular expression, or longer than any name.
    """

    def __init__(self, source: str, before: str, after: str, clock: Clock) -> None:
        if len(source) > LONGEST:
            raise AdapterError(
                f"A name pattern of the configuration has {len(source)} characters ({source[:40]!r}...); at most {LONGEST} are read."
            )
        clock.left()
        if (found := _OTHERWISE.search(source)) is not None:
            # The two engines would take it for different things.
            raise AdapterError(
                f"The name pattern {source!r} is not read: {found[0]!r} begins neither a repetition nor a set of letters; write it as "
                "plain names."
            )
        times = math.prod(max(1, *(int(count or 1) for count in found.groups())) for found in _TIMES.finditer(source))
        if times > _MOST_TIMES:
            # The engine writes them out, which would fill the memory before any clock is looked at.
            raise AdapterError(f"The name pattern {source!r} repeats something {times:.3g} times; no name is so long.")
        self._clock = clock
        self._plain = _PLAIN.fullmatch(source) is not None
        try:
            # Both must accept it: PEFT compiles it with the standard engine.
            standard = re.compile(before + source + after)
            self._engine: Any = standard if self._plain else regex.compile(before + source + after)
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise AdapterError(f"The name pattern {source!r} is not a regular expression ({error}).") from error

    def match(self, name: str) -> Any:
        """The match at the start of ``name``, or ``None``.

        Raises:
            AdapterError: time is over.
        """
        left = self._clock.left()
        if self._plain:
            return self._engine.match(name)
        try:
            return self._engine.match(name, timeout=left)
        except TimeoutError:
            return self._clock.left()  # which raises


def ends(name: str) -> Iterator[str]:
    """The name, and what is left of it after each dot.

    >>> list(ends("layer.1.fc"))
    ['layer.1.fc', '1.fc', 'fc']
    """
    yield name
    for place, letter in enumerate(name):
        if letter == ".":
            yield name[place + 1 :]


def blank(name: str, places: Iterable[int]) -> str:
    """The name with a dot at each of the places, where a key has a dot and so takes any character."""
    letters = list(name)
    for place in places:
        letters[place] = "."
    return "".join(letters)


class Keys:
    """The keys of ``rank_pattern`` or ``alpha_pattern``: the first that matches a name wins.

    Plain names, of which there may be thousands, are looked up; only what else there is is matched one after another.

    Raises:
        AdapterError: a key is not a regular expression.
    """

    def __init__(self, keys: Iterable[str], clock: Clock) -> None:
        self._keys = list(keys)
        self._clock = clock
        self._whole: dict[str, int] = {}
        # By length and the places of the dots: with these blanked out, the end of a name that matches equals the key.
        self._ends: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self._others: list[tuple[int, Expression]] = []
        for order, key in enumerate(self._keys):
            body = key.removeprefix("^").removesuffix("$")
            if len(key) > LONGEST or _PLAIN.fullmatch(key) is None or not body or (key.startswith("^") and "." in body.replace("\\.", "")):
                self._others.append((order, Expression(key, r"(.*\.)?(", r")$", clock)))
            elif key.startswith("^"):
                self._whole.setdefault(body.replace("\\", ""), order)
            else:
                text, dots = _read(body)
                self._ends.setdefault(len(text), {}).setdefault(dots, {}).setdefault(text, order)

    def first(self, name: str) -> str | None:
        """The key that decides for ``name``; ``None`` if none matches."""
        found = [self._whole[name]] if name in self._whole else []
        for end in ends(name):
            for count, (dots, keys) in enumerate(self._ends.get(len(end), {}).items()):
                if count % _UNTIMED == _UNTIMED - 1:
                    self._clock.left()
                order = keys.get(blank(end, dots))
                if order is not None:
                    found.append(order)
        best = min(found, default=len(self._keys))
        for order, expression in self._others:
            if order < best and expression.match(name) is not None:
                best = order
        return self._keys[best] if best < len(self._keys) else None


def _read(body: str) -> tuple[str, tuple[int, ...]]:
    """A plain key's letters, and the places where it takes any character: its dots that are not escaped."""
    letters: list[str] = []
    dots: list[int] = []
    escaped = False
    for letter in body:
        if letter == "\\" and not escaped:
            escaped = True
            continue
        if letter == "." and not escaped:
            dots.append(len(letters))
        letters.append(letter)
        escaped = False
    return "".join(letters), tuple(dots)
