"""The plan's targets and patterns, judged by PEFT's own matchers."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key

from paring.core.errors import AdapterError, ExportError
from paring.exchange.expressions import Clock, Expression, Keys
from paring.exchange.patterns import Plan, Selection, ambiguous, plan, replay
from tests.releases import older


def peft_rank(made: Plan, name: str, default: int) -> int | None:
    """The rank that PEFT gives to a module, ``None`` if it does not adapt it."""
    config = LoraConfig(target_modules=list(made.target_modules), exclude_modules=made.exclude_modules)
    hit = check_target_module_exists(config, name)
    if not hit or isinstance(hit, _ExcludedModule):
        return None
    return made.rank_pattern.get(get_pattern_key(list(made.rank_pattern), name), default)


def assert_exact(ranks: dict[str, int], names: list[str]) -> Plan:
    made = plan(ranks, names)
    assert {name: peft_rank(made, name, max(ranks.values())) for name in names} == {name: ranks.get(name) for name in names}
    return made


def test_a_last_name_stands_for_all_its_modules() -> None:
    names = ["layer.0.query", "layer.1.query", "layer.0.key", "layer.1.key", "layer"]
    made = assert_exact({"layer.0.query": 2, "layer.1.query": 3, "layer.1.key": 2}, names)
    assert made.target_modules == ("layer.1.key", "query")
    assert made.exclude_modules is None
    assert made.rank_pattern == {"layer.0.query": 2, "layer.1.query": 3, "layer.1.key": 2}


def test_layer_1_is_neither_layer_10_nor_xlayer_1() -> None:
    names = [f"{stem}.{index}.fc" for stem in ("layer", "xlayer") for index in range(12)]
    assert_exact({"layer.1.fc": 1, "layer.10.fc": 2, "xlayer.1.fc": 3}, names)
    assert_exact({"layer.1.fc": 5}, names)


def test_a_name_that_ends_another() -> None:
    both = assert_exact({"fc": 1, "enc.fc": 2, "x.enc.fc": 3}, ["fc", "enc.fc", "x.enc.fc"])
    assert set(both.rank_pattern) == {"^fc", "^enc\\.fc", "x.enc.fc"}
    assert both.target_modules == ("fc",)
    one = assert_exact({"fc": 1}, ["fc", "enc.fc"])
    assert one.target_modules == ("fc",)
    assert one.exclude_modules == r"enc\.fc"
    # Neither a list of targets nor a list of exclusions can say this one.
    assert_exact({"fc": 1, "x.enc.fc": 3}, ["fc", "enc.fc", "x.enc.fc"])


def test_a_dot_in_a_key_is_not_any_character() -> None:
    made = assert_exact({"a.b": 1, "axb": 2, "c.a_b": 3}, ["a.b", "axb", "c.a_b"])
    assert set(made.rank_pattern) == {r"^a\.b", "axb", "c.a_b"}


name = st.lists(st.sampled_from(["a", "b", "ab", "1", "10", "a_b"]), min_size=1, max_size=4).map(".".join)


@settings(max_examples=40, deadline=None)
@given(names=st.lists(name, min_size=1, max_size=8, unique=True), data=st.data())
def test_peft_reads_every_plan_as_it_was_meant(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    ranks = {path: data.draw(st.integers(1, 3)) for path in chosen}
    assert_exact(ranks, names)
    # The short way of finding unclear keys agrees with the matcher itself.
    slow = {key for key in names if any(other != key and get_pattern_key([key], other) == key for other in names)}
    assert ambiguous(names) == slow


def test_without_names_full_names_are_written() -> None:
    assert plan({"layer.0.query": 2, "layer.1.query": 2}, None).target_modules == ("layer.0.query", "layer.1.query")


def test_an_unknown_module_is_refused_with_near_names() -> None:
    with pytest.raises(ExportError, match="layer.0.query"):
        plan({"layer.0.qery": 2}, ["layer.0.query"])


def test_a_module_inside_a_fully_trained_one_is_refused() -> None:
    with pytest.raises(ExportError, match="modules_to_save"):
        plan({"classifier.dense": 2, "fc": 2}, ["classifier.dense", "classifier", "fc"], ["classifier"])


@pytest.mark.parametrize(
    "made",
    [
        Plan(target_modules=("fc",), exclude_modules=None, rank_pattern={}),
        Plan(target_modules=("enc.fc",), exclude_modules=None, rank_pattern={}),
        Plan(target_modules=("fc",), exclude_modules="other.fc", rank_pattern={"fc": 1, "enc.fc": 2}),
    ],
)
def test_replay_finds_a_plan_that_means_something_else(made: Plan) -> None:
    with pytest.raises(ExportError):
        replay(made, {"fc": 1, "enc.fc": 2}, ["fc", "enc.fc", "other.fc"])


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ["query", "a.key"]},
        {"target_modules": r".*\.(query|key)"},
        {"target_modules": ["query"], "exclude_modules": ["0.query"]},
        {"target_modules": ["query"], "exclude_modules": r".*layer\.\d+\.a.*"},
        {"target_modules": ["query", "layer.2.query"], "layers_to_transform": [0, 10]},
        {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": ["layer"]},
        {"target_modules": ["query", "dense"], "modules_to_save": ["pooler"]},
    ],
)
def test_selection_is_peft_s(keys: dict[str, object]) -> None:
    names = [
        f"{stem}.{index}.{last}" for stem in ("enc.layer", "dec.xlayer", "layer") for index in (0, 1, 2, 10) for last in ("query", "a.key")
    ]
    names += ["query", "pooler.dense", "my.pooler.dense", "poolers.dense"]
    selection = Selection(**keys)  # type: ignore[arg-type]
    config = LoraConfig(**keys)
    if older("peft", "0.21"):  # there, layers_pattern is not found at the very beginning of a name
        names = [name for name in names if not name.startswith("layer")]
    for path in names:
        expected = check_target_module_exists(config, path)
        assert selection.hits(path) == (bool(expected) and not isinstance(expected, _ExcludedModule)), path


HOSTILE = "a" * 60 + "." + "a" * 60 + "-"


@pytest.mark.parametrize("key", ["(a|aa)+$", "(a|aa)+b"])
def test_a_hostile_expression_is_given_up(key: str) -> None:
    """The standard engine would need more than 2**40 steps for these."""
    with pytest.raises(AdapterError, match="too long"):
        Keys([key], Clock(0.2)).first(HOSTILE)


@pytest.mark.parametrize("key", ["(a+)+b", "(.*.*)*x", r"([\w.]+)*!", r"(\w|a)+!", "(?:a?){60}a{60}b"])
def test_a_hostile_expression_takes_no_time(key: str) -> None:
    start = time.process_time()
    assert Keys([key], Clock(30)).first(HOSTILE) is None
    assert time.process_time() - start < 20


@pytest.mark.parametrize("key", ["(", "a" * 1001, "*", "[z-a]"])
def test_what_is_no_expression_is_refused(key: str) -> None:
    with pytest.raises(AdapterError, match="pattern"):
        Expression(key, "(", ")$", Clock())


def test_the_first_key_that_matches_wins() -> None:
    assert Keys(["fc", "enc.fc"], Clock()).first("enc.fc") == "fc"
    assert Keys(["enc.fc", "fc"], Clock()).first("enc.fc") == "enc.fc"
    assert Keys([r".*layer\.[0-3]\..*query"], Clock()).first("layer.2.self.query") is not None
    assert Keys(["layer.1"], Clock()).first("layer.10") is None


def test_ten_thousand_modules_are_matched_in_seconds() -> None:
    """Mixture-of-experts models have that many; a comparison of every name with every pattern would take minutes."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{kind}"
        for layer in range(27)
        for expert in range(128)
        for kind in ("up", "gate", "down")
    ]
    ranks = {name: 1 + index % 8 for index, name in enumerate(names)}
    made = plan(ranks, [*names, "model.layers.0.up"])
    assert len(made.rank_pattern) == len(names)
    keys = Keys(made.rank_pattern, Clock(0.0))
    assert all(made.rank_pattern[str(keys.first(name))] == rank for name, rank in ranks.items())


@pytest.mark.parametrize("seed", range(20))
def test_keys_are_found_as_peft_finds_them(seed: int) -> None:
    """Against PEFT's own expression, for short names that collide in every way."""
    draw = random.Random(seed)

    def name() -> str:
        return ".".join(draw.choice(["a", "b", "ab", "a-b", "1", "_"]) for _ in range(draw.randint(1, 3)))

    def key() -> str:
        made = name()
        for change in (
            lambda text: text.replace(".", r"\."),
            lambda text: f"^{text}",
            lambda text: f"{text}$",
            lambda text: f"{text}|b",
            lambda text: text.replace("-", r"\-"),
        ):
            made = change(made) if draw.random() < 0.2 else made
        return made

    for _ in range(200):
        keys, wanted = list(dict.fromkeys(key() for _ in range(draw.randint(1, 4)))), name().replace(".", draw.choice("._"), 1)
        first = next((entry for entry in keys if re.match(rf"(.*\.)?({entry})$", wanted)), None)
        assert Keys(keys, Clock()).first(wanted) == first, (keys, wanted)
