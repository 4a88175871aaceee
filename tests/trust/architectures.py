"""Small models of many architectures with random weights, and inputs for them. Free of paring, so that the stock process loads them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

VOCABULARY, LENGTH, ROWS, LABELS = 40, 6, 3, 3
_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
# Weights as large as those of trained models, so that an output is no near-zero in which every mistake is small.
_WIDE = {"initializer_range": 0.2}
_ENCODER = {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "num_labels": LABELS, "pad_token_id": 0, **_SIZES, **_WIDE}
_DECODER = {**_TOKENS, "max_position_embeddings": 32, **_SIZES, **_WIDE}
_GROUPED = {**_DECODER, "num_attention_heads": 4, "num_key_value_heads": 2}
_PICTURE = {"image_size": 8, "patch_size": 4, "num_channels": 3, **_SIZES, **_WIDE}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture.

    Attributes:
        name: as the matrix has it.
        kind: the class that loads it.
        config: of a small one.
        inputs: makes a batch by a generator, without labels.
        output: the field of the model's output that is compared.
        task: PEFT's task type.
        heads: modules that are trained fully beside the adapter, where the task type does not say so.
        labelled: adds to a batch what the model's loss needs.
    """

    name: str
    kind: type[PreTrainedModel]
    config: Any
    inputs: Callable[[torch.Generator], dict[str, Tensor]]
    output: str = "logits"
    task: str | None = None
    heads: tuple[str, ...] = ()
    labelled: Callable[[dict[str, Tensor]], dict[str, Any]]

    def build(self) -> PreTrainedModel:
        """A model in evaluation mode; weights by a seed of its own."""
        state = torch.get_rng_state()
        torch.manual_seed(0)
        model = self.kind(self.config).eval()
        torch.set_rng_state(state)
        return model

    def read(self, folder: str) -> PreTrainedModel:
        """Load what ``save_pretrained`` wrote."""
        model: PreTrainedModel = self.kind.from_pretrained(folder, dtype=torch.float32)
        return model.eval()


def _tokens(generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(5, VOCABULARY, (ROWS, LENGTH), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _picture(generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(ROWS, 3, 8, 8, generator=generator)}


def _two_texts(generator: torch.Generator) -> dict[str, Tensor]:
    return {**_tokens(generator), "decoder_input_ids": torch.randint(5, VOCABULARY, (ROWS, 4), generator=generator)}


def _sound(generator: torch.Generator) -> dict[str, Tensor]:
    spoken = torch.randn(ROWS, 8, 16, generator=generator)
    return {"input_features": spoken, "decoder_input_ids": torch.randint(5, VOCABULARY, (ROWS, 4), generator=generator)}


def _both(generator: torch.Generator) -> dict[str, Tensor]:
    texts = _tokens(generator)
    texts["input_ids"][:, -1] = 2  # the text's output is read at its end
    return {**texts, **_picture(generator)}


def _classes(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {**batch, "labels": torch.arange(ROWS) % LABELS}


def _itself(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {**batch, "labels": batch["input_ids"].clone()}


def _answers(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {**batch, "labels": batch["decoder_input_ids"].clone()}


def _pairs(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {**batch, "return_loss": True}


_T5 = T5Config(
    vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, feed_forward_proj="gated-gelu"
)
_WHISPER = WhisperConfig(
    vocab_size=VOCABULARY,
    num_mel_bins=8,
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_source_positions=8,
    max_target_positions=16,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    init_std=0.2,
)
_CLIP = CLIPConfig(
    text_config={**_TOKENS, "max_position_embeddings": 16, **_SIZES, "projection_dim": 16},
    vision_config={**_PICTURE, "projection_dim": 16},
    projection_dim=16,
)


def _encoder(name: str, kind: type[PreTrainedModel], config: Any) -> Architecture:
    return Architecture(name=name, kind=kind, config=config, inputs=_tokens, labelled=_classes, task="SEQ_CLS")


def _decoder(name: str, kind: type[PreTrainedModel], config: Any) -> Architecture:
    return Architecture(name=name, kind=kind, config=config, inputs=_tokens, labelled=_itself, task="CAUSAL_LM")


_DISTILBERT = DistilBertConfig(
    vocab_size=VOCABULARY,
    max_position_embeddings=16,
    dim=16,
    hidden_dim=24,
    n_heads=2,
    n_layers=2,
    num_labels=LABELS,
    pad_token_id=0,
    **_WIDE,
)
_DEBERTA = DebertaV2Config(
    **_ENCODER, relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"]
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        one.name: one
        for one in (
            _encoder("BERT", BertForSequenceClassification, BertConfig(**_ENCODER)),
            _encoder("RoBERTa", RobertaForSequenceClassification, RobertaConfig(**_ENCODER)),
            _encoder("DeBERTa-v3", DebertaV2ForSequenceClassification, _DEBERTA),
            _encoder("ALBERT", AlbertForSequenceClassification, AlbertConfig(**_ENCODER, embedding_size=8)),
            _encoder("DistilBERT", DistilBertForSequenceClassification, _DISTILBERT),
            Architecture(name="T5", kind=T5ForConditionalGeneration, config=_T5, inputs=_two_texts, labelled=_answers, task="SEQ_2_SEQ_LM"),
            _decoder("GPT-2", GPT2LMHeadModel, GPT2Config(n_embd=16, n_head=2, n_layer=2, n_positions=32, **_TOKENS, **_WIDE)),
            _decoder("Llama", LlamaForCausalLM, LlamaConfig(**_GROUPED)),
            _decoder("Qwen3", Qwen3ForCausalLM, Qwen3Config(**_GROUPED, head_dim=8)),
            _decoder("Mistral", MistralForCausalLM, MistralConfig(**_GROUPED, sliding_window=4)),
            _decoder("Gemma", GemmaForCausalLM, GemmaConfig(**_GROUPED, head_dim=8)),
            _decoder("Phi", PhiForCausalLM, PhiConfig(**_DECODER)),
            _decoder("Phi-3", Phi3ForCausalLM, Phi3Config(**_GROUPED)),
            Architecture(
                name="ViT",
                kind=ViTForImageClassification,
                config=ViTConfig(**_PICTURE, num_labels=LABELS),
                inputs=_picture,
                labelled=_classes,
                heads=("classifier",),
            ),
            Architecture(name="Whisper", kind=WhisperForConditionalGeneration, config=_WHISPER, inputs=_sound, labelled=_answers),
            Architecture(name="CLIP", kind=CLIPModel, config=_CLIP, inputs=_both, labelled=_pairs, output="logits_per_image"),
            _decoder("Mixtral (experts)", MixtralForCausalLM, MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2)),
        )
    }
)
