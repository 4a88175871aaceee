"""Every public name is documented where it is written, and the names that `paring` offers on the site too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import paring

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "paring"

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Documented]]:
    """The public classes, functions and methods of a body, by dotted name."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if any(ast.unparse(mark).split(".")[-1] in {"overload", "setter", "deleter"} for mark in node.decorator_list):
            continue
        yield f"{prefix}.{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{prefix}.{node.name}")


def undocumented(text: str, name: str) -> list[str]:
    """The public names of a module that have no docstring, the module itself among them."""
    module = ast.parse(text)
    names: list[tuple[str, Documented]] = [(name, module), *public(module.body, name)]
    return [dotted for dotted, node in names if not (ast.get_docstring(node) or "").strip()]


def unexplained(text: str, name: str) -> list[str]:
    """The public fields of a module's dataclasses that the class's docstring leaves out of its list of attributes."""
    found = []
    for dotted, node in public(ast.parse(text).body, name):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
            said = ast.get_docstring(node) or ""
            if "Attributes:" not in said:
                continue
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)]
            names = [ast.unparse(item.target) for item in fields]
            found += [f"{dotted}.{field}" for field in names if not field.startswith("_") and not re.search(rf"\b{field}\b", said)]
    return found


def modules() -> list[Path]:
    """All files of the package."""
    return sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    """A file's module name."""
    return ".".join(("paring", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_every_public_name_has_a_docstring(path: Path) -> None:
    assert undocumented(path.read_text(), dotted(path)) == []


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_a_list_of_attributes_is_complete(path: Path) -> None:
    assert unexplained(path.read_text(), dotted(path)) == []


def test_every_name_that_paring_offers_is_on_the_site() -> None:
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    assert [name for name in paring.__all__ if not name.startswith("_") and f"paring.{name}" not in pages] == []


def test_every_name_that_paring_offers_is_there() -> None:
    for name in paring.__all__:
        assert getattr(paring, name).__doc__, name


def test_the_reader_sees_what_lacks_a_docstring() -> None:
    text = '"""M."""\nclass A:\n    """A."""\n    def f(self): ...\n    def _g(self): ...\ndef h(): ...\n'
    assert undocumented(text, "m") == ["m.A.f", "m.h"]
    assert unexplained(
        '@dataclass(frozen=True)\nclass A:\n    """A.\n\n    Attributes:\n        one: 1.\n    """\n    one: int\n    two: int\n', "m"
    ) == ["m.A.two"]
