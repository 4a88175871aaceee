"""What paring depends on, and under which licences, for the docs: read from the packages that are installed."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("trl", "quant", "study", "demo")
"""The extras that users install; what tests and docs need is in another."""


def licence(name: str) -> str:
    """The licence that a package states: its SPDX expression, else its classifiers, else the first line of its licence field."""
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return "not installed here"
    if "License-Expression" in said:
        return said["License-Expression"]
    kinds = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or () if line.startswith("License :: ")]
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    stated = said["License"].strip().splitlines()[:1] if "License" in said else []
    return ", ".join(kinds or stated or ["not stated"])


def requirements() -> list[tuple[Requirement, str]]:
    """Every requirement of the package and of its users' extras, with the extra's name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [(Requirement(line), "") for line in project["dependencies"]]
    return found + [(Requirement(line), extra) for extra in EXTRAS for line in project["optional-dependencies"][extra]]


def licences() -> list[tuple[str, str, str, str]]:
    """What the docs print: package, range, extra and licence."""
    return [(one.name, str(one.specifier), extra, licence(one.name)) for one, extra in requirements()]
