"""What full training has changed, as a LoRA: which modules get one, and what is said of the rest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import paring
from paring.api import fuse
from paring.compress import ToEnergy, ToRank
from paring.core.errors import TargetError

FULL = ToRank(rank=64)


class Net(nn.Module):
    """A module of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.first = nn.Linear(6, 8, bias=False)
        self.second = nn.Linear(8, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.classifier = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.classifier(self.norm(self.second(torch.relu(self.first(self.embed(x)).mean(1)))))
        return found


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def changed(model: Any, *names: str) -> Any:
    """A copy in which the tensors that have these names, or lie in modules of these names, are others."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            if tensor.is_floating_point() and (name in names or name.startswith(tuple(f"{part}." for part in names))):
                tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return other


def test_full_rank_gives_the_tuned_model() -> None:
    base = net()
    tuned = changed(base, "first", "second", "classifier")
    found = paring.extract_lora(base, tuned, FULL, task_type="SEQ_CLS")
    assert found.adapter.modules.keys() == {"first", "second"}
    assert found.adapter.heads.keys() == {name for name in base.state_dict() if name.startswith("classifier.")}
    assert found.dropped == {}
    x = torch.arange(6).view(2, 3)
    assert torch.allclose(fuse(base, found.adapter)(x), tuned(x), atol=1e-6)


def test_a_state_is_as_good_as_a_model() -> None:
    base = net()
    tuned = changed(base, "first", "classifier")
    found, again = (paring.extract_lora(base, given, FULL, task_type="SEQ_CLS").adapter for given in (tuned, tuned.state_dict()))
    assert found.modules.keys() == again.modules.keys() == {"first"}
    assert torch.equal(found.modules["first"].b, again.modules["first"].b)


def test_weights_that_are_stored_the_other_way_round() -> None:
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=2, n_head=2)).eval()
    tuned = changed(
        base, *(f"transformer.h.{index}.{name}.weight" for index in (0, 1) for name in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj"))
    )
    found = paring.extract_lora(base, tuned, FULL, task_type="CAUSAL_LM").adapter
    assert (found.modules["transformer.h.0.attn.c_attn"].out_features, found.modules["transformer.h.0.attn.c_attn"].in_features) == (24, 8)
    assert set(found.modules) <= found.metadata.fan_in_fan_out
    x = torch.arange(10)[None]
    wanted = tuned(x).logits
    assert not torch.allclose(base(x).logits, wanted, atol=1e-3)
    assert torch.allclose(fuse(base, found)(x).logits, wanted, atol=1e-5)


def test_a_head_that_is_tied_to_the_embeddings_gets_no_lora() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True
    )
    base = LlamaForCausalLM(config).eval()
    tuned = changed(base, "model.embed_tokens", "model.layers.0.mlp.up_proj")
    assert tuned.lm_head.weight is tuned.model.embed_tokens.weight
    with pytest.raises(TargetError, match=r"lm_head\.weight"):
        paring.extract_lora(base, tuned, FULL)
    # As a file has it: one name of the two.
    state = {name: tensor for name, tensor in tuned.state_dict().items() if name != "lm_head.weight"}
    found = paring.extract_lora(base, state, FULL, drop_rest=True)
    assert found.adapter.modules.keys() == {"model.layers.0.mlp.up_proj"}
    assert found.dropped.keys() == {"model.embed_tokens.weight", "lm_head.weight"}
    # Where it is not tied it is a linear module like any other.
    config.tie_word_embeddings = False
    base = LlamaForCausalLM(config).eval()
    assert paring.extract_lora(base, changed(base, "lm_head"), FULL).adapter.modules.keys() == {"lm_head"}


def test_the_rest_is_refused_by_name_dropped_with_its_size_or_carried() -> None:
    base = net()
    tuned = changed(base, "first", "norm.running_mean", "embed")
    with pytest.raises(TargetError, match=r"'embed\.weight', 'norm\.running_mean'.*drop_rest=True.*\['embed', 'norm'\]"):
        paring.extract_lora(base, tuned, FULL)
    found = paring.extract_lora(base, tuned, FULL, drop_rest=True)
    before, after = base.state_dict(), tuned.state_dict()
    assert found.dropped.keys() == {"embed.weight", "norm.running_mean"}
    change = (after["embed.weight"] - before["embed.weight"]).norm() / max(after["embed.weight"].norm(), before["embed.weight"].norm())
    assert found.dropped["embed.weight"] == pytest.approx(float(change))
    assert found.dropped["norm.running_mean"] == 1.0, "zeros before"
    kept = paring.extract_lora(base, tuned, FULL, modules_to_save=["embed", "norm"])
    assert kept.dropped == {}
    x = torch.arange(6).view(2, 3)
    assert torch.allclose(fuse(base, kept.adapter)(x), tuned(x), atol=1e-6)


def test_losses_are_those_of_the_modules_that_are_there() -> None:
    base = net()
    found = paring.extract_lora(base, changed(base, "first", "second"), ToEnergy(share=0.9))
    assert found.losses.keys() == found.adapter.modules.keys() == {"first", "second"}
    assert all(0 < loss.relative**2 <= 0.1 for loss in found.losses.values())


def test_linear_modules_that_are_never_called_get_none() -> None:
    torch.manual_seed(0)
    base = nn.ModuleDict({"layer": nn.TransformerEncoderLayer(8, 2, 16), "fc": nn.Linear(8, 8)})
    tuned = changed(base, "layer.linear1.weight", "fc.weight")
    with pytest.raises(TargetError, match=r"layer\.linear1\.weight"):
        paring.extract_lora(base, tuned, FULL)


def test_what_a_load_has_drawn_is_carried_or_refused_whatever_is_asked() -> None:
    base = net()
    tuned = changed(base, "first", "second")
    drawn = ["second.weight"]
    with pytest.raises(TargetError, match=r"'second\.weight'.*modules_to_save=\['second'\]"):
        paring.extract_lora(base, tuned, FULL, drawn=drawn, drop_rest=True)
    found = paring.extract_lora(base, tuned, FULL, drawn=drawn, modules_to_save="second").adapter
    assert found.modules.keys() == {"first"}
    assert torch.equal(found.heads["second.weight"], tuned.second.weight)


def test_what_is_refused() -> None:
    base = net()
    with pytest.raises(TargetError, match="same model twice"):
        paring.extract_lora(base, copy.deepcopy(base), FULL)
    with pytest.raises(TargetError, match=r"nothing to extract.*embed\.weight"):
        paring.extract_lora(base, changed(base, "embed"), FULL, drop_rest=True)
    other = net()
    other.first = nn.Linear(6, 8)
    with pytest.raises(TargetError, match=r"Only the tuned model has a tensor 'first\.bias'"):
        paring.extract_lora(base, other, FULL)
    with pytest.raises(TargetError, match=r"Only the base model has a tensor 'first\.bias'"):
        paring.extract_lora(other, base, FULL)
    wider = net()
    wider.embed = nn.Embedding(9, 6)
    with pytest.raises(TargetError, match=r"of another shape: 'embed\.weight'"):
        paring.extract_lora(base, wider, FULL, drop_rest=True)
    adapted = get_peft_model(net(), LoraConfig(target_modules=["first"]))
    with pytest.raises(TargetError, match=r"adapter on the tuned model.*merge_and_unload"):
        paring.extract_lora(base, adapted, FULL)
    with pytest.raises(TargetError, match=r"adapter on the base model"):
        paring.extract_lora(adapted, base, FULL)
    with pytest.raises(TargetError, match=r"'frist', which matches no module.*'first'"):
        paring.extract_lora(base, changed(base, "first"), FULL, modules_to_save=["frist"])
    packed = net()
    packed.first.weight = nn.Parameter(packed.first.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(TargetError, match="'first' .Linear. is quantised"):
        paring.extract_lora(packed, changed(base, "first"), FULL)
