"""What some releases of the libraries cannot do: the tests of it are skipped there, with the reason, instead of failing.

With the pinned releases, which `make test` and CI have, none of these is skipped.
"""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION


def older(package: str, than: str) -> bool:
    """Whether the release that is installed comes before another."""
    return Version(version(package)) < Version(than)


shards_on_cpu = pytest.mark.skipif(  # runs with the pinned releases
    older("torch", "2.7"), reason="FSDP2 of torch 2.6 needs an accelerator: it records events on a stream"
)
rates_as_tensors = pytest.mark.skipif(  # runs with the pinned releases
    older("torch", "2.7"), reason="SequentialLR of torch 2.6 writes into one tensor for all groups"
)
own_add_adapter = pytest.mark.skipif(  # runs with the pinned releases
    older("peft", MIN_PEFT_VERSION),
    reason=f"transformers takes PEFT from {MIN_PEFT_VERSION} for any add_adapter of its own",
)
HEADS = "load_adapter of transformers before 5.18 draws a trained head anew"
own_heads = pytest.mark.skipif(older("transformers", "5.18"), reason=HEADS)  # runs with the pinned releases
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")  # runs with the pinned releases
names_are_kept = pytest.mark.skipif(  # runs with the pinned releases
    older("peft", "0.21"), reason="add_adapter of PEFT 0.20 overwrites an adapter of the same name"
)

# LLM.int8 rounds activations to eight bits too, and there the last bit of a float moved one of them a whole step.
coarse_eight_bit = older("torch", "2.7")
