"""Reading what PEFT wrote, and refusing by name what a plain LoRA cannot hold."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from paring.core.errors import AdapterError
from paring.exchange import read as reading
from paring.exchange.read import read
from paring.exchange.write import write
from tests.exchange.helpers import adapter, change, config_of, contents, put, tensors_of


class Net(nn.Module):
    """Two layers whose names end each other, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.enc = nn.ModuleDict({"fc": nn.Linear(5, 4)})
        self.score = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """All three."""
        result: Tensor = self.score(self.enc["fc"](self.fc(x)))
        return result


def trained(folder: Path, **config: Any) -> nn.Module:
    """Save a PEFT adapter with random weights; returns its model."""
    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(**{"target_modules": ["fc"], "r": 4, "lora_alpha": 8, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"enc.fc": 2}, "alpha_pattern": {"^fc": 3}},
        {"rank_pattern": {"^fc": 2, "fc": 3}},
        {"rank_pattern": {r"enc\..*": 1}, "use_rslora": True},
        {"target_modules": r"enc\.fc"},
        {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
        {"modules_to_save": ["score"]},
    ],
)
def test_the_update_is_what_peft_computes(tmp_path: Path, config: dict[str, Any]) -> None:
    model = trained(tmp_path, **config)
    back = read(tmp_path)
    layers = {name: module for name, module in model.get_base_model().named_modules() if hasattr(module, "get_delta_weight")}
    assert back.modules.keys() == layers.keys()
    for path, layer in layers.items():
        torch.testing.assert_close(back.modules[path].materialise(), layer.get_delta_weight("default"))
    expected = {"score.weight", "score.bias"} if "modules_to_save" in config else set()
    assert back.heads.keys() == expected
    if expected:
        assert torch.equal(back.heads["score.bias"], model.get_base_model().score.modules_to_save["default"].bias)


def test_reading_and_writing_again_keeps_what_peft_computes(tmp_path: Path) -> None:
    trained(tmp_path / "one", rank_pattern={"enc.fc": 2}, alpha_pattern={"^fc": 3}, modules_to_save=["score"])
    first = read(tmp_path / "one")
    again = read(write(first, tmp_path / "two", layout="uniform"))
    assert again.modules.keys() == first.modules.keys()
    for path, factors in first.modules.items():
        torch.testing.assert_close(again.modules[path].materialise(), factors.materialise())


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_what_peft_can_and_a_plain_lora_cannot_is_refused(tmp_path: Path, config: dict[str, Any], word: str) -> None:
    trained(tmp_path, **config)
    with pytest.raises(AdapterError, match=word):
        read(tmp_path)


def test_a_dora_of_peft_is_read_with_its_magnitudes(tmp_path: Path) -> None:
    model = trained(tmp_path, use_dora=True)
    found = read(tmp_path)
    assert found.magnitudes.keys() == found.modules.keys()
    for path, magnitude in found.magnitudes.items():
        theirs = model.base_model.model.get_submodule(path).lora_magnitude_vector["default"].weight
        assert torch.equal(magnitude, theirs)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": False}))
    with pytest.raises(AdapterError, match="a DoRA magnitude, but use_dora is not set"):
        read(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": "yes"}))
    with pytest.raises(AdapterError, match="neither true nor false"):
        read(tmp_path)


def test_pattern_keys_that_saving_has_put_into_another_order_are_refused(tmp_path: Path) -> None:
    """PEFT sorts the keys when it saves, so that another one matches first; it cannot load such an adapter either."""
    trained(tmp_path, rank_pattern={"fc": 3, "enc.fc": 2})
    with pytest.raises(AdapterError, match="rank 3.*says 2"):
        read(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound adapter folder."""
    return write(adapter({"layer.1.fc": 3, "layer.10.fc": 1, "fc": 2}, heads={"score.weight": torch.ones(2, 2)}), tmp_path / "sound")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "PARING"}, "training checkpoint"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"use_qalora": True}, "use_qalora"),
        ({"kasa_config": {"x": 1}}, "kasa_config"),
        ({"use_something_new": True}, "use_something_new"),
        ({"r": 0}, "r = 0"),
        ({"r": "8"}, "r = '8'"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"rank_pattern": {"fc": 2.5}}, "rank_pattern"),
        ({"rank_pattern": {"(": 2}}, "expression"),
        ({"rank_pattern": {}}, "rank"),
        ({"rank_pattern": {"layer.1.fc": 2, "layer.10.fc": 1, "^fc": 2}}, "rank 3"),
        ({"target_modules": ["other"]}, "does not target"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": 7}, "target_modules"),
        ({"layers_to_transform": [0], "target_modules": ["fc"]}, "does not target"),
        ({"modules_to_save": None}, "score.weight"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path"),
    ],
)
def test_a_configuration_that_means_something_else_is_refused(folder: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterError, match=words) as caught:
        read(change(folder, **keys))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"something_new": None},
        {"something_new": False},
        {"peft_version": "9.0"},
        {"eva_config": {"rho": 2.0}},
        {"auto_mapping": {"a": "b"}},
    ],
)
def test_keys_of_no_account_are_left_alone(folder: Path, keys: dict[str, Any]) -> None:
    assert read(change(folder, **keys)).modules.keys() == read(folder).modules.keys()


def _renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}


def _replaced(key: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: held for name, held in {**tensors, key: tensor}.items() if held is not None}


A, B = "base_model.model.fc.lora_A.weight", "base_model.model.fc.lora_B.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_replaced(B, None), "no lora_B"),
        (_replaced(A, torch.ones(3, 8)), "disagree on the rank"),
        (_replaced(A, torch.full((2, 8), float("nan"))), "NaN"),
        (_replaced(A, torch.ones(2, 8, 1, 1)), "convolution"),
        (_replaced(A, torch.ones(2, 8, dtype=torch.int32)), "I32"),
        (_replaced(A, torch.ones(2, 0)), "shape"),
        (_replaced("base_model.model.fc.lora_magnitude_vector.weight", torch.ones(6)), "DoRA"),
        (_replaced("base_model.model.fc.lora_B.bias", torch.ones(6)), "lora_bias"),
        (_replaced("base_model.model.emb.lora_embedding_A", torch.ones(2, 2)), "embedding"),
        (_replaced("base_model.model.gate", torch.ones(2)), "Unknown tensor"),
        (_replaced("base_model.model.../../etc/passwd.lora_A.weight", torch.ones(2, 8)), "no lora_B"),
        (_renamed("base_model.model.fc", "base_model.model.../../up"), "does not target"),
        (_renamed("base_model.model.", ""), "Unknown tensor"),
        (_renamed(".lora_A.weight", ".lora_A.default.weight"), "Unknown tensor|no lora_A"),
        (_renamed("base_model.model.fc", f"base_model.model.{'x' * 600}.fc"), "characters"),
        (lambda _: {}, "no LoRA factors"),
    ],
)
def test_tensors_that_are_not_a_plain_lora_s_are_refused(
    folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str
) -> None:
    with pytest.raises(AdapterError, match=words) as caught:
        read(put(folder, edit(tensors_of(folder))))
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_module_name_is_refused_even_if_targeted(folder: Path) -> None:
    change(folder, target_modules=r".*", r=2)
    with pytest.raises(AdapterError, match="dotted name"):
        read(put(folder, _renamed("base_model.model.fc", "base_model.model.../../up.fc")(tensors_of(folder))))


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _edit(**values: Any) -> Callable[[bytes], bytes]:
    def damaged(data: bytes) -> bytes:
        header, body = header_of(data)
        header[A].update(values)
        return with_header(header, body)

    return damaged


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:20] + bytes([data[20] ^ 0xFF]) + data[21:],
        lambda data: bytes([data[0] ^ 0x10]) + data[1:],
        lambda data: struct.pack("<Q", 2**63) + data[8:],
        lambda data: struct.pack("<Q", 90 * 2**20) + data[8:],
        lambda data: b"PK\x03\x04" + data[4:],
        _edit(shape=[2**40, 2**40]),
        _edit(shape=[-1, 8]),
        _edit(shape=[2, 9]),
        _edit(dtype="F128"),
        _edit(data_offsets=[0, 2**62]),
        _edit(data_offsets=[0, 60]),
        _edit(data_offsets=[16, 80]),
    ],
)
def test_a_damaged_file_gives_one_sentence(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(AdapterError, match="truncated or damaged") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"r": ' + b"[" * 100_000])
def test_a_configuration_that_is_no_json_object_is_refused(folder: Path, text: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(text)
    with pytest.raises(AdapterError, match="JSON"):
        read(folder)


def test_the_side_file_must_fit(folder: Path) -> None:
    side = json.loads((folder / "paring.json").read_text())
    for wrong in (
        {"modules": {**side["modules"], "gone": {"live_rank": 3, "in_features": 8, "out_features": 6}}},
        {"modules": {**side["modules"], "gone": {"live_rank": 0, "in_features": 10**30, "out_features": 6}}},
        {"modules": {**side["modules"], "gone": {"live_rank": 0, "in_features": True, "out_features": 6}}},
        {"modules": []},
        {"method": "sora"},
    ):
        (folder / "paring.json").write_text(json.dumps({**side, **wrong}))
        with pytest.raises(AdapterError, match="paring.json"):
            read(folder)


def test_missing_things_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(AdapterError, match="file"):
        read(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="adapter_model.safetensors"):
        read(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AdapterError, match="pickle.*save_pretrained"):
        read(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="adapter_config.json"):
        read(tmp_path / "empty")
    with pytest.raises(AdapterError, match="no folder"):
        read(tmp_path / "missing")


def _hub(folder: Path, asked: list[tuple[str, str, str | None]]) -> Callable[..., str]:
    """A hub that has one repository."""

    class Response:  # what the error wants to see of one
        headers: ClassVar[dict[str, str]] = {}
        status_code = 404
        request = None

    def download(repository: str, name: str, *, revision: str | None = None) -> str:
        asked.append((repository, name, revision))
        if repository != "someone/adapter":
            raise RepositoryNotFoundError("no such repository\nmore", response=Response())  # type: ignore[arg-type]
        if not (folder / name).exists():
            raise EntryNotFoundError(f"no {name}")
        return str(folder / name)

    return download


def test_the_hub_is_asked_when_there_is_no_such_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []
    monkeypatch.setattr(reading, "hf_hub_download", _hub(folder, asked))
    assert read("someone/adapter", revision="v1").modules.keys() == read(folder).modules.keys()
    assert ("someone/adapter", "adapter_config.json", "v1") in asked
    (folder / "paring.json").unlink()
    assert read("someone/adapter").max_rank == 3
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        read("someone/adapter")
    with pytest.raises(AdapterError, match="no such repository") as caught:
        read("someone/else")
    assert "\n" not in str(caught.value)


def test_a_local_folder_comes_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert read("sound").max_rank == 3


def test_reading_changes_nothing(folder: Path) -> None:
    before = contents(folder)
    read(folder)
    assert contents(folder) == before
    assert config_of(folder)["peft_type"] == "LORA"
