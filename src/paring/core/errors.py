"""The errors that paring raises: what was given, what is wrong, what to do.

Every error is a :class:`ParingError` and, beside it, the built-in error that a caller would expect (``ValueError``,
``RuntimeError`` ...), so that ``except ValueError`` in code that has never heard of paring keeps working. That also
matters inside PEFT, whose configuration loader treats a ``TypeError`` as "a newer version wrote this key".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

LONGEST = 2000
"""Characters of an error's text: what was given may be a whole file."""

_PAIRS = 20_000_000
"""Pairs of letters that are compared to find near names: names out of a file may be many and long."""


class ParingError(Exception):
    """Base of all errors that paring raises on purpose; of a text that is too long to be read, the middle is left out."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(_short(item) if isinstance(item, str) else item for item in args))


def _short(text: str) -> str:
    end = LONGEST // 4
    return text if len(text) <= LONGEST else f"{text[: LONGEST - end - 5]} ... {text[-end:]}"


class SettingError(ParingError, ValueError):
    """A setting of a method, a part or a run is out of range, unknown, or contradicts another one."""


class TargetError(ParingError, ValueError):
    """A module cannot be adapted, or a target name matches nothing or too much."""


class AdapterError(ParingError, ValueError):
    """An adapter on disk or in memory is malformed, truncated, or belongs to another base model."""


class ExportError(ParingError, RuntimeError):
    """An export was refused, or did not reproduce the live model."""


class StepError(ParingError, RuntimeError):
    """The proximal step did not run, or cannot be right with the optimizer that is in use."""


class DataError(ParingError, ValueError):
    """A data set is empty, unreadable, or lacks what the task needs."""


class StudyError(ParingError, RuntimeError):
    """A study was stopped by its machine, or is being conducted elsewhere; what has run is kept."""


class OutputExistsError(ParingError, FileExistsError):
    """The output is there already and overwriting was not asked for."""


def near(name: str, names: Iterable[str], count: int = 3) -> str:
    """Say which known names are close to ``name``, as the end of an error sentence.

    >>> near("q_prj", ["q_proj", "k_proj", "lm_head"], count=1)
    " Did you mean 'q_proj'?"
    >>> near("xyz", ["q_proj"])
    ''
    """
    close = difflib.get_close_matches(name, list(_few(name, names)), n=count, cutoff=0.5)
    if not close:
        return ""
    return " Did you mean " + " or ".join(repr(item) for item in close) + "?"


def _few(name: str, names: Iterable[str]) -> Iterator[str]:
    """Each of the names once, as far as comparing them with ``name`` stays a matter of a second."""
    left = _PAIRS
    for known in dict.fromkeys(names):
        left -= max(len(name), 1) * max(len(known), 1)
        if left < 0:
            return
        yield known
