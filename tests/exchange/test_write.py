"""What is written, how it appears on disk, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paring.core.adapter import Adapter
from paring.core.errors import ExportError, OutputExistsError, SettingError
from paring.core.factors import Factors
from paring.exchange import folder as folder_module
from paring.exchange.compare import difference, differences
from paring.exchange.layout import SIDE
from paring.exchange.read import read
from paring.exchange.write import write
from tests.exchange.helpers import adapter, config_of, contents, tensors_of

MIXED = {"encoder.layer.1.query": 3, "encoder.layer.10.query": 1, "encoder.layer.2.query": 0, "fc": 2, "enc.fc": 4}
NAMES = [*MIXED, "encoder", "encoder.layer", "xlayer.1.query", "enc", "other.enc.fc2"]
HEADS = {"classifier.weight": torch.ones(3, 8), "classifier.bias": torch.zeros(3)}


def test_compact_has_each_rank_and_no_dead_module(tmp_path: Path) -> None:
    out = write(adapter(MIXED), tmp_path / "out", module_names=NAMES)
    config = config_of(out)
    assert config["r"] == config["lora_alpha"] == 4
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == [1, 2, 3, 4]
    assert config["use_rslora"] is False
    assert not any("layer.2" in target for target in config["target_modules"])
    assert not any("layer.2." in key for key in tensors_of(out))
    assert {key: tuple(tensor.shape) for key, tensor in tensors_of(out).items() if ".enc.fc." in key} == {
        "base_model.model.enc.fc.lora_A.weight": (4, 8),
        "base_model.model.enc.fc.lora_B.weight": (6, 4),
    }


def test_uniform_has_one_rank_and_every_module(tmp_path: Path) -> None:
    out = write(adapter(MIXED), tmp_path / "out", layout="uniform", module_names=NAMES)
    config = config_of(out)
    assert config["r"] == config["lora_alpha"] == 4
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    tensors = tensors_of(out)
    assert {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key} == {4}
    assert len(tensors) == 2 * len(MIXED)
    assert not tensors["base_model.model.encoder.layer.2.query.lora_B.weight"].any()
    assert not tensors["base_model.model.encoder.layer.2.query.lora_A.weight"].any()


def test_equal_ranks_need_no_pattern(tmp_path: Path) -> None:
    config = config_of(write(adapter({"a.x": 2, "b.x": 2}), tmp_path / "out"))
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["r"] == 2


def test_folded_in_float32_then_cast(tmp_path: Path) -> None:
    trained = adapter({"fc": 5})
    held = trained.modules["fc"].prune()
    assert held.gate is not None
    out = write(trained, tmp_path / "out", dtype=torch.bfloat16)
    tensors = tensors_of(out)
    expected = (held.b * held.gate * held.scale).to(torch.bfloat16)
    assert torch.equal(tensors["base_model.model.fc.lora_B.weight"], expected)
    assert torch.equal(tensors["base_model.model.fc.lora_A.weight"], held.a.to(torch.bfloat16))


@pytest.mark.parametrize("layout", ["compact", "uniform"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_reading_back_gives_the_same_updates(
    tmp_path: Path, layout: Any, dtype: torch.dtype | None, tolerance: float, generator: torch.Generator
) -> None:
    trained = adapter(MIXED, heads=HEADS, task_type="SEQ_CLS", base_model="some/encoder", revision="abc")
    back = read(write(trained, tmp_path / "out", layout=layout, dtype=dtype, module_names=[*NAMES, "classifier"]))
    assert back.modules.keys() == trained.modules.keys()
    assert max(differences(back, trained, generator).values()) <= tolerance
    assert back.heads.keys() == trained.heads.keys()
    assert torch.equal(back.heads["classifier.weight"].float(), HEADS["classifier.weight"])
    assert (back.metadata.base_model, back.metadata.revision, back.metadata.task_type) == ("some/encoder", "abc", "SEQ_CLS")


def test_the_method_and_the_ranks_travel_in_the_side_file_only(tmp_path: Path) -> None:
    method = {"name": "sora", "version": 1, "rank": 8}
    out = write(adapter(MIXED, method=method), tmp_path / "out", module_names=NAMES, command="paring train")
    side = json.loads((out / "paring.json").read_text())
    assert side["method"] == method
    assert side["modules"]["fc"] == {"in_features": 8, "out_features": 6, "start_rank": 8, "live_rank": 2}
    assert side["modules"]["encoder.layer.2.query"]["live_rank"] == 0
    assert side["command"] == "paring train"
    assert {"paring", "torch"} <= side["versions"].keys()
    assert read(out).metadata.method == method
    assert "paring" not in (out / "adapter_config.json").read_text().lower()


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write(adapter(MIXED, heads=HEADS), tmp_path / "one", module_names=NAMES, extra_files={"config.json": b"{}"})
    turned = adapter(MIXED, heads=HEADS)
    turned = Adapter(modules=dict(reversed(turned.modules.items())), heads=dict(reversed(turned.heads.items())), metadata=turned.metadata)
    second = write(turned, tmp_path / "two", module_names=list(reversed(NAMES)), extra_files={"config.json": b"{}"})
    assert contents(first) == contents(second)


def test_safetensors_agrees_with_what_is_written(tmp_path: Path) -> None:
    heads = {
        "head.odd": torch.ones(3, dtype=torch.int64),
        "head.one": torch.tensor(2.0),
        "head.flag": torch.tensor([True]),
        "head.half": torch.ones(3).half(),
    }
    out = write(adapter({"fc": 1}, heads=heads), tmp_path / "out")
    with safe_open(out / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        for name, tensor in heads.items():
            assert torch.equal(file.get_tensor(f"base_model.model.{name}"), tensor)


def test_fan_in_fan_out_is_said_for_transposed_weights(tmp_path: Path) -> None:
    out = write(adapter({"h.0.c_attn": 2}, fan_in_fan_out=frozenset({"h.0.c_attn"})), tmp_path / "out")
    assert config_of(out)["fan_in_fan_out"] is True
    assert read(out).metadata.fan_in_fan_out == {"h.0.c_attn"}
    assert config_of(write(adapter({"fc": 2}), tmp_path / "plain"))["fan_in_fan_out"] is False


def test_padding_beyond_the_largest_rank(tmp_path: Path, generator: torch.Generator) -> None:
    trained = adapter({"fc": 3})
    out = write(trained, tmp_path / "out", layout="uniform", pad_to=8)
    assert config_of(out)["r"] == config_of(out)["lora_alpha"] == 8
    assert difference(read(out).modules["fc"], trained.modules["fc"], generator) < 1e-6
    for wrong in ({"layout": "uniform", "pad_to": 2}, {"layout": "compact", "pad_to": 8}, {"layout": "uniform", "pad_to": 0}):
        with pytest.raises(SettingError, match="pad_to"):
            write(trained, tmp_path / "wrong", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["compact", "uniform"])
def test_all_gates_zero_says_what_to_lower(tmp_path: Path, layout: Any) -> None:
    with pytest.raises(ExportError, match="penalty.*gate_rate"):
        write(adapter({"a": 0, "b": 0}), tmp_path / "out", layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_a_value_too_large_for_the_dtype_is_refused(tmp_path: Path) -> None:
    large = Adapter(modules={"fc": Factors(a=torch.ones(1, 2), b=torch.full((2, 1), 1e3), scale=100.0)})
    with pytest.raises(ExportError, match="float16"):
        write(large, tmp_path / "out", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="compact"):
        write(adapter({"fc": 1}), tmp_path / "out", layout="compac")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="dtype"):
        write(adapter({"fc": 1}), tmp_path / "out", dtype=torch.int8)
    with pytest.raises(ExportError, match="SEQ_CLS"):
        write(adapter({"fc": 1}, task_type="SEQ_CSL"), tmp_path / "out")
    for name in ("../up", "/abs", "adapter_config.json", "adapter_model.bin", "model.safetensors", ""):
        with pytest.raises(SettingError, match="extra_files"):
            write(adapter({"fc": 1}), tmp_path / "out", extra_files={name: b""})


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    out = write(adapter({"fc": 1}), tmp_path / "out")
    before = contents(out)
    with pytest.raises(OutputExistsError, match="overwrit"):
        write(adapter({"fc": 2}), out)
    assert contents(out) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExistsError, match="file"):
        write(adapter({"fc": 2}), tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    write(adapter({"fc": 2}), tmp_path / "empty")


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = write(adapter({"fc": 1}), tmp_path / "out", extra_files={"tokenizer/vocab.txt": b"a"})
    write(adapter({"fc": 2}), out, overwrite=True)
    assert contents(out) == contents(write(adapter({"fc": 2}), tmp_path / "new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out"]


def test_overwriting_does_not_delete_what_no_export_wrote(tmp_path: Path) -> None:
    out = write(adapter({"fc": 1}), tmp_path / "out")
    (out / "checkpoint-10").mkdir()
    (out / "checkpoint-10" / "optimizer.pt").write_bytes(b"weeks of work")
    before = contents(out)
    with pytest.raises(OutputExistsError, match="optimizer.pt"):
        write(adapter({"fc": 2}), out, overwrite=True)
    assert contents(out) == before
    home = tmp_path / "home"
    home.mkdir()
    (home / "README.md").write_text("mine")
    with pytest.raises(OutputExistsError, match="README"):
        write(adapter({"fc": 2}), home, overwrite=True)


def test_overwriting_does_not_delete_a_checkpoint_or_another_tools_adapter(tmp_path: Path) -> None:
    # Both have PEFT's own file names, and no word of an export.
    out = write(adapter({"fc": 1}), tmp_path / "out")
    (out / "paring.json").unlink()
    before = contents(out)
    with pytest.raises(OutputExistsError, match="no export wrote"):
        write(adapter({"fc": 2}), out, overwrite=True)
    assert contents(out) == before


def test_a_disk_that_cannot_sync_folders_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def picky(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(folder_module.os, "fsync", picky)
    assert config_of(write(adapter({"fc": 1}), tmp_path / "out"))["r"] == 1


def test_a_folder_that_had_stepped_aside_when_an_export_was_killed_comes_back(tmp_path: Path) -> None:
    out = write(adapter({"fc": 1}), tmp_path / "out")
    before = contents(out)
    out.rename(tmp_path / ".out.0123abcd.old")
    with pytest.raises(OutputExistsError, match="exists already"):
        write(adapter({"fc": 2}), out)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    out = write(adapter({"fc": 1}), tmp_path / "real")
    (tmp_path / "link").symlink_to(out)
    write(adapter({"fc": 2}), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert config_of(out)["r"] == 2


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fault", [_full, _interrupt])
@pytest.mark.parametrize("place", ["fsync", "rename"])
def test_a_failed_write_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, fault: Any
) -> None:
    out = write(adapter({"fc": 1}), tmp_path / "out")
    before = contents(out)
    with monkeypatch.context() as patch:
        if place == "fsync":
            patch.setattr(os, "fsync", fault)
        else:
            real, calls = Path.rename, []

            def rename(self: Path, target: Path) -> Path:
                calls.append(target)
                # The second rename puts the new folder in place; the third brings the old one back.
                if len(calls) == 2:
                    fault()
                return real(self, target)

            patch.setattr(folder_module.Path, "rename", rename)
        with pytest.raises(ExportError if fault is _full else KeyboardInterrupt, match="No space" if fault is _full else None):
            write(adapter({"fc": 2}), out, overwrite=True)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    wide = Adapter(modules={"fc": Factors(a=torch.ones(4, 60_000), b=torch.ones(60_000, 4))})
    out = write(adapter({"fc": 1}), tmp_path / "out")
    before = contents(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(ExportError, match="nothing was changed"):
            write(wide, out, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_check_sees_the_complete_folder_and_can_stop_it(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def check(fresh: Path) -> None:
        seen.append(set(contents(fresh)))
        assert read(fresh).max_rank == 2
        raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        write(adapter({"fc": 2}), tmp_path / "out", check=check, extra_files={"vocab.txt": b""})
    assert seen == [{"adapter_config.json", "adapter_model.safetensors", "README.md", "paring.json", "vocab.txt"}]
    assert list(tmp_path.iterdir()) == []


def test_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many modules there are, no more than one of them is folded at a time: nothing holds on to the last."""
    alive: list[weakref.ref[Tensor]] = []
    real = Factors.fold

    def fold(self: Factors, dtype: torch.dtype = torch.float32) -> Factors:
        assert sum(reference() is not None for reference in alive) <= 1
        result = real(self, dtype)
        alive.append(weakref.ref(result.b))
        return result

    monkeypatch.setattr(Factors, "fold", fold)
    write(adapter({f"layer.{index}.fc": 2 for index in range(5)}), tmp_path / "out")
    assert len(alive) == 5


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_side_file_has_the_digest_of_the_weights_on_disk(dtype: torch.dtype | None, tmp_path: Path) -> None:
    folder = write(adapter({"fc": 2, "gone": 0, "head": 3}), tmp_path / "out", dtype=dtype)
    written = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert json.loads((folder / SIDE).read_text())["sha256"] == {"adapter_model.safetensors": written}


def test_the_card_loads_the_tokenizer_only_from_a_folder_that_has_one(tmp_path: Path) -> None:
    trained = adapter({"fc": 2}, base_model="org/base")
    bare = write(trained, tmp_path / "bare")
    whole = write(trained, tmp_path / "whole", extra_files={"tokenizer_config.json": b"{}"})
    assert "AutoTokenizer.from_pretrained('org/base')" in (bare / "README.md").read_text()
    assert 'AutoTokenizer.from_pretrained("path/to/this/folder")' in (whole / "README.md").read_text()


def test_a_folder_that_cannot_be_asked_to_be_overwritten_says_nothing_of_it(tmp_path: Path) -> None:
    write(adapter({"fc": 2}), tmp_path / "out")
    with (
        pytest.raises(OutputExistsError, match=r"exists already; choose another folder\.$"),
        folder_module.replacing(tmp_path / "out", False),
    ):
        pass


@pytest.mark.skipif(os.name != "posix", reason="Windows has no umask that takes rights away")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_that_a_library_makes_private_get_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with folder_module.replacing(tmp_path / "out", False) as fresh:
            save_file({"weight": torch.ones(2)}, fresh / "model.safetensors")
            (fresh / "config.json").write_text("{}")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == dict.fromkeys(
        ("model.safetensors", "config.json"), 0o666 & ~umask
    )
