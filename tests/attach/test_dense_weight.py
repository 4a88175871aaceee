"""The weight that a start is read off, as (out, in), whatever the base layer is; and starts on quantised bases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import paring
from paring.attach.find import slots
from paring.attach.shapes import dense_weight
from paring.core.errors import TargetError
from paring.method import Method
from paring.methods.lora_ga import LoRAGA
from paring.methods.pissa import PiSSA

IN, OUT = 64, 128


def test_plain_layers() -> None:
    linear, turned = nn.Linear(IN, OUT), Conv1D(OUT, IN)
    assert torch.equal(dense_weight("a", linear), linear.weight)
    assert torch.equal(dense_weight("a", turned), turned.weight.T)


def quantised(kind: str) -> tuple[nn.Module, Tensor]:
    """A layer of bitsandbytes, and the weight that it was made of."""
    bnb = pytest.importorskip("bitsandbytes", reason="quantised base layers need bitsandbytes, which is not installed")
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    if kind == "8 bit":
        layer = bnb.nn.Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(weight.clone(), has_fp16_weights=False, requires_grad=False)
    else:
        layer = bnb.nn.Linear4bit(IN, OUT, bias=False, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    return layer.to("cpu"), weight


@pytest.mark.parametrize(("kind", "error"), [("8 bit", 0.02), ("4 bit", 0.15)])
def test_quantised_layers_before_and_after_a_forward(kind: str, error: float) -> None:
    layer, weight = quantised(kind)
    for _ in range(2):
        dense = dense_weight("a", layer)
        assert (dense - weight).norm() < error * weight.norm()
        torch.testing.assert_close(layer(torch.eye(IN)).float().T, dense.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["8 bit", "4 bit"])
@pytest.mark.parametrize("method", [PiSSA(rank=3), LoRAGA(rank=3)], ids=["pissa", "lora_ga"])
def test_starts_on_a_quantised_base(kind: str, method: Method) -> None:
    layer, _ = quantised(kind)
    model = paring.adapt(nn.Sequential(layer), method, target_modules=["0"], seed=0).eval()
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(1))
    if method.name == "lora_ga":
        norms = paring.calibrate(model, [x], loss=lambda model, batch: model(batch).square().sum())
        y = layer(x)
        assert norms["0"] == pytest.approx(float((2 * y.T @ x).norm()), rel=1e-2)
    slot = slots(model)["0"]
    assert slot.factors().a.any()
    torch.testing.assert_close(model(x), layer(x))
    assert not slot.factors().materialise().any()


def test_a_weight_that_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(TargetError, match="'a' .Identity. cannot be read"):
        dense_weight("a", nn.Identity())
