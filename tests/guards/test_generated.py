"""What is derived from the code is fresh: the README's table, the methods' pages, the reference's first page."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import generate

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the README and the docs, fresh."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    generate.main(["--root", str(tmp_path)])
    return tmp_path


@pytest.mark.slow  # `make generate ARGS=--check` is the same, and CI runs it
def test_the_repository_is_fresh() -> None:
    # A process of its own: other tests may have registered methods and parts in this one.
    done = subprocess.run([sys.executable, "tools/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_second_run_writes_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert generate.main(["--root", str(copy)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/methods/sora.md",
        pytest.param("docs/methods/index.md", marks=pytest.mark.slow),
        pytest.param("docs/reference/index.md", marks=pytest.mark.slow),
    ],
)
def test_a_changed_file_is_stale_until_written_again(copy: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = (copy / name).read_text()
    (copy / name).write_text(fresh.replace("paring", "pairing").replace("exact", "roughly"))
    assert generate.main(["--check", "--root", str(copy)]) == 1
    assert f"stale: {name}" in capsys.readouterr().out
    generate.main(["--root", str(copy)])
    assert (copy / "docs/methods/sora.md").exists()
    assert generate.main(["--check", "--root", str(copy)]) == 0


def test_a_page_without_a_method_is_stale_and_goes(copy: Path) -> None:
    page = copy / "docs/methods/gone.md"
    page.write_text("# Gone\n")
    assert generate.main(["--check", "--root", str(copy)]) == 1
    assert page.exists()
    generate.main(["--root", str(copy)])
    assert not page.exists()


def test_only_the_part_between_the_markers_is_written(copy: Path) -> None:
    text = (copy / "README.md").read_text()
    (copy / "README.md").write_text(f"before\n{text}after\n")
    generate.main(["--root", str(copy)])
    assert (copy / "README.md").read_text() == f"before\n{text}after\n"


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="methods:begin"):
        generate.readme("# paring\n")


def test_every_setting_of_every_method_is_explained() -> None:
    for cls in generate.own_methods():
        told = generate.attributes(cls.__doc__ or "")
        rows = [line for line in generate.settings(cls).splitlines() if line.startswith("| `")]
        assert rows
        assert {row.split("`")[1] for row in rows} <= set(told), cls
