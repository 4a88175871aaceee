"""GS-LoRA: groups of factors under a group lasso, shrunk by a proximal step."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainingArguments

import paring
from paring import train
from paring.attach.find import method_of, slots
from paring.core.errors import ExportError, SettingError, StepError
from paring.lead.shrinker import Shrinker
from paring.methods.gs_lora import GSLoRA
from paring.methods.lora import LoRA
from paring.parts.parameterise.grouped import Grouped
from paring.parts.update.lasso import Grouping, GroupLasso
from paring.train.forget import divergence, forgetting, prototypical

WIDTH = 6
GROUPS: dict[Grouping, int] = {"block": 4, "module": 7, "matrix": 14}
"""Three blocks of two modules and one outside."""


class Blocks(nn.Module):
    """Three blocks of two linear modules, one module outside of them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(WIDTH, 9), "down": nn.Linear(9, WIDTH)}) for _ in range(3))
        self.last = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The prediction, and its squared error."""
        for block in self.layers:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["down"](torch.tanh(block["up"](x)))
        y = self.head(torch.tanh(self.last(x))).squeeze(-1)
        return {"logits": y} | ({} if labels is None else {"loss": (y - labels).square().mean()})


def base() -> Blocks:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Blocks().double().eval()


def adapted(method: GSLoRA | LoRA, seed: int = 1, targets: tuple[str, ...] = ("up", "down", "last")) -> PeftModel:
    return paring.adapt(base(), method, target_modules=list(targets), seed=seed).train()


def batch(number: int = 0, rows: int = 16) -> dict[str, Tensor]:
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return {"x": x, "labels": torch.sin(2 * x[:, 0]) + x[:, 1]}


def steps(model: PeftModel, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        model(**batch(step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def leader(model: PeftModel) -> Shrinker:
    found = {id(slot.leader): slot.leader for slot in slots(model).values() if isinstance(slot, Grouped)}
    (only,) = found.values()
    assert isinstance(only, Shrinker)
    return only


@torch.no_grad()
def roughen(model: PeftModel) -> None:
    """B off zero."""
    generator = torch.Generator().manual_seed(2)
    for slot in slots(model).values():
        slot.B.add_(torch.randn(slot.B.shape, generator=generator, dtype=torch.float64), alpha=0.3)


def by_hand(model: PeftModel, by: Grouping) -> dict[str, list[Tensor]]:
    """The members of each group, said by the names of this very model."""
    found = slots(model)
    modules = [(f"layers.{index}.{name}", f"layers.{index}") for index in range(3) for name in ("up", "down")] + [("last", "last")]
    groups: dict[str, list[Tensor]] = {}
    for path, block in modules:
        for name in ("A", "B"):
            key = {"block": block, "module": path, "matrix": f"{path}.{name}"}[by]
            groups.setdefault(key, []).append(found[path].get_parameter(name))
    return groups


def norm(members: list[Tensor]) -> Tensor:
    return torch.cat([member.detach().flatten() for member in members]).norm()


@pytest.mark.parametrize("by", GROUPS)
def test_penalty(by: Grouping) -> None:
    model = adapted(GSLoRA(rank=3, penalty=0.7, groups=by))
    roughen(model)
    wanted = 0.7 * sum(float(norm(members)) for members in by_hand(model, by).values())
    assert leader(model).value() == pytest.approx(wanted, rel=1e-12)
    assert len(leader(model).groups()) == GROUPS[by]


@pytest.mark.parametrize("by", GROUPS)
def test_proximal_step(by: Grouping) -> None:
    penalty, lr = 8.0, 0.1
    model = adapted(GSLoRA(rank=3, penalty=penalty, groups=by))
    roughen(model)
    with torch.no_grad():
        # One that is far below the threshold, and one that is zero already, with gradients of zero.
        slots(model)["last"].A.mul_(1e-3)
        slots(model)["last"].B.mul_(1e-3)
        for name in ("up", "down"):
            slots(model)[f"layers.2.{name}"].A.zero_()
            slots(model)[f"layers.2.{name}"].B.zero_()
    model(**batch())["loss"].backward()
    stepped = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, own in zip(stepped.parameters(), model.parameters(), strict=True):
            if own.grad is not None:
                parameter.sub_(lr * own.grad)
    torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=lr).step()
    fates = set()
    for (name, after), before in zip(by_hand(model, by).items(), by_hand(stepped, by).values(), strict=True):
        size = norm(before)
        if size <= lr * penalty:
            fates.add("dead")
            assert not any(member.any() for member in after), name
            continue
        fates.add("alive")
        torch.testing.assert_close(norm(after), size - lr * penalty, rtol=1e-12, atol=0)
        for one, other in zip(after, before, strict=True):
            torch.testing.assert_close(one / (size - lr * penalty), other / size, rtol=1e-11, atol=1e-13)
    assert fates == {"alive", "dead"}
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


@pytest.mark.parametrize("by", GROUPS)
def test_order_of_members(by: Grouping) -> None:
    ends, penalty = [], {"block": 8.0, "module": 6.0, "matrix": 4.0}[by]
    for order in (1, -1):
        model = adapted(GSLoRA(rank=3, penalty=penalty, groups=by))
        roughen(model)
        found = {path: slot for path, slot in list(slots(model).items())[::order] if isinstance(slot, Grouped)}
        lead = Shrinker(found, GroupLasso(weight=penalty, by=by))
        assert leader(model) is lead
        steps(model, torch.optim.AdamW(model.parameters(), lr=3e-2, weight_decay=0.0), 0, 12)
        ends.append({path: slot.factors() for path, slot in sorted(found.items())} | {"": lead.value()})
    first, second = ends
    assert first.pop("") == pytest.approx(second.pop(""), rel=1e-9)
    ranks = [[factors.live_rank for factors in end.values()] for end in ends]
    assert ranks[0] == ranks[1]
    assert 0 < sum(ranks[0]) < 21, "nothing died, or everything"
    for path, factors in first.items():
        torch.testing.assert_close(factors.materialise(torch.float64), second[path].materialise(torch.float64), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_zero_group_stays(kind: Any, tmp_path: Path) -> None:
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    model = adapted(GSLoRA(rank=3, penalty=1.0))
    optimizer = train.create_optimizer(model, kind, lr=1e-2, **settings)
    steps(model, optimizer, 0, 5)
    with torch.no_grad():
        dead = [slots(model)[f"layers.1.{name}"] for name in ("up", "down")]
        for slot in dead:
            slot.A.zero_()
            slot.B.zero_()
    memory = [
        value for slot in dead for value in optimizer.state[slot.A].values() if isinstance(value, Tensor) and value.shape == slot.A.shape
    ]
    assert any(bool(value.any()) for value in memory), "nothing could have moved it"
    steps(model, optimizer, 5, 12)
    assert not any(factor.any() for slot in dead for factor in (slot.A, slot.B))
    ranks = paring.ranks(model)
    assert {path for path, rank in ranks.items() if not rank} == {"layers.1.up", "layers.1.down"}
    # Without its modules the output is the same to the last bit.
    model.eval()
    x = batch(9)["x"]
    with_it = model(x)["logits"]
    without = adapted(GSLoRA(rank=3), targets=("layers.0.up", "layers.0.down", "layers.2.up", "layers.2.down", "last")).eval()
    for path, slot in slots(without).items():
        slot.load_state_dict(slots(model)[path].state_dict())
    assert torch.equal(without(x)["logits"], with_it)
    paring.export(model, tmp_path / "adapter")
    adapter = paring.read(tmp_path / "adapter")
    assert {path: rank for path, rank in adapter.ranks.items() if rank} == {path: rank for path, rank in ranks.items() if rank}
    exported = PeftModel.from_pretrained(base(), str(tmp_path / "adapter"))
    assert not any("layers.1" in name and "lora" in name for name, _ in exported.named_parameters())
    torch.testing.assert_close(exported.double()(x)["logits"], with_it, rtol=1e-5, atol=1e-6)


def still(outputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A loss whose gradient is zero: what moves is the proximal step's."""
    return outputs["logits"].sum() * 0.0


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("way", ["loop", "trainer"])
def test_one_step_for_each(way: str, accumulated: int, tmp_path: Path) -> None:
    lr, penalty, count = 0.01, 3.0, 4
    model = adapted(GSLoRA(rank=3, penalty=penalty))
    before = {name: float(norm(members)) for name, members in by_hand(model, "block").items()}
    data = [{key: value[0] for key, value in batch(number).items()} for number in range(count * accumulated)]
    if way == "loop":
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for number, row in enumerate(data):
            still(model(row["x"][None])).backward()
            if number % accumulated == accumulated - 1:
                optimizer.step()
                optimizer.zero_grad()
    else:
        given = TrainingArguments(
            output_dir=str(tmp_path),
            optim="sgd",
            learning_rate=lr,
            lr_scheduler_type="constant",
            per_device_train_batch_size=1,
            gradient_accumulation_steps=accumulated,
            max_steps=count,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        train.ParingTrainer(model=model, args=given, train_dataset=data, compute_loss_func=still).train()
    assert {slot.taken for slot in slots(model).values() if isinstance(slot, Grouped)} == {count}
    for name, members in by_hand(model, "block").items():
        assert float(norm(members)) == pytest.approx(before[name] - count * lr * penalty, rel=1e-12)


@pytest.mark.parametrize("stop", [1, 4, 11])
def test_resume(stop: int) -> None:
    last, method = 16, GSLoRA(rank=3, penalty=6.0, after=3)

    def made(model: PeftModel) -> torch.optim.Optimizer:
        return torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-2)

    model = adapted(method)
    optimizer = made(model)
    steps(model, optimizer, 0, stop)
    state, memory = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    steps(model, optimizer, stop, last)
    again = adapted(method, seed=5)
    again.load_state_dict(state)
    other = made(again)
    other.load_state_dict(memory)
    steps(again, other, stop, last)
    wanted = model.state_dict()
    assert [name for name, value in again.state_dict().items() if not torch.equal(value, wanted[name])] == []
    assert 0 < sum(paring.ranks(again).values()) < 21, "nothing died, or everything"


def test_without_a_penalty_it_is_lora() -> None:
    ends = []
    for method in (GSLoRA(rank=3, penalty=0.0), GSLoRA(rank=3, penalty=6.0, after=8), LoRA(rank=3)):
        model = adapted(method)
        steps(model, train.create_optimizer(model, lr=1e-2, weight_decay=0.1), 0, 8)
        ends.append({path: (slot.A, slot.B) for path, slot in slots(model).items()})
        assert set(paring.ranks(model).values()) == {3}
    for path, own in ends[2].items():
        assert all(torch.equal(one, other) for end in ends[:2] for one, other in zip(end[path], own, strict=True))


def test_bounded_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels, forget = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([True, False, True, False, False, False])
    entropy = -torch.log_softmax(logits.detach(), dim=-1)[range(6), labels]
    for bound in (0.5 * float(entropy[forget].mean()), float(entropy[forget].mean()) + 2.0):
        loss = forgetting(logits, labels, forget, bound=bound, weight=0.3)
        wanted = entropy[~forget].mean() + 0.3 * max(0.0, bound - float(entropy[forget].mean()))
        torch.testing.assert_close(loss.detach(), wanted, rtol=1e-12, atol=0)
        (gradient,) = torch.autograd.grad(loss, logits)
        reached = bound <= float(entropy[forget].mean())
        assert bool(gradient[forget].any()) is not reached
        if not reached:
            softmax, hot = torch.softmax(logits.detach(), -1), torch.eye(4, dtype=torch.float64)[labels]
            torch.testing.assert_close(gradient[forget], -0.3 * (softmax - hot)[forget] / 2, rtol=1e-10, atol=1e-14)


def test_prototype() -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes = 3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 3])
    outputs = prototypes[labels].clone().requires_grad_()
    assert torch.equal(divergence(prototypes[labels], outputs).detach(), torch.zeros(5, dtype=torch.float64))
    settings = {"bound": 2.0, "forget_weight": 0.5, "remain_weight": 0.25}
    nothing, some = torch.zeros(5, dtype=torch.bool), labels == 3
    loss = prototypical(outputs, labels, nothing, prototypes, **settings)
    assert loss == 0.0
    (gradient,) = torch.autograd.grad(loss, outputs)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)
    assert prototypical(outputs, labels, some, prototypes, **settings) == 0.5 * 2.0
    moved = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    p = torch.softmax(prototypes[labels], -1)
    wanted = (p * (p.log() - torch.log_softmax(moved, -1))).sum(-1)
    far = 0.5 * max(0.0, 2.0 - float(wanted[some].mean())) + 0.25 * float(wanted[~some].mean())
    assert float(prototypical(moved, labels, some, prototypes, **settings)) == pytest.approx(far, rel=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_a_rate_that_is_a_tensor_is_that_rate(fused: bool) -> None:
    ends = []
    for lr in (1e-2, torch.tensor(1e-2, dtype=torch.float64)):
        model = adapted(GSLoRA(rank=3, penalty=6.0))
        steps(model, torch.optim.AdamW(model.parameters(), lr=lr, fused=fused, weight_decay=0.0), 0, 3)
        ends.append([parameter.detach() for parameter in leader(model).groups()["last"]])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_a_step_that_loss_scaling_skips_shrinks_nothing() -> None:
    model = adapted(GSLoRA(rank=3, penalty=6.0))
    before = {name: [member.detach().clone() for member in members] for name, members in by_hand(model, "block").items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    model(**batch())["loss"].backward()
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    for name, members in by_hand(model, "block").items():
        assert all(torch.equal(one, other) for one, other in zip(members, before[name], strict=True))


def _end(closed: bool) -> list[Tensor]:
    model = adapted(GSLoRA(rank=3, penalty=6.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)

    def gradients(step: int) -> float:
        optimizer.zero_grad()
        loss = model(**batch(step))["loss"]
        loss.backward()
        return float(loss.detach())

    for step in range(12):
        if closed:
            optimizer.step(partial(gradients, step))
        else:
            gradients(step)
            optimizer.step()
    return [parameter.detach() for slot in slots(model).values() for parameter in slot.parameters()]


def test_gradients_that_a_closure_makes() -> None:
    assert all(torch.equal(one, other) for one, other in zip(_end(False), _end(True), strict=True))


def test_a_matrix_of_its_own_comes_back_by_its_gradient() -> None:
    model = adapted(GSLoRA(rank=3, penalty=0.1, groups="matrix"))
    assert set(paring.ranks(model).values()) == {3}, "B is zero at the start, and nothing is gone"
    steps(model, torch.optim.AdamW(model.parameters(), lr=1e-2), 0, 1)
    assert all(bool(slot.B.any()) for slot in slots(model).values()), "B has left zero, its group's norm"
    with torch.no_grad():
        slots(model)["last"].A.zero_()
    assert paring.ranks(model)["last"] == 0
    steps(model, torch.optim.AdamW(model.parameters(), lr=1e-2), 1, 2)
    assert paring.ranks(model)["last"] == 3


def _two_rates(model: PeftModel) -> torch.optim.Optimizer:
    found = slots(model).values()
    return torch.optim.SGD([{"params": [slot.A for slot in found]}, {"params": [slot.B for slot in found], "lr": 0.2}], lr=0.1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_two_rates, "different learning rates.*groups='module'"),
        (lambda model: torch.optim.SGD([slot.B for slot in slots(model).values()], lr=0.1), "only a part of the factors"),
        (lambda model: torch.optim.Adafactor(model.parameters(), lr=0.1), "Adafactor.*not the step"),
    ],
)
def test_what_has_no_proximal_step_is_refused(make: Callable[[PeftModel], torch.optim.Optimizer], said: str) -> None:
    model = adapted(GSLoRA(rank=3))
    with pytest.raises(StepError, match=said):
        steps(model, make(model), 0, 1)


def test_factors_of_few_digits_are_refused() -> None:
    model = adapted(GSLoRA(rank=3)).bfloat16()
    model(**{key: value.bfloat16() for key, value in batch().items()})["loss"].backward()
    with pytest.raises(StepError, match="rounds to nothing"):
        torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_two_optimizers_with_blocks_of_their_own_are_one() -> None:
    ends = []
    for apart in (False, True):
        model = adapted(GSLoRA(rank=3, penalty=6.0, after=3))
        low = [parameter for path, slot in slots(model).items() for parameter in (slot.A, slot.B) if path.startswith("layers.0")]
        rest = [parameter for path, slot in slots(model).items() for parameter in (slot.A, slot.B) if not path.startswith("layers.0")]
        made = [torch.optim.AdamW(part, lr=3e-2) for part in ((low, rest) if apart else ([*low, *rest],))]
        for step in range(12):
            model(**batch(step))["loss"].backward()
            for optimizer in made:
                optimizer.step()
            model.zero_grad()
        assert {slot.taken for slot in slots(model).values() if isinstance(slot, Grouped)} == {12}
        ends.append([parameter.detach() for parameter in (*low, *rest)])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_two_rates_are_right_where_each_matrix_is_a_group() -> None:
    model = adapted(GSLoRA(rank=3, penalty=0.5, groups="matrix"))
    before = {name: norm(members) for name, members in by_hand(model, "matrix").items()}
    still(model(**batch())).backward()
    _two_rates(model).step()
    for name, members in by_hand(model, "matrix").items():
        wanted = before[name] - (0.05 if name.endswith("A") else 0.0)
        torch.testing.assert_close(norm(members), wanted, rtol=1e-12, atol=0)


def test_an_adapter_that_was_never_shrunk_is_not_exported(tmp_path: Path) -> None:
    model = adapted(GSLoRA(rank=3, penalty=1.0, after=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with pytest.raises(ExportError, match="proximal step never ran"):
        paring.export(model, tmp_path / "adapter")
    steps(model, optimizer, 0, 2)
    with pytest.raises(ExportError, match="begins after 2 steps and 2 were taken"):
        paring.export(model, tmp_path / "adapter")
    steps(model, optimizer, 2, 3)
    paring.export(model, tmp_path / "adapter")
    assert isinstance(method_of(model), GSLoRA)


def test_a_frozen_factor_is_in_no_group() -> None:
    model = adapted(GSLoRA(rank=3, penalty=3.0))
    for slot in slots(model).values():
        slot.A.requires_grad_(False)
    before = [slot.A.detach().clone() for slot in slots(model).values()]
    steps(model, torch.optim.AdamW([slot.B for slot in slots(model).values()], lr=1e-2), 0, 2)
    assert all(torch.equal(slot.A, old) for slot, old in zip(slots(model).values(), before, strict=True))
    assert all(name in leader(model).groups() for name in by_hand(model, "block"))
    assert any(slot.B.any() for slot in slots(model).values()), "B starts at zero, and its gradient moves it"


def _paths() -> Iterator[tuple[str, str]]:
    yield from itertools.product(
        ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.output.dense"), ("bert.encoder.layer.0",)
    )
    yield "model.layers.11.mlp.experts.3.up", "model.layers.11"
    yield "lm_head", "lm_head"
    yield "fc1.dense", "fc1.dense"


@pytest.mark.parametrize(("path", "block"), list(_paths()))
def test_blocks_are_told_by_the_first_number(path: str, block: str) -> None:
    groups = GroupLasso(weight=1.0).groups([path])
    assert dict(groups) == {block: ((path, "A"), (path, "B"))}


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"by": "layer"}, {"weight": -1.0}, {"after": -1}, {"dropout": 1.0}])
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    names = {"by": "groups", "weight": "penalty"}
    with pytest.raises(SettingError, match=next(iter(settings))):
        GSLoRA(**{names.get(key, key): value for key, value in settings.items()})
