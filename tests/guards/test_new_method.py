"""A new method is one new file, or one entry point of another package: everything else finds it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tests.warm import Warm

ROOT = Path(__file__).parents[2]

METHOD = '''
r"""Quartered: SoRA's gates on a scale of a quarter, a method that only this test knows.

Source: this test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from paring.method import About, Method, check_rank
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.parameterise.gated import Gated
from paring.parts.shape import Shape
from paring.parts.update.proximal import Proximal


@dataclass(frozen=True, kw_only=True)
class Quartered(Method):
    """Gates on a scale of a quarter.

    Attributes:
        rank: ranks that every module starts with.
        penalty: the penalty's weight.
    """

    name: ClassVar[str] = "quartered"
    about: ClassVar[About] = About(title="Quartered", paper="none", kind="adaptive rank", parameters="r (in + out) + r")

    rank: int = 8
    penalty: float = 0.5

    @property
    def update(self) -> Proximal:
        """The proximal step on the gates."""
        return Proximal(weight=self.penalty)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)

    def slot(self, shape: Shape, generator: torch.Generator) -> Gated:
        """Two factors with a gate between them."""
        self.check(shape)
        start = KaimingZero().factors(shape, self.rank, 0.25, generator)
        return Gated(replace(start, gate=torch.randn(self.rank, generator=generator)), self.update)
'''


def environment(*paths: Path) -> dict[str, str]:
    """Of a process that finds paring, and what else is given, under ``paths``."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def run(arguments: list[str], folder: Path, *paths: Path) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(*paths), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def commands(warm: Warm, lines: list[list[str]], folder: Path, *paths: Path, first: str = "") -> str:
    """What several commands print, in one process after something else."""
    code = f"from paring.cli.main import main\n{first}\nfor line in {lines!r}:\n    assert main(line) == 0, line\n"
    return warm.run(["-c", code], cwd=folder, env=environment(*paths))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with one more method file."""
    copy = tmp_path_factory.mktemp("tree") / "paring"
    skip = shutil.ignore_patterns(".git", ".venv", "site", "build", "runs", "demo", "__pycache__", "*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=skip)
    (copy / "src/paring/methods/quartered.py").write_text(METHOD.lstrip())
    return copy


@pytest.mark.slow
def test_it_collects_as_many_contract_tests_as_sora(tree: Path) -> None:
    listed = run(["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/contract"], tree, tree / "src")
    # The new method has no dropout, which one test is about.
    lines = "\n".join(line for line in listed.splitlines() if "/test_dropout.py" not in line)
    count = Counter(found.group(1) for found in re.finditer(r"\b(sora|quartered)\b", lines))
    assert count["sora"] > 100
    assert count["quartered"] == count["sora"]


def test_it_trains_through_the_command_line(tree: Path, warm: Warm, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "good": 2, "bad": 3, "film": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    base = tmp_path / "base"
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(base)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    config = BertConfig(vocab_size=5, pad_token_id=1, **sizes)
    BertForSequenceClassification(config).save_pretrained(base)
    rows = ["good film\tgood", "bad film\tbad"] * 8
    (tmp_path / "films.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    train = ["train", "--method", "quartered", "--rank", "4", "--model_name_or_path", str(base), "--dataset_name", "films.tsv"]
    said = commands(warm, [[*train, "--output_dir", "run", "--max_steps", "5"], ["methods"]], tmp_path, tree / "src")
    assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file()
    assert '"quartered"' in (tmp_path / "run/run.json").read_text()
    assert re.search(r"(?m)^\W*quartered\b", said)


@pytest.mark.slow
def test_it_has_a_page_and_a_row(tree: Path) -> None:
    run(["tools/generate.py"], tree, tree / "src")
    assert "Quartered" in (tree / "README.md").read_text()
    run(["-m", "mkdocs", "build", "--strict", "--quiet", "-d", "built"], tree, tree / "src")
    assert (tree / "built/methods/quartered.html").is_file()


def test_it_leaves_nothing_behind(tree: Path) -> None:
    assert not list(ROOT.glob("src/paring/methods/quartered*"))
    assert not list(ROOT.glob("docs/methods/quartered*"))


def test_another_package_brings_a_method_by_entry_point(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(METHOD.lstrip())
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[paring.methods]\nquartered = elsewhere:Quartered\n")
    text = "from paring.method import decode, load, names; print(names()); print(decode(load('quartered')(rank=3).encode()))"
    shown = commands(warm, [["methods"]], tmp_path, tmp_path, ROOT / "src", first=text)
    assert "'quartered'" in shown
    assert "Quartered(rank=3, penalty=0.5)" in shown
    assert re.search(r"(?m)^\W*quartered\b", shown)
