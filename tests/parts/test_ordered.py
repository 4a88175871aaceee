r"""The ordered slot: the truncated decomposition in place, what it costs afterwards, and how an optimizer's memory turns with it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paring.core.errors import AdapterError
from paring.core.factors import Factors
from paring.parts.allocate.budget import Share
from paring.parts.parameterise.followed import Leader
from paring.parts.parameterise.ordered import Ordered
from paring.parts.update.cut import Cut, Score

IN, OUT, RANK, SCALE = 7, 5, 4, 2.0


def slot(generator: torch.Generator, score: Score = "size") -> Ordered:
    a, b = torch.randn(RANK, IN, generator=generator), torch.randn(OUT, RANK, generator=generator)
    return Ordered(Factors(a=a, b=b, scale=SCALE), Cut(budget=Share(share=0.5), score=score))


def delta(s: Ordered) -> Tensor:
    return SCALE * s.B.detach().double() @ s.A.detach().double()


@pytest.mark.parametrize("keep", range(RANK + 1))
def test_a_cut_is_the_best_approximation_of_its_rank(keep: int, generator: torch.Generator) -> None:
    s = slot(generator)
    before = delta(s)
    u, values, vt = torch.linalg.svd(before, full_matrices=False)
    split = s.split(by_loss=False)
    torch.testing.assert_close(split.s, values[:RANK])
    s.cut(split, keep)
    torch.testing.assert_close(delta(s), (u[:, :keep] * values[:keep]) @ vt[:keep], atol=1e-6, rtol=0)
    assert s.left == keep
    assert not s.A[keep:].any()
    assert not s.B[:, keep:].any()
    # In order, and in the gauge that the start had: rows of A of one length, all at right angles.
    gram = s.A[:keep].detach() @ s.A[:keep].detach().T
    torch.testing.assert_close(gram, torch.eye(keep) * s.norm**2, atol=1e-5, rtol=0)
    sizes = s.B[:, :keep].detach().norm(dim=0)
    assert torch.equal(sizes, sizes.sort(descending=True).values)


def test_cutting_to_all_changes_nothing_but_the_basis(generator: torch.Generator) -> None:
    s = slot(generator)
    before = delta(s)
    s.cut(s.split(by_loss=False), RANK)
    torch.testing.assert_close(delta(s), before, atol=1e-6, rtol=0)


def test_the_second_cut_starts_from_what_the_first_has_left(generator: torch.Generator) -> None:
    once, twice = slot(generator), None
    twice = copy.deepcopy(once)
    once.cut(once.split(by_loss=False), 1)
    twice.cut(twice.split(by_loss=False), 3)
    twice.cut(twice.split(by_loss=False), 1)
    torch.testing.assert_close(delta(once), delta(twice), atol=1e-6, rtol=0)


def test_gradients_turn_the_other_way(generator: torch.Generator) -> None:
    s, gradient = slot(generator), torch.randn(OUT, IN, generator=generator)
    a, b = s.A.detach().clone(), s.B.detach().clone()
    turn = s.cut(s.split(by_loss=False), 3)
    torch.testing.assert_close(turn.p.float() @ a, s.A[:3].detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(b @ turn.q.float(), s.B[:, :3].detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(turn.q.T.float() @ (b.T @ gradient), s.B[:, :3].detach().T @ gradient, atol=1e-5, rtol=0)
    torch.testing.assert_close((gradient @ a.T) @ turn.p.T.float(), gradient @ s.A[:3].detach().T, atol=1e-5, rtol=0)


def root(m: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(m.double())
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T


class Looks(Leader):
    """Looks at everything."""

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        raise AssertionError("nothing is stepped here")

    def looks(self, taken: int) -> bool:
        return True


@pytest.mark.parametrize("passes", [1, 3])
def test_by_loss_it_is_the_best_approximation_in_the_norm_of_inputs_and_gradients(passes: int, generator: torch.Generator) -> None:
    s = slot(generator, "loss")
    s.leader = Looks()
    x, mix = torch.randn(passes, 30, IN, generator=generator), torch.randn(OUT, OUT, generator=generator)
    dy = torch.randn(passes, 30, OUT, generator=generator) @ mix
    for inputs, gradient in zip(x, dy, strict=True):
        assert not s.fuses(torch.float32), "the products between the factors are what is looked at"
        s(torch.zeros(30, OUT, requires_grad=True), inputs).backward(gradient)
    s.looked()
    rows = 30 * passes
    left = root(dy.reshape(-1, OUT).T @ dy.reshape(-1, OUT))
    right = root(x.reshape(-1, IN).T @ x.reshape(-1, IN) / rows)
    before = left @ delta(s) @ right
    values = torch.linalg.svdvals(before)[:RANK]
    split = s.split(by_loss=True)
    torch.testing.assert_close(split.s, values, rtol=1e-5, atol=0)
    s.cut(split, 2)
    torch.testing.assert_close((left @ delta(s) @ right - before).norm(), values[2:].norm(), rtol=1e-4, atol=0)
    assert not s.inputs.any(), "the next look starts anew"
    assert int(s.rows) == 0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_batch_whose_gradient_overflowed_is_not_counted(value: float, generator: torch.Generator) -> None:
    s = slot(generator, "loss")
    s.leader = Looks()
    x = torch.randn(30, IN, generator=generator)
    s(torch.zeros(30, OUT), x).backward(torch.randn(30, OUT, generator=generator))
    s.looked()
    before = s.inputs.clone(), s.outputs.clone(), s.rows.clone()
    s(torch.zeros(30, OUT), x).backward(torch.full((30, OUT), value))
    s.looked()
    assert all(torch.equal(one, other) for one, other in zip(before, (s.inputs, s.outputs, s.rows), strict=True))
    assert int(s.rows) == 30


def test_a_diverged_update_is_told_as_such(generator: torch.Generator) -> None:
    s = slot(generator)
    with torch.no_grad():
        s.A[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="NaN or infinity"):
        s.split(by_loss=False)


def test_looking_changes_neither_the_output_nor_the_gradients(generator: torch.Generator) -> None:
    s, x, y = slot(generator, "loss"), torch.randn(2, 3, IN, generator=generator), torch.randn(2, 3, OUT, generator=generator)
    s(y, x).square().sum().backward()
    plain = s.A.grad, s.B.grad
    wanted = s(y, x)
    s.zero_grad()
    s.leader = Looks()
    got = s(y, x)
    got.square().sum().backward()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close((s.A.grad, s.B.grad), plain)


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_what_is_cut_has_no_gradient_and_no_part_in_the_output(keep: int, generator: torch.Generator) -> None:
    s = slot(generator)
    s.cut(s.split(by_loss=False), keep)
    x, base = torch.randn(6, IN, generator=generator), torch.randn(OUT, IN, generator=generator)
    wanted = F.linear(x.double(), base.double() + delta(s)).float()
    torch.testing.assert_close(s(F.linear(x, base), x), wanted, atol=1e-5, rtol=1e-5)
    if not keep:
        assert not s.fuses(torch.float32)
        return
    y = s.fused(x, base, None)
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)
    y.square().sum().backward()
    assert s.A.grad is not None
    assert s.B.grad is not None
    assert not s.A.grad[keep:].any()
    assert not s.B.grad[:, keep:].any()
    assert s.A.grad[:keep].any()


def test_a_load_tells_how_much_is_left(generator: torch.Generator) -> None:
    s, other = slot(generator), slot(generator)
    s.cut(s.split(by_loss=False), 2)
    assert other.left == RANK
    other.load_state_dict(s.state_dict())
    assert other.left == 2
    assert other.factors().live_rank == 2


def test_weights_that_are_put_in_are_seen_when_the_mode_changes(generator: torch.Generator) -> None:
    s = slot(generator)
    s.cut(s.split(by_loss=False), 1)
    with torch.no_grad():
        s.A.fill_(1.0)
    s.eval()
    assert s.left == RANK
