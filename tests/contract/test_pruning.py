"""Ranks whose gate is exactly zero can be taken out: shapes shrink and outputs stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import paring
from paring.core.adapter import Adapter
from paring.core.entries import Entries
from paring.core.factors import Factors
from tests.contract.cases import Case, assert_close, gated_slots, logits


@torch.no_grad()
def _by_hand(case: Case, adapter: Adapter, dtype: torch.dtype) -> Tensor:
    """The base model with the pruned updates added beside its linear modules, by nothing of paring but the factors."""
    base = case.base().to(dtype)
    own = dict(base.named_parameters())
    for name, tensor in adapter.heads.items():
        own[name].copy_(tensor)

    def adding(update: Factors | Entries) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            return output + update.apply(args[0])

        return hook

    for path, update in adapter.updates.items():
        if update.parameters:
            base.get_submodule(path).register_forward_hook(adding(update.prune()))
    return logits(base, _inputs(case, dtype))


def _inputs(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in case.kind.inputs().items()}


def test_pruning_zeros_keeps_the_output(case: Case) -> None:
    # In float64, so that 1e-6 is about the pruning, whatever the size of the output and however deep the model is.
    model = case.roughened().double()
    adapter = paring.snapshot(model)
    live = logits(model, _inputs(case, torch.float64))
    torch.testing.assert_close(_by_hand(case, adapter, torch.float64), live, rtol=0, atol=1e-6)


def test_pruning_zeros_keeps_the_output_but_for_rounding(case: Case) -> None:
    model = case.roughened()
    assert_close(_by_hand(case, paring.snapshot(model), torch.float32), logits(model, case.kind.inputs()))


def test_each_pruned_update_is_the_live_one(case: Case) -> None:
    model = case.roughened()
    generator = torch.Generator().manual_seed(2)
    for path, layer in paring.snapshot(model).modules.items():
        slot = model.base_model.model.get_submodule(path).paring_slot["default"]
        x = torch.randn(5, layer.in_features, generator=generator)
        with torch.no_grad():
            live = slot(torch.zeros(5, layer.out_features), x)
        torch.testing.assert_close(layer.prune().apply(x), live, rtol=0, atol=1e-6, msg=lambda text, path=path: f"{path}: {text}")


def test_pruning_zeros_makes_shapes_smaller(case: Case) -> None:
    model = case.roughened()
    live = {path: int(slot.gate.count_nonzero()) for path, slot in gated_slots(model).items()}
    assert len(set(live.values())) > 2
    assert 0 in live.values()
    adapter = paring.snapshot(model)
    for path, factors in adapter.modules.items():
        pruned = factors.prune()
        assert pruned.a.shape == (live[path], factors.in_features)
        assert pruned.b.shape == (factors.out_features, live[path])
        assert factors.rank == gated_slots(model)[path].gate.numel(), "the live module's shapes never change"
    assert paring.ranks(model) == live
    assert adapter.parameters == sum(live[path] * (factors.in_features + factors.out_features) for path, factors in adapter.modules.items())
