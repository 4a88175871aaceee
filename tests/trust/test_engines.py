"""The linter's rules against what engines' own files do with the same folders: which they refuse, and the update of each module."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import paring
from paring.core.adapter import Adapter
from paring.exchange import rules
from paring.exchange.contents import Contents, Verdict
from paring.exchange.write import write
from tests.contract.cases import assert_close, roughen
from tests.contract.stock import Stock
from tests.exchange.helpers import change, config_of, llama_like, tensors_of
from tests.trust.adapted import adapted, inputs, output, saved
from tests.trust.architectures import ARCHITECTURES
from tests.trust.engines import CHANGES, KINDS, OwnLoader, adapter_folder, contents, stored
from tests.trust.grids import cell
from tests.trust.grids.engines import OWN, RIGHT
from tools.engines import place

SEEDS = range(6)
LOADERS = {
    "vLLM <= 0.31": ("vllm==0.31.0", rules.vllm_0_31),
    "vLLM >= 0.32": ("vllm==0.33.0", rules.vllm_0_32),
    "SGLang": ("sglang==0.5.23", rules.sglang),
}
Rule = Callable[[Contents], Verdict]


def each(column: str) -> pytest.MarkDecorator:
    """Every engine whose files can be had, in its cell."""
    return pytest.mark.parametrize("title", [pytest.param(title, marks=cell("engines", title, column)) for title in LOADERS])


@pytest.fixture(scope="module")
def loaders() -> Iterator[Callable[[str], OwnLoader]]:
    """Starts an engine's loader when it is first asked for."""
    started: dict[str, OwnLoader] = {}

    def loader(title: str) -> OwnLoader:
        wheel, _ = LOADERS[title]
        if not place(wheel).is_dir():
            pytest.skip(f"the files of {wheel} are not here; `python tools/engines.py` fetches them")
        if title not in started:
            started[title] = OwnLoader(place(wheel))
        return started[title]

    yield loader
    for one in started.values():
        one.close()


def stacked(title: str, updates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The updates of all modules, for SGLang stacked as it stacks them."""
    said = dict(updates)
    if title != "SGLang":
        return said
    for kinds, together in ((("q_proj", "k_proj", "v_proj"), "qkv_proj"), (("gate_proj", "up_proj"), "gate_up_proj")):
        for module in [module for module in said if module.endswith(kinds[0])]:
            parts = [said.pop(module[: -len(kinds[0])] + kind, None) for kind in kinds]
            some = next(part for part in parts if part is not None)
            said[module[: -len(kinds[0])] + together] = torch.cat([torch.zeros_like(some) if part is None else part for part in parts])
    return said


def by(rule: Rule, folder: Path) -> dict[str, Tensor]:
    """The updates that a rule foretells."""
    applied = rule(contents(folder)).applied
    return {module: applied[module].scale * update if module in applied else 0.0 * update for module, update in stored(folder).items()}


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether two sets of updates are equal but for rounding, and what is missing in the first is zero in the second."""
    return expected.keys() >= found.keys() and all(
        torch.allclose(found.get(module, torch.zeros_like(update)), update, rtol=1e-4, atol=1e-5) for module, update in expected.items()
    )


@pytest.mark.slow
@each(OWN)
@pytest.mark.parametrize("name", CHANGES)
def test_an_engine_s_own_files_do_what_the_rule_says(name: str, title: str, loaders: Callable[[str], OwnLoader], tmp_path: Path) -> None:
    loader, (_, rule) = loaders(title), LOADERS[title]
    for seed in SEEDS:
        folder = adapter_folder(tmp_path / str(seed), name, seed)
        verdict, found = rule(contents(folder)), loader.load(folder)
        why = f"seed {seed}: the engine says {found if isinstance(found, str) else 'nothing'}, the rule {verdict.complaints}"
        if isinstance(found, str):
            assert verdict.refused, why
        elif verdict.refused:
            # The rule may be stricter than one release, where what this one does is not what was trained.
            assert not same(found, stacked(title, by(rules.peft, folder))), why
        else:
            assert same(found, stacked(title, by(rule, folder))), why


def trained(ranks: tuple[int, ...]) -> Adapter:
    """An adapter of two layers with all kinds of projections."""
    return llama_like(ranks, KINDS)


def updates(adapter: Adapter) -> dict[str, Tensor]:
    """What was trained."""
    return {path: factors.materialise() for path, factors in adapter.modules.items()}


RAGGED = (3, 1, 0, 2, 4, 4, 1, 2, 2, 0, 5, 1, 1, 3)


@each(RIGHT)
def test_an_engine_s_own_files_load_what_is_exported(title: str, loaders: Callable[[str], OwnLoader], tmp_path: Path) -> None:
    adapter = trained(RAGGED)
    layouts = ("uniform",) if title == "SGLang" else ("uniform", "compact")
    for layout in layouts:
        folder = write(adapter, tmp_path / layout, layout=layout)  # type: ignore[arg-type]
        found = loaders(title).load(folder)
        assert not isinstance(found, str), found
        assert same(found, stacked(title, updates(adapter)))


class Holder(nn.Module):
    """Linear modules at given paths."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        for path, (height, width) in shapes.items():
            *before, last = path.split(".")
            inside: nn.Module = self
            for name in before:
                if name not in inside._modules:
                    inside.add_module(name, nn.Module())
                inside = inside.get_submodule(name)
            inside.add_module(last, nn.Linear(width, height, bias=False))


def in_peft(base: nn.Module, folder: Path) -> PeftModel | str:
    """What PEFT loads, or what it says when it refuses."""
    try:
        return PeftModel.from_pretrained(base, str(folder))
    except (ValueError, RuntimeError, NotImplementedError, TypeError, KeyError) as error:
        return repr(error)


@pytest.mark.slow
@cell("engines", "PEFT", OWN)
@pytest.mark.parametrize("name", CHANGES)
def test_peft_does_what_the_rule_says(name: str, tmp_path: Path) -> None:
    for seed in SEEDS:
        folder = adapter_folder(tmp_path / str(seed), name, seed)
        verdict = rules.peft(contents(folder))
        shapes = {path: (update.shape[0], update.shape[1]) for path, update in stored(folder).items()}
        if "modules_to_save" in config_of(folder):
            heads = [key for key in tensors_of(folder) if ".lora_" not in key]
            shapes |= {key.removeprefix("base_model.model.").removesuffix(".weight"): (2, 8) for key in heads if key.endswith(".weight")}
        torch.manual_seed(0)
        model = in_peft(Holder(shapes), change(folder, task_type=None))
        if isinstance(model, str):
            assert verdict.complaints, f"seed {seed}: PEFT says {model}, the rule nothing"
            continue
        if config_of(folder).get("use_dora"):
            assert verdict.complaints, "the update of DoRA is more than the factors"
            continue
        adapted = {path: module for path, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer)}
        found = {path: module.get_delta_weight("default").detach() for path, module in adapted.items()}
        if not (name == "layer_replication" and verdict.complaints):
            assert same(found, by(rules.peft, folder)), f"seed {seed}: {verdict.complaints}"


@cell("engines", "PEFT", RIGHT)
@cell("engines", "transformers", RIGHT)
@pytest.mark.parametrize("how", ["peft", "transformers"])
def test_stock_loads_what_is_exported(how: str, stock: Stock, tmp_path: Path) -> None:
    model = adapted("Llama")
    roughen(model, torch.Generator().manual_seed(1))
    for layout in ("compact", "uniform"):
        folder = tmp_path / layout
        paring.export(model, folder, layout=layout, force=True)  # type: ignore[arg-type]
        theirs, _ = stock.ask("Llama", saved("Llama"), how, folder, inputs(ARCHITECTURES["Llama"]), tmp_path)
        assert_close(theirs, output("Llama", model))


@cell("engines", "llama.cpp", RIGHT)
def test_gguf_holds_what_is_exported(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    adapter = trained(RAGGED)
    folder = write(adapter, tmp_path / "uniform", layout="uniform")
    # As convert_lora_to_gguf.py does: names by the package's own map, "lora_a" and "lora_b" behind them, alpha beside them.
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    writer = gguf.GGUFWriter(tmp_path / "adapter.gguf", "llama")
    writer.add_string(gguf.Keys.General.TYPE, gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]))
    modules = {}
    for key, tensor in tensors_of(folder).items():
        module, which = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        assert name is not None, f"the package knows no {module}"
        modules[name] = module
        writer.add_tensor(f"{name}.{which.lower()}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    alpha = float(reader.get_field(gguf.Keys.Adapter.LORA_ALPHA).contents())
    read = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    found = {}
    for name, module in modules.items():
        a, b = read[f"{name}.lora_a"], read[f"{name}.lora_b"]
        # llama-adapter.h: alpha over the tensor's own rank.
        found[module] = alpha / a.shape[0] * b @ a
    assert same(found, updates(adapter))
