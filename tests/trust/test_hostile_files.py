"""Hostile files one by one: links and pipes, pickles, code that comes along, archives, names out of the folder, and known crashes."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from paring.attach.config import ParingConfig
from paring.cli.data.read import held_out_split
from paring.cli.data.read import read as read_data
from paring.cli.plain import MOST
from paring.cli.run.checkpoints import TASK
from paring.cli.run.loaded import labels_of, load_checkpoint
from paring.cli.run.output import is_checkpoint
from paring.cli.study.build import build
from paring.cli.study.text import read_text
from paring.core.adapter import natural
from paring.core.coding import number
from paring.core.errors import LONGEST, AdapterError, DataError, ParingError, SettingError, near
from paring.exchange.companions import companions
from paring.exchange.engines import lint
from paring.exchange.expressions import Clock, Expression, Keys
from paring.exchange.patterns import Selection
from paring.exchange.read import read
from paring.exchange.write import write
from paring.method import decode, names
from paring.parts.shape import Shape
from tests.exchange.helpers import adapter, change, put, tensors_of
from tests.trust.grids import cell

RESULT, BOUNDED, INSIDE, NO_CODE = (
    "a clear error or a right result",
    "bounded time and memory",
    "nothing outside the folder",
    "no pickle, no remote code",
)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound adapter folder."""
    return write(adapter({"model.layers.0.q_proj": 3, "model.layers.1.q_proj": 2}), tmp_path / "sound")


def _pipe(path: Path, place: Path) -> None:
    os.mkfifo(path)


def _circle(path: Path, place: Path) -> None:
    path.symlink_to(path.name)


def _zeros(path: Path, place: Path) -> None:
    path.symlink_to("/dev/zero")


def _secret(path: Path, place: Path) -> None:
    (place / "secret").write_text('{"peft_type": "LORA", "model": "secret"}')
    path.symlink_to(place / "secret")


LINKS = [
    pytest.param(name, make, marks=cell("hostile", row, column, refused=True))
    for name, row in (("adapter_config.json", "adapter configuration"), ("adapter_model.safetensors", "adapter weights"))
    for column in (BOUNDED, INSIDE)
    for make in (_pipe, _circle, _zeros, _secret)
]


@pytest.mark.parametrize(("name", "make"), LINKS)
def test_links_and_pipes_are_refused_and_not_waited_for(
    folder: Path, tmp_path: Path, name: str, make: Callable[[Path, Path], None]
) -> None:
    (folder / name).unlink()
    make(folder / name, tmp_path)
    for reader in (read, lint):
        with pytest.raises(AdapterError):
            reader(folder)
    assert not is_checkpoint(folder)


@cell("hostile", "adapter configuration", INSIDE)
def test_no_file_from_elsewhere_is_copied_beside_an_adapter(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterError, match=r"vocab\.txt .*is a link to .*secret.*not followed"):
        companions(folder)
    with pytest.raises(AdapterError, match="not followed"):
        read(folder)
    (folder / "vocab.txt").unlink()
    (folder / "merges.txt").write_text("mine")
    (folder / "vocab.txt").symlink_to("merges.txt")  # inside the folder
    assert companions(folder) == {"vocab.txt": b"mine", "merges.txt": b"mine"}


@cell("hostile", "adapter weights", RESULT)
def test_the_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert read(snapshot).max_rank == 3
    (tmp_path / "link").symlink_to(snapshot)  # the folder itself may be a link: the user has named it
    assert read(tmp_path / "link").max_rank == 3


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@cell("hostile", "adapter weights", NO_CODE)
def test_a_pickle_beside_the_weights_is_never_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    assert read(folder).max_rank == 3
    assert lint(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="pickle"):
        read(folder)
    assert not (tmp_path / "ran").exists()


@cell("hostile", "adapter configuration", NO_CODE)
def test_code_that_a_configuration_names_is_not_run(folder: Path) -> None:
    change(folder, auto_mapping={"base_model_class": "Evil", "parent_library": "evil.code"}, base_model_name_or_path="evil/base")
    assert read(folder).metadata.base_model == "evil/base"
    change(folder, trust_remote_code=True)
    with pytest.raises(AdapterError, match="Unknown key 'trust_remote_code'"):
        read(folder)


@cell("hostile", "method settings", NO_CODE, refused=True)
@pytest.mark.parametrize("asks", [{"trust_remote_code": True}, {"attn_implementation": "evil/kernels"}])
def test_a_checkpoint_does_not_allow_its_own_code_to_run(tmp_path: Path, asks: dict[str, Any]) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PARING"}')
    task = {"kind": "classification", "texts": ["text"], "label": "label", "names": ["a", "b"]}
    (tmp_path / TASK).write_text(json.dumps({"task": task, "base": {"model_name_or_path": "evil/base", **asks}}))
    with pytest.raises(SettingError, match="--trust_remote_code"):
        load_checkpoint(tmp_path)


@cell("hostile", "method settings", RESULT)
@pytest.mark.parametrize("text", ["[", "[]", "[" * 100_000, '{"peft_type": "LORA"}', '{"peft_type": "PARING"}'])
def test_a_checkpoint_s_configuration_that_is_none_gives_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(SettingError):
        ParingConfig.from_pretrained(str(tmp_path))
    assert not is_checkpoint(tmp_path) or "PARING" in text
    (tmp_path / "config.json").write_text(text)
    assert labels_of(tmp_path, 2) == {0: "LABEL_0", 1: "LABEL_1"}


@cell("hostile", "method settings", BOUNDED)
@pytest.mark.parametrize("name", names())
def test_a_rank_of_a_million_millions_takes_no_memory(name: str) -> None:
    example = {"spectral": {"name": "spectral", "budget": {"name": "share", "share": 0.5}}}.get(name, {"name": name})
    fields = decode(example).encode()
    for setting in ("rank", "start_rank", "max_rank", "width", "entries"):
        if setting not in fields:
            continue
        try:
            method = decode({**fields, setting: 10**12})
            method.check(Shape(path="fc", in_features=6, out_features=5))
        except SettingError:
            continue
        with pytest.raises(ParingError):
            method.slot(Shape(path="fc", in_features=6, out_features=5), torch.Generator().manual_seed(0))


@cell("hostile", "method settings", RESULT)
def test_a_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(SettingError, match="alpha"):
        number("alpha", 10**400, low=0.0)


@cell("hostile", "adapter configuration", RESULT)
@pytest.mark.parametrize(
    "keys",
    [
        {"lora_alpha": 10**400},
        {"r": 10**400},
        {"r": 10**12},
        {"alpha_pattern": {"fc": -(10**400)}},
        {"base_model_name_or_path": "\ud800"},
        {"layers_pattern": "zzz|model", "layers_to_transform": [0], "target_modules": ["q_proj"]},
        {"peft_type": ["LORA"] * 100_000},
    ],
)
def test_values_that_no_trainer_wrote_are_refused(folder: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(AdapterError) as caught:
        read(change(folder, **keys))
    assert len(str(caught.value)) <= LONGEST


@cell("hostile", "adapter weights", BOUNDED)
def test_a_name_of_millions_of_letters_is_refused_at_once(folder: Path) -> None:
    head = {"a." * 5_000_000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(head).encode()
    (folder / "paring.json").unlink()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    for reader in (read, lint):
        with pytest.raises(AdapterError, match="characters"):
            reader(folder)


@cell("hostile", "adapter weights", RESULT)
@pytest.mark.parametrize("name", ["model.layers.²", "model.layers.999999999", f"model.layers.{'9' * 400}"])
def test_layers_with_strange_numbers(folder: Path, name: str) -> None:
    renamed = {key.replace("model.layers.0", name): tensor for key, tensor in tensors_of(folder).items()}
    put(change(folder, target_modules=["q_proj"], rank_pattern={}, alpha_pattern={}, r=3, lora_alpha=3), renamed)
    assert lint(folder)
    (folder / "paring.json").write_text(json.dumps({"modules": {"1" * 5000: {"live_rank": 0, "in_features": 4, "out_features": 4}}}))
    for reader in (read, lint):
        with pytest.raises(AdapterError, match="not what paring writes"):
            reader(folder)


def test_names_with_numbers_of_any_length_have_an_order() -> None:
    assert sorted(["l.10", "l.9", f"l.{'9' * 5000}", "l.²"], key=natural)[:2] == ["l.9", "l.²"]
    assert sorted(["l.010", "l.2", "l.x", "l.0"], key=natural) == ["l.x", "l.0", "l.2", "l.010"]


@cell("hostile", "patterns and targets", BOUNDED)
def test_many_keys_of_one_length_are_given_up() -> None:
    keys = [format(index, "016b").replace("0", "a").replace("1", ".") for index in range(2**16)]
    found = Keys((f"x{key}x" for key in keys), Clock(0.2))
    with pytest.raises(AdapterError, match="too long"):
        [found.first("y" * 18) for _ in range(1000)]


@cell("hostile", "patterns and targets", BOUNDED)
@pytest.mark.parametrize("source", ["a{9999999}", "((a{99}){99}){99}", "(a+)+$", "(?:(?:a|a)*)*b", "." * 1001, "(" * 900, "(a|aa)+" * 100])
def test_expressions_without_end(source: str) -> None:
    start = time.process_time()
    for tried in (source, f"{source}b"):
        with suppress(AdapterError):  # or it is found out quickly that nothing matches
            Expression(tried, r"(.*\.)?(", r")$", Clock(0.3)).match("a" * 500 + "!")
    assert time.process_time() - start < 2.0


@cell("hostile", "patterns and targets", RESULT, refused=True)
@pytest.mark.parametrize("source", ["x{e}", "x{e<=2}", "[[:alpha:]]"])
def test_expressions_that_the_two_engines_take_for_different_things(source: str) -> None:
    with pytest.raises(AdapterError, match="is not read"):
        Selection(target_modules=source)


@cell("hostile", "adapter configuration", BOUNDED)
def test_near_names_are_looked_for_in_bounded_time() -> None:
    assert near("a" * 5000, ("a" * 4000 + str(index) for index in range(10_000))) == ""
    assert near("q_prj", [f"layer.{index}.q_proj" for index in range(50_000)] + ["q_proj"]) is not None


def _nest(open_: str, close: str) -> str:
    return open_ * 100_000 + close * 100_000


@cell("hostile", "study file", RESULT)
@pytest.mark.parametrize(
    "value",
    [
        *("0b_", "0x_", "2001-99-99", "9" * 5000, "0x" + "f" * 10_000, "!!int x", "!!float x", "!!timestamp x", "!!bool x"),
        *('"\\UFFFFFFFF"', "\0", "\x07", "2001-01-01T25:00:00Z", "&a [*a]", "&a {<<: *a}", "!!python/object/apply:os.system [id]"),
    ],
)
def test_yaml_that_stands_for_nothing_names_its_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"seeds: 3\nname: {value}\n")
    with pytest.raises(SettingError, match=r"line [12]"):
        build(read_text(path), {})


_LEVELS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@cell("hostile", "study file", BOUNDED, refused=True)
@pytest.mark.parametrize(
    "text",
    [
        _LEVELS,
        _LEVELS + "? *a9\n: 1\n",
        "[" * 100_000,
        "x: " + "[" * 900 + "]" * 900,
        "{a: " * 5000,
        "x" * 10_000_000,
        "- a\n" * (MOST + 1),
    ],
)
def test_yaml_that_would_never_end_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(SettingError):
        build(read_text(path), {})


TASK_LINE = "tasks: {a: {metric: loss, dataset_name: x, model_name_or_path: y}}\n"


@cell("hostile", "study file", BOUNDED, refused=True)
@pytest.mark.parametrize(
    "text",
    [
        f"seeds: 1000000000\n{TASK_LINE}contestants: {{b: {{method: lora, learning_rate: 1e-3}}}}\n",
        f"tasks: {{{','.join(f't{n}: 1' for n in range(900))}}}\ncontestants: {{{','.join(f'c{n}: 1' for n in range(900))}}}\n",
        f"{TASK_LINE}contestants: {{b: {{peft: 3, learning_rate: 1e-3}}}}\n",
    ],
)
def test_studies_without_end_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(SettingError, match="line"):
        build(read_text(path), {})


def _zipped(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../outside.txt", "text\nx\n")
    return path.read_bytes()


@cell("hostile", "data files", BOUNDED, refused=True)
@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("a.parquet", lambda path: gzip.compress(b"\0" * 10**6), "gzip"),
        ("a.parquet", _zipped, "zip"),
        ("a.parquet", lambda path: bz2.compress(b"\0" * 10**6), "bzip2"),
        ("a.parquet", lambda path: b"PAR1" + b"\xff" * 100 + b"PAR1", "could not be read"),
        ("a.jsonl", lambda path: _nest("[", "]").encode(), "nested"),
        ("a.jsonl", lambda path: _nest('{"a":', "}").encode(), "nested"),
        ("a.json", lambda path: b"null", "no object"),
        ("a.jsonl", lambda path: b'{"text": "a"}\nnull\n', "line 2 is no object"),
        ("a.json", lambda path: b'[{"text": "x", "n": ' + b"9" * 5000 + b"}]", "digits"),
        ("a.csv", lambda path: (",".join(["a"] * 100_000) + "\n" + ",".join("b" * 100_000) + "\n").encode(), "twice"),
        ("a.csv", lambda path: b"__row__,text\n1,x\n", "__row__"),
        ("a.csv", lambda path: b"text,label\nx,y\xc3", "UTF-8"),
    ],
)
def test_data_that_is_not_what_its_name_says(tmp_path: Path, name: str, make: Callable[[Path], bytes], said: str) -> None:
    path = tmp_path / name
    path.write_bytes(make(tmp_path / "made"))
    with pytest.raises(DataError, match=said):
        read_data(str(path), "train")


@cell("hostile", "data files", INSIDE, refused=True)
@pytest.mark.parametrize("named", ["/etc/passwd", "../../secret.csv", "http://127.0.0.1:9/x.csv", "hf://datasets/a/b"])
def test_a_data_folder_s_card_names_nothing_outside(tmp_path: Path, named: str) -> None:
    place = tmp_path / "data"
    (place / "sub").mkdir(parents=True)
    (place / "sub" / "x.csv").write_text("text\nmine\n")
    (place / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {named}\n---\n")
    for reader in (lambda: read_data(str(place), "train"), lambda: held_out_split(str(place))):
        with pytest.raises(DataError, match="not inside the folder"):
            reader()


@cell("hostile", "data files", INSIDE, refused=True)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state.json", '{"_data_files": [{"filename": "../outside.arrow"}]}'),
        ("dataset_dict.json", '{"splits": ["../outside"]}'),
        ("state.json", "[" * 100_000),
    ],
)
def test_a_saved_data_set_names_nothing_outside(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError):
        read_data(str(tmp_path), "train")
