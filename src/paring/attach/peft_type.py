"""PEFT's list of adapter types is an enumeration, which no public call extends: this adds ``PARING`` to it, once."""

from __future__ import annotations

import warnings
from importlib.metadata import version

from packaging.version import Version
from peft import PeftType

OLDEST, BELOW = Version("0.20"), Version("0.22")
"""The PEFT versions that the tests ran against."""


def _member() -> PeftType:
    if "PARING" in PeftType.__members__:
        return PeftType("PARING")
    found = Version(version("peft"))
    if not OLDEST <= found < BELOW:
        warnings.warn(
            f"paring was tested with peft >= {OLDEST}, < {BELOW}; this is peft {found}. "
            "Should loading or saving fail, install a tested one.",
            stacklevel=3,
        )
    member = str.__new__(PeftType, "PARING")
    member._name_ = "PARING"
    member._value_ = "PARING"
    # The class attribute first: once the name is in the member map, enum refuses to set it.
    type.__setattr__(PeftType, "PARING", member)
    PeftType._member_names_.append("PARING")
    PeftType._member_map_["PARING"] = member
    PeftType._value2member_map_["PARING"] = member
    return member


PARING = _member()
