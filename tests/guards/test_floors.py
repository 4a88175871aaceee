"""Imports point down: read from the source, inside functions too."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.floors import ORDER, floor_of

SOURCE = Path(__file__).parents[2] / "src" / "paring"

BUILTINS = {"__import__", "exec", "eval"}
LOADERS = {"import_module", "spec_from_file_location", "run_path", "run_module", "entry_points"}
"""Ways to load code that no import statement shows."""

ALLOWED_DYNAMIC = {
    # What a package loads late; tests/guards/test_imports.py holds it to what the package's typed imports say.
    ("core/lazy.py", "get"),
    # The table of methods: lists the folder and the entry points, and loads a file of that list.
    ("method.py", "<module>"),
    ("method.py", "_own"),
    ("method.py", "names"),
    ("method.py", "find"),
}

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch.load", "torch.save"}

CORE_ORDERS = (("errors", "linalg", "factors", "adapter"), ("prox", "penalties"))
"""Within core, a name imports only names to its left."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """A dotted name that a file imports or reaches through a module it has imported."""

    name: str
    line: int
    function: str


def files() -> list[Path]:
    """All files of the package but its `__init__`, which re-exports lazily and stands outside the floors."""
    return [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


def _walk(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    for child in ast.iter_child_nodes(node):
        yield child, function
        inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        yield from _walk(child, inside)


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = _dotted(node.value)
        return None if left is None else f"{left}.{node.attr}"
    return None


def uses(text: str) -> list[Use]:
    """Every import of a file, as `package.module.name`, and every dotted name that it reads."""
    found = []
    for node, function in _walk(ast.parse(text), "<module>"):
        if isinstance(node, ast.Import):
            names = [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here: they hide the floor"
            names = [f"{node.module}.{item.name}" for item in node.names]
        elif isinstance(node, ast.Name | ast.Attribute) and (dotted := _dotted(node)) is not None:
            names = [dotted]
        else:
            continue
        found += [Use(name=name, line=node.lineno, function=function) for name in names]
    return found


def imports(text: str) -> list[Use]:
    """The uses that are import statements."""
    lines = {node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)}
    return [use for use in uses(text) if use.line in lines]


def upward(unit: str, text: str) -> list[str]:
    """The imports of a file of `unit` that do not point to a lower floor."""
    wrong = []
    for use in imports(text):
        if use.name == "paring" or use.name.startswith("paring."):
            target = (*use.name.split("."), "api")[1]
            if target == "__version__":
                continue
            if target not in ORDER and not (SOURCE / target).is_dir() and not (SOURCE / f"{target}.py").is_file():
                target = "api"  # a name that `paring` itself re-exports
            if target != unit and floor_of(target) >= floor_of(unit):
                wrong.append(f"line {use.line}: {unit} (floor {floor_of(unit)}) imports {use.name} (floor {floor_of(target)})")
    return wrong


def internals(text: str) -> list[str]:
    """Where a file reaches into a submodule of PEFT, past what `import peft` offers."""
    spec = find_spec("peft")
    assert spec is not None
    submodules = {item.name for item in pkgutil.iter_modules(spec.submodule_search_locations)}
    return [f"line {use.line}: {use.name}" for use in uses(text) if use.name.startswith("peft.") and use.name.split(".")[1] in submodules]


def dynamic(text: str) -> set[str]:
    """The functions of a file that load code in a way that no import statement shows."""
    return {use.function for use in uses(text) if use.name in BUILTINS or use.name.split(".")[-1] in LOADERS}


def unit_of(path: Path) -> str:
    """The folder or lone module that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_to_lower_floors(path: Path) -> None:
    assert upward(unit_of(path), path.read_text()) == []


def test_only_attach_touches_peft_internals() -> None:
    found = {str(path.relative_to(SOURCE)): internals(path.read_text()) for path in files() if unit_of(path) != "attach"}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_compress_extract_and_merge_know_no_modules() -> None:
    for path in files():
        if unit_of(path) in {"compress", "extract", "merge"}:
            assert [use for use in uses(path.read_text()) if f"{use.name}.".startswith("torch.nn.")] == [], path


def test_the_only_dynamic_imports_are_late_names_and_the_table_of_methods() -> None:
    found = {(str(path.relative_to(SOURCE)), function) for path in files() for function in dynamic(path.read_text())}
    assert found == ALLOWED_DYNAMIC


def test_nothing_is_pickled() -> None:
    for path in files():
        assert [use for use in uses(path.read_text()) if use.name in PICKLES or use.name.split(".")[0] in PICKLES] == [], path


@pytest.mark.parametrize("order", CORE_ORDERS, ids=" < ".join)
def test_core_has_an_order_of_its_own(order: tuple[str, ...]) -> None:
    for place, stem in enumerate(order):
        path = SOURCE / "core" / f"{stem}.py"
        above = {f"paring.core.{name}" for name in order[place + 1 :]}
        wrong = [use for use in imports(path.read_text()) if any(f"{use.name}.".startswith(f"{name}.") for name in above)]
        assert wrong == [], path


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("core", "from paring.parts.shape import Shape"),
        ("parts", "def f():\n    from paring.methods.sora import SoRA"),
        ("kernels", "import paring.parts.shape"),
        ("exchange", "from paring.attach import layer"),
        ("step", "from paring.method import Method"),
        ("train", "import paring"),
        ("train", "from paring import adapt"),
        ("api", "if True:\n    from paring.report import page"),
    ],
)
def test_the_reader_sees_an_import_that_points_up(unit: str, text: str) -> None:
    assert len(upward(unit, text)) == 1


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("core", "import torch\nfrom paring.core.errors import near"),
        ("parts", "from paring.core import prox"),
        ("cli", "from paring import adapt, __version__"),
        ("core", "from paring import __version__"),
    ],
)
def test_the_reader_lets_imports_that_point_down_pass(unit: str, text: str) -> None:
    assert upward(unit, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "import peft.tuners",
        "from peft.tuners.lora import LoraLayer",
        "from peft import utils",
        "import peft\npeft.tuners.lora.LoraLayer",
        "from peft.mapping import X",
    ],
)
def test_the_reader_sees_peft_internals(text: str) -> None:
    assert internals(text)


def test_the_reader_lets_the_front_door_of_peft_pass() -> None:
    assert internals("import peft\nfrom peft import PeftModel, get_peft_model\npeft.PeftType.PARING") == []


@pytest.mark.parametrize(
    "text",
    ["import importlib\ndef f(x):\n    return importlib.import_module(x)", "def f(x):\n    return __import__(x)", "def f(x):\n    exec(x)"],
)
def test_the_reader_sees_dynamic_imports(text: str) -> None:
    assert dynamic(text) == {"f"}


def test_the_reader_lets_model_eval_pass() -> None:
    assert dynamic("def f(model):\n    model.eval()") == set()
