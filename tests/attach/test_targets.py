"""Targets that would train and do nothing, or be wrapped twice, are refused before anything has changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForSequenceClassification

import paring
from paring.attach.config import ParingConfig
from paring.attach.layer import ParingLinear
from paring.core.errors import AdapterError, TargetError
from paring.methods.lora import LoRA
from paring.methods.nola import NOLA
from paring.methods.sora import SoRA

METHOD = SoRA(rank=2, alpha=4)
IDS = torch.arange(6)[None]


class Encoder(nn.Module):
    """Torch's own encoder layer, whose fast path reads linear1.weight and linear2.weight in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Both of them."""
        return self.fc(self.layer(x))


class Towers(nn.Module):
    """Names with hyphens."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"text-encoder": nn.Linear(4, 4), "image-encoder": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        """Both of them."""
        return self.towers["text-encoder"](x) + self.towers["image-encoder"](x)


def bert(layers: int = 1) -> Any:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24)
    return BertForMaskedLM(config).eval()


def distilbert() -> Any:
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=24)).eval()


def wrapped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, ParingLinear)]


def test_torchs_encoder_layer_is_left_out_of_all_linear_and_refused_by_name() -> None:
    model = Encoder()
    with pytest.raises(TargetError, match=r"'layer\.linear1'.*fast path"):
        paring.adapt(model, METHOD, target_modules=["linear1"], seed=0)
    assert wrapped(model) == []
    assert list(paring.ranks(paring.adapt(model, METHOD, seed=0))) == ["fc"]


def test_a_head_that_peft_trains_fully_is_left_out_of_all_linear() -> None:
    model = distilbert()
    before = model(IDS).logits
    adapted = paring.adapt(model, METHOD, task_type="SEQ_CLS", seed=0)
    assert "pre_classifier" not in paring.ranks(adapted)
    assert {name.partition(".")[0] for name in paring.snapshot(adapted).heads} == {"pre_classifier", "classifier"}
    assert torch.equal(adapted(IDS).logits, before)


def test_a_head_that_peft_trains_fully_is_no_target() -> None:
    model = distilbert()
    with pytest.raises(TargetError, match=r"'pre_classifier'.*trained fully as well"):
        paring.adapt(model, METHOD, target_modules=["q_lin", "pre_classifier"], task_type="SEQ_CLS", seed=0)
    assert wrapped(model) == []


@pytest.mark.parametrize("target", ["classifier", ["classifier"], ["q_lin", "classifier"]])
def test_the_head_as_a_target_is_said_to_be_trained_already(target: Any) -> None:
    model = distilbert()
    with pytest.raises(TargetError, match="'classifier'.* is trained in full already"):
        paring.adapt(model, METHOD, target_modules=target, task_type="SEQ_CLS", seed=0)
    assert wrapped(model) == []


@pytest.mark.parametrize("targets", [["query"], "all-linear"])
def test_layers_are_those_that_are_asked_for(targets: Any) -> None:
    config = ParingConfig(method=METHOD, target_modules=targets, layers_to_transform=[1, 2])
    names = list(paring.ranks(get_peft_model(bert(3), config)))
    assert names
    assert {name.split(".")[3] for name in names} == {"1", "2"}


@pytest.mark.parametrize("targets", [["query"], "all-linear"])
@pytest.mark.parametrize("layers", [17, [17, 18]])
def test_layers_that_are_not_there_are_named(targets: Any, layers: Any) -> None:
    model = bert(3)
    config = ParingConfig(method=METHOD, target_modules=targets, layers_to_transform=layers)
    with pytest.raises(TargetError, match=rf"outside of layers_to_transform = {re.escape(repr(layers))} \(they lie in layers 0 to 2\)"):
        get_peft_model(model, config)
    assert wrapped(model) == []


def test_exclusions_that_leave_nothing_are_named() -> None:
    with pytest.raises(TargetError, match=r"target_modules='all-linear' matches only .* are in exclude_modules = '\.\*'"):
        paring.adapt(bert(), METHOD, exclude_modules=".*", seed=0)


@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules", "modules_to_save"])
def test_a_broken_pattern_is_named(setting: str) -> None:
    model = bert()
    with pytest.raises(TargetError, match=rf"{setting}: '\[' is no regular expression"):
        paring.adapt(model, METHOD, seed=0, **{setting: "["})  # type: ignore[arg-type]
    assert wrapped(model) == []


@pytest.mark.parametrize(
    ("setting", "given", "near"),
    [("exclude_modules", ["querry"], "query"), ("exclude_modules", "querry", "query"), ("modules_to_save", ["clasifier"], "classifier")],
)
def test_names_that_match_nothing_are_refused_with_near_ones(setting: str, given: Any, near: str) -> None:
    model = distilbert() if setting == "modules_to_save" else bert()
    wrong = given if isinstance(given, str) else given[0]
    with pytest.raises(TargetError, match=rf"{setting}.*{wrong!r}.* matches no module.*Did you mean '{near}'"):
        paring.adapt(model, METHOD, seed=0, **{setting: given})
    assert wrapped(model) == []


def test_names_that_a_task_implies_need_not_be_there_nor_any_in_a_model_for_inference() -> None:
    # PEFT writes both names of a head for classification into the configuration, and a model has one of them.
    assert paring.adapt(distilbert(), METHOD, modules_to_save=["score"], task_type="SEQ_CLS", seed=0)
    config = ParingConfig(method=METHOD, target_modules=["query"], exclude_modules=["cls.gone"], inference_mode=True)
    assert paring.ranks(get_peft_model(bert(), config))


def test_one_module_to_save_is_one_name() -> None:
    adapted = paring.adapt(bert(), METHOD, target_modules=["query"], modules_to_save="decoder", seed=0)
    assert {name.rpartition(".")[0] for name in paring.snapshot(adapted).heads} == {"cls.predictions.decoder"}


def test_a_module_with_two_names_is_refused() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"fc": nn.Linear(4, 4)}), "b": nn.ModuleDict()})
    model["b"]["fc"] = model["a"]["fc"]  # type: ignore[index]
    with pytest.raises(TargetError, match=r"'a\.fc' is also 'b\.fc'"):
        paring.adapt(model, METHOD, target_modules=["fc"], seed=0)
    assert wrapped(model) == []


def test_a_tied_output_layer_is_not_merged_whatever_its_name() -> None:
    model = bert()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    adapted = paring.adapt(model, LoRA(rank=2, alpha=4), target_modules=["decoder", "query"], seed=0)
    before = adapted(IDS).logits
    with pytest.raises(TargetError, match=r"'cls\.predictions\.decoder' shares its weight with 'bert\.embeddings\.word_embeddings'"):
        adapted.merge_adapter()
    assert torch.equal(adapted(IDS).logits, before)


def test_an_offloaded_module_is_refused() -> None:
    model = bert()
    cpu_offload(model, torch.device("cpu"))
    with pytest.raises(TargetError, match="offloaded by accelerate"):
        paring.adapt(model, METHOD, target_modules=["query"], seed=0)


def test_a_start_that_does_not_fit_is_refused_before_any_module_is_touched() -> None:
    trained = paring.snapshot(paring.adapt(bert(), LoRA(rank=2, alpha=4), target_modules=["query"], seed=0))
    model = bert()
    with pytest.raises(AdapterError, match="has no factors for it"):
        paring.adapt(model, SoRA.from_adapter(trained), target_modules=["query", "key"], seed=0)
    assert wrapped(model) == []


def test_names_with_hyphens_train_and_are_exported(tmp_path: Path) -> None:
    model = paring.adapt(Towers(), LoRA(rank=2, alpha=4), target_modules=["text-encoder", "image-encoder"], seed=0)
    paring.export(model, tmp_path / "out")
    assert set(paring.read(tmp_path / "out").modules) == {"towers.text-encoder", "towers.image-encoder"}


class Experts(nn.Module):
    """Fused experts, and what looks like them."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 6, 3))
        self.positions = nn.Parameter(torch.zeros(1, 4, 6))
        self.fused = weight


def test_experts_that_all_linear_leaves_out_are_told_of() -> None:
    with pytest.warns(UserWarning, match=r"leaves out fused: tensors of several experts each.*\d+% of the model"):
        paring.adapt(Experts(nn.Parameter(torch.zeros(4, 6, 6))), LoRA(rank=2), target_modules="all-linear", seed=0)


def test_what_is_no_expert_is_not_told_of(recwarn: pytest.WarningsRecorder) -> None:
    model = paring.adapt(Experts(nn.Parameter(torch.zeros(6))), NOLA(bases=20, rank=2), target_modules="all-linear", seed=0)
    model.add_adapter("second", paring.ParingConfig(method=LoRA(rank=2), target_modules="all-linear", seed=0))
    assert not [item for item in recwarn if "experts" in str(item.message)]
