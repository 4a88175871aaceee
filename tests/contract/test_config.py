"""A configuration survives JSON, and what a release does not know is refused, not dropped."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import PeftConfig, PeftModel

import paring
from paring.core.errors import SettingError
from paring.method import decode
from tests.contract.cases import Case


def test_config_round_trips_through_json(case: Case, tmp_path: Path) -> None:
    config = case.adapted().peft_config["default"]
    config.save_pretrained(str(tmp_path))
    for read in (PeftConfig.from_pretrained(str(tmp_path)), paring.ParingConfig.from_pretrained(str(tmp_path))):
        assert isinstance(read, paring.ParingConfig)
        assert read.method == case.method
        assert {**read.to_dict(), "inference_mode": None} == {**config.to_dict(), "inference_mode": None}
    text = json.dumps(config.to_dict(), sort_keys=True)
    assert json.dumps(json.loads(text), sort_keys=True) == text


def test_method_round_trips_through_json(plain: Case) -> None:
    data = json.loads(json.dumps(plain.method.encode()))
    assert data["name"] == plain.method_name
    assert decode(data) == plain.method
    assert copy.deepcopy(plain.method) == plain.method
    assert hash(plain.method) == hash(decode(data))


@pytest.mark.parametrize("read", [PeftConfig.from_pretrained, paring.ParingConfig.from_pretrained])
@pytest.mark.parametrize("where", ["config", "method"])
def test_an_unknown_key_is_refused(plain: Case, tmp_path: Path, where: str, read: Callable[[str], object]) -> None:
    plain.roughened().save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    data = json.loads(file.read_text())
    (data if where == "config" else data["method"])["dropuot"] = 1
    file.write_text(json.dumps(data))
    with pytest.raises(SettingError, match="Unknown key 'dropuot'"):
        read(str(tmp_path))
    with pytest.raises(SettingError, match="Unknown key 'dropuot'"):
        PeftModel.from_pretrained(plain.base(), str(tmp_path))


def test_near_keys_are_shown(plain: Case) -> None:
    with pytest.raises(SettingError, match="Did you mean 'target_modules'"):
        paring.ParingConfig(method=plain.method, target_modulse=["fc"])


def test_a_newer_version_is_refused(plain: Case, tmp_path: Path) -> None:
    plain.roughened().save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    data = json.loads(file.read_text())
    data["method"]["version"] += 1
    file.write_text(json.dumps(data))
    with pytest.raises(SettingError, match="Upgrade paring"):
        PeftConfig.from_pretrained(str(tmp_path))


def test_an_unknown_method_is_refused(plain: Case) -> None:
    data = plain.method.encode() | {"name": f"{plain.method_name}x"}
    with pytest.raises(SettingError, match=f"Did you mean '{plain.method_name}'"):
        decode(data)
    with pytest.raises(SettingError, match="Unknown method"):
        decode({"name": f"paring.methods.{plain.method_name}"})
