"""What is loaded when, each in a process of its own."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

HEAVY = ("torch", "peft", "transformers", "numpy", "datasets", "matplotlib", "sklearn")
LOADED = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"


def fresh(code: str) -> str:
    """What a new interpreter prints when it runs `code`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_paring_loads_nothing_heavy() -> None:
    assert fresh(f"import paring; {LOADED}").strip() == "[]"


def test_version_and_listing_load_nothing_heavy() -> None:
    assert fresh(f"import paring; assert paring.__version__; assert 'adapt' in dir(paring); {LOADED}").strip() == "[]"


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_command_line_answers_without_loading_anything_heavy(flag: str) -> None:
    said = fresh(
        f"import sys\nsys.argv = ['paring', {flag!r}]\nfrom paring.cli.main import main\n"
        f"try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n{LOADED}"
    )
    assert said.splitlines()[-1] == "[]"
    assert len(said.splitlines()) > 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "lisa "),
        pytest.param(("--method", "sora"), "sora: ", marks=pytest.mark.slow),
        pytest.param(("--method", "lisa"), "lisa: ", marks=pytest.mark.slow),
    ],
)
def test_the_table_of_methods_needs_no_transformers(arguments: tuple[str, ...], told: str) -> None:
    said = fresh(f"from paring.cli.main import main\nassert main(['methods', *{arguments!r}]) == 0\n{LOADED}")
    assert told in said
    assert not {"transformers", "peft"} & set(ast.literal_eval(said.splitlines()[-1]))


@pytest.mark.parametrize("package", ["paring", "paring.train"])
def test_what_a_package_loads_late_is_what_its_types_say(package: str) -> None:
    """The imports that a type checker reads and the table that is looked up name the same modules, and all names are listed."""
    module = importlib.import_module(package)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    written = {name.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert vars(module)["_HOMES"] == written
    assert set(written) <= set(vars(module)["__all__"]) <= set(dir(module))
    for name in vars(module)["__all__"]:
        assert not isinstance(getattr(module, name), ModuleType), f"{package}.{name} is a file of the package, and hides what is in it"
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_the_console_script_is_declared() -> None:
    (script,) = entry_points(group="console_scripts", name="paring")
    assert script.value == "paring.cli.main:main"


@pytest.mark.parametrize(
    "order",
    [
        "import paring, peft",
        pytest.param("import peft, paring", marks=pytest.mark.slow),
        pytest.param("import peft.tuners.lora, paring", marks=pytest.mark.slow),
        pytest.param("import paring.attach, peft", marks=pytest.mark.slow),
    ],
)
def test_peft_knows_the_type_in_every_order(order: str) -> None:
    said = fresh(
        f"{order}\n"
        "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs, PEFT_TYPE_TO_TUNER_MAPPING as tuners\n"
        "kind = peft.PeftType.PARING\n"
        "assert peft.PeftType('PARING') is kind and list(peft.PeftType).count(kind) == 1\n"
        "print(kind.value, configs[kind] is paring.ParingConfig, configs[kind].__name__, tuners[kind].__module__.split('.')[:2])"
    )
    assert said.strip() == "PARING True ParingConfig ['paring', 'attach']"
