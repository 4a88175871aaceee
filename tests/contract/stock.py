"""A process without paring that loads what paring exports, and says what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.answering import Answering


class Stock:
    """A long-lived process without paring."""

    def __init__(self) -> None:
        self._process = Answering(["-m", "tests.contract.stock_worker"])

    def ask(
        self, kind: str, base: str, how: str, adapter: Path, inputs: Mapping[str, Tensor], place: Path, output: str = "logits"
    ) -> tuple[Tensor, dict[str, int]]:
        """What the adapter gives there, and the rank of each module that it adapts.

        Args:
            kind: the name of the kind of model.
            base: the folder that the base model was saved to.
            how: what loads the adapter, ``"peft"`` or ``"transformers"``; ``"base"`` leaves it out.
            adapter: its folder.
            inputs: of the model.
            place: a folder for what is passed to and fro.
            output: the field of the model's output.
        """
        save_file(dict(inputs), place / "inputs.safetensors")
        request = {"how": how, "kind": kind, "base": base, "output": output, "adapter": str(adapter)}
        request |= {"inputs": str(place / "inputs.safetensors"), "outputs": str(place / "outputs.safetensors")}
        said = self._process.ask(request)
        assert "error" not in said, said["error"]
        assert said["paring"] == [], "the stock process has loaded paring"
        return load_file(place / "outputs.safetensors")["output"], said["ranks"]

    def close(self) -> None:
        """End the process."""
        self._process.close()
