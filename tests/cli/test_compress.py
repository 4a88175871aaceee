"""``paring compress``: adapters of paring's and PEFT's own, without the base model, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

import paring

Run = Callable[..., int]


def test_a_run_of_ours_gets_smaller_and_keeps_what_travels_with_it(trained: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    source, folder = trained / "adapter", tmp_path / "small"
    assert run("compress", source, folder, budget="50%") == 0
    before, after = paring.read(source), paring.read(folder)
    assert 0 < after.parameters <= before.parameters // 2
    assert all(torch.equal(before.heads[name], tensor) for name, tensor in after.heads.items())
    assert {item.name for item in source.iterdir()} == {item.name for item in folder.iterdir()}
    assert "paring compress" in json.loads((folder / "paring.json").read_text())["command"]
    assert run("eval", folder, moods) == 0
    assert run("verify", folder) == 0


def test_a_lora_of_pefts_own_with_a_scale_of_its_own(bert: Path, run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    config = LoraConfig(
        r=6, lora_alpha=5, use_rslora=True, target_modules=["query", "dense"], task_type="SEQ_CLS", rank_pattern={"query": 3}
    )
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "peft")
    words = torch.arange(5, 11)[None]
    wanted = model.eval()(input_ids=words).logits
    assert run("compress", tmp_path / "peft", tmp_path / "all", rank=6) == 0
    again = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2), tmp_path / "all").eval()
    assert torch.allclose(again(input_ids=words).logits, wanted, atol=1e-5)
    assert run("compress", tmp_path / "peft", tmp_path / "two", rank=2, layout="uniform", export_dtype="bfloat16") == 0
    assert set(paring.read(tmp_path / "two").ranks.values()) == {2}


def test_bytes_are_those_of_the_type_that_is_written(trained: Path, run: Run, tmp_path: Path) -> None:
    assert run("compress", trained / "adapter", tmp_path / "narrow", rank=4, export_dtype="bfloat16") == 0
    sizes = {}
    for name, source, flags in (
        ("float32", trained / "adapter", {}),
        ("asked for", trained / "adapter", {"export_dtype": "bfloat16"}),
        ("kept", tmp_path / "narrow", {}),
    ):
        assert run("compress", source, tmp_path / name, budget="1kB", **flags) == 0
        sizes[name] = paring.read(tmp_path / name).parameters
    # The cheapest rank of a module takes 32 parameters.
    assert 250 - 48 < sizes["float32"] <= 250
    assert 500 - 48 < sizes["asked for"] <= 500
    assert 500 - 48 < sizes["kept"] <= 500


def test_what_is_said(trained: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", trained / "adapter", tmp_path / "small", energy=0.9) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "small")
    assert "of the squared norm of all updates" in said.err
    assert "largest relative error of a module" in said.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "Give one of --rank, --energy and --budget."),
        ({"rank": 2, "energy": 0.5}, "not --rank and --energy"),
        ({"rank": 0}, "rank"),
        ({"energy": 2}, "share"),
        ({"budget": "lots"}, "there is no such size"),
        ({"budget": "3"}, "nothing to export"),
    ],
    ids=str,
)
def test_what_is_refused(
    flags: dict[str, object], said: str, trained: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress", trained / "adapter", tmp_path / "small", **flags) != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "small").exists()


def test_nothing_is_overwritten_unasked(trained: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", trained / "adapter", tmp_path / "small", rank=1) == 0
    before = (tmp_path / "small" / "adapter_model.safetensors").read_bytes()
    assert run("compress", trained / "adapter", tmp_path / "small", rank=2) != 0
    assert (tmp_path / "small" / "adapter_model.safetensors").read_bytes() == before
    assert run("compress", trained / "adapter", tmp_path / "small", "--rank", 2, "--overwrite") == 0
    assert run("compress", trained, tmp_path / "other", rank=1) != 0
    assert "give that" in capsys.readouterr().err


def test_a_compressed_adapter_is_refined_at_its_own_ranks(trained: Path, bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    assert run("compress", trained / "adapter", tmp_path / "small", budget="50%") == 0
    small = paring.read(tmp_path / "small")
    assert len(set(small.ranks.values())) > 1, "all ranks are alike, so nothing is shown"
    flags = {"method": "lora", "init_adapter": tmp_path / "small", "model_name_or_path": bert, "dataset_name": moods, "seed": 0}
    more = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2, "output_dir": tmp_path / "refined"}
    assert run("train", **flags, **more, max_steps=4) == 0
    refined = paring.read(tmp_path / "refined" / "adapter")
    assert refined.ranks == {path: rank for path, rank in small.ranks.items() if rank}
    path = max(refined.ranks, key=lambda path: refined.ranks[path])
    before, after = small.modules[path].materialise(), refined.modules[path].materialise()
    assert 0 < float((after - before).norm()) < 0.5 * float(before.norm())
    # And a checkpoint of such ranks goes on.
    whole = (tmp_path / "refined" / "adapter" / "adapter_model.safetensors").read_bytes()
    again = {**more, "output_dir": tmp_path / "refined", "resume_from_checkpoint": tmp_path / "refined" / "checkpoint-2"}
    assert run("train", **flags, **again, max_steps=4) == 0
    assert (tmp_path / "refined" / "adapter" / "adapter_model.safetensors").read_bytes() == whole
