"""What is fuzzed: for each reader a function that makes a hostile input from a seed and gives it to the reader.

Each returns normally where the reader takes the input, having checked that what it took is right, or raises what the reader raises.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from paring.attach.config import ParingConfig
from paring.cli.data import read as data
from paring.cli.data.safe import check_json, check_packed
from paring.cli.main import _check_config
from paring.cli.plain import PlainLoader
from paring.cli.study.build import build
from paring.cli.study.text import read_text
from paring.core.errors import ParingError
from paring.exchange import settings
from paring.exchange.engines import lint
from paring.exchange.expressions import Clock, Expression, Keys
from paring.exchange.patterns import Selection
from paring.exchange.provenance import Provenance
from paring.exchange.read import _sorted, read
from paring.exchange.tensors import opened
from paring.method import Method, decode, load, names
from paring.parts.shape import Shape
from tests.trust.hostile_bytes import BOMBS, Mutator, header, weights

Topic = Callable[[random.Random, Path], None]


def adapter_weights(draw: random.Random, place: Path) -> None:
    """Mutated safetensors files; one that is taken says what its own header says, read independently."""
    written = weights(draw)
    path = place / "adapter_model.safetensors"
    path.write_bytes(written)
    with opened(path) as file:
        shapes = file.shapes
        tensors = {key: file.tensor(key) for key in shapes}
        _sorted(file, ["score"], draw.random() < 0.5)
    (length,) = struct.unpack("<Q", written[:8])
    text, body = written[8 : 8 + length], written[8 + length :]
    pairs = json.loads(text, object_pairs_hook=list)
    if len({key for key, _ in pairs}) == len(pairs):  # of keys that are doubled, either is right
        for key, said in ((key, dict(said)) for key, said in pairs if key != "__metadata__"):
            start, end = said["data_offsets"]
            assert shapes[key] == (said["dtype"], tuple(said["shape"]))
            assert tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == body[start:end]


CONFIG: dict[str, Any] = {
    "alpha_pattern": {"layers.0.fc": 4, "^fc": 2.5},
    "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil.code"},
    "base_model_name_or_path": "evil/base",
    "bias": "none",
    "exclude_modules": ["lm_head"],
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "layers_pattern": ["layers"],
    "layers_to_transform": [0, 1],
    "lora_alpha": 8,
    "modules_to_save": ["score"],
    "peft_type": "LORA",
    "r": 2,
    "rank_pattern": {"layers.0.fc": 3},
    "revision": None,
    "target_modules": ["fc"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}
MODULES = ("layers.0.fc", "layers.1.fc", "fc", "score", "a" * 40, "lm_head")


def adapter_config(draw: random.Random, place: Path) -> None:
    """Mutated configurations, as data, and every eighth through its file; scales that come out are numbers, and ranks whole ones."""
    mutator = Mutator(draw)
    config: Any = CONFIG
    for _ in range(draw.choice((1, 1, 2, 4))):
        config = mutator.tree(config)
    if draw.random() < 0.125:
        path = place / "adapter_config.json"
        written = json.dumps(config).encode("utf-8", "surrogatepass")
        path.write_bytes(mutator.flipped(written) if draw.random() < 0.5 else written)
        config = settings.load(path)
    if not isinstance(config, dict):
        return
    settings.refuse(config)
    clock = Clock(0.5)
    scales, selection, heads = settings.Scales(config, clock), settings.selection(config, clock), settings.heads(config)
    settings.use_dora(config), settings.fan_in_fan_out(config)
    for key in ("base_model_name_or_path", "revision", "task_type"):
        assert settings.text(config, key) is None or isinstance(config[key], str)
    assert all(isinstance(head, str) for head in heads)
    for module in MODULES:
        selection.hits(module)
        assert isinstance(scales.rank_of(module), int)
        assert scales.rank_of(module) > 0
        assert math.isfinite(scales.scale_of(module))


ATOMS = (
    "a",
    "b",
    "fc",
    "layers",
    "0",
    "1",
    ".",
    r"\.",
    ".*",
    r"\d+",
    "a+",
    "(a|b)",
    "(?:fc)?",
    "[ab]",
    "^",
    "$",
    "|",
    "a{1,2}",
    "x{e}",
    "(",
    "*",
)


def patterns(draw: random.Random, place: Path) -> None:
    """Random expressions against PEFT's own matchers: what is taken matches the same names; every hundredth is one without end."""
    names_ = [".".join(draw.choice(("a", "b", "fc", "layers", "0", "1")) for _ in range(draw.randint(1, 4))) for _ in range(4)]

    def word() -> str:
        return "".join(draw.choice(ATOMS) for _ in range(draw.randint(1, 4)))

    if draw.random() < 0.01:
        # The clock is as short as a match is long: whatever the expression, it is given up.
        bomb = draw.choice((*BOMBS, word() * 60))
        expression = Expression(bomb, r"(.*\.)?(", r")$", Clock(0.05))
        for _ in range(50):
            expression.match("a" * draw.randint(20, 400) + "!")
        return
    clock = Clock(2.0)
    keys = {word(): index for index in range(draw.randint(1, 3))}
    found = Keys(keys, clock)
    for name in names_:
        mine = found.first(name)
        assert mine == (theirs if (theirs := get_pattern_key(list(keys), name)) in keys else None), (keys, name)
    several = draw.random() < 0.5
    given = {
        "target_modules": [word() for _ in range(2)] if several else word(),
        "exclude_modules": draw.choice(([], [word()], word())),
        "layers_to_transform": draw.choice(([], [0], [0, 1])) if several else [],
    }
    selection = Selection(**given, clock=clock)
    theirs_ = SimpleNamespace(
        **{
            **given,
            "target_modules": set(given["target_modules"]) if several else given["target_modules"],
            "exclude_modules": given["exclude_modules"] or None,
            "layers_to_transform": given["layers_to_transform"] or None,
            "layers_pattern": None,
            "modules_to_save": None,
        }
    )
    for name in names_:
        assert selection.hits(name) == bool(check_target_module_exists(theirs_, name)), (given, name)


def adapter_folder(draw: random.Random, place: Path) -> None:
    """Whole folders through the reader and the linter: mutated weights, configuration and side file."""
    mutator = Mutator(draw)
    head, size = header(2, random.Random(0))
    text = json.dumps(head).encode()
    sound = struct.pack("<Q", len(text)) + text + draw.randbytes(size // 2) + b"\0" * (size - size // 2)
    (place / "adapter_model.safetensors").write_bytes(weights(draw) if draw.random() < 0.3 else sound)
    ranks = {key.split(".")[3]: said["shape"][0] for key, said in head.items() if key.endswith("A.weight")}
    config: Any = {**CONFIG, "rank_pattern": {f"layers.{index}.fc": rank for index, rank in ranks.items()}, "modules_to_save": None}
    side: Any = {"method": {"name": "lora", "rank": 2}, "modules": {"layers.7.fc": {"live_rank": 0, "in_features": 4, "out_features": 3}}}
    if draw.random() < 0.6:
        config = mutator.tree(config)
    if draw.random() < 0.5:
        side = mutator.tree(side)
    (place / "adapter_config.json").write_bytes(json.dumps(config).encode("utf-8", "surrogatepass"))
    (place / "paring.json").write_bytes(json.dumps(side).encode("utf-8", "surrogatepass"))
    Provenance.load(place / "paring.json")
    errors = []
    for reader in (read, lint):
        try:
            reader(place)
        except ParingError as error:
            errors.append(error)
    if errors:
        raise errors[0]


STUDY = """\
name: small
settings: {model_name_or_path: there, max_steps: 4}
tasks:
  moods: &m {dataset_name: here, metric: accuracy}
  notes: {dataset_name: "there/notes", metric: perplexity, task: causal-lm}
contestants:
  LoRA: {method: lora, rank: $rank}
  SoRA: {method: sora, search: {penalty: {low: 0.1, high: 1}}}
  Ada: {peft: {peft_type: ADALORA, init_r: 4}, learning_rate: 2e-3}
budgets: {half: {rank: 2}}
search: {learning_rate: [1e-3, 3e-3], trials: 5, held: 0.2}
seeds: [3, 5]
"""
BITS = (
    *(
        "&a [*a]",
        "*m",
        "<<: *m",
        "!!python/object/apply:os.system [id]",
        "!!python/name:os.system",
        "!!int x",
        "!!timestamp x",
        "0b_",
        "0x_",
    ),
    *(
        "2001-99-99",
        '"\\UFFFFFFFF"',
        "!!binary x",
        "9" * 400,
        "1e999",
        ".nan",
        "[" * 60,
        "{" * 60,
        "? [a]",
        "- ",
        "|",
        ">",
        "%YAML 9.9",
        "---",
    ),
    *("\0", "\x07", "\t", "'", '"', "#", ": ", "~", "null", "=", "<<", "$", "${x}", "$rank", "x" * 300, "-1", "0", "[]", "{}", "1:60:60"),
)


def _text(draw: random.Random, sound: str) -> bytes:
    """A YAML text with something else in the place of some of its words."""
    mutator = Mutator(draw)
    words = sound.split(" ")
    for _ in range(draw.choice((1, 1, 2))):
        words[draw.randrange(len(words))] = draw.choice(BITS)
    text = " ".join(words).encode()
    return mutator.flipped(text) if draw.random() < 0.4 else text


def study_file(draw: random.Random, place: Path) -> None:
    """Mutated studies, built as far as they go."""
    path = place / "study.yaml"
    path.write_bytes(_text(draw, STUDY))
    build(read_text(path), {})


FLAGS = "learning_rate: 0.001\nrank: 8\ntarget_modules: [query, value]\nmethod: sora\nload_in_4bit: no\n"


def flag_file(draw: random.Random, place: Path) -> None:
    """Small YAML: mutated files of flags; what is taken, PyYAML's own safe loader reads alike."""
    path = place / "flags.yaml"
    written = _text(draw, FLAGS)
    path.write_bytes(written)
    _check_config(path)
    text = path.read_text(encoding="utf-8")
    assert repr(PlainLoader(text).get_single_data()) == repr(yaml.safe_load(text))


TABLE = 'text\tlabel\nfine day\tgood\n"dull" day\tbad\n'
LINES = '{"text": "fine", "label": "good", "more": {"a": [1, null, "x"]}}\n{"text": "dull", "label": "bad"}\n'


def data_file(draw: random.Random, place: Path) -> None:
    """Mutated tables and JSON lines through all that is looked at before ``datasets`` opens a file."""
    mutator = Mutator(draw)
    kind = draw.choice((".tsv", ".csv", ".jsonl", ".json"))
    sound = (
        TABLE
        if kind == ".tsv"
        else TABLE.replace("\t", ",")
        if kind == ".csv"
        else LINES
        if kind == ".jsonl"
        else f"[{LINES.replace(chr(10), ',')[:-1]}]"
    )
    written = mutator.flipped(sound.encode())
    path = place / f"train{kind}"
    path.write_bytes(written)
    data._check_utf8(path)
    check_packed(path)
    written.decode("utf-8")  # what was taken is text
    if kind in (".tsv", ".csv"):
        names_ = data._header(path, kind == ".tsv")
        assert len(set(names_)) == len(names_)
        return
    check_json(path)
    data._json_fault(path)


@cache
def sound_methods() -> tuple[Mapping[str, Any], ...]:
    """Every method's example as plain data."""
    made = [load(name) for name in names()]
    return tuple(kind.example(_default(kind)).encode() for kind in made)


def _default(kind: type[Method]) -> Method:
    try:
        return kind()
    except TypeError:
        return decode(NEEDED[kind.name])


NEEDED: Mapping[str, Mapping[str, Any]] = {"spectral": {"name": "spectral", "budget": {"name": "share", "share": 0.5}}}
"""Methods that have a setting without a default."""


def method_settings(draw: random.Random, place: Path) -> None:
    """Mutated settings of every method; those that are taken adapt a small module, or say why not."""
    settings_ = Mutator(draw).tree(dict(draw.choice(sound_methods())))
    if not isinstance(settings_, dict):
        return
    method = decode(settings_)
    assert decode(method.encode()) == method
    shape = Shape(path="layers.0.fc", in_features=6, out_features=5)
    method.check(shape)
    if draw.random() < 0.25:
        method.slot(shape, torch.Generator().manual_seed(0))


CHECKPOINT: dict[str, Any] = {
    "peft_type": "PARING",
    "task_type": "SEQ_CLS",
    "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil.code"},
    "base_model_name_or_path": "evil/base",
    "inference_mode": True,
    "method": {"name": "lora", "version": 1, "rank": 2},
    "target_modules": ["fc"],
    "exclude_modules": "lm_head",
    "modules_to_save": ["score"],
    "layers_to_transform": None,
    "layers_pattern": None,
    "seed": 3,
}


def checkpoint_config(draw: random.Random, place: Path) -> None:
    """Mutated configurations of training checkpoints, through PEFT's own way of reading one."""
    mutator = Mutator(draw)
    config = mutator.tree(CHECKPOINT)
    written = json.dumps(config).encode("utf-8", "surrogatepass")
    (place / "adapter_config.json").write_bytes(mutator.flipped(written) if draw.random() < 0.3 else written)
    found = ParingConfig.from_pretrained(str(place))
    assert isinstance(found.method, Method)


TOPICS: Mapping[str, Topic] = {
    "weights": adapter_weights,
    "config": adapter_config,
    "patterns": patterns,
    "folder": adapter_folder,
    "study": study_file,
    "flags": flag_file,
    "data": data_file,
    "method": method_settings,
    "checkpoint": checkpoint_config,
}
"""By the name that tests call them by."""
