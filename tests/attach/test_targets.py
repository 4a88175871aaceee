"""Targets that would train and do nothing, or be wrapped twice, are refused before anything has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForSequenceClassification

import paring
from paring.attach.layer import ParingLinear
from paring.core.errors import AdapterError, TargetError
from paring.methods.lora import LoRA
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


def bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
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
