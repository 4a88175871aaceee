"""Both layouts in stock PEFT and transformers: the outputs are the adapter's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from paring.core.adapter import Adapter, Metadata
from paring.core.errors import ExportError
from paring.core.factors import Factors
from paring.exchange.write import write
from tests.releases import own_heads

IDS = torch.tensor([[3, 5, 7, 2, 9], [1, 8, 6, 4, 2]])


def bert() -> nn.Module:
    """Eleven layers, so that layer.1 and layer.10 both occur."""
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=11,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def llama() -> nn.Module:
    """Grouped queries and a tied head."""
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    """Conv1D, whose weight is (in, out)."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16))


class Collisions(nn.Module):
    """Names that end each other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.enc = nn.ModuleDict({"fc": nn.Linear(6, 6), "enc": nn.ModuleDict({"fc": nn.Linear(6, 6)})})
        self.other = nn.ModuleDict({"fc": nn.Linear(6, 6)})

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        for layer in (self.fc, self.enc["fc"], self.enc["enc"]["fc"], self.other["fc"]):  # type: ignore[index]
            x = torch.tanh(layer(x))
        return x


def linears(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(in, out) of the modules to adapt: not all, so that names have neighbours that they must not hit."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(("lm_head", "classifier", "key", "value", "intermediate.dense")):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.weight.shape[0], module.weight.shape[1])
    return found


def trained(model: nn.Module, ranks: Mapping[str, int], **metadata: Any) -> Adapter:
    """Random gated factors of these live ranks, and the heads."""
    generator = torch.Generator().manual_seed(1)
    modules = {}
    for path, (width, height) in linears(model).items():
        if path in ranks:
            gate = torch.cat([torch.rand(ranks[path], generator=generator) + 0.5, torch.zeros(4 - ranks[path])])[
                torch.randperm(4, generator=generator)
            ]
            a, b = torch.randn(4, width, generator=generator), torch.randn(height, 4, generator=generator)
            modules[path] = Factors(a=a, b=b, gate=gate, scale=0.3)
    heads = {
        name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items() if name.startswith("classifier.")
    }
    return Adapter(modules=modules, heads=heads, metadata=Metadata(**metadata))


def merged(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The model with the updates added to its weights: what every loader must equal."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for path, factors in adapter.modules.items():
            layer = model.get_submodule(path)
            update = factors.materialise()
            layer.weight += update.T if isinstance(layer, Conv1D) else update  # type: ignore[operator]
        model.load_state_dict(dict(adapter.heads), strict=False)
    return model.eval()


def output(model: nn.Module) -> Tensor:
    """Logits, or the output itself."""
    with torch.no_grad():
        if (isinstance(model, PeftModel) and isinstance(model.get_base_model(), Collisions)) or isinstance(model, Collisions):
            plain: Tensor = model(torch.linspace(-1, 1, 12).reshape(2, 6))
            return plain
        logits: Tensor = model(input_ids=IDS).logits
        return logits


def cycle(model: nn.Module, ranks: tuple[int, ...] = (3, 0, 1, 4, 2)) -> dict[str, int]:
    """Ranks dealt out in turn."""
    return {path: ranks[index % len(ranks)] for index, path in enumerate(linears(model))}


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (bert, {"task_type": "SEQ_CLS"}),
    "llama": (llama, {"task_type": "CAUSAL_LM"}),
    "gpt2": (gpt2, {"task_type": "CAUSAL_LM"}),
    "collisions": (Collisions, {}),
}


def case(name: str) -> tuple[nn.Module, Adapter]:
    """A model and a trained adapter of it."""
    torch.manual_seed(0)
    make, metadata = CASES[name]
    model = make().eval()
    ranks = {"fc": 3, "enc.enc.fc": 1} if name == "collisions" else cycle(model)
    if name == "gpt2":
        metadata = {**metadata, "fan_in_fan_out": frozenset(ranks)}
    return model, trained(model, ranks, **metadata)


@pytest.mark.parametrize("layout", ["compact", "uniform"])
@pytest.mark.parametrize("name", CASES)
def test_stock_peft(tmp_path: Path, name: str, layout: Any) -> None:
    model, adapter = case(name)
    names = [path for path, _ in model.named_modules()]
    out = write(adapter, tmp_path / "out", layout=layout, module_names=names)
    expected, before = output(merged(model, adapter)), output(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(copy.deepcopy(model), out).eval()
    adapted = {
        path.removeprefix("base_model.model.")
        for path, module in loaded.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }
    assert adapted == {path for path, rank in adapter.ranks.items() if rank or layout == "uniform"}
    assert (output(loaded) - expected).abs().max() < 1e-5
    assert (expected - before).abs().max() > 1e-3
    assert not [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(("name", "layout"), [pytest.param("bert", "compact", marks=own_heads), ("llama", "uniform")])
def test_transformers_load_adapter(tmp_path: Path, name: str, layout: Any) -> None:
    model, adapter = case(name)
    out = write(adapter, tmp_path / "out", layout=layout, module_names=[path for path, _ in model.named_modules()])
    expected = output(merged(model, adapter))
    loaded = copy.deepcopy(model)
    loaded.load_adapter(str(out))  # type: ignore[operator]
    assert (output(loaded.eval()) - expected).abs().max() < 1e-5


def test_bf16_differs_by_rounding_only(tmp_path: Path) -> None:
    model, adapter = case("llama")
    out = write(adapter, tmp_path / "out", dtype=torch.bfloat16, module_names=[path for path, _ in model.named_modules()])
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), out).eval()
    distance = (output(loaded) - output(merged(model, adapter))).abs().max()
    assert 0 < distance < 0.1


def test_a_head_that_peft_would_miss_is_refused(tmp_path: Path) -> None:
    """Without this, loading ends in a KeyError for classifier.weight."""
    model, adapter = case("bert")
    headless = Adapter(modules=adapter.modules, metadata=adapter.metadata)
    with pytest.raises(ExportError, match="'classifier'.*modules_to_save"):
        write(headless, tmp_path / "out", module_names=[path for path, _ in model.named_modules()])
