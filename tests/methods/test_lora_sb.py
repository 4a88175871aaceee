"""LoRA-SB: a core between frozen factors of the first update."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import paring
from paring.attach.find import slots
from paring.core.errors import SettingError, StepError
from paring.core.linalg import orthonormal_defect, truncated_svd
from paring.method import Method
from paring.methods.lora_sb import LoRASB
from tests.methods.small import WIDTHS, adapted, batch, batches, delta, full_gradients, net, run

RANK, FIRST = 3, 1e-2


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_start(alpha: float | None) -> None:
    model = adapted(LoRASB(rank=RANK, alpha=alpha, first_rate=FIRST))
    for path, gradient in full_gradients().items():
        wanted = truncated_svd(-FIRST * torch.sign(gradient), RANK).materialise()
        torch.testing.assert_close(delta(model, path), wanted, rtol=0, atol=1e-10)


def test_orthonormal() -> None:
    for slot in slots(adapted(LoRASB(rank=RANK))).values():
        assert orthonormal_defect(slot.A.detach().T) < 1e-10
        assert orthonormal_defect(slot.B.detach()) < 1e-10
    model = paring.adapt(net().bfloat16(), LoRASB(rank=RANK), target_modules=list(WIDTHS), seed=0)
    paring.calibrate(model, [{key: value.bfloat16() for key, value in batch().items()}])
    for slot in slots(model).values():
        assert slot.A.dtype is torch.float32
        assert orthonormal_defect(slot.A.detach().T) < 1e-5
        assert orthonormal_defect(slot.B.detach()) < 1e-5


def only_the_core(method: Method) -> None:
    model = adapted(method)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(model, 3)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {f"base_model.model.{path}.paring_slot.default.R" for path in WIDTHS}
    assert model.get_nb_trainable_parameters()[0] == len(WIDTHS) * RANK**2


def test_only_the_core() -> None:
    only_the_core(LoRASB(rank=RANK))


def test_first_output() -> None:
    model = adapted(LoRASB(rank=RANK, first_rate=FIRST)).eval()
    for path, slot in slots(model).items():
        layer = model.base_model.model.get_submodule(path)
        x = torch.randn(5, WIDTHS[path][0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        wanted = layer.base_layer(x) + slot.scale * x @ (slot.B @ slot.R @ slot.A).T
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-14)
        assert (layer(x) - layer.base_layer(x)).abs().max() > 1e-4


def projection(method: Method) -> None:
    """A step of gradient descent on R, against the gradient of the dense weight at that very point."""
    model, rate = adapted(method), 1e-3
    before = {path: delta(model, path) for path in WIDTHS}
    dense = net()
    with torch.no_grad():
        for path, update in before.items():
            dense.get_submodule(path).weight.add_(update)
    dense(**batch())["loss"].backward()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate)
    model(**batch())["loss"].backward()
    optimizer.step()
    for path, slot in slots(model).items():
        a, b, gradient = slot.A.detach(), slot.B.detach(), dense.get_submodule(path).weight.grad
        wanted = -rate * slot.scale**2 * b @ b.T @ gradient @ a.T @ a
        torch.testing.assert_close(delta(model, path) - before[path], wanted, rtol=0, atol=1e-12)
        assert wanted.abs().max() > 1e-6


def test_projection() -> None:
    projection(LoRASB(rank=RANK, alpha=6.0))


def test_scale_of_the_loss() -> None:
    plain, scaled = adapted(LoRASB(rank=RANK)), adapted(LoRASB(rank=RANK), calibrated=False)
    paring.calibrate(scaled, batches(), loss=lambda model, one: 1000 * model(**one)["loss"])
    assert all(torch.equal(delta(plain, path), delta(scaled, path)) for path in WIDTHS)


def test_refused() -> None:
    with pytest.raises(StepError, match=r"paring\.calibrate"):
        run(adapted(LoRASB(rank=RANK), calibrated=False), 1)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"first_rate": 0.0}, {"iterations": -1}, {"dropout": 1.0}])
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match="rate" if "first_rate" in settings else next(iter(settings))):
        LoRASB(**settings)
