"""Parts as plain data: what is written is read back, and what cannot be read is a SettingError, never a TypeError."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.core.coding import Coded, choice, member, number, positive_int
from paring.core.errors import SettingError


class Gear(Coded):
    """A family for these tests."""


class Wheel(Coded):
    """Another one, whose members hold gears."""


@dataclass(frozen=True, kw_only=True)
class Cog(Gear):
    """A member that checks itself."""

    name: ClassVar[str] = "cog"
    version: ClassVar[int] = 3

    teeth: int
    width: float = 0.5
    scratch: object = field(default=None, metadata={"transient": True}, compare=False)

    def __post_init__(self) -> None:
        positive_int("teeth", self.teeth)
        number("width", self.width, low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class Rim(Wheel):
    """A member that holds one of another family."""

    name: ClassVar[str] = "rim"

    gear: Gear = field(default=Cog(teeth=1), metadata={"family": "Gear"})
    spokes: int = 8

    def __post_init__(self) -> None:
        member("gear", self.gear, Gear)
        positive_int("spokes", self.spokes)


def test_members_are_registered_by_family() -> None:
    assert Gear.members == {"cog": Cog}
    assert Wheel.members == {"rim": Rim}


def test_round_trip_through_json() -> None:
    value = Rim(gear=Cog(teeth=12, width=0.25), spokes=3)
    written = json.loads(json.dumps(value.encode()))
    assert written == {"name": "rim", "version": 1, "gear": {"name": "cog", "version": 3, "teeth": 12, "width": 0.25}, "spokes": 3}
    assert Wheel.decode(written) == value


def test_decoding_leaves_its_input_alone_and_takes_defaults_and_older_versions() -> None:
    data = {"name": "cog", "version": 2, "teeth": 4}
    assert Gear.decode(data) == Cog(teeth=4)
    assert data == {"name": "cog", "version": 2, "teeth": 4}
    assert Gear.decode({"name": "cog", "teeth": 4}) == Cog(teeth=4)


def test_transient_fields_are_neither_written_nor_read() -> None:
    assert "scratch" not in Cog(teeth=2, scratch=object()).encode()
    with pytest.raises(SettingError, match="Unknown key 'scratch'"):
        Gear.decode({"name": "cog", "teeth": 2, "scratch": 1})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "cgo", "teeth": 2}, "Unknown gear name 'cgo'. Did you mean 'cog'?"),
        ({"teeth": 2}, "Unknown gear name None"),
        ({"name": ["cog"]}, "Unknown gear name"),
        ({"name": "rim"}, "Unknown gear name 'rim'"),
        ({"name": "cog", "teeth": 2, "widht": 0.1}, "Unknown key 'widht' in the settings of 'cog'. Did you mean 'width'?"),
        ({"name": "cog", "teeth": 2, 5: 0.1}, "Unknown key 5"),
        ({"name": "cog", "teeth": 2, "version": 4}, "version 4, but this release of paring reads up to version 3"),
        ({"name": "cog", "teeth": 2, "version": "new"}, "Upgrade paring"),
        ({"name": "cog"}, "'cog' do not fit"),
        ({"name": "cog", "teeth": 0}, "teeth=0"),
        ({"name": "cog", "teeth": "many"}, "teeth='many'"),
        ("cog", "as a mapping"),
        (None, "as a mapping"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(data: Any, words: str, unchecked: None) -> None:
    with pytest.raises(SettingError) as caught:
        Gear.decode(data)
    assert words in str(caught.value)


@pytest.mark.parametrize("gear", [{"name": "cgo"}, {"name": "cog", "teeth": 1, "tooth": 2}, {"name": "rim"}, {}, "cog", None, 3])
def test_a_part_inside_is_read_as_strictly(gear: Any) -> None:
    with pytest.raises(SettingError):
        Wheel.decode({"name": "rim", "gear": gear})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["cog", "rim"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "teeth", "width", "x"]), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["version", "gear", "spokes", "teeth"]) | st.text(max_size=3) | st.integers() | st.none()


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(KEYS, JSON, max_size=4), st.sampled_from(["rim", "cog"]))
def test_no_data_makes_a_type_error(data: dict[Any, Any], name: str) -> None:
    for family in (Gear, Wheel):
        try:
            value = family.decode({"name": name, **data})
        except SettingError:
            continue
        assert family.decode(value.encode()) == value


def test_choice() -> None:
    choice("how", "fast", ("fast", "slow"))
    with pytest.raises(SettingError, match=r"how='fsat': choose one of 'fast', 'slow'\. Did you mean 'fast'\?"):
        choice("how", "fsat", ("fast", "slow"))
    for value in (None, 3, ["fast"], {}):
        with pytest.raises(SettingError, match="choose one of"):
            choice("how", value, ("fast", "slow"))


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, True, "3", None])
def test_positive_int_refuses(value: object) -> None:
    positive_int("count", 1)
    with pytest.raises(SettingError, match=r"count=.*at least 1"):
        positive_int("count", value)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), float("inf"), True, "0.5", None, 1j])
def test_number_refuses_what_is_outside(value: object) -> None:
    number("share", 0.0, low=0.0, high=1.0, open_high=True)
    with pytest.raises(SettingError, match=r"share=.*in \[0, 1\)"):
        number("share", value, low=0.0, high=1.0, open_high=True)


def test_number_at_its_ends() -> None:
    number("x", 1, low=0.0, high=1.0)
    number("x", 1e300, low=0.0)
    with pytest.raises(SettingError, match=r"\(0, inf\)"):
        number("x", 0.0, low=0.0, open_low=True)
    with pytest.raises(SettingError, match=r"\[0, inf\)"):
        number("x", float("inf"), low=0.0)


def test_member_names_the_family() -> None:
    with pytest.raises(SettingError, match="gear='cog': give an instance of Gear, one of cog"):
        member("gear", "cog", Gear)
    with pytest.raises(SettingError, match="instance of Gear"):
        member("gear", Cog, Gear)
