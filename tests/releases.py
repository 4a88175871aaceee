"""What some releases of the libraries cannot do: the tests of it are skipped there, with the reason, instead of failing."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION


def older(package: str, than: str) -> bool:
    """Whether the release that is installed comes before another."""
    return Version(version(package)) < Version(than)


shards_on_cpu = pytest.mark.skipif(older("torch", "2.7"), reason="FSDP2 of torch 2.6 needs an accelerator: it records events on a stream")
rates_as_tensors = pytest.mark.skipif(older("torch", "2.7"), reason="SequentialLR of torch 2.6 writes into one tensor for all groups")
own_add_adapter = pytest.mark.skipif(
    older("peft", MIN_PEFT_VERSION),
    reason=f"transformers takes PEFT from {MIN_PEFT_VERSION} for any add_adapter of its own",
)
HEADS = "load_adapter of transformers before 5.18 draws a trained head anew"
own_heads = pytest.mark.skipif(older("transformers", "5.18"), reason=HEADS)
names_are_kept = pytest.mark.skipif(older("peft", "0.21"), reason="add_adapter of PEFT 0.20 overwrites an adapter of the same name")
