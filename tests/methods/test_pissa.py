"""PiSSA: PEFT's, on a base that stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import paring
from paring.attach.find import slots
from paring.core.errors import SettingError
from paring.core.linalg import truncated_svd
from paring.methods.pissa import PiSSA
from tests.methods.small import WIDTHS, Net, adapted, batch, net, run

RANK = 3


def single() -> Net:
    """In float32, which is all that PEFT's takes."""
    return net().float()


def peft(start: str = "pissa", alpha: int = 6) -> Any:
    return get_peft_model(single(), LoraConfig(r=RANK, lora_alpha=alpha, target_modules=list(WIDTHS), init_lora_weights=start))  # type: ignore[arg-type]


def same_as_peft(model: PeftModel, other: Any) -> None:
    """Factors equal PEFT's up to the signs of pairs; the residual is PEFT's base weight, and ours is untouched."""
    for path, slot in slots(model).items():
        theirs = other.base_model.model.get_submodule(path)
        a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
        signs = torch.sign((slot.A * a).sum(dim=1))
        torch.testing.assert_close(slot.A.detach(), (signs[:, None] * a).detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(slot.B.detach(), (signs * b).detach(), rtol=1e-4, atol=1e-5)
        weight = single().get_submodule(path).weight
        assert torch.equal(model.base_model.model.get_submodule(path).base_layer.weight, weight)
        residual = weight - slot.scale * slot.B0 @ slot.A0
        torch.testing.assert_close(residual, theirs.base_layer.weight, rtol=1e-4, atol=1e-5)


def test_start() -> None:
    model = adapted(PiSSA(rank=RANK, alpha=6))
    for path, slot in slots(model).items():
        weight = net().get_submodule(path).weight.detach()
        best = truncated_svd(weight, RANK).materialise()
        torch.testing.assert_close((slot.scale * slot.B @ slot.A).detach(), best, rtol=0, atol=1e-12)
        assert torch.equal(slot.A, slot.A0)
        assert torch.equal(slot.B, slot.B0)
        torch.testing.assert_close(slot.A.norm(dim=1), slot.B.norm(dim=0))
    same_as_peft(adapted(PiSSA(rank=RANK, alpha=6), base=single()), peft())


def test_residual() -> None:
    same_as_peft(adapted(PiSSA(rank=RANK, alpha=3), base=single()), peft(alpha=3))


def test_training() -> None:
    ours, theirs = adapted(PiSSA(rank=RANK, alpha=6), base=single()), peft().train()
    for path, slot in slots(ours).items():
        # The same signs of the singular vectors, so that Adam takes the same steps.
        layer = theirs.base_model.model.get_submodule(path)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(slot.A)
            layer.lora_B["default"].weight.copy_(slot.B)
    outputs = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.05)
        for step in range(5):
            data = {key: value.float() for key, value in batch(step).items()}
            model(**data)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        outputs.append(model(batch(9)["x"].float())["logits"].detach())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs[0], single()(batch(9)["x"].float())["logits"], atol=1e-2)


def loads_as_plain_lora(model: PeftModel, folder: Path, rank: int) -> None:
    run(model, 3)
    model.eval()
    paring.export(model, folder)
    adapter = paring.read(folder)
    assert set(adapter.ranks.values()) == {rank}
    again = PeftModel.from_pretrained(net(), str(folder)).double()
    x: Tensor = batch(9)["x"]
    torch.testing.assert_close(again(x)["logits"], model(x)["logits"], rtol=1e-5, atol=1e-6)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x)["logits"], again(x)["logits"], rtol=1e-5, atol=1e-6)


def test_export(tmp_path: Path) -> None:
    loads_as_plain_lora(adapted(PiSSA(rank=RANK)), tmp_path / "adapter", 2 * RANK)


def test_a_randomised_start_is_near_and_follows_from_the_seed() -> None:
    exact, near = adapted(PiSSA(rank=RANK)), adapted(PiSSA(rank=RANK, iterations=4))
    for path in WIDTHS:
        torch.testing.assert_close(
            slots(near)[path].B @ slots(near)[path].A, slots(exact)[path].B @ slots(exact)[path].A, rtol=0, atol=1e-3
        )
    again = adapted(PiSSA(rank=RANK, iterations=4))
    assert all(torch.equal(slots(near)[path].A, slots(again)[path].A) for path in WIDTHS)


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"alpha": 0.0}, {"iterations": -1}, {"iterations": 1.5}, {"scaling": "sr"}, {"dropout": 1.0}]
)
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        PiSSA(**settings)
