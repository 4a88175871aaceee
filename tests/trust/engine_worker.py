"""Loads adapters by an engine's own files, in a process of its own, without the engine: what these files do not need is a stand-in.

    python -m tests.trust.engine_worker FOLDER       the folder holds vllm/lora/... or sglang/srt/lora/..., see tools/engines.py

Requests are lines of JSON on the standard input, answers lines of JSON on the standard output.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ENOUGH = 512
"""vLLM's largest max_lora_rank."""

READ = {
    **{f"vllm.lora.{name}": f"vllm/lora/{name}.py" for name in ("peft_helper", "lora_weights", "lora_model", "utils")},
    **{f"sglang.srt.lora.{name}": f"sglang/srt/lora/{name}.py" for name in ("lora_config", "lora", "utils")},
    "sglang.srt.layers.utils": "sglang/srt/layers/utils/common.py",
}
"""The modules that are the engine's own, by their files; all others of it are stand-ins."""


class Anything(type):
    """The class of stand-ins: a class that has every attribute, may be called, subclassed, and stand in an annotation."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    def __ror__(cls, other: Any) -> Any:
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        # As a decorator it leaves what it decorates.
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else cls


class Absent(metaclass=Anything):
    """Stands for all that is not there."""


class StandIn(types.ModuleType):
    """A module of the engine that its loader imports from and does not need to load an adapter."""

    __path__: list[str] = []  # noqa: RUF012 - as the import system reads it
    PIN_MEMORY = False
    USE_TORCH = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent


class Finder(MetaPathFinder, Loader):
    """Finds what is read, and stand-ins for all else of the engine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = next(path.name for path in root.iterdir() if path.is_dir())

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> ModuleSpec | None:
        """Modules of this engine only."""
        if fullname.partition(".")[0] != self.package:
            return None
        if fullname in READ:
            return importlib.util.spec_from_file_location(fullname, self.root / READ[fullname])
        spec = ModuleSpec(fullname, self, is_package=True)
        spec.submodule_search_locations = []
        return spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """A stand-in."""
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing in it."""


def vllm(folder: str) -> dict[str, torch.Tensor]:
    """The updates by vLLM's ``PEFTHelper`` and ``LoRAModel``."""
    helper = importlib.import_module("vllm.lora.peft_helper").PEFTHelper.from_local_dir(folder, None)
    helper.validate_legal(types.SimpleNamespace(max_lora_rank=ENOUGH))
    names = {
        key.removeprefix("base_model.model.").rsplit(".", 2)[0].rpartition(".")[2]
        for key in load_file(f"{folder}/adapter_model.safetensors")
    }
    model = importlib.import_module("vllm.lora.lora_model").LoRAModel
    loaded = model.from_local_checkpoint(folder, names, helper, lora_model_id=1, device="cpu", dtype=torch.float32)
    return {name: one.scaling * one.lora_b @ one.lora_a for name, one in loaded.loras.items()}


def sglang(folder: str) -> dict[str, torch.Tensor]:
    """The updates by SGLang's ``LoRAAdapter``, stacked projections as they are stacked there.

    Then what ``mem_pool.py`` does with each tensor, restated: it looks for its target, and asserts that its rows are ``r`` for every
    projection that is stacked in it. And what ``lora_manager.py`` refuses first, ``use_dora``.
    """
    config = importlib.import_module("sglang.srt.lora.lora_config").LoRAConfig(path=folder)
    if config.use_dora:
        raise ValueError("use_dora")
    adapter = importlib.import_module("sglang.srt.lora.lora").LoRAAdapter
    shape = types.SimpleNamespace(num_hidden_layers=64, architectures=[], model_type="llama")
    loaded = adapter("adapter", config, shape, None, None)
    loaded.initialize_weights_from_tensors(load_file(f"{folder}/adapter_model.safetensors"))
    utils = importlib.import_module("sglang.srt.lora.utils")
    targets = utils.get_normalized_target_modules(config.target_modules)
    found = {}
    for layer in loaded.layers:
        for key, a in layer.weights.items():
            utils.get_target_module_name(key, targets)
            if "lora_A" not in key:
                continue
            b = layer.weights[key.replace("lora_A", "lora_B")]
            stacked = 3 if "qkv_proj" in key else 2 if "gate_up_proj" in key else 1
            assert a.shape[0] == stacked * config.r, f"{key} has {a.shape[0]} rows where the buffer has {stacked} x {config.r}"
            # Each projection's rows of B belong to its own rows of A.
            rows = b.shape[0] // stacked
            parts = [
                loaded.scaling * b[part * rows : (part + 1) * rows] @ a[part * config.r : (part + 1) * config.r] for part in range(stacked)
            ]
            found[key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")] = torch.cat(parts)
    return found


LOADERS = {"vllm": vllm, "sglang": sglang}


def main(root: Path) -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    finder = Finder(root)
    sys.meta_path.insert(0, finder)
    # Libraries may print; the answers keep the stream that the process began with.
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        folder = json.loads(line)
        try:
            save_file(
                {name: update.contiguous() for name, update in LOADERS[finder.package](folder).items()}, f"{folder}/answer.safetensors"
            )
            said = ""
        except (ValueError, AssertionError, KeyError, RuntimeError) as error:
            # The ways in which these loaders refuse; what else goes wrong is a fault of the stand-ins.
            said = f"{type(error).__name__}: {error}"
        print(json.dumps(said), file=out, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
