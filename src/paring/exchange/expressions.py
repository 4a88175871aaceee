r"""Regular expressions out of a file, matched in bounded time, and the keys that are made of them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

import regex  # type: ignore[import-untyped]

from paring.core.errors import AdapterError

LONGEST = 1000
"""Characters that an expression out of a file may have."""

# A name, with its dots escaped or not and anchored or not: no repetition, so the standard engine is quick with it.
_PLAIN = re.compile(r"\^?(?:[\w.-]|\\[.-])*\$?")


class Clock:
    """Seconds that matching the expressions of one file may take in all, however hostile they are."""

    def __init__(self, seconds: float = 30.0) -> None:
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


class Keys:
    """The keys of ``rank_pattern`` or ``alpha_pattern``: the first that matches a name wins.

    Raises:
        AdapterError: a key is not a regular expression.
    """

    def __init__(self, keys: Iterable[str], clock: Clock) -> None:
        self._keys = [(key, Expression(key, r"(.*\.)?(", r")$", clock)) for key in keys]

    def first(self, name: str) -> str | None:
        """The key that decides for ``name``; ``None`` if none matches."""
        return next((key for key, expression in self._keys if expression.match(name) is not None), None)
