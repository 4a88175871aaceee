"""``paring merge``: adapters of paring's and PEFT's own, what is said of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

import paring
from paring.core.adapter import Adapter
from paring.merge import Lego, merge

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def peft_adapter(
    bert: Path, folder: Path, seed: int, rank: int = 4, labels: int = 2, targets: tuple[str, ...] = ("query", "dense")
) -> Path:
    """The folder of a LoRA of PEFT's own with random factors."""
    torch.manual_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=labels)
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=5, target_modules=list(targets), task_type="SEQ_CLS"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def three(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of different ranks, modules, labels and scales."""
    folder = tmp_path_factory.mktemp("three")
    return [
        peft_adapter(bert, folder / "a", 0),
        peft_adapter(bert, folder / "b", 1, rank=3, labels=3),
        peft_adapter(bert, folder / "c", 2, targets=("query",)),
    ]


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The updates."""
    return {path: factors.materialise() for path, factors in adapter.modules.items()}


def test_concatenation_adds_up_what_peft_applies(bert: Path, three: list[Path], run: Run, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "sum"
    assert run("merge", *three, rule="concatenation", weights="0.5,-1,2", output_dir=out) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    assert "relative difference from the weighted sum of the updates: 0.000 (median), 0.000" in said.err
    found = [dense(paring.read(source)) for source in three]
    for path, update in dense(paring.read(out)).items():
        total = sum(weight * one.get(path, torch.zeros(())) for weight, one in zip((0.5, -1.0, 2.0), found, strict=True))
        torch.testing.assert_close(update, total, rtol=1e-5, atol=1e-5)
    # Without a head it loads beside any, which then keeps its own.
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=5)
    before = base.classifier.weight.detach().clone()
    loaded = PeftModel.from_pretrained(base, out)
    assert torch.equal(loaded.get_base_model().classifier.weight, before)
    words = torch.arange(5, 11)[None]
    with loaded.disable_adapter():
        alone = loaded.eval()(input_ids=words).logits
    assert not torch.allclose(loaded(input_ids=words).logits, alone)


@pytest.mark.parametrize("rule", ["svd", "linear", "ties", "dare", "magnitude", "lego", "Lego(balance=True, sign_align=True)"])
def test_every_rule_writes_a_plain_lora(rule: str, three: list[Path], run: Run, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "merged"
    assert run("merge", *three, rule=rule, output_dir=out) == 0
    assert max(paring.read(out).ranks.values()) == 4
    assert run("verify", out) == 0
    said = capsys.readouterr().err
    assert "relative difference from the mean of the updates: 0." in said
    assert "--heads_of ADAPTER" in said


def test_what_is_said_and_what_is_written(three: list[Path], run: Run, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "merged"
    assert run("merge", *three, rule="lego", rank=3, seed=5, layout="uniform", export_dtype="bfloat16", output_dir=out) == 0
    lines = capsys.readouterr().err.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("adapter "))
    adapters = [paring.read(source) for source in three]
    merged = paring.read(out)
    for line, name, one in zip(lines[head + 1 :], [*three, out], [*adapters, merged], strict=False):
        assert line.split()[:4] == [str(name), f"{one.parameters:,}", f"{sum(one.ranks.values()):,}", str(one.max_rank)]
    assert set(merged.ranks.values()) == {3}
    wanted = dense(merge(adapters, Lego(rank=3, seed=5)))
    for path, update in dense(merged).items():
        torch.testing.assert_close(update, wanted[path], rtol=0.05, atol=0.02)
    command = json.loads((out / "paring.json").read_text())["command"]
    assert command.endswith("--rule lego --rank 3 --seed 5")
    assert merged.metadata.task_type is None


def test_runs_of_ours_keep_head_labels_and_tokenizer(trained: Path, moods: Path, run: Run, tmp_path: Path, capsys: Capture) -> None:
    source, out = trained / "adapter", tmp_path / "merged"
    assert run("merge", source, source, output_dir=out) == 0
    one, again = paring.read(source), paring.read(out)
    assert all(torch.equal(one.heads[name], tensor) for name, tensor in again.heads.items())
    for path, update in dense(again).items():
        torch.testing.assert_close(update, dense(one)[path], rtol=1e-4, atol=1e-5)
    assert {item.name for item in source.iterdir()} == {item.name for item in out.iterdir()}
    assert run("eval", out, moods) == 0
    capsys.readouterr()


def test_a_head_that_is_asked_for(bert: Path, three: list[Path], run: Run, tmp_path: Path, capsys: Capture) -> None:
    assert run("merge", *three, output_dir=tmp_path / "merged", heads_of=three[1]) == 0
    assert "heads differ" not in capsys.readouterr().err
    merged, wanted = paring.read(tmp_path / "merged"), paring.read(three[1])
    assert merged.heads.keys() == wanted.heads.keys()
    assert all(torch.equal(wanted.heads[name], tensor) for name, tensor in merged.heads.items())
    PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), tmp_path / "merged")


def test_nothing_is_overwritten_unasked(three: list[Path], run: Run, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "merged"
    assert run("merge", *three, output_dir=out, rank=1) == 0
    before = (out / "adapter_model.safetensors").read_bytes()
    assert run("merge", *three, output_dir=out, rank=2) == 1
    assert "exists already" in capsys.readouterr().err
    assert (out / "adapter_model.safetensors").read_bytes() == before
    assert run("merge", "--overwrite", *three, output_dir=out, rank=2) == 0
    assert (out / "adapter_model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"rule": "lega"}, "there is no such rule. Did you mean 'lego'"),
        ({"rule": "lego", "rank": 100}, "rank=100: all adapters together have only"),
        ({"rule": "lego", "weights": "1,2,3"}, "--weights is no setting of lego, which has rank, seed"),
        ({"rule": "svd", "density": 0.5}, "--density is no setting of svd"),
        ({"rule": "TIES(density=0.2)", "density": 0.5}, "both say density"),
        ({"rule": "TIES(dense=0.2)"}, "Unknown key 'dense'"),
        ({"rule": "ties", "density": 2}, "density=2"),
        ({"weights": "1,2"}, "one for each of the 3 adapters"),
        ({"weights": "one,two,three"}, "give numbers separated by commas"),
        ({"rank": 0}, "rank=0"),
        ({"heads_of": "elsewhere"}, "--heads_of 'elsewhere' is none of the adapters"),
    ],
    ids=str,
)
def test_settings_that_are_refused(
    flags: dict[str, object], said: str, three: list[Path], run: Run, tmp_path: Path, capsys: Capture
) -> None:
    assert run("merge", *three, output_dir=tmp_path / "merged", **flags) == 1
    complaints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("paring: error: ")]
    assert len(complaints) == 1
    assert said in complaints[0]
    assert not (tmp_path / "merged").exists()


def test_adapters_that_are_refused(
    bert: Path, wide_bert: Path, trained: Path, three: list[Path], run: Run, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "merged"

    def refused(*adapters: object, **flags: object) -> str:
        assert run("merge", *adapters, output_dir=out, **flags) == 1
        assert not out.exists()
        return " ".join(capsys.readouterr().err.split())

    assert "at least two adapters to merge, not 1" in refused(three[0])
    assert "There is no folder" in refused(three[0], tmp_path / "nowhere")
    assert f"its adapter is {str(trained / 'adapter')!r}, give that" in refused(three[0], trained)
    wide = peft_adapter(wide_bert, tmp_path / "wide", 0)
    assert "different base models" in refused(three[0], wide)
    assert "Module 'bert.encoder.layer.0.attention.output.dense' is 16 -> 16 in adapter 1 and 64 -> 64 in adapter 2" in refused(
        three[0], wide, model_name_or_path=bert
    )
    moved = Path(shutil.copytree(three[1], tmp_path / "moved"))
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "me/bert"}))
    assert "--model_name_or_path" in refused(three[0], moved)
    assert run("merge", three[0], moved, output_dir=out, model_name_or_path="me/bert") == 0
    assert paring.read(out).metadata.base_model == "me/bert"
