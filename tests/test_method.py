"""The table of methods, and the two methods as values: read, written, refused."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import torch

import paring.methods
from paring import method
from paring.core.adapter import Adapter
from paring.core.errors import AdapterError, SettingError
from paring.core.factors import Factors
from paring.method import Method, Rate, check_rank, decode
from paring.methods.lora import LoRA
from paring.methods.lora_fa import LoRAFA
from paring.methods.lora_plus import LoRAPlus
from paring.methods.sora import SoRA
from paring.parts.initialise.from_adapter import FromAdapter
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.gated import Gated
from paring.parts.parameterise.low_rank import LowRank
from paring.parts.shape import Shape
from paring.parts.update.proximal import Proximal
from tests.warm import Warm

SHAPE = Shape(path="encoder.layer.0.query", in_features=12, out_features=8)

COMMON: list[dict[str, Any]] = [
    {},
    {"rank": 3},
    {"alpha": 7.5},
    {"alpha": 4},
    {"dropout": 0.1},
    {"scaling": "rs"},
    {"init": KaimingZero()},
    {"init": FromAdapter(source="folder")},
]
SETTINGS: list[tuple[type[Method], dict[str, Any]]] = [
    *((kind, one) for kind in (LoRA, SoRA) for one in COMMON),
    *(
        (SoRA, one)
        for one in (
            {"penalty": 0.0},
            {"penalty": 0.7},
            {"gate_rate": 1.0},
            {"gates": "ones"},
            {"step_size": "constant", "penalty": 3e-4},
            {"operator": "released"},
            {"l1": 0.001},
            {"rank": 2, "alpha": 1.0, "penalty": 0.2, "gates": "ones", "operator": "released", "step_size": "constant", "l1": 1.0},
        )
    ),
]
BAD: list[tuple[type[Method], dict[str, Any], str]] = [
    *(
        (kind, setting, words)
        for kind in (LoRA, SoRA)
        for setting, words in (
            ({"rank": 0}, "rank=0: give a whole number of at least 1."),
            ({"rank": -2}, "rank=-2"),
            ({"rank": 2.0}, "rank=2.0"),
            ({"rank": "8"}, "rank='8'"),
            ({"rank": True}, "rank=True"),
            ({"alpha": 0.0}, "alpha=0.0: give a number in (0, inf)."),
            ({"alpha": -1.0}, "alpha=-1.0"),
            ({"alpha": float("nan")}, "alpha=nan"),
            ({"alpha": float("inf")}, "alpha=inf"),
            ({"alpha": None}, "alpha=None"),
            ({"dropout": 1.0}, "dropout=1.0: give a number in [0, 1)."),
            ({"dropout": -0.1}, "dropout=-0.1"),
            ({"scaling": "rslora"}, "scaling='rslora': choose one of 'standard', 'rs'."),
            ({"init": "kaiming_zero"}, "init='kaiming_zero'"),
            ({"init": None}, "init=None"),
        )
    ),
    *(
        (SoRA, setting, words)
        for setting, words in (
            ({"penalty": -0.1}, "penalty=-0.1: give a number in [0, inf)."),
            ({"penalty": float("inf")}, "penalty=inf"),
            ({"gate_rate": 0.0}, "gate_rate=0.0"),
            ({"gates": "normals"}, "Did you mean 'normal'?"),
            ({"step_size": "lr"}, "step_size='lr'"),
            ({"operator": "release"}, "Did you mean 'released'?"),
            ({"l1": -1.0}, "l1=-1.0"),
        )
    ),
]


def named(value: object) -> str:
    return value.__name__ if isinstance(value, type) else ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""


# --- the table ---------------------------------------------------------------------------------------------------------------


def test_names_and_load() -> None:
    assert {"lora", "sora"} <= set(method.names())
    assert len(set(method.names())) == len(method.names())
    assert method.load("sora") is SoRA
    assert method.load("lora") is LoRA


@pytest.mark.parametrize("name", method.names())
def test_every_method_describes_itself(name: str) -> None:
    kind = method.load(name)
    assert kind.name == name
    assert issubclass(kind, Method)
    assert kind.about.title
    assert kind.about.paper
    assert kind.about.kind
    assert kind.about.parameters
    assert isinstance(kind().example(), kind)


@pytest.mark.parametrize("name", ["sorra", "SoRA", "", "sora.py", "paring.methods.sora", "../sora", "__init__"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=r"Unknown method .*Known: .*lora, .*sora"):
        method.load(name)


def test_near_names_are_shown() -> None:
    with pytest.raises(SettingError, match=r"Unknown method 'sorra'\. Did you mean 'sora'"):
        method.load("sorra")


def test_a_method_of_another_package_is_found_but_takes_no_name_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text(
        "from dataclasses import dataclass\n"
        "from paring.methods.lora import LoRA\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Strange(LoRA):\n"
        "    name = 'strange'\n"
    )
    info = tmp_path / "stranger-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[paring.methods]\nstrange = stranger:Strange\nsora = nowhere:Nothing\nempty = stranger:LoRA\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Method, "members", dict(Method.members))
    assert "strange" in method.names()
    assert method.names().count("sora") == 1
    strange = method.load("strange")
    assert method.decode(strange(rank=3).encode()) == strange(rank=3)
    # As if ours had not been imported yet; all three are put back at the end.
    del Method.members["sora"]
    monkeypatch.delitem(sys.modules, "paring.methods.sora")
    monkeypatch.setattr(paring.methods, "sora", None)
    assert method.load("sora").__module__ == "paring.methods.sora"
    with pytest.raises(SettingError, match="'empty' defines no Method subclass"):
        method.load("empty")


# --- as data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "settings"), SETTINGS, ids=named)
def test_round_trip(kind: type[Method], settings: dict[str, Any]) -> None:
    value = kind(**settings)
    written = json.loads(json.dumps(value.encode()))
    assert written["name"] == kind.name
    assert written["version"] == kind.version
    assert set(written) == {"name", "version", *(item.name for item in fields(value))}
    assert method.decode(written) == value
    assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value  # noqa: S301
    assert hash(value) == hash(kind(**settings))
    for name, setting in settings.items():
        assert written[name] == (setting.encode() if name == "init" else setting)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "sorra"}, "Unknown method 'sorra'. Did you mean 'sora'"),
        ({"name": "sora", "rnak": 3}, "Unknown key 'rnak' in the settings of 'sora'. Did you mean 'rank'"),
        ({"name": "lora", "penalty": 0.1}, "Unknown key 'penalty' in the settings of 'lora'."),
        ({"name": "sora", "version": 99}, "version 99"),
        ({"name": "sora", "rank": 0}, "rank=0"),
        ({"name": "sora", "init": {"name": "kaiming"}}, "Unknown initialiser name 'kaiming'. Did you mean 'kaiming_zero'"),
        ({"name": "sora", "init": {"name": "proximal", "weight": 1.0}}, "Unknown initialiser name 'proximal'"),
        ({"name": "sora", "init": "kaiming_zero"}, "init='kaiming_zero'"),
        ({"rank": 3}, "need a 'name', got the keys ['rank']"),
        ({"name": None}, "need a 'name'"),
        ({1: 2}, "need a 'name'"),
    ],
)
def test_data_that_is_no_method_is_refused(data: dict[Any, Any], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        method.decode(data)
    assert words in str(caught.value)


@pytest.mark.parametrize("data", [None, "sora", 3, ["sora"]])
def test_data_that_is_no_mapping_is_refused(data: Any) -> None:
    with pytest.raises(SettingError, match="as a mapping with a 'name'"):
        method.decode(data)


def test_a_fresh_process_reads_every_initialiser_for_every_method(warm: Warm) -> None:
    code = "import json, sys; from paring import method; [method.decode(item) for item in json.loads(sys.argv[1])]"
    data = [kind(init=init).encode() for kind in (LoRA, SoRA) for init in (KaimingZero(), FromAdapter(source="x"))]
    warm.run(["-c", code, json.dumps(data)], timeout=120)


# --- as values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "settings", "words"), BAD, ids=named)
def test_bad_settings_are_refused_when_the_value_is_made(kind: type[Method], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        kind(**settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", [LoRA, SoRA])
def test_a_rank_above_the_modules_size_names_the_module(kind: type[Method], generator: torch.Generator) -> None:
    value = kind(rank=9)  # type: ignore[call-arg]
    for refuse in (lambda: value.slot(SHAPE, generator), lambda: value.check(SHAPE)):
        with pytest.raises(SettingError, match=r"rank=9 is above what 'encoder\.layer\.0\.query' can use: .*8 x 12.* at most 8"):
            refuse()
    assert kind(rank=8).slot(SHAPE, generator).factors().rank == 8  # type: ignore[call-arg]
    check_rank(8, SHAPE)


@pytest.mark.parametrize("kind", [LoRA, SoRA])
def test_methods_are_frozen_and_keyword_only(kind: type[Any]) -> None:
    with pytest.raises(FrozenInstanceError):
        kind().rank = 3
    with pytest.raises(TypeError):
        kind(8)


@pytest.mark.parametrize(("scaling", "expected"), [("standard", 16 / 4), ("rs", 16 / 2)])
@pytest.mark.parametrize("kind", [LoRA, SoRA])
def test_scale(kind: type[Method], scaling: str, expected: float, generator: torch.Generator) -> None:
    slot = kind(rank=4, alpha=16, scaling=scaling).slot(SHAPE, generator)  # type: ignore[call-arg]
    assert slot.factors().scale == expected


def test_lora_has_no_gate_and_no_update(generator: torch.Generator) -> None:
    slot = LoRA(rank=4, dropout=0.25).slot(SHAPE, generator)
    assert isinstance(slot, LowRank)
    assert not isinstance(slot, Gated)
    assert slot.dropout == 0.25
    assert LoRA().update is None
    assert LoRA().rates() == {}
    assert (slot.B == 0).all()
    assert slot.A.shape == (4, 12)


def test_sora_passes_its_settings_to_its_parts(generator: torch.Generator) -> None:
    value = SoRA(rank=4, penalty=0.3, operator="released", step_size="constant", l1=0.5, dropout=0.25, gate_rate=7.0, fade=30)
    assert value.update == Proximal(weight=0.3, operator="released", step_size="constant", fade=30)
    assert value.rates() == {Role.GATE: Rate(fixed=7.0, decay=0.0, memory=0.98)}
    slot = value.slot(SHAPE, generator)
    assert (slot.update, slot.penalty, slot.l1, slot.dropout) == (value.update, 0.3, 0.5, 0.25)
    assert (slot.B == 0).all()
    assert slot.A.shape == (4, 12)
    assert slot.gate.shape == (4,)


def test_gates_start_normal_and_signed_or_at_one(generator: torch.Generator) -> None:
    wide = Shape(path="wide", in_features=2000, out_features=2000)
    gate = SoRA(rank=2000, init=Nothing()).slot(wide, generator).gate
    assert abs(gate.mean().item()) < 0.1
    assert gate.std().item() == pytest.approx(1.0, abs=0.06)
    assert (SoRA(rank=4, gates="ones").slot(SHAPE, generator).gate == 1).all()


class Nothing(KaimingZero):
    """Empty factors of the right shape, to draw many gates cheaply."""

    def factors(self, shape: Shape, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """One entry, seen from everywhere."""
        return Factors(
            a=torch.zeros(1, 1).expand(rank, shape.in_features), b=torch.zeros(1, 1).expand(shape.out_features, rank), scale=scale
        )


@pytest.mark.parametrize("kind", [LoRA, SoRA])
def test_same_seed_same_bits_and_no_other_randomness(kind: type[Method]) -> None:
    state = torch.get_rng_state()
    first, again, other = (kind().slot(SHAPE, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["A"], other["A"])


def test_sora_from_adapter_starts_at_the_adapter(generator: torch.Generator) -> None:
    factors = Factors(a=torch.randn(3, 12, generator=generator), b=torch.randn(8, 3, generator=generator), scale=0.5)
    adapter = Adapter(modules={SHAPE.path: factors})
    value = SoRA.from_adapter(adapter, "folder", alpha=4, penalty=0.2)
    assert (value.rank, value.gates, value.penalty) == (3, "ones", 0.2)
    assert value.init == FromAdapter(source="folder")
    for sora in (value, SoRA.from_adapter(adapter, rank=6), copy.deepcopy(value)):
        torch.testing.assert_close(sora.slot(SHAPE, generator).factors().materialise(), factors.materialise())
    dead = Adapter(modules={SHAPE.path: Factors(a=factors.a, b=factors.b, gate=torch.zeros(3))})
    assert SoRA.from_adapter(dead).rank == 1
    with pytest.raises(SettingError, match="penalty=-1"):
        SoRA.from_adapter(adapter, penalty=-1.0)


@pytest.mark.parametrize("kind", [LoRA, LoRAPlus, LoRAFA])
def test_lora_from_adapter_keeps_every_module_s_rank(kind: type[LoRA], generator: torch.Generator) -> None:
    other = Shape(path="other", in_features=12, out_features=8)
    modules = {
        shape.path: Factors(a=torch.randn(rank, 12, generator=generator), b=torch.randn(8, rank, generator=generator), scale=0.5)
        for shape, rank in ((SHAPE, 3), (other, 1))
    }
    adapter = Adapter(modules=modules)
    value = kind.from_adapter(adapter, "folder", alpha=4)
    assert value.rank == 3
    for shape in (SHAPE, other):
        found = value.slot(shape, generator).factors()
        assert found.rank == modules[shape.path].rank
        assert found.scale == 4 / 3
        torch.testing.assert_close(found.materialise(), modules[shape.path].materialise())
    # Read back from a checkpoint's configuration, the shapes are those of the weights to be loaded.
    back = decode(json.loads(json.dumps(value.encode())))
    with pytest.warns(UserWarning, match="'folder'"):
        assert back.slot(other, generator).factors().rank == 1
    with pytest.raises(AdapterError, match="no ranks for it"):
        value.slot(Shape(path="third", in_features=12, out_features=8), generator)


@pytest.mark.parametrize("settings", [{"multiple": 0.0}, {"multiple": -1.0}, {"decay": -0.1}, {"decay": float("nan")}])
def test_rates_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError):
        Rate(**settings)
