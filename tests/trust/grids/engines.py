"""Engines."""

from __future__ import annotations

from tests.trust.grid import Grid

GRID = Grid(
    title="Engines",
    what="engine",
    rows=(
        "PEFT",
        "transformers",
        "vLLM",
        "llama.cpp (gguf)",
        "SGLang",
        "LoRAX",
    ),
    columns=(
        "accepts what the linter accepts",
        "refuses or misreads what the linter warns of",
        "same update",
    ),
)
