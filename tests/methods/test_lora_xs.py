"""LoRA-XS: a core between frozen factors of the weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paring.attach.find import slots
from paring.core.errors import SettingError
from paring.core.linalg import orthonormal_defect, truncated_svd
from paring.methods.lora_xs import LoRAXS
from tests.methods.small import WIDTHS, adapted, net
from tests.methods.test_lora_sb import RANK, only_the_core, projection


def test_start() -> None:
    for path, slot in slots(adapted(LoRAXS(rank=RANK))).items():
        svd = truncated_svd(net().get_submodule(path).weight.detach(), RANK)
        torch.testing.assert_close((slot.B @ slot.A).detach(), svd.materialise(), rtol=0, atol=1e-12)
        torch.testing.assert_close(slot.B.norm(dim=0).detach(), svd.s, rtol=1e-12, atol=0)
        assert orthonormal_defect(slot.A.detach().T) < 1e-12
        assert not slot.A.requires_grad
        assert not slot.B.requires_grad
    cores = torch.cat([slot.R.detach().flatten() for slot in slots(adapted(LoRAXS(rank=8))).values()])
    assert float(cores.std()) == pytest.approx(1e-5, rel=0.2)
    assert len(cores) == 64 * len(WIDTHS)


def test_only_the_core() -> None:
    only_the_core(LoRAXS(rank=RANK))


def test_projection() -> None:
    projection(LoRAXS(rank=RANK, alpha=6.0, noise=0.1))


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"noise": -1.0}, {"iterations": -1}, {"dropout": 1.0}])
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        LoRAXS(**settings)
