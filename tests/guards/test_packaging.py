"""The declared requirements are the true ones: what is imported is declared, and what is pinned fits the ranges."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import paring
from tools.lock import entries

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USERS = ("trl", "quant", "study", "demo")


def requirements(*extras: str) -> dict[str, Requirement]:
    """The requirements of the package with some extras, by name; its own extras named within are followed."""
    lines = list(PROJECT["dependencies"]) + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        if requirement.name == "paring":
            found |= requirements(*sorted(requirement.extras))
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def pins() -> dict[str, str]:
    """The version of each package in constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def third_party(text: str) -> set[str]:
    """The first names of all imports of a file that are neither paring's nor Python's own."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {item.name.split(".")[0] for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names - set(sys.stdlib_module_names) - {"paring"}


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """The packages that each importable name comes from."""
    return packages_distributions()


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_what_is_imported_is_declared(path: Path) -> None:
    declared, homes = set(requirements(*USERS)), distributions()
    unknown = {
        name for name in third_party(path.read_text()) if not declared & {canonicalize_name(home) for home in homes.get(name, [name])}
    }
    assert unknown == set()


def test_every_requirement_is_pinned_within_its_range() -> None:
    pinned = pins()
    for name, requirement in requirements("dev").items():
        assert name in pinned, f"{name} is not in constraints.txt"
        assert pinned[name] in requirement.specifier, f"{requirement} does not allow {pinned[name]}"


def test_pins_are_exact_and_name_no_build() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"


def test_peft_range_is_the_one_that_attach_warns_outside_of() -> None:
    from paring.attach import peft_type

    specifier = requirements()["peft"].specifier
    assert specifier == SpecifierSet(f">={peft_type.OLDEST},<{peft_type.BELOW}")


def test_versions_agree() -> None:
    assert PROJECT["version"] == paring.__version__
    assert f"## [{paring.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_lock_has_a_hash_for_every_pin_but_torch() -> None:
    locked = entries((ROOT / "requirements.lock").read_text())
    assert all(locked.values()), [pin for pin, hashes in locked.items() if not hashes]
    named = {canonicalize_name(name): version for name, version in (pin.split("==") for pin in locked)}
    makefile = re.search(r"^FILES := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert makefile is not None
    files = {canonicalize_name(name): version for name, version in (pin.split("==") for pin in makefile[1].split())}
    assert named == {name: version for name, version in (pins() | files).items() if name != "torch"}
