"""OLoRA: PEFT's, on a base that stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paring.attach.find import slots
from paring.core.errors import SettingError
from paring.core.linalg import orthonormal_defect
from paring.methods.olora import OLoRA
from tests.methods.small import adapted, net
from tests.methods.test_pissa import loads_as_plain_lora, peft, same_as_peft, single

RANK = 3


def test_start() -> None:
    model = adapted(OLoRA(rank=RANK, alpha=6))
    for path, slot in slots(model).items():
        q, r = torch.linalg.qr(net().get_submodule(path).weight.detach())
        assert orthonormal_defect(slot.B.detach()) < 1e-12
        torch.testing.assert_close((slot.B @ slot.A).detach(), q[:, :RANK] @ r[:RANK], rtol=0, atol=1e-12)
    same_as_peft(adapted(OLoRA(rank=RANK, alpha=6), base=single()), peft("olora"))


def test_residual() -> None:
    same_as_peft(adapted(OLoRA(rank=RANK, alpha=3), base=single()), peft("olora", alpha=3))


def test_export(tmp_path: Path) -> None:
    loads_as_plain_lora(adapted(OLoRA(rank=RANK)), tmp_path / "adapter", 2 * RANK)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"scaling": "sr"}, {"dropout": 1.0}])
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        OLoRA(**settings)
