"""What a run has by default: the values of all settings that a study's file leaves open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from paring.cli.study.flags import OWN, flags_of, parsed
from paring.study.records import Job


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Tells what a run has by default in this release, so that one that was made under other defaults can be told from it.

    They are no part of what a run is known by: a setting that a later release adds changes nothing of a run that was made without it.

    Attributes:
        definitions: what stands for each ``$name`` that the study's file leaves open.
    """

    definitions: Mapping[str, str]

    def __call__(self, job: Job) -> Mapping[str, Any]:
        """By name, as plain data.

        Raises:
            SettingError: what is given is refused.
        """
        return _open(json.dumps(flags_of(job, self.definitions), sort_keys=True))


@lru_cache(maxsize=256)
def _open(text: str) -> Mapping[str, Any]:
    flags = json.loads(text)
    run = parsed(flags, "study")
    known: dict[str, Any] = {}
    for group in (run.options.model, run.options.data, run.options.adapter, run.options.training):
        known |= vars(group)
    if run.method is not None:
        known |= run.method.encode()
    found: dict[str, Any] = json.loads(json.dumps({name: value for name, value in known.items() if name not in {*flags, *OWN, "name"}}))
    return found
