"""The commands that take a finished run further."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import paring
from paring.cli.commands.inspect import sizes
from paring.cli.commands.verify import grouped, worded
from paring.cli.run.loaded import load_checkpoint, load_trained
from paring.cli.run.outputs import logits
from paring.exchange.engines import Finding
from paring.method import load, names

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]

TEXTS = ["the film was great", "it seemed awful and grey", "a lovely day"]


def test_export_of_a_checkpoint_gives_the_live_outputs(trained: Path, run: Run, tmp_path: Path, capsys: Capture) -> None:
    assert run("export", trained / "checkpoint-8", tmp_path / "out", layout="uniform") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    model, base = load_checkpoint(trained / "checkpoint-8")
    again = load_trained(str(tmp_path / "out"), device="cpu")
    assert again.names == ("bad", "good")
    ours, theirs = logits(model, base.tokenizer, [TEXTS], 32), logits(again.joined(), again.tokenizer, [TEXTS], 32)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_predict_says_label_and_scores(trained: Path, run: Run, capsys: Capture) -> None:
    assert run("predict", trained / "adapter", *TEXTS) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    for line in lines:
        assert line["label"] == max(line["scores"], key=line["scores"].__getitem__)
        assert sum(line["scores"].values()) == pytest.approx(1.0, abs=1e-5)


def test_predict_reads_stdin_and_files_alike(
    trained: Path, run: Run, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{line}\n" for line in TEXTS)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert run("predict", trained / "adapter") == 0
    piped = capsys.readouterr().out
    (tmp_path / "texts.txt").write_text(text, encoding="utf-8")
    assert run("predict", trained / "adapter", file=tmp_path / "texts.txt") == 0
    assert capsys.readouterr().out == piped
    assert len(piped.splitlines()) == 3


def test_eval_repeats_the_metrics_of_the_run(trained: Path, moods: Path, run: Run, capsys: Capture) -> None:
    assert run("eval", trained / "adapter", moods) == 0
    said = json.loads(capsys.readouterr().out)
    recorded = json.loads((trained / "run.json").read_text(encoding="utf-8"))["metrics"]
    assert said["rows"] == 32
    assert said["accuracy"] == pytest.approx(recorded["accuracy"])
    assert said["matthews"] == pytest.approx(recorded["matthews"])


def test_fuse_leaves_a_model_that_needs_no_adapter(trained: Path, run: Run, tmp_path: Path) -> None:
    assert run("fuse", trained / "adapter", tmp_path / "fused") == 0
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "fused"),
        AutoTokenizer.from_pretrained(tmp_path / "fused"),
    )
    assert model.config.id2label == {0: "bad", 1: "good"}
    source = load_trained(str(trained / "adapter"), device="cpu")
    ours, theirs = logits(source.joined(), source.tokenizer, [TEXTS], 32), logits(model.eval(), tokenizer, [TEXTS], 32)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_fuse_replaces_what_it_wrote_and_nothing_else(trained: Path, run: Run, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "fused"
    assert run("fuse", trained / "adapter", out) == 0
    (out / "model.safetensors").write_bytes(b"old")
    assert run("fuse", "--overwrite", trained / "adapter", out) == 0
    assert (out / "model.safetensors").stat().st_size > 1000
    assert [item.name for item in tmp_path.iterdir()] == ["fused"]
    # Not each other's: the adapter that is fused would be gone.
    assert run("fuse", "--overwrite", trained / "adapter", trained / "adapter") == 1
    assert run("export", "--overwrite", trained / "checkpoint-8", out) == 1
    assert "holds an earlier fusion" in capsys.readouterr().err
    # A fusion has no model card, so a README is the user's.
    for name in ("thesis.txt", "README.md"):
        (out / name).write_text("mine", encoding="utf-8")
        assert run("fuse", "--overwrite", trained / "adapter", out) == 1
        assert name in capsys.readouterr().err
        assert (out / name).read_text(encoding="utf-8") == "mine"
        (out / name).unlink()


def test_texts_after_flags(trained: Path, run: Run, tmp_path: Path, capsys: Capture) -> None:
    assert run("predict", trained / "adapter", TEXTS[0], "--batch_size", "4", *TEXTS[1:], "--dtype=float32", "--", "-x") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == [*TEXTS, "-x"]


def test_inspect_counts_ranks_and_what_plain_lora_would_cost(trained: Path, run: Run, capsys: Capture) -> None:
    assert run("inspect", trained / "adapter") == 0
    shown = capsys.readouterr().out
    adapter = paring.read(trained / "adapter")
    costs = sizes(adapter)
    assert costs["lora_parameters_at_start_rank"] == 4 * sum(f.in_features + f.out_features for f in adapter.modules.values())
    assert f"{costs['parameters']:,}" in shown
    assert run("inspect", "--json", trained / "checkpoint-8") == 0
    data = json.loads(capsys.readouterr().out)
    assert {module["path"]: module["rank"] for module in data["modules"]} == adapter.ranks


def test_verify_status_depends_on_the_engines_that_are_asked_for(trained: Path, run: Run, capsys: Capture) -> None:
    assert run("verify", trained / "adapter") == 0
    assert run("verify", "--json", trained / "adapter", engines="llama_cpp") == 1
    out = capsys.readouterr().out
    findings = json.loads(out[out.index("\n{") :])["findings"]
    assert {item["engine"] for item in findings} >= {"peft", "transformers", "vllm_0_32", "llama_cpp"}


def test_full_verification_loads_the_adapter_where_paring_is_not(trained: Path, run: Run, capsys: Capture) -> None:
    assert run("verify", "--full", trained / "adapter") == 0
    assert "without paring: equal" in capsys.readouterr().out


def test_findings_of_many_modules_become_one_line() -> None:
    same = [Finding(engine="x", level="error", module=name, message="no") for name in ("a", "b")]
    other = Finding(engine="x", level="ok", module=None, message="yes")
    assert [worded(group) for group in grouped([*same, other])] == ["a and 1 more like it: no", "yes"]


def test_methods_lists_the_registry(run: Run, capsys: Capture) -> None:
    assert run("methods", "--json") == 0
    assert {"lora", "sora"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert run("methods") == 0


@pytest.mark.parametrize("name", names())
def test_methods_tells_all_of_one(name: str, run: Run, capsys: Capture) -> None:
    about = load(name).about
    assert run("methods", method=name) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in (about.title, about.paper, about.parameters, *about.verified, *about.deviations))
    assert "`" not in said.split("Defaults:")[0]
    assert "\\" not in said.split("Defaults:")[0]
    assert run("methods", "--json", method=name) == 0
    assert json.loads(capsys.readouterr().out)["verified"] == list(about.verified)


def test_methods_knows_near_names(run: Run, capsys: Capture) -> None:
    assert run("methods", method="lorra") != 0
    assert "Did you mean" in capsys.readouterr().err


def test_language_model_from_training_to_fused_text(
    llama: Path, run: Run, jsonl: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("trl")
    data = jsonl("rows.jsonl", *({"prompt": "the film was", "completion": " great"} for _ in range(8)))
    flags = {"max_steps": 30, "rank": 8, "learning_rate": 0.02, "eval_share": 0, "method": "lora", "modules_to_save": "lm_head"}
    assert run("train", **flags, model_name_or_path=llama, dataset_name=data, output_dir=tmp_path / "out") == 0
    adapter = tmp_path / "out" / "adapter"
    capsys.readouterr()
    assert run("predict", adapter, "the film was", max_new_tokens=4) == 0
    assert json.loads(capsys.readouterr().out) == {"prompt": "the film was", "completion": "great"}
    assert run("eval", adapter, data) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["perplexity"] < 3
    assert run("fuse", adapter, tmp_path / "fused") == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "fused").config.model_type == "llama"
