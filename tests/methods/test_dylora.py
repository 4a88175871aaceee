"""DyLoRA: the first b ranks are a LoRA of their own, for every b."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import paring
from paring.attach.find import slots
from paring.core.errors import SettingError
from paring.methods.dylora import DyLoRA
from paring.methods.lora import LoRA
from paring.parts.parameterise.nested import Nested
from paring.parts.update.draw import Draw
from paring.train import create_optimizer
from tests.methods.small import WIDTHS, adapted, batch, delta, net, run

RANK, ALPHA = 5, 10.0


def nested(model: PeftModel) -> dict[str, Nested]:
    return {path: slot for path, slot in slots(model).items() if isinstance(slot, Nested)}


@torch.no_grad()
def roughened(method: DyLoRA) -> PeftModel:
    """With B off zero."""
    model, generator = adapted(method), torch.Generator().manual_seed(2)
    for slot in nested(model).values():
        slot.B.add_(torch.randn(slot.B.shape, generator=generator), alpha=0.3)
    return model


@pytest.mark.parametrize("rank", range(1, RANK + 1))
@pytest.mark.parametrize("fused", [True, False])
def test_output_at_a_rank(rank: int, fused: bool) -> None:
    model = roughened(DyLoRA(rank=RANK, alpha=ALPHA)).eval()
    paring.set_rank(model, rank)
    for path, slot in nested(model).items():
        layer = model.base_model.model.get_submodule(path)
        x = torch.randn(4, WIDTHS[path][0], dtype=torch.float64)
        handle = None if fused else slot.register_forward_hook(lambda *_: None)
        wanted = layer.base_layer(x) + ALPHA / rank * x @ slot.A[:rank].T @ slot.B[:, :rank].T
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)
        if handle is not None:
            handle.remove()
        assert slot.factors().live_rank == rank


@pytest.mark.parametrize("alone", [False, True])
def test_no_rank_beyond(alone: bool) -> None:
    model = roughened(DyLoRA(rank=RANK, alpha=ALPHA, alone=alone, seed=3))
    drawn = {slot.drawn for slot in nested(model).values()}
    assert len(drawn) == 1
    rank = drawn.pop()
    assert 1 < rank < RANK
    before = model(batch()["x"])["logits"].detach()
    model(**batch())["loss"].backward()
    for slot in nested(model).values():
        rows = (slot.A.grad != 0).all(dim=1)
        wanted = [rank - 1] if alone else list(range(rank))
        assert rows.nonzero().flatten().tolist() == wanted
        assert (slot.B.grad != 0).any(dim=0).nonzero().flatten().tolist() == wanted
        with torch.no_grad():
            slot.A[rank:] = 7.0
            slot.B[:, rank:] = 7.0
    assert torch.equal(model(batch()["x"])["logits"], before)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_hold(alone: bool, kind: Any) -> None:
    model = roughened(DyLoRA(rank=RANK, alone=alone))
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = create_optimizer(model, kind, lr=1e-2, weight_decay=0.1, **settings)
    moved: Counter[int] = Counter()
    for step in range(30):
        slot = nested(model)["first"]
        trained = slot.trains()
        assert trained == slice(slot.drawn - 1 if alone else 0, slot.drawn)
        kept = [value.clone() for value in (slot.A.detach(), slot.B.detach().T, *_memory(optimizer, slot))]
        model(**batch(step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        after = [slot.A.detach(), slot.B.detach().T, *_memory(optimizer, slot)]
        for number, now in enumerate(after):
            old = kept[number] if number < len(kept) else torch.zeros_like(now)
            same = (now == old).all(dim=1)
            inside = torch.zeros(RANK, dtype=torch.bool)
            inside[trained] = True
            assert torch.equal(same, ~inside)
        moved.update(range(RANK)[trained])
        assert slot.taken == step + 1
    assert set(moved) == set(range(RANK)), "some rank was never drawn, so nothing was shown of it"


def _memory(optimizer: torch.optim.Optimizer, slot: Nested) -> list[torch.Tensor]:
    found = []
    for factor, rows in ((slot.A, True), (slot.B, False)):
        for name, value in sorted(optimizer.state.get(factor, {}).items()):
            if isinstance(value, torch.Tensor) and value.shape == factor.shape and name != "max_exp_avg_sq":
                found.append(value if rows else value.T)
    return found


@pytest.mark.parametrize("rank", [1, 3, RANK])
def test_nesting(rank: int, tmp_path: Path) -> None:
    model = adapted(DyLoRA(rank=RANK, alpha=ALPHA))
    run(model, 8)
    model.eval()
    paring.set_rank(model, rank)
    paring.export(model, tmp_path / "adapter")
    x = batch(9)["x"]
    exported = PeftModel.from_pretrained(net(), str(tmp_path / "adapter")).double()
    torch.testing.assert_close(exported(x)["logits"], model(x)["logits"], rtol=1e-5, atol=1e-6)
    assert set(paring.read(tmp_path / "adapter").ranks.values()) == {rank}
    # A plain LoRA of that rank, with the leading factors.
    lora = adapted(LoRA(rank=rank, alpha=ALPHA)).eval()
    for path, slot in nested(model).items():
        with torch.no_grad():
            slots(lora)[path].A.copy_(slot.A[:rank])
            slots(lora)[path].B.copy_(slot.B[:, :rank])
        torch.testing.assert_close(delta(lora, path), delta(model, path), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(lora(x)["logits"], model(x)["logits"], rtol=1e-12, atol=1e-12)


def test_draws() -> None:
    draw = Draw(seed=4)
    ranks = [draw.rank(step, 8) for step in range(4000)]
    assert ranks == [Draw(seed=4).rank(step, 8) for step in range(4000)]
    assert ranks != [Draw(seed=5).rank(step, 8) for step in range(4000)]
    counts = Counter(ranks)
    assert set(counts) == set(range(1, 9))
    assert all(400 < count < 600 for count in counts.values())
    halved = Counter(Draw(ratio=0.5, lowest=2).rank(step, 5) for step in range(4000))
    assert [round(halved[rank] / 4000 * 15) for rank in (2, 3, 4, 5)] == [8, 4, 2, 1]
    assert Counter(Draw(ratio=1e-200).rank(step, 5) for step in range(50)) == {1: 50}
    assert Counter(Draw(ratio=1e200).rank(step, 5) for step in range(50)) == {5: 50}
    model = adapted(DyLoRA(rank=RANK))
    for _ in range(6):
        assert len({slot.drawn for slot in nested(model).values()}) == 1
        run(model, 1)


def test_largest_is_lora() -> None:
    ours, lora = adapted(DyLoRA(rank=RANK, alpha=ALPHA, lowest=RANK)), adapted(LoRA(rank=RANK, alpha=ALPHA))
    assert run(ours, 6) == run(lora, 6)
    assert all(torch.equal(delta(ours, path), delta(lora, path)) for path in WIDTHS)


def test_training_in_evaluation_mode_is_told() -> None:
    model = adapted(DyLoRA(rank=RANK)).eval()
    with pytest.warns(UserWarning, match="evaluation mode"):
        run(model, 1)


def _end(closed: bool) -> list[torch.Tensor]:
    model = adapted(DyLoRA(rank=RANK))
    optimizer = create_optimizer(model, lr=1e-2, weight_decay=0.1)

    def gradients(step: int) -> float:
        optimizer.zero_grad()
        loss = model(**batch(step))["loss"]
        loss.backward()
        return float(loss.detach())

    for step in range(6):
        if closed:
            optimizer.step(partial(gradients, step))
        else:
            gradients(step)
            optimizer.step()
    return [slot.factors().a for slot in slots(model).values()]


def test_gradients_that_a_closure_makes_are_held_too() -> None:
    assert all(torch.equal(one, other) for one, other in zip(_end(False), _end(True), strict=True))


def test_a_rank_that_is_not_there() -> None:
    model = adapted(DyLoRA(rank=RANK))
    for rank in (0, RANK + 1):
        with pytest.raises(SettingError, match=rf"rank={rank}: .*1 to {RANK}"):
            paring.set_rank(model, rank)
    with pytest.raises(SettingError, match="not nested"):
        paring.set_rank(adapted(LoRA(rank=2)), 1)


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"alpha": 0.0}, {"lowest": 0}, {"lowest": 9}, {"ratio": 0.0}, {"seed": -1}, {"scaling": "sr"}]
)
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        DyLoRA(**settings)
