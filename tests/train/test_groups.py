"""Every trainable parameter once, in the group that its method asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import prodigyopt
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.optim import SGD, AdamW, Optimizer
from transformers import Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from paring.attach.find import slots
from paring.core.errors import SettingError, StepError, TargetError
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.train import ParingTrainer, create_optimizer, parameter_groups, separate, separate_heads
from paring.train.trainer import HeadTrainer
from tests.releases import needs_muon

Make = Callable[..., Any]


def names_in(model: Any, group: dict[str, Any]) -> set[str]:
    held = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in held}


def by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {group["name"]: group for group in groups}


def test_every_trainable_parameter_is_in_exactly_one_group(adapted: Make) -> None:
    model = adapted()
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_gates_have_their_own_rate_and_no_decay(adapted: Make) -> None:
    model = adapted(SoRA(rank=4, gate_rate=7.0))
    groups = by_name(parameter_groups(model, lr=0.5, weight_decay=0.1))
    assert list(groups) == ["decay", "no_decay", "gates"]
    assert {id(p) for p in groups["gates"]["params"]} == {id(slot.gate) for slot in slots(model).values()}
    assert (groups["gates"]["lr"], groups["gates"]["weight_decay"], groups["gates"]["role"]) == (7.0, 0.0, "gate")
    assert groups["gates"]["betas"] == (0.98, 0.98)
    assert (groups["decay"]["lr"], groups["decay"]["weight_decay"], groups["decay"]["role"]) == (0.5, 0.1, "factor")
    assert groups["no_decay"]["weight_decay"] == 0.0


def test_gates_keep_the_optimizers_other_betas(adapted: Make) -> None:
    model = adapted(SoRA(rank=4))
    assert by_name(create_optimizer(model, lr=1e-3, betas=(0.8, 0.99)).param_groups)["gates"]["betas"] == (0.98, 0.98)

    class Three(Optimizer):
        """Three betas, as AdEMAMix has."""

        def __init__(self, params: Any, lr: float, betas: tuple[float, ...] = (0.7, 0.999, 0.9999), weight_decay: float = 0.0) -> None:
            super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    groups = by_name(create_optimizer(adapted(SoRA(rank=4)), Three, lr=1e-3).param_groups)
    assert groups["gates"]["betas"] == (0.98, 0.98, 0.9999)
    assert groups["decay"]["betas"] == (0.7, 0.999, 0.9999)


def test_decay_falls_on_the_parameters_that_trainer_decays(adapted: Make, arguments: Make) -> None:
    model = adapted()
    trainer = Trainer(model=model, args=arguments(weight_decay=0.1))
    decays = names_in(model, trainer.create_optimizer().param_groups[0])
    groups = by_name(parameter_groups(model, lr=1e-3, weight_decay=0.1))
    assert names_in(model, groups["decay"]) == decays - names_in(model, groups["gates"])
    assert "base_model.model.norm.modules_to_save.default.weight" in names_in(model, groups["no_decay"])
    assert "base_model.model.out.modules_to_save.default.bias" in names_in(model, groups["no_decay"])
    assert "base_model.model.out.modules_to_save.default.weight" in names_in(model, groups["decay"])


def test_one_schedule_scales_all_groups_alike(adapted: Make) -> None:
    optimizer = create_optimizer(adapted(SoRA(rank=4, gate_rate=8.0)), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda index: 1 / (1 + index))
    for index in range(3):
        assert [group["lr"] * (1 + index) for group in optimizer.param_groups] == pytest.approx([1.0, 1.0, 8.0])
        optimizer.step()
        scheduler.step()


def test_tensor_rate_is_not_shared_between_groups(adapted: Make) -> None:
    groups = parameter_groups(adapted(SoRA(rank=4, gate_rate=8.0)), lr=torch.tensor(1.0))
    assert len({id(group["lr"]) for group in groups}) == len(groups)
    assert [float(group["lr"]) for group in groups] == [1.0, 1.0, 8.0]


def test_gates_without_a_rate_of_their_own_take_the_main_one(adapted: Make) -> None:
    groups = by_name(parameter_groups(adapted(SoRA(rank=4, gate_rate=None, gate_memory=None)), lr=0.5))
    assert groups["gates"]["lr"] == 0.5
    assert "betas" not in groups["gates"]


def test_lora_has_no_group_of_gates(adapted: Make) -> None:
    assert [group["name"] for group in parameter_groups(adapted(LoRA(rank=4)), lr=1e-3)] == ["decay", "no_decay"]


def test_adapter_leaves_the_others_out(adapted: Make) -> None:
    model = adapted(SoRA(rank=4, gate_rate=2.0))
    second = model.peft_config["default"].__class__(method=SoRA(rank=3, gate_rate=5.0), target_modules=["first"])
    model.add_adapter("second", second)
    model.base_model.set_adapter(["default", "second"])
    both = [group["lr"] for group in parameter_groups(model, lr=1.0) if group["role"] == "gate"]
    assert sorted(both) == [2.0, 5.0]
    (only,) = [group for group in parameter_groups(model, lr=1.0, adapter="second") if group["role"] == "gate"]
    assert only["lr"] == 5.0
    assert [tuple(p.shape) for p in only["params"]] == [(3,)]
    with pytest.raises(TargetError, match="Did you mean 'second'"):
        parameter_groups(model, lr=1.0, adapter="secnod")


def test_nothing_to_train_and_nothing_attached_are_said(adapted: Make) -> None:
    model = adapted()
    model.requires_grad_(False)
    with pytest.raises(TargetError, match="No parameter .* trainable"):
        parameter_groups(model, lr=1.0)
    with pytest.raises(TargetError, match="no paring adapter"):
        parameter_groups(torch.nn.Linear(2, 2), lr=1.0)


@pytest.mark.parametrize("kind", [AdamW, torch.optim.Adam, SGD])
@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)], ids=["number", "tensor"])
def test_create_optimizer_takes_the_fused_implementation_where_there_is_one(adapted: Make, kind: Any, lr: Any) -> None:
    model, twin = adapted(), adapted()
    fused, loop = create_optimizer(model, kind, lr=lr), create_optimizer(twin, kind, lr=lr, fused=False, foreach=False)
    assert fused.defaults["fused"] is True
    assert not loop.defaults["fused"]
    for one, optimizer in ((model, fused), (twin, loop)):
        for parameter in one.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", [{"foreach": True}, {"fused": False}, {"capturable": True}, {"differentiable": True}])
def test_create_optimizer_leaves_an_implementation_that_was_chosen(adapted: Make, choice: dict[str, bool]) -> None:
    assert not create_optimizer(adapted(), AdamW, lr=1e-2, **choice).defaults["fused"]


def test_create_optimizer_asks_no_other_class_to_fuse(adapted: Make) -> None:
    class Own(AdamW):
        """A class of its own may not know the argument."""

    assert not create_optimizer(adapted(), Own, lr=1e-2).defaults["fused"]
    assert "fused" not in create_optimizer(adapted(), torch.optim.RMSprop, lr=1e-2).defaults


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (torch.optim.LBFGS, "LBFGS does not take these parameters"),
        (torch.optim.Adafactor, "Adafactor scales its step"),
        (prodigyopt.Prodigy, "Prodigy estimates its own step size"),
    ],
)
def test_create_optimizer_refuses_at_once_what_the_step_would_refuse(adapted: Make, kind: type[Optimizer], match: str) -> None:
    with pytest.raises(StepError, match=f"(?s){match}"):
        create_optimizer(adapted(), kind, lr=1e-2)


@needs_muon
def test_create_optimizer_refuses_muon_alone(adapted: Make) -> None:
    with pytest.raises(StepError, match=r"(?s)Muon does not take these parameters.*second optimizer"):
        create_optimizer(adapted(), torch.optim.Muon, lr=1e-2)


@pytest.mark.parametrize("make", [create_optimizer, parameter_groups])
@pytest.mark.parametrize(
    ("name", "value"), [("lr", float("nan")), ("lr", -1.0), ("lr", float("inf")), ("lr", torch.tensor(-1.0)), ("weight_decay", -0.1)]
)
def test_a_rate_or_decay_that_is_none_is_named(adapted: Make, make: Any, name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"^{name}={float(value):g}[\d.]*: give a number in \[0, inf\)\.$"):
        make(adapted(SoRA(rank=2)), **{"lr": 1e-3, name: value})


def test_the_optimizers_own_words_are_a_sentence(adapted: Make) -> None:
    with pytest.raises(StepError, match=r"Invalid epsilon value: -1\.0\. The gates"):
        create_optimizer(adapted(SoRA(rank=2)), lr=1e-3, eps=-1.0)


def test_arguments_reach_the_optimizer(adapted: Make) -> None:
    optimizer = create_optimizer(adapted(), SGD, lr=1e-2, momentum=0.5)
    assert isinstance(optimizer, SGD)
    assert all(group["momentum"] == 0.5 for group in optimizer.param_groups)


# -- heads at a rate of their own --------------------------------------------------------------------------------------------

HEADS = {f"base_model.model.{name}" for name in ("out.modules_to_save.default.weight", "norm.modules_to_save.default.weight")}


def heads_of(model: PeftModel) -> set[str]:
    return {name for name, _ in model.named_parameters() if ".modules_to_save." in name}


def test_heads_have_a_rate_of_their_own_if_they_are_given_one(adapted: Make) -> None:
    model = adapted(SoRA(rank=4, gate_rate=7.0))
    assert heads_of(model) >= HEADS
    groups = parameter_groups(model, lr=0.5, weight_decay=0.1, head_lr=2.0)
    assert [group["name"] for group in groups] == ["decay", "gates", "heads", "heads"]
    heads = [group for group in groups if group["role"] == "head"]
    assert set.union(*(names_in(model, group) for group in heads)) == heads_of(model)
    assert [group["lr"] for group in groups] == [0.5, 7.0, 2.0, 2.0]
    assert sorted(group["weight_decay"] for group in heads) == [0.0, 0.1]
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_a_step_moves_heads_by_their_rate_and_factors_by_theirs(adapted: Make) -> None:
    model = adapted(LoRA(rank=4))
    optimizer = create_optimizer(model, lr=1e-3, head_lr=1e-1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    # The first step of Adam is the rate itself.
    for name, old in before.items():
        moved = (old - model.get_parameter(name).detach()).mean()
        assert float(moved) == pytest.approx(1e-1 if name in heads_of(model) else 1e-3, rel=1e-3), name


def test_trainer_gives_heads_their_rate_and_one_schedule_scales_both(adapted: Make, arguments: Make) -> None:
    model = adapted(SoRA(rank=4, gate_rate=7.0))
    trainer = ParingTrainer(model=model, args=arguments(learning_rate=0.5, weight_decay=0.1), head_learning_rate=2.0)
    trainer.create_optimizer_and_scheduler(4)
    found = {name: group for group in trainer.optimizer.param_groups for name in names_in(model, group)}
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, group in found.items() if group["initial_lr"] == 2.0} == heads_of(model)
    assert {found[name]["weight_decay"] for name in heads_of(model)} == {0.0, 0.1}
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert {group["lr"] / group["initial_lr"] for group in found.values()} == {0.75}


def test_heads_beside_an_adapter_of_pefts_own(arguments: Make) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"]))
    optimizer = HeadTrainer(model=model, args=arguments(learning_rate=0.5), head_learning_rate=2.0).create_optimizer()
    rates = {name: group["lr"] for group in optimizer.param_groups for name in names_in(model, group)}
    assert {name for name, rate in rates.items() if rate == 2.0} == heads_of(model)
    assert len(rates) == 4


def test_a_rate_for_heads_that_are_not_there_or_no_rate_is_refused(adapted: Make, arguments: Make) -> None:
    bare = adapted(LoRA(rank=4), modules_to_save=None)
    for make in (create_optimizer, parameter_groups):
        with pytest.raises(TargetError, match="no module is trained fully beside an adapter. Leave the rate out"):
            make(bare, lr=1e-3, head_lr=1e-2)
        for rate in (0.0, -1.0, float("nan")):
            with pytest.raises(SettingError, match="head_lr"):
                make(adapted(), lr=1e-3, head_lr=rate)
    with pytest.raises(TargetError, match="no module is trained fully"):
        ParingTrainer(model=bare, args=arguments(), head_learning_rate=1e-2).create_optimizer()
    mine = SGD([parameter for parameter in bare.parameters() if parameter.requires_grad], lr=0.5)
    with pytest.raises(TargetError, match="no module is trained fully"):
        separate_heads(mine, bare, lr=1e-2)


# -- gates taken out of an optimizer that someone else has built -------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "rmsprop", "adamw_bnb_8bit", "lion_32bit"])
def test_trainer_keeps_its_optimizer_and_gates_get_their_own_group(adapted: Make, arguments: Make, optim: str) -> None:
    plain, ours = adapted(SoRA(rank=4, gate_rate=7.0)), adapted(SoRA(rank=4, gate_rate=7.0))
    args = arguments(optim=optim, weight_decay=0.1, learning_rate=0.5)
    theirs = Trainer(model=plain, args=args).create_optimizer()
    optimizer = ParingTrainer(model=ours, args=args).create_optimizer()
    assert type(optimizer) is type(theirs)
    *rest, gates = optimizer.param_groups
    assert (gates["lr"], gates["weight_decay"], gates["role"], gates["name"]) == (7.0, 0.0, "gate", "gates")
    assert "betas" not in rest[0] or gates["betas"] == (0.98, 0.98, *rest[0]["betas"][2:])
    for group, before in zip(rest, theirs.param_groups, strict=True):
        assert names_in(ours, group) == names_in(plain, before) - {n for n, _ in ours.named_parameters() if n.endswith(".gate")}
        assert {k: v for k, v in group.items() if k not in ("params", "role")} == {k: v for k, v in before.items() if k != "params"}
    skip = ("params", "role", "name", "lr", "weight_decay", "betas")
    assert {k: v for k, v in gates.items() if k not in skip} == {k: v for k, v in rest[0].items() if k not in skip}


def test_trainer_given_a_class_and_arguments_keeps_them(adapted: Make, arguments: Make) -> None:
    trainer = ParingTrainer(model=adapted(), args=arguments(), optimizer_cls_and_kwargs=(SGD, {"lr": 0.5, "momentum": 0.25}))
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, SGD)
    assert optimizer.param_groups[-1]["lr"] == SoRA().gate_rate
    assert optimizer.param_groups[-1]["momentum"] == 0.25
    assert trainer.create_optimizer() is optimizer
    assert len(optimizer.param_groups) == 3


def test_optimizer_of_the_caller_is_left_alone(adapted: Make, arguments: Make) -> None:
    model = adapted()
    mine = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.5)
    trainer = ParingTrainer(model=model, args=arguments(), optimizers=(mine, None))
    assert trainer.create_optimizer() is mine
    assert len(mine.param_groups) == 1


def test_layerwise_optimizers_step_the_gates_at_their_rate(adapted: Make) -> None:
    model = adapted(SoRA(rank=4, gate_rate=3.0))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    each = {parameter: AdamW([parameter], lr=1.0, weight_decay=0.1) for parameter in parameters}
    separate(LayerWiseDummyOptimizer(optimizer_dict=each), model)
    gates = {id(slot.gate) for slot in slots(model).values()}
    for parameter, optimizer in each.items():
        (group,) = optimizer.param_groups
        assert group["params"] == [parameter]
        assert (group["lr"], group["weight_decay"]) == ((3.0, 0.0) if id(parameter) in gates else (1.0, 0.1))
