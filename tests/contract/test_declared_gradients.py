"""Only the parameters that a method declares get gradients; the base is frozen."""

from __future__ import annotations

import torch
from torch import nn

from paring.attach.find import slots
from paring.core.factors import Factors
from paring.parts.parameterise.base import Role, Slot
from paring.parts.parameterise.gated import Gated
from tests.contract.cases import Case


def _backward(case: Case, model: nn.Module) -> None:
    model.train()
    torch.manual_seed(0)
    model(**case.kind.batch()).loss.backward()


def _empty(slot: Slot) -> bool:
    """Whether nothing of the slot is alive; its factors then have no gradient, so that optimizers pass them over."""
    update = slot.delta()
    return isinstance(update, Factors) and update.gate is not None and not bool(update.gate.any())


def test_only_declared_parameters_get_gradients(case: Case) -> None:
    model = case.roughened()
    declared = {id(parameter): role for slot in slots(model).values() for _, parameter, role in slot.roles()}
    idle = {id(parameter) for slot in slots(model).values() if _empty(slot) for _, parameter, role in slot.roles() if role.factor}
    # Factors that an empty module shares with others are theirs as well.
    idle -= {id(factor) for slot in slots(model).values() if isinstance(slot, Gated) and not _empty(slot) for factor in (slot.A, slot.B)}
    heads = {name for name, _ in model.named_parameters() if ".modules_to_save.default." in name}
    _backward(case, model)
    for name, parameter in model.named_parameters():
        if id(parameter) in idle:
            assert parameter.requires_grad, name
            assert parameter.grad is None or not parameter.grad.any(), name
        elif declared.get(id(parameter), Role.FROZEN) is not Role.FROZEN or name in heads:
            assert parameter.requires_grad, name
            assert parameter.grad is not None, f"{name} is declared trainable, and got no gradient"
        else:
            assert not parameter.requires_grad, name
            assert parameter.grad is None, f"{name} is not declared trainable, and got a gradient"


def test_every_parameter_of_a_slot_is_declared_once(case: Case) -> None:
    for path, slot in slots(case.adapted()).items():
        declared = [(name, id(parameter)) for name, parameter, _ in slot.roles()]
        assert sorted(declared) == sorted((name, id(parameter)) for name, parameter in slot.named_parameters()), path


def test_gradients_reach_every_kind_of_parameter(case: Case) -> None:
    model = case.roughened()
    _backward(case, model)
    seen: set[tuple[str, Role]] = set()
    moved: set[tuple[str, Role]] = set()
    for slot in slots(model).values():
        for name, parameter, role in slot.roles():
            if role is not Role.FROZEN:
                seen.add((name, role))
                assert parameter.grad is not None or (role.factor and _empty(slot)), name
                if parameter.grad is not None and parameter.grad.any():
                    moved.add((name, role))
    assert moved == seen


def test_frozen_roles_stay_frozen_when_adapters_are_switched(case: Case) -> None:
    model = case.adapted()
    model.add_adapter("second", case.config(seed=8))
    assert not any(parameter.requires_grad for slot in slots(model, "second").values() for parameter in slot.parameters()), "not active yet"
    for active, other in (("second", "default"), ("default", "second")):
        model.set_adapter(active)
        assert all(
            parameter.requires_grad == (role is not Role.FROZEN)
            for slot in slots(model, active).values()
            for _, parameter, role in slot.roles()
        )
        assert not any(parameter.requires_grad for slot in slots(model, other).values() for parameter in slot.parameters())


def test_an_optimizer_over_everything_leaves_the_base_alone(case: Case) -> None:
    model = case.roughened()
    base = {name: value.clone() for name, value in case.base().state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    _backward(case, model)
    optimizer.step()
    with model.disable_adapter():
        unloaded = model.unload()
    after = unloaded.state_dict()
    assert after.keys() == base.keys()
    assert [name for name in base if not torch.equal(after[name], base[name])] == []
