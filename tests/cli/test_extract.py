"""``paring extract``: stock PEFT gives the tuned model's outputs, and what is refused."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import paring

Run = Callable[..., int]
WORDS = torch.arange(5, 13)[None]


def tune(model: PreTrainedModel, names: str, size: float = 0.02) -> PreTrainedModel:
    """Change the parameters whose names a pattern finds, as a training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(names, name):
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def classifier(bert: Path, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(bert, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}).eval()


@pytest.fixture(scope="module")
def tuned(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of which the linear weights, the biases, the norms and the embeddings were trained."""
    folder = tmp_path_factory.mktemp("tuned")
    tune(classifier(bert), "").save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of which nothing but linear weights and the head were trained."""
    folder = tmp_path_factory.mktemp("plain")
    tune(classifier(bert), r"(query|key|value|dense)\.weight|classifier").save_pretrained(folder)
    return folder


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=WORDS).logits
    return found


def test_stock_peft_gives_the_tuned_models_outputs_at_full_rank(bert: Path, plain: Path, run: Run, tmp_path: Path) -> None:
    assert run("extract", bert, plain, tmp_path / "lora", rank=16) == 0
    base = classifier(bert, seed=7)
    wanted, before = outputs(AutoModelForSequenceClassification.from_pretrained(plain)), outputs(base)
    found = outputs(PeftModel.from_pretrained(base, tmp_path / "lora"))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(before, wanted, atol=1e-2)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["base_model_name_or_path"]) == ("LORA", "SEQ_CLS", str(bert))
    assert "paring extract" in json.loads((tmp_path / "lora" / "paring.json").read_text())["command"]
    assert run("verify", tmp_path / "lora") == 0


def test_less_rank_loses_more(bert: Path, plain: Path, run: Run, tmp_path: Path) -> None:
    before, after = classifier(bert).state_dict(), AutoModelForSequenceClassification.from_pretrained(plain).state_dict()
    distances = []
    for rank in (1, 8, 15):
        assert run("extract", bert, plain, tmp_path / str(rank), rank=rank) == 0
        found = paring.read(tmp_path / str(rank))
        assert found.max_rank == rank
        updates = {f"{path}.weight": factors.materialise() for path, factors in found.modules.items()}
        distances.append(sum(float((after[name] - before[name] - update).norm()) for name, update in updates.items()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.2 * distances[0]


def test_what_has_no_place_is_refused_by_name_or_left_out_and_told(
    bert: Path, tuned: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", bert, tuned, tmp_path / "lora", rank=4) == 1
    said = capsys.readouterr().err
    assert "'bert.embeddings.word_embeddings.weight'" in said
    assert "--drop_rest" in said
    assert not (tmp_path / "lora").exists()
    assert run("extract", bert, tuned, tmp_path / "lora", "--drop_rest", energy=0.9) == 0
    said = capsys.readouterr().err
    assert "of the squared norm of all updates" in said
    assert "left out: the changes of" in said
    losses = [float(value) for value in re.findall(r"([\d.]+)% of the squared norm", said)]
    assert losses[0] >= 90
    # Labels and tokenizer travel along, so the adapter is used like any other.
    assert json.loads((tmp_path / "lora" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}
    assert run("eval", tmp_path / "lora", moods) == 0


def test_modules_to_save_are_carried_whole(bert: Path, tmp_path: Path, run: Run) -> None:
    changed = r"(query|dense)\.weight|classifier|LayerNorm|embeddings"
    tune(classifier(bert), changed).save_pretrained(tmp_path / "tuned")
    assert run("extract", bert, tmp_path / "tuned", tmp_path / "lora", rank=16, modules_to_save="LayerNorm,embeddings") == 0
    wanted = outputs(AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned"))
    assert torch.allclose(outputs(PeftModel.from_pretrained(classifier(bert), tmp_path / "lora")), wanted, atol=1e-5)


def test_a_decoder_and_a_bare_encoder(llama: Path, bert: Path, run: Run, tmp_path: Path) -> None:
    tune(AutoModelForCausalLM.from_pretrained(llama), "proj").save_pretrained(tmp_path / "decoder")
    assert run("extract", llama, tmp_path / "decoder", tmp_path / "lora", rank=16) == 0
    wanted = outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "decoder"))
    assert torch.allclose(
        outputs(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "lora")), wanted, atol=1e-5
    )
    tune(AutoModel.from_pretrained(bert), r"query\.weight").save_pretrained(tmp_path / "encoder")
    assert run("extract", bert, tmp_path / "encoder", tmp_path / "bare", budget="knee") == 0
    assert {path.rpartition(".")[2] for path in paring.read(tmp_path / "bare").modules} == {"query"}


def test_a_budget_in_bytes_is_of_what_is_written(bert: Path, plain: Path, run: Run, tmp_path: Path) -> None:
    for name, flags, most in (("wide", {}, 1000), ("narrow", {"export_dtype": "bfloat16"}, 2000)):
        assert run("extract", bert, plain, tmp_path / name, budget="4kB", **flags) == 0
        assert most - 48 < paring.read(tmp_path / name).parameters <= most


def test_a_tensor_that_the_base_draws_is_no_start(bert: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An update relative to a pooler that every load draws anew would be noise."""
    headless = tmp_path / "headless"
    headless.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (headless / name).write_bytes((bert / name).read_bytes())
    kept = {name: tensor for name, tensor in load_file(bert / "model.safetensors").items() if "pooler" not in name}
    save_file(kept, headless / "model.safetensors", metadata={"format": "pt"})
    tune(classifier(headless), r"query\.weight").save_pretrained(tmp_path / "tuned")
    assert run("extract", headless, tmp_path / "tuned", tmp_path / "lora", "--drop_rest", rank=16) == 1
    assert "'bert.pooler.dense.bias'" in (said := capsys.readouterr().err)
    assert "no such tensors of its own" in said
    assert run("extract", headless, tmp_path / "tuned", tmp_path / "lora", rank=16, modules_to_save="pooler") == 0
    wanted = outputs(AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned"))
    assert torch.allclose(outputs(PeftModel.from_pretrained(classifier(headless, seed=9), tmp_path / "lora")), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "Give one of --rank, --energy and --budget."),
        ({"rank": 2, "budget": "1k"}, "not --rank and --budget"),
        ({"rank": 0}, "rank"),
        ({"energy": 2}, "share"),
        ({"budget": "lots"}, "there is no such size"),
        ({"rank": 2, "modules_to_save": "LayerNrm"}, "Did you mean"),
        ({"budget": "3"}, "nothing to export"),
    ],
    ids=str,
)
def test_what_is_refused(
    flags: dict[str, object], said: str, bert: Path, plain: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", bert, plain, tmp_path / "lora", **flags) != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "lora").exists()


def test_models_that_do_not_belong_together(
    bert: Path, wide_bert: Path, llama: Path, plain: Path, trained: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for base, tuned, said in (
        (llama, plain, "is a llama and"),
        (wide_bert, plain, "of another shape"),
        (plain, plain, "nothing to extract"),
        (bert, trained / "adapter", "is an adapter, not a model"),
        (bert, tmp_path / "nowhere", "there is no such folder"),
    ):
        assert run("extract", base, tuned, tmp_path / "lora", rank=2) == 1
        assert said in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "lora").exists()


def test_nothing_is_overwritten_unasked_and_a_full_disk_leaves_nothing(
    bert: Path, plain: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import paring.exchange.write

    assert run("extract", bert, plain, tmp_path / "lora", rank=1) == 0
    before = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    assert run("extract", bert, plain, tmp_path / "lora", rank=2) != 0
    assert run("extract", bert, plain, tmp_path / "lora", "--overwrite", rank=2) == 0
    after = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    assert after != before

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paring.exchange.write, "save", full)
    assert run("extract", bert, plain, tmp_path / "lora", "--overwrite", rank=3) == 1
    assert "No space left" in capsys.readouterr().err
    assert (tmp_path / "lora" / "adapter_model.safetensors").read_bytes() == after
    assert [item.name for item in tmp_path.iterdir()] == ["lora"]
