"""A budget as people write one: 40k parameters, 30% of the start, 2MB on disk; and a tolerance: 1se, 0.5%."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paring.core.errors import SettingError

if TYPE_CHECKING:
    from paring.train.tolerance import Tolerance

_WRITTEN = re.compile(r"\s*(?P<number>\d[\d_]*(?:\.\d+)?(?:e\d+)?|\.\d+)\s*(?P<unit>%|[kMG]?i?B|[kKMG])?\s*", re.ASCII)
_THOUSANDS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3}


WAYS = "Give a number of parameters (40000 or 40k), a share of the start (30%), bytes on disk (2MB or 2MiB), or knee."
"""What is said of a budget that is none."""


def written(text: str, each: int) -> dict[str, Any] | None:
    """The plain data of a budget that is written as a number, with ``%`` or a unit; ``None`` if it is written otherwise.

    ``40k`` and ``40000`` are parameters, ``30%`` is a share of the start, ``2MB`` (millions) and ``2MiB`` (2^20) are bytes on disk.

    Args:
        text: what was given.
        each: bytes of a parameter as it will be exported.

    Raises:
        SettingError: a share above 100%, or nothing at all, or more than can be counted.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None:
        return None
    number, unit = float(found["number"].replace("_", "")), found["unit"] or ""
    if unit == "%":
        if not 0 < number <= 100:
            raise SettingError(f"--budget {text}: give a share above 0% and of at most 100%.")
        return {"name": "share", "share": number / 100}
    base = 1024 if unit.endswith("iB") else 1000
    size = number * base ** _THOUSANDS[unit.removesuffix("B").removesuffix("i")]
    if not math.isfinite(size):
        raise SettingError(f"--budget {text}: that is no number. {WAYS}")
    count = int(size)
    if count < 1:
        more = f" Did you mean {100 * number:.6g}%?" if number and not unit else ""
        raise SettingError(f"--budget {text}: that is less than one.{more} {WAYS}")
    return {"name": "bytes", "count": count, "each": each} if unit.endswith("B") else {"name": "parameters", "count": count}


def entry_bytes(export_dtype: str) -> int:
    """Bytes of a parameter as ``--export_dtype`` has it exported; ``auto`` keeps the training's float32."""
    return 2 if export_dtype in ("bfloat16", "float16") else 4


def plain_data(given: str | Mapping[str, Any], each: int) -> dict[str, Any]:
    """The plain data of a budget, however it is written: see :func:`written`; by its name, as ``knee``; in Python's spelling.

    Args:
        given: what was given.
        each: bytes of a parameter as it will be exported.

    Raises:
        SettingError: there is no such size.
    """
    from paring.cli.run.parts import find_part
    from paring.parts.allocate.budget import Budget

    found = written(given, each) if isinstance(given, str) else None
    found = found or find_part(given, Budget)
    if found is None:
        raise SettingError(f"--budget {given!r}: there is no such size. {WAYS}")
    return found


_TOLERATED = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?P<unit>%|se)\s*", re.ASCII)


def tolerated(text: str) -> Tolerance:
    """The tolerance that is written as ``0.5%`` of the metric, or as ``1se``, one standard error of it.

    Raises:
        SettingError: it is written otherwise.
    """
    from paring.train.tolerance import StandardErrors, Within

    found = _TOLERATED.fullmatch(text)
    if found is None:
        raise SettingError(f"--tolerance {text}: give 1se, one standard error of the metric on the held-out rows, or 0.5%, a share of it.")
    number = float(found["number"])
    if found["unit"] == "%" and number > 100:
        raise SettingError(f"--tolerance {text}: give at most 100%, beyond which there is nothing left to lose.")
    return Within(share=number / 100) if found["unit"] == "%" else StandardErrors(count=number)
