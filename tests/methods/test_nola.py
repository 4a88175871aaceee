"""NOLA: factors that are mixes of seeded random bases."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import paring
from paring.attach.find import slots
from paring.core.errors import SettingError
from paring.kernels import random_bases
from paring.kernels.random_bases import Bases
from paring.methods.nola import NOLA
from paring.parts.parameterise.mixed import Mixed
from paring.parts.shape import Shape
from tests.methods.small import WIDTHS, adapted, batch, delta, full_gradients, net, run
from tests.warm import Warm

# Three blocks, the last one not full, and a rank that makes an odd number of entries.
METHOD = NOLA(bases=70, rank=3, alpha=6.0)
SIZE = Shape(path="fc", in_features=10, out_features=7)


def found(model: PeftModel) -> dict[str, Mixed]:
    return {path: slot for path, slot in slots(model).items() if isinstance(slot, Mixed)}


def one(**settings: Any) -> Mixed:
    slot = NOLA(**{"bases": 70, "rank": 3, **settings}).slot(SIZE, torch.Generator().manual_seed(4))
    with torch.no_grad():
        for coefficients in (slot.alpha, slot.beta):
            coefficients.copy_(torch.randn(len(coefficients), generator=torch.Generator().manual_seed(len(coefficients))))
    return slot


def materialised(slot: Mixed, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """A and B the plain way: all bases in memory, autograd over them."""
    down, up = slot.bases()
    a = torch.einsum("k,krn->rn", alpha, down.matrices(alpha.dtype)) + slot.offset().to(alpha.dtype)
    return a, torch.einsum("k,kmr->mr", beta, up.matrices(beta.dtype))


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many generators have been made for bases, by their seeds."""
    seen: list[int] = []
    blocks = Bases._blocks

    def counted(self: Bases) -> Any:
        if self.drawn is None:
            seen.append(self.seed)
        return blocks(self)

    monkeypatch.setattr(Bases, "_blocks", counted)
    return seen


def test_start() -> None:
    model = adapted(METHOD)
    for path in WIDTHS:
        assert not delta(model, path).any()
    assert torch.equal(model(**batch())["logits"], net()(**batch())["logits"])


def test_first_gradients() -> None:
    model = adapted(METHOD)
    for slot in found(model).values():
        slot.double()
    model(**batch())["loss"].backward()
    wanted = full_gradients(1)
    for path, slot in found(model).items():
        assert slot.alpha.grad is not None
        assert slot.beta.grad is not None
        assert not slot.alpha.grad.any(), "alpha has a gradient while B is zero"
        _, up = slot.bases()
        through = slot.scale * wanted[path] @ slot.offset().double().T
        closed = torch.einsum("mr,jmr->j", through, up.matrices(torch.float64))
        torch.testing.assert_close(slot.beta.grad, closed, rtol=1e-9, atol=1e-12)
        assert closed.abs().min() > 0


def test_materialised() -> None:
    slot = one().double()
    alpha, beta = (values.detach().clone().requires_grad_() for values in (slot.alpha, slot.beta))
    x = torch.randn(5, SIZE.in_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.zeros(5, SIZE.out_features, dtype=torch.float64)
    a, b = materialised(slot, alpha, beta)
    plain = slot.scale * x @ a.T @ b.T
    torch.testing.assert_close(slot(y, x), plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slot.factors().materialise(torch.float64), slot.scale * (b @ a).detach(), rtol=1e-9, atol=1e-12)
    ours = torch.autograd.grad(slot(y, x).square().sum(), [slot.alpha, slot.beta], create_graph=True)
    theirs = torch.autograd.grad(plain.square().sum(), [alpha, beta], create_graph=True)
    second = [
        torch.autograd.grad(sum(g.square().sum() for g in grads), of)
        for grads, of in ((ours, [slot.alpha, slot.beta]), (theirs, [alpha, beta]))
    ]
    for got, wanted in zip((*ours, *second[0]), (*theirs, *second[1]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


def test_bases() -> None:
    # What they are said to be: uniform in (-1, 1) over sqrt(k), each its own, those of modules, factors and seeds too.
    slot, other = one(bases=200), NOLA(bases=200, rank=3).slot(SIZE, torch.Generator().manual_seed(5))
    sides = [bases.matrices() for each in (slot, other) for bases in each.bases()]
    for entries in (side * 200**0.5 for side in sides):
        assert entries.abs().max() < 1
        assert float(entries.mean()) == pytest.approx(0.0, abs=0.03)
        assert float(entries.var()) == pytest.approx(1 / 3, rel=0.05)
        levels = (entries.double() * 2**16).round()
        torch.testing.assert_close(entries.double() * 2**16, levels, rtol=0, atol=0.01)
        assert (levels % 2 == 1).all()
    whole = torch.cat([torch.nn.functional.normalize(side.flatten(1)[:, :20]) for side in sides])
    cosines = whole @ whole.T - torch.eye(len(whole))
    # A cosine of two random vectors of 20 entries is 1/sqrt(20) wide.
    assert cosines.abs().max() < 0.95
    assert float(cosines.std()) == pytest.approx(20**-0.5, rel=0.05)


def test_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, kept = one(), one(keep=True)
    gradients = []
    x = torch.randn(5, SIZE.in_features, generator=torch.Generator().manual_seed(1))
    for slot in (drawn, kept):
        y = slot(torch.zeros(5, SIZE.out_features), x)
        y.square().sum().backward()
        gradients.append((y.detach(), slot.alpha.grad, slot.beta.grad))
    assert all(torch.equal(got, wanted) for got, wanted in zip(*gradients, strict=True))
    at_once = {}
    for size in (random_bases.BLOCK, 1000):
        monkeypatch.setattr(random_bases, "BLOCK", size)
        at_once[size] = [bases.matrices() for bases in drawn.bases()]
    assert all(torch.equal(got, wanted) for got, wanted in zip(*at_once.values(), strict=True))


def test_one_block_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # A block is asked for only once the one before has been worked in.
    sizes: list[int] = []
    floats = random_bases._floats

    def watched(block: Tensor, *args: Any) -> Tensor:
        sizes.append(len(block))
        return floats(block, *args)

    monkeypatch.setattr(random_bases, "_floats", watched)
    slot = one()
    slot(torch.zeros(2, SIZE.out_features), torch.ones(2, SIZE.in_features)).sum().backward()
    assert sizes == [32, 32, 6] * 4


@pytest.mark.parametrize("rank", [1, 5])
def test_count(rank: int) -> None:
    model = adapted(NOLA(bases=40, rank=rank))
    for slot in found(model).values():
        assert sum(parameter.numel() for parameter in slot.parameters() if parameter.requires_grad) == 80
    assert all(factors.rank == rank for factors in paring.snapshot(model).modules.values())


def test_global_generators(unchecked: None) -> None:
    # Unchecked: the checks of annotations pick the items that they look at with Python's generator.
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    model = adapted(METHOD)
    assert len(set(run(model, 3))) == 3
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tobytes() == before[2]  # noqa: NPY002


FRESH = """
import sys, torch
from safetensors.torch import save_file
from peft import PeftModel
from tests.methods.small import WIDTHS, delta, net
torch.manual_seed(77)
for folder in sys.argv[1:]:
    model = PeftModel.from_pretrained(net().float(), folder)
    save_file({path: delta(model, path) for path in WIDTHS}, folder + "/deltas.safetensors")
"""


def test_fresh_process(warm: Warm, tmp_path: Path) -> None:
    wanted: dict[Path, dict[str, Tensor]] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = adapted(METHOD).float()
        for slot in found(model).values():
            for number, coefficients in enumerate((slot.alpha, slot.beta)):
                coefficients.data.copy_(torch.randn(len(coefficients), generator=torch.Generator().manual_seed(number)))
        seeds = {path: slot._seeds() for path, slot in found(model).items()}
        assert len({seed for three in seeds.values() for seed in three}) == 6
        # There and back, as some trainers do: what is left of the coefficients is what is saved.
        model.to(dtype).float()
        assert {path: slot._seeds() for path, slot in found(model).items()} == seeds
        folder = tmp_path / str(dtype)
        model.save_pretrained(str(folder))
        wanted[folder] = {path: delta(model, path) for path in WIDTHS}
    warm.run(["-c", FRESH, *wanted], cwd=Path(__file__).parents[2])
    for folder, deltas in wanted.items():
        there = load_file(folder / "deltas.safetensors")
        for path, update in deltas.items():
            assert update.any()
            assert torch.equal(there[path], update), (folder.name, path)


def test_made_once(draws: list[int]) -> None:
    slot = one()
    x, y = torch.ones(2, SIZE.in_features), torch.zeros(2, SIZE.out_features)
    optimizer = torch.optim.SGD([slot.alpha, slot.beta], lr=1e-4)
    for _ in range(2):
        draws.clear()
        (slot(y, x) + slot(y, 2 * x) + slot(y, 3 * x)).square().sum().backward()
        assert sorted(draws) == sorted([bases.seed for bases in slot.bases()] * 2), "once in the forward, once in the backward"
        optimizer.step()
    slot.eval()
    with torch.inference_mode():
        slot(y, x)
        draws.clear()
        slot(y, x)
    assert draws == []
    # What evaluation has formed serves training, and a second backward through another graph of the same factors is right.
    optimizer.zero_grad()
    first, second = slot(y, x), slot(y, 2 * x)
    first.sum().backward()
    second.sum().backward()
    together = [slot.alpha.grad.clone(), slot.beta.grad.clone()]
    optimizer.zero_grad()
    (slot(y, x) + slot(y, 2 * x)).sum().backward()
    for got, wanted in zip(together, (slot.alpha.grad, slot.beta.grad), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    draws.clear()
    kept = one(keep=True)
    for _ in range(3):
        kept(y, x).square().sum().backward()
    assert len(draws) == 2, "kept bases are made once for good"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["alpha", "beta", "seed"])
def test_a_write_that_nothing_counts_is_seen(name: str, keep: bool) -> None:
    # TRL and others write through .data, which no version counter sees.
    slot = one(keep=keep)
    x, y = torch.ones(2, SIZE.in_features), torch.zeros(2, SIZE.out_features)
    for training in (True, False):
        before = slot(y, x) if training else slot(y, x).detach()
        parameter = slot.get_parameter(name)
        parameter.data.copy_(1.0 - parameter.data)
        assert not torch.allclose(slot(y, x), before)
        torch.testing.assert_close(slot(y, x), slot.factors().apply(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"bases": 0}, {"bases": 1.5}, {"keep": "no"}, {"dropout": 1.0}])
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        NOLA(**settings)
