"""The kinds of model that every method is tried on, and batches for them. Free of paring, so that the stock process loads them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AlbertForMaskedLM,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

WEIGHTS = "twin.safetensors"
LABELS = 3
LENGTH = 6


class Inner(nn.Module):
    """The inner half of :class:`Twin`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.proj = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Two layers."""
        return self.proj(torch.tanh(self.fc(x)))


class Twin(nn.Module):
    """A plain module, no transformer, in which one adapted path (``fc``) is the end of another one (``enc.fc``)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.enc = Inner()
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(12, LABELS)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        """Class scores, and the loss where labels are given."""
        x = torch.tanh(self.fc(x))
        logits = self.head(self.drop(x + torch.tanh(self.enc(x))))
        return SequenceClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of model.

    Attributes:
        name: as it stands in test ids and in the table of exemptions.
        title: as the docs print it.
        vocabulary: number of tokens; 0 if the input is a vector.
        build: makes it, by the global generator.
        read: loads it from a folder that :func:`save` wrote.
        targets: what is adapted.
        task: PEFT's task type.
        heads: modules that are trained fully beside the adapter, where the task type does not say so.
        checkpointed: a module to recompute in the backward pass, where the model has no switch for that.
        missing: why it cannot be built here; empty if it can.
    """

    name: str
    title: str
    vocabulary: int
    build: Callable[[], nn.Module]
    read: Callable[[str], nn.Module]
    targets: str | tuple[str, ...] = "all-linear"
    task: str | None = None
    heads: tuple[str, ...] = ()
    checkpointed: str = ""
    missing: str = ""

    def batch(self, rows: int = 4, seed: int = 0) -> dict[str, Tensor]:
        """Inputs with labels."""
        generator = torch.Generator().manual_seed(1000 + seed)
        labels = torch.randint(LABELS, (rows,), generator=generator)
        if not self.vocabulary:
            return {"x": torch.randn(rows, 12, generator=generator), "labels": labels}
        tokens = torch.randint(5, self.vocabulary, (rows, LENGTH), generator=generator)
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "labels": labels if self.task == "SEQ_CLS" else tokens.clone(),
        }

    def inputs(self, rows: int = 4, seed: int = 0) -> dict[str, Tensor]:
        """The same without labels."""
        return {key: value for key, value in self.batch(rows, seed).items() if key != "labels"}


def save(model: nn.Module, folder: Path) -> None:
    """Write a base model into a folder."""
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / WEIGHTS)


def _twin(folder: str) -> Twin:
    model = Twin()
    model.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return model.eval()


def _bert() -> BertForSequenceClassification:
    # Eleven layers, so that layer.1 and layer.10 both occur.
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 11}
    return BertForSequenceClassification(
        BertConfig(vocab_size=40, max_position_embeddings=16, num_labels=LABELS, initializer_range=0.2, pad_token_id=0, **sizes)
    )


def _llama() -> LlamaForCausalLM:
    # Two heads for keys and values beside four for queries (GQA); the output layer is the embedding.
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    tokens = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=32, tie_word_embeddings=True, initializer_range=0.2, **sizes, **tokens))


def _gpt2() -> GPT2LMHeadModel:
    tokens = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=2, n_positions=32, initializer_range=0.2, **tokens))


def _weights_of_albert() -> Path | None:
    # Found, not imported: the package wants releases that are long gone.
    package = find_spec("rxnmapper")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"


def _albert() -> AlbertForMaskedLM:
    # Called four times, not twelve: enough to be called several times, and a third of the time.
    model: AlbertForMaskedLM = AlbertForMaskedLM.from_pretrained(_weights_of_albert(), dtype=torch.float32, num_hidden_layers=4)
    return model


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(
                name="bert",
                title="BERT, sequence classification, eleven layers",
                vocabulary=40,
                build=_bert,
                read=BertForSequenceClassification.from_pretrained,
                targets=("query", "output.dense"),
                task="SEQ_CLS",
            ),
            Kind(
                name="llama",
                title="Llama, causal LM with grouped-query attention and a tied head",
                vocabulary=32,
                build=_llama,
                read=LlamaForCausalLM.from_pretrained,
                task="CAUSAL_LM",
            ),
            Kind(
                name="gpt2",
                title="GPT-2, causal LM with Conv1D layers",
                vocabulary=32,
                build=_gpt2,
                read=GPT2LMHeadModel.from_pretrained,
                task="CAUSAL_LM",
            ),
            Kind(
                name="albert",
                title="ALBERT, masked LM, real weights, one layer called four times",
                vocabulary=591,
                build=_albert,
                read=AlbertForMaskedLM.from_pretrained,
                checkpointed="albert.encoder.albert_layer_groups.0.albert_layers.0",
                missing=""
                if _weights_of_albert()
                else "the package rxnmapper, which brings ALBERT's weights, is not installed (make setup does it)",
            ),
            Kind(
                name="twin",
                title="a plain nn.Module whose paths end alike (fc and enc.fc)",
                vocabulary=0,
                build=Twin,
                read=_twin,
                targets=("fc", "enc.proj"),
                heads=("head",),
                checkpointed="enc",
            ),
        )
    }
)
