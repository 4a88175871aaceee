"""LoRA-GA: the first step is the best of rank 2r of full fine-tuning's, whatever the scale of the loss."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paring
from paring.attach.find import slots
from paring.core.errors import SettingError, StepError
from paring.core.linalg import truncated_svd
from paring.methods.lora import LoRA
from paring.methods.lora_ga import LoRAGA
from tests.methods.small import WIDTHS, adapted, batch, batches, delta, full_gradients, net, run
from tests.methods.test_pissa import loads_as_plain_lora

RANK = 3
DIRECTIONS = ("ArB2r", "A2rBr", "ArBr", "random")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_start(direction: Any) -> None:
    model = adapted(LoRAGA(rank=RANK, direction=direction)).eval()
    assert torch.equal(model(batch()["x"])["logits"], net()(batch()["x"])["logits"])
    for path, slot in slots(model).items():
        assert slot.A.abs().max() > 0
        assert not delta(model, path).any()
        assert torch.equal(model.base_model.model.get_submodule(path).base_layer.weight, net().get_submodule(path).weight)
    assert model.get_nb_trainable_parameters()[0] == sum(RANK * (one + other) for one, other in WIDTHS.values())


@pytest.mark.parametrize("size", ["stable", "unit", "gd"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_orthogonal(direction: Any, size: Any) -> None:
    method = LoRAGA(rank=RANK, alpha=8, direction=direction, size=size, gamma=9.0)
    for path, slot in slots(adapted(method)).items():
        c = {"stable": WIDTHS[path][1] ** 0.25 / 3.0, "unit": 1.0, "gd": RANK**0.5 / 8}[size]
        eye = torch.eye(RANK, dtype=torch.float64)
        torch.testing.assert_close((slot.A @ slot.A.T).detach(), c**2 * eye, rtol=0, atol=1e-12)
        torch.testing.assert_close((slot.B.T @ slot.B).detach(), c**2 * eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_first_step(direction: Any) -> None:
    method = LoRAGA(rank=RANK, direction=direction)
    model, rate = adapted(method), 1e-7
    gradients = full_gradients()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate)
    (sum(model(**one)["loss"] for one in batches()) / 3).backward()
    optimizer.step()
    for path, slot in slots(model).items():
        c = WIDTHS[path][1] ** 0.25 / 4.0
        wanted = slot.scale**2 * c**2 * truncated_svd(gradients[path], 2 * RANK).materialise()
        torch.testing.assert_close(delta(model, path) / -rate, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("factor", [1e-3, 1000.0])
def test_scale_of_the_loss(factor: float) -> None:
    plain = adapted(LoRAGA(rank=RANK))
    scaled = adapted(LoRAGA(rank=RANK), calibrated=False)
    paring.calibrate(scaled, batches(), loss=lambda model, one: factor * model(**one)["loss"])
    for path in WIDTHS:
        torch.testing.assert_close(slots(scaled)[path].B @ slots(scaled)[path].A, slots(plain)[path].B @ slots(plain)[path].A)


def test_export(tmp_path: Path) -> None:
    loads_as_plain_lora(adapted(LoRAGA(rank=RANK)), tmp_path / "adapter", 2 * RANK)


@pytest.mark.parametrize("memory", [1, 8 * 10 * 8, 2**30])
def test_gradient(memory: int) -> None:
    model = adapted(LoRAGA(rank=RANK), calibrated=False)
    norms = paring.calibrate(model, (one for one in batches()), memory=memory)
    for path, gradient in full_gradients().items():
        assert norms[path] == pytest.approx(float(gradient.norm()), rel=1e-12)
    whole = adapted(LoRAGA(rank=RANK))
    assert all(torch.equal(slots(model)[path].A, slots(whole)[path].A) for path in WIDTHS)


class Twice(nn.Module):
    """One module that is called twice, one that is not called, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.never = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.drop(torch.tanh(self.again(torch.tanh(self.again(x))))).square().sum()}


def test_a_module_that_is_called_twice_and_one_that_is_not() -> None:
    torch.manual_seed(0)
    base = Twice().eval()
    x = torch.randn(5, 6)
    base(x)["loss"].backward()
    wanted = base.again.weight.grad
    base.zero_grad()
    model = paring.adapt(base, LoRAGA(rank=2), target_modules=["again", "never"], seed=0).train()
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"1 of 2 modules have no gradient.*'never'"):
        norms = paring.calibrate(model, [{"x": x}])
    assert norms["again"] == pytest.approx(float(wanted.norm()), rel=1e-5)
    assert norms["never"] == 0.0
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.requires_grad == (name.rsplit(".", 1)[-1] in "AB") for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_refused() -> None:
    model = adapted(LoRAGA(rank=RANK), calibrated=False)
    with pytest.raises(StepError, match=r"paring\.calibrate"):
        run(model, 1)
    model.eval()
    assert torch.equal(model(batch()["x"])["logits"], net()(batch()["x"])["logits"])
    paring.calibrate(model, batches())
    with pytest.raises(SettingError, match="has its start already"):
        paring.calibrate(model, batches())
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, 1)


def test_of_two_adapters_each_has_the_gradient_of_its_own_head() -> None:
    method = LoRAGA(rank=RANK)
    model = paring.adapt(net(), method, target_modules=list(WIDTHS), modules_to_save=["head"], seed=1)
    paring.adapt(model, method, target_modules=list(WIDTHS), modules_to_save=["head"], seed=1, adapter="second")
    model.set_adapter("default")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save.second." in name:
                parameter.mul_(3.0)
    first, second = (paring.calibrate(model, batches(), adapter=name) for name in ("default", "second"))
    assert first == {path: pytest.approx(float(gradient.norm())) for path, gradient in full_gradients().items()}
    other = net()
    with torch.no_grad():
        for parameter in other.head.parameters():
            parameter.mul_(3.0)
    (sum(other(**one)["loss"] for one in batches()) / 3).backward()
    assert second == {path: pytest.approx(float(other.get_submodule(path).weight.grad.norm())) for path in WIDTHS}
    assert model.active_adapters == ["default"]


def test_a_checkpoint_needs_no_calibration(tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted(LoRAGA(rank=RANK))
    run(model, 2)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(net(), str(tmp_path), is_trainable=True).train()
    assert run(again, 3, start=2) == run(model, 3, start=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "batches is empty"),
        ([torch.zeros(2, 10)], "not a mapping"),
        ([{"x": torch.zeros(2, 10, dtype=torch.float64)}], "gives no loss"),
        ([{**batch(), "labels": torch.full((16,), float("nan"), dtype=torch.float64)}], "loss on batch 0 is nan"),
    ],
)
def test_batches_that_are_none(given: list[Any], said: str) -> None:
    model = adapted(LoRAGA(rank=RANK), calibrated=False)
    with pytest.raises(SettingError, match=said):
        paring.calibrate(model, given)
    # Nothing has happened.
    paring.calibrate(model, batches())


def test_a_method_that_needs_no_calibration() -> None:
    with pytest.raises(SettingError, match="needs no calibration"):
        paring.calibrate(adapted(LoRA(rank=2)), batches())


def test_a_module_too_small_for_two_ranks_each() -> None:
    with pytest.raises(SettingError, match=r"'first'.*at most 4"):
        adapted(LoRAGA(rank=5))


@pytest.mark.parametrize("settings", [{"rank": 0}, {"gamma": 0.0}, {"direction": "ArB"}, {"size": "big"}, {"iterations": -1}])
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        LoRAGA(**settings)
