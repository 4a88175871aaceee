"""Models."""

from __future__ import annotations

from tests.trust.grid import Grid

GRID = Grid(
    title="Models",
    what="model",
    rows=(
        "BERT",
        "RoBERTa",
        "DeBERTa-v3",
        "ALBERT",
        "DistilBERT",
        "T5",
        "GPT-2",
        "Llama",
        "Qwen3",
        "Mistral",
        "Gemma",
        "Phi",
        "Phi-3",
        "ViT",
        "Whisper",
        "CLIP",
        "Mixtral (experts)",
    ),
    columns=(
        "attach to all linears",
        "a step",
        "prune",
        "stock PEFT gives the same outputs",
        "merge",
    ),
)
