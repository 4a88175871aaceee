"""A process without paring: loads exports in stock PEFT and in plain transformers, and answers with what they compute.

Requests are lines of JSON on the standard input, answers lines of JSON on the standard output.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
import traceback
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


class Blocked(MetaPathFinder):
    """Makes ``import paring`` fail, as where it was never installed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Refuse paring, know nothing of other packages."""
        if fullname.partition(".")[0] == "paring":
            raise ModuleNotFoundError(f"No module named {fullname!r} (this process has no paring)", name=fullname)


sys.meta_path.insert(0, Blocked())

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.contract.models import KINDS  # noqa: E402
from tests.trust.architectures import ARCHITECTURES  # noqa: E402


@functools.cache
def base(kind: str, folder: str) -> torch.nn.Module:
    """A base model, read once."""
    return {**KINDS, **ARCHITECTURES}[kind].read(folder).eval()


@torch.no_grad()
def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Load one adapter on its base, run it, and say which modules got which rank."""
    model = copy.deepcopy(base(request["kind"], request["base"]))
    if request["how"] == "peft":
        model = PeftModel.from_pretrained(model, request["adapter"])
    elif request["how"] == "transformers":
        model.load_adapter(request["adapter"])
    elif request["how"] != "base":
        raise ValueError(f"Cannot load by {request['how']!r}.")
    model.eval()
    save_file({"output": model(**load_file(request["inputs"]))[request["output"]].contiguous()}, request["outputs"])
    ranks = {
        name.removeprefix("base_model.model."): module.lora_A["default"].weight.shape[0]
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    return {"ranks": ranks, "paring": sorted(name for name in sys.modules if name.partition(".")[0] == "paring")}


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    # Libraries may print; the answers keep the stream that the process began with.
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            said = answer(json.loads(line))
        except Exception:  # noqa: BLE001 - whatever goes wrong is the answer
            said = {"error": traceback.format_exc()}
        print(json.dumps(said), file=out, flush=True)


if __name__ == "__main__":
    main()
