r"""SoRA's slot: its forward and gradients against the equations, its gate through casts and copies, its marks."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paring.core.errors import StepError
from paring.core.factors import Factors
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.gated import Gated, gated_slots
from paring.parts.parameterise.marks import PATIENCE
from paring.parts.update.proximal import Proximal

IN, OUT, RANK, SCALE = 6, 5, 3, 2.0


def slot(b_zero: bool = False, dropout: float = 0.0) -> Gated:
    g = torch.Generator().manual_seed(0)
    a, b, gate = torch.randn(RANK, IN, generator=g), torch.randn(OUT, RANK, generator=g), torch.randn(RANK, generator=g)
    start = Factors(a=a, b=b * 0 if b_zero else b, gate=gate, scale=SCALE)
    return Gated(start, Proximal(weight=0.1), dropout=dropout)


def delta(s: Gated) -> Tensor:
    return SCALE * s.B.detach().double() @ torch.diag(s.gate.detach().double()) @ s.A.detach().double()


def gradients(s: Gated, generator: torch.Generator) -> Tensor:
    """Run a forward and backward in float64 and return G = dL/dW, had the update been added to a dense weight W."""
    s.double()
    base = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    x = torch.randn(4, 7, IN, generator=generator, dtype=torch.float64)
    weight = (base + delta(s)).requires_grad_(True)
    F.linear(x, weight).square().sum().backward()
    s(F.linear(x, base), x).square().sum().backward()
    assert weight.grad is not None
    return weight.grad


# --- forward -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_forward_is_that_of_the_merged_weight(batch: tuple[int, ...], generator: torch.Generator) -> None:
    s, base, x = slot(), torch.randn(OUT, IN, generator=generator), torch.randn(*batch, IN, generator=generator)
    y = F.linear(x, base)
    before = x.clone(), y.clone()
    torch.testing.assert_close(s(y, x), (x.double() @ (base.double() + delta(s)).T).float(), atol=1e-6, rtol=1e-6)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_b_zero_leaves_the_bits_of_the_base(generator: torch.Generator) -> None:
    x, y = torch.randn(4, IN, generator=generator), torch.randn(4, OUT, generator=generator)
    assert torch.equal(slot(b_zero=True)(y, x), y)


def test_a_dead_rank_does_nothing(generator: torch.Generator) -> None:
    s, x, y = slot(), torch.randn(4, IN, generator=generator), torch.randn(4, OUT, generator=generator)
    with torch.no_grad():
        s.gate[1] = 0.0
        expected = s(y, x)
        s.A[1], s.B[:, 1] = 1e3, -1e3
        torch.testing.assert_close(s(y, x), expected)
    pruned = s.factors().prune()
    assert pruned.rank == 2
    torch.testing.assert_close(y + pruned.apply(x), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_has_the_dtype_of_the_base(dtype: torch.dtype, generator: torch.Generator) -> None:
    s = slot().to(dtype)
    x, y = torch.randn(4, IN, generator=generator).to(dtype), torch.randn(4, OUT, generator=generator).to(dtype)
    result = s(y, x)
    assert result.dtype == dtype
    expected = y.double() + x.double() @ delta(s).T
    # A few roundings of the low precision, at the size of the terms that are added up.
    atol = 8 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(result.double(), expected, atol=atol, rtol=0)
    assert slot()(y, x.float()).dtype == dtype


def test_dropout_only_while_training(generator: torch.Generator) -> None:
    s, x, y = slot(dropout=0.5), torch.randn(50, IN, generator=generator), torch.zeros(50, OUT)
    assert not torch.equal(s(y, x), s(y, x))
    s.eval()
    assert torch.equal(s(y, x), s(y, x))
    torch.testing.assert_close(s(y, x), (x.double() @ delta(s).T).float(), atol=1e-5, rtol=1e-5)


# --- gradients ---------------------------------------------------------------------------------------------------------------


def test_at_step_zero_only_b_moves(generator: torch.Generator) -> None:
    s = slot(b_zero=True)
    weight_gradient = gradients(s, generator)
    assert s.A.grad is not None
    assert s.B.grad is not None
    assert s.gate.grad is not None
    assert (s.A.grad == 0).all()
    assert (s.gate.grad == 0).all()
    torch.testing.assert_close(s.B.grad, SCALE * weight_gradient @ s.A.T @ torch.diag(s.gate))
    assert (s.B.grad.abs().sum(0) > 0).all()


def test_gradients_later(generator: torch.Generator) -> None:
    s = slot()
    weight_gradient = gradients(s, generator)
    for i in range(RANK):
        assert s.gate.grad is not None
        torch.testing.assert_close(s.gate.grad[i], SCALE * s.B[:, i] @ weight_gradient @ s.A[i])
    torch.testing.assert_close(s.A.grad, SCALE * torch.diag(s.gate) @ s.B.T @ weight_gradient)
    torch.testing.assert_close(s.B.grad, SCALE * weight_gradient @ s.A.T @ torch.diag(s.gate))


def test_the_gate_may_come_back_from_zero(generator: torch.Generator) -> None:
    s = slot()
    with torch.no_grad():
        s.gate[0] = 0.0
    gradients(s, generator)
    assert s.gate.grad is not None
    assert s.gate.grad[0] != 0


# --- the gate through casts ----------------------------------------------------------------------------------------------------

CASTS: dict[str, tuple[Callable[[nn.Module], nn.Module], torch.dtype, torch.dtype]] = {
    "half": (lambda module: module.half(), torch.float16, torch.float32),
    "bfloat16": (lambda module: module.bfloat16(), torch.bfloat16, torch.float32),
    "to": (lambda module: module.to(torch.bfloat16), torch.bfloat16, torch.float32),
    "double": (lambda module: module.double(), torch.float64, torch.float64),
    "float": (lambda module: module.float(), torch.float32, torch.float32),
}


@pytest.mark.parametrize("name", list(CASTS))
@pytest.mark.parametrize("nested", [False, True])
def test_the_gate_keeps_its_digits_whatever_the_model_is_cast_to(name: str, nested: bool) -> None:
    cast, factor_dtype, gate_dtype = CASTS[name]
    s = slot()
    gate, digits = s.gate, s.gate.detach().clone()
    cast(nn.ModuleDict({"default": s}) if nested else s)
    assert s.A.dtype == s.B.dtype == factor_dtype
    assert s.gate.dtype == gate_dtype
    assert s.gate is gate, "an optimizer that was built before the cast still holds the gate"
    assert torch.equal(s.gate.float(), digits)
    assert s.steps.dtype == s.travel.dtype == torch.int64
    s.float()
    assert s.gate.dtype == torch.float32
    assert torch.equal(s.gate, digits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gradient_is_kept_in_the_dtype_of_its_gate(dtype: torch.dtype, generator: torch.Generator) -> None:
    s = slot()
    s(torch.zeros(4, OUT), torch.randn(4, IN, generator=generator)).square().sum().backward()
    assert s.gate.grad is not None
    gradient = s.gate.grad.clone()
    s.to(dtype)
    assert s.gate.grad is not None
    assert s.gate.grad.dtype == torch.float32
    assert torch.equal(s.gate.grad, gradient)
    torch.optim.AdamW([s.gate], lr=1e-2).step()


def test_the_gate_moves_with_the_model() -> None:
    s = slot().to("meta", torch.bfloat16)
    assert s.gate.device.type == "meta"
    assert s.gate.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gate_that_was_cast_all_the_same_is_refused_in_training_only(dtype: torch.dtype, generator: torch.Generator) -> None:
    s, x, y = slot(), torch.randn(4, IN, generator=generator), torch.zeros(4, OUT)
    s.gate.data = s.gate.data.to(dtype)
    with pytest.raises(StepError, match=f"cast to {dtype}"):
        s(y, x)
    s.eval()
    assert s(y, x).shape == (4, OUT)


# --- copies --------------------------------------------------------------------------------------------------------------------


def pickled(s: Gated) -> Gated:
    return pickle.loads(pickle.dumps(s))  # type: ignore[no-any-return]  # noqa: S301


def saved(s: Gated) -> Gated:
    buffer = io.BytesIO()
    torch.save(s, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("trained", [False, True])
def test_a_copy_is_a_slot_of_its_own(copied: Callable[[Gated], Gated], trained: bool, generator: torch.Generator) -> None:
    s, x, y = slot(), torch.randn(4, IN, generator=generator), torch.zeros(4, OUT)
    if trained:
        s(y, x).sum().backward()
    s.steps += 3
    s.moved(7)
    twin = copied(s)
    assert torch.equal(twin(y, x), s(y, x))
    assert twin.update == s.update
    assert twin.steps.item() == 3
    assert twin.travelled == s.travelled > 0
    assert twin.scale == s.scale
    assert any(twin is known for known in gated_slots()), "the hook would not find the copy"
    with torch.no_grad():
        twin.gate.zero_()
    assert (s.gate != 0).all()
    twin.half()
    assert twin.gate.dtype == torch.float32


def test_state_dict_holds_all_that_changes_the_output(generator: torch.Generator) -> None:
    s, x, y = slot(), torch.randn(4, IN, generator=generator), torch.zeros(4, OUT)
    s.steps += 2
    s.travel += 10**9
    state = s.state_dict()
    assert set(state) == {"A", "B", "gate", "steps", "travel"}
    other = slot(b_zero=True)
    other.load_state_dict(state)
    assert torch.equal(other(y, x), s(y, x))
    assert other.steps.item() == other.taken == 2
    assert other.travelled == 1e-3


def test_factors_are_a_detached_copy() -> None:
    s = slot()
    factors = s.factors()
    assert factors.gate is not None
    assert factors.scale == SCALE
    assert not factors.a.requires_grad
    assert not factors.gate.requires_grad
    torch.testing.assert_close(factors.materialise(), delta(s).float())
    with torch.no_grad():
        s.A.zero_(), s.B.zero_(), s.gate.zero_()
    assert (factors.materialise() != 0).all()


def test_roles_name_every_parameter_once() -> None:
    s = slot()
    roles = {name: (parameter, role) for name, parameter, role in s.roles()}
    assert {name: role for name, (_, role) in roles.items()} == {"A": Role.FACTOR, "B": Role.UP, "gate": Role.GATE}
    assert all(dict(s.named_parameters())[name] is parameter for name, (parameter, _) in roles.items())
    assert len(list(s.parameters())) == len(roles)
    assert s.gate.shape == (RANK,)


# --- marks -----------------------------------------------------------------------------------------------------------------------


def test_only_a_training_forward_marks_the_slot(generator: torch.Generator) -> None:
    s, x, y = slot(), torch.randn(4, IN, generator=generator), torch.zeros(4, OUT)
    s.eval()
    s(y, x)
    s.train()
    with torch.no_grad():
        s(y, x)
    assert not s.pending
    s(y, x)
    assert s.pending
    s.stepped()
    assert not s.pending


def loop(s: Gated, times: int, generator: torch.Generator, *, steps: bool = True) -> list[str]:
    """Train A and B by hand, without any optimizer, and return what was warned of."""
    x, y = torch.randn(2, IN, generator=generator), torch.zeros(2, OUT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            s(y, x).sum().backward()
            if steps:
                s.B.data.add_(1e-3)
    return [str(item.message) for item in caught]


def test_a_loop_that_never_steps_the_gates_is_told_once(generator: torch.Generator) -> None:
    s = slot()
    assert loop(s, PATIENCE - 1, generator) == []
    (message,) = loop(s, 3 * PATIENCE, generator)
    assert "no proximal step has run" in message
    assert "paring.step.watch" in message


def test_a_loop_that_forgets_them_half_way_is_told(generator: torch.Generator) -> None:
    s = slot()
    loop(s, 2, generator)
    s.stepped()
    assert loop(s, PATIENCE - 1, generator) == []
    assert len(loop(s, 1, generator)) == 1


def test_gradients_that_are_only_accumulated_are_no_reason_to_warn(generator: torch.Generator) -> None:
    assert loop(slot(), 5 * PATIENCE, generator, steps=False) == []


def test_a_loop_that_steps_them_is_not_told(generator: torch.Generator) -> None:
    s = slot()
    for _ in range(4):
        assert loop(s, PATIENCE - 1, generator) == []
        s.stepped()


def test_a_gradient_in_evaluation_mode_marks_the_slot(generator: torch.Generator) -> None:
    s = slot().eval()
    y = s(torch.zeros(2, OUT), torch.randn(2, IN, generator=generator))
    assert not s.pending, "a forward alone asks for nothing"
    y.sum().backward()
    assert s.pending


def test_a_frozen_gate_is_not_watched(generator: torch.Generator) -> None:
    s = slot()
    s.gate.requires_grad_(False)
    assert loop(s, PATIENCE + 1, generator) == []


def test_a_copy_is_watched_on_its_own(generator: torch.Generator) -> None:
    s = slot()
    loop(s, PATIENCE + 1, generator)
    twin = copy.deepcopy(slot())
    assert len(loop(twin, PATIENCE + 1, generator)) == 1
