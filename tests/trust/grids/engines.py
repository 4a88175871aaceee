"""Engines."""

from __future__ import annotations

from tests.trust.grid import Grid

OWN, RIGHT = "its own code does what the linter says", "exports are the trained update there"
_RESTATED = "in no package: the rule is re-stated from the source that its docstring names, and tests/exchange/test_engines.py holds it"

GRID = Grid(
    title="Engines",
    what="engine",
    rows=("PEFT", "transformers", "vLLM <= 0.31", "vLLM >= 0.32", "SGLang", "llama.cpp", "LoRAX"),
    columns=(OWN, RIGHT),
    without={
        ("transformers", OWN): "it puts PEFT's own layers in, so its rule is PEFT's",
        ("llama.cpp", OWN): f"its converter is {_RESTATED}",
        ("LoRAX", OWN): f"its loader is {_RESTATED}",
        ("LoRAX", RIGHT): f"its loader is {_RESTATED}",
    },
)
