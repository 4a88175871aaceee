"""Tell PEFT of the tuner, once."""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from paring.attach.config import ParingConfig
from paring.attach.model import ParingModel
from paring.attach.peft_type import PARING


def register() -> None:
    """Register ``PARING`` with PEFT; calling it again changes nothing."""
    if PARING not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name="paring", config_cls=ParingConfig, model_cls=ParingModel, prefix="paring_")


register()
