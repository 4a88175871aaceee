"""When dead gates get their gradient: what comes back, what is held, what the optimizer remembers, what is computed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from paring import step
from paring.core.coding import Coded
from paring.core.errors import SettingError
from paring.kernels.adapted import Live
from paring.methods.sora import SoRA
from paring.parts.parameterise import alive
from paring.parts.parameterise.alive import Alive
from paring.parts.parameterise.gated import Gated
from paring.parts.shape import Shape
from paring.parts.update.revive import RECOUNT, Always, Every, Never, Revive

SIZE, RATE, PENALTY, STEPS = 6, 0.02, 0.25, 12
RULES: dict[str, Revive] = {"always": Always(), "every": Every(period=3), "never": Never()}
DEAD = [0, 3, 4]

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "momentum": lambda p: SGD(p, lr=RATE, momentum=0.5),
    "adam": lambda p: Adam(p, lr=RATE),
    "foreach": lambda p: AdamW(p, lr=RATE, weight_decay=0.0, foreach=True),
    "fused": lambda p: AdamW(p, lr=RATE, weight_decay=0.0, fused=True),
    "amsgrad": lambda p: AdamW(p, lr=RATE, weight_decay=0.0, amsgrad=True),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
two_optimizers = pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=() if name in ("momentum", "adam") else pytest.mark.slow) for name, make in OPTIMIZERS.items()],
)
paths = pytest.mark.parametrize("fused", [True, False], ids=["fused", "called"])


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    step.install()
    yield
    step.install()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many ranks each forward was told to compute with; ``None`` is all."""
    counts: list[int | None] = []
    real = Alive.look

    def spy(self: Alive, gate: Tensor, checking: bool) -> Live | None:
        found = real(self, gate, checking)
        counts.append(None if found is None else found.count)
        return found

    monkeypatch.setattr(Alive, "look", spy)
    return counts


class Model(nn.Module):
    """Two frozen linears with a slot beside each."""

    def __init__(self, rule: Revive, *, fused: bool = True, dead: list[int] | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fused = fused
        self.bases = nn.ModuleList(nn.Linear(SIZE, SIZE).requires_grad_(False) for _ in range(2))
        self.slots = nn.ModuleList()
        method = SoRA(rank=SIZE, penalty=PENALTY, fade=None, gates="ones", revive=rule, dropout=dropout)
        for base in self.bases:
            assert isinstance(base, nn.Linear)
            base.weight.normal_(generator=generator, std=0.5)
            base.bias.zero_()
            slot = method.slot(Shape(path="base", in_features=SIZE, out_features=SIZE), generator)
            with torch.no_grad():
                for parameter in slot.parameters():
                    parameter.normal_(generator=generator, std=0.3)
            self.slots.append(slot)
        with torch.no_grad():
            for gated in self.gated:
                gated.gate.clamp_(0.4, 1.0)
                gated.gate[DEAD if dead is None else dead] = 0.0

    @property
    def gated(self) -> list[Gated]:
        found = list(self.slots)
        assert all(isinstance(slot, Gated) for slot in found)
        return found  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        for base, slot in zip(self.bases, self.gated, strict=True):
            assert isinstance(base, nn.Linear)
            x = slot.fused(x, base.weight, base.bias) if self.fused else slot(base(x), x)
        return x

    def loss(self, index: int = 0) -> Tensor:
        x = torch.randn(8, SIZE, generator=torch.Generator().manual_seed(index))
        return (self(x) - x.flip(1)).square().mean()

    def gates(self) -> Tensor:
        return torch.stack([slot.gate.detach() for slot in self.gated])


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def run(model: Model, optimizer: Optimizer, steps: int = STEPS, start: int = 0) -> list[Tensor]:
    history = []
    for index in range(start, start + steps):
        model.loss(index).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(model.gates().clone())
    return history


@optimizers
@paths
@rules
def test_dead_gates_are_held_between_looks(rule: Revive, fused: bool, make: Callable[..., Optimizer]) -> None:
    model = Model(rule, fused=fused)
    optimizer = make(trained(model))
    for index in range(STEPS):
        before, known = model.gates().clone(), _state(optimizer, model)
        dead = before == 0
        model.loss(index).backward()
        gradients = torch.stack([slot.gate.grad for slot in model.gated if slot.gate.grad is not None])
        looks = rule.checks(index)
        assert looks is (rule == Always() or (isinstance(rule, Every) and index % 3 == 2))
        assert bool(gradients[dead].any()) is (looks and bool(dead.any()))
        assert gradients[~dead].all()
        optimizer.step()
        optimizer.zero_grad()
        if not looks:
            assert not model.gates()[dead].any()
            for key, value in _state(optimizer, model).items():
                # What is remembered of a gate that never comes back is nobody's concern.
                if key in known and rule.returns:
                    assert torch.equal(value[dead], known[key][dead]), key
                    assert not torch.equal(value[~dead], known[key][~dead]), key


def _state(optimizer: Optimizer, model: Model) -> dict[str, Tensor]:
    """What the optimizer remembers of the gates, entry for entry."""
    states = [optimizer.state[slot.gate] for slot in model.gated if slot.gate in optimizer.state]
    found = {}
    for key in states[0] if states else ():
        if key != "step":
            found[key] = torch.stack([state[key].detach().clone() for state in states])
    return found


@optimizers
def test_gates_come_back_at_looks_and_at_looks_only(make: Callable[..., Optimizer]) -> None:
    came: dict[str, list[int]] = {}
    for name, rule in RULES.items():
        model = Model(rule)
        history = [model.gates().clone(), *run(model, make(trained(model)), steps=24)]
        came[name] = [i for i in range(24) if bool(((history[i] == 0) & (history[i + 1] != 0)).any())]
    assert came["always"]
    assert came["every"]
    assert all(index % 3 == 2 for index in came["every"])
    assert came["never"] == []


def test_what_momentum_a_gate_died_with_does_not_carry_it_on() -> None:
    model = Model(Never(), dead=[])
    optimizer = SGD(trained(model), lr=RATE, momentum=0.9)
    run(model, optimizer, steps=4)
    slot = model.gated[0]
    assert optimizer.state[slot.gate]["momentum_buffer"].abs().min() > 0
    with torch.no_grad():
        slot.gate[1] = 0.0
    run(model, optimizer, steps=4, start=4)
    assert slot.gate[1] == 0
    assert slot.gate[0] != 0


@optimizers
@paths
@rules
def test_live_ranks_only_gives_what_all_ranks_give(
    rule: Revive, fused: bool, make: Callable[..., Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cut in the products changes no rule: with all ranks computed, gates, factors and what is held are the same."""
    model, twin = Model(rule, fused=fused), Model(rule, fused=fused)
    got = run(model, make(trained(model)))
    monkeypatch.setattr(Alive, "look", lambda self, gate, checking: None)
    wanted = run(twin, make(trained(twin)))
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one == 0, other == 0)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(model.named_parameters()), dict(twin.named_parameters()), rtol=1e-4, atol=1e-5)


@paths
@rules
def test_an_empty_module_is_counted_like_the_others(rule: Revive, fused: bool) -> None:
    """Else a rule that counts steps would never look at it again."""
    model = Model(rule, fused=fused, dead=list(range(SIZE)))
    run(model, SGD(trained(model), lr=RATE), steps=3)
    assert [slot.taken for slot in model.gated] == [3, 3]
    assert bool(model.gates().any()) is (rule != Never())


def test_the_cut_is_real(seen: list[int | None]) -> None:
    """The twin above would agree as well if all ranks were always computed."""
    Model(Never()).loss().backward()
    Model(Never(), dead=[]).loss().backward()
    Model(Never(), dead=list(range(SIZE))).loss().backward()
    assert seen == [3, 3, None, None, 0, 0]
    seen.clear()
    with torch.no_grad():
        Model(Never()).eval().loss()
    assert seen == []
    # A forward without gradients in training mode is what reentrant checkpointing begins with.
    with torch.no_grad():
        Model(Never()).train().loss()
    assert seen == [3, 3]


@rules
def test_dropout_falls_on_the_same_entries(rule: Revive, monkeypatch: pytest.MonkeyPatch) -> None:
    got, wanted = Model(rule, fused=False, dropout=0.3), Model(rule, fused=False, dropout=0.3)
    torch.manual_seed(3)
    got.loss().backward()
    monkeypatch.setattr(Alive, "look", lambda self, gate, checking: None)
    torch.manual_seed(3)
    wanted.loss().backward()
    for one, other in zip(got.gated, wanted.gated, strict=True):
        assert one.A.grad is not None
        assert one.A.grad.any()
        torch.testing.assert_close(one.A.grad, other.A.grad)
        torch.testing.assert_close(one.B.grad, other.B.grad)


@rules
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_restart_looks_at_the_same_steps(rule: Revive, cut: int) -> None:
    whole = Model(rule)
    wanted = run(whole, AdamW(trained(whole), lr=RATE, weight_decay=0.0))
    first = Model(rule)
    optimizer = AdamW(trained(first), lr=RATE, weight_decay=0.0)
    run(first, optimizer, steps=cut)
    second = Model(rule)
    second.load_state_dict(first.state_dict())
    again = AdamW(trained(second), lr=RATE, weight_decay=0.0)
    again.load_state_dict(optimizer.state_dict())
    got = run(second, again, steps=STEPS - cut, start=cut)
    assert torch.equal(got[-1], wanted[-1])


def _pickled(model: Model) -> Model:
    twin: Model = pickle.loads(pickle.dumps(model))  # noqa: S301 - its own
    return twin


@rules
@pytest.mark.parametrize("how", [copy.deepcopy, _pickled], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_alike(rule: Revive, how: Callable[[Model], Model]) -> None:
    model = Model(rule)
    run(model, SGD(trained(model), lr=RATE), steps=4)
    twin = how(model)
    one, other = (run(each, SGD(trained(each), lr=RATE), start=4)[-1] for each in (model, twin))
    assert torch.equal(one, other)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_closures_and_accumulation_hold_too(accumulate: int) -> None:
    model = Model(Never())
    optimizer = SGD(trained(model), lr=RATE, momentum=0.9)
    for index in range(6):
        for _ in range(accumulate - 1):
            model.loss(index).backward()

        def closure(index: int = index) -> Any:
            loss = model.loss(index)
            loss.backward()
            return loss.item()

        optimizer.step(closure)
        optimizer.zero_grad()
    assert not model.gates()[:, DEAD].any()
    assert all(slot.taken == int(slot.steps) == 6 for slot in model.gated)


# -- where a look would wait for the device ------------------------------------------------------------------------------------


@pytest.fixture
def remote(seen: list[int | None], monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Treat the gates as if reading them waited for a device; lists what each forward was told to compute with."""
    monkeypatch.setattr(alive, "_readable", lambda gate: False)
    monkeypatch.setattr(alive, "SPARE", 1)
    monkeypatch.setattr(alive, "MULTIPLE", 1)
    return seen


def test_remote_gates_are_counted_now_and_then(remote: list[int | None]) -> None:
    model = Model(Never())
    optimizer = SGD(trained(model), lr=RATE)
    run(model, optimizer, steps=RECOUNT + 3)
    assert remote == [None] * 2 * RECOUNT + [3] * 6


def test_remote_gates_with_looks(remote: list[int | None]) -> None:
    model = Model(Every(period=3))
    optimizer = SGD(trained(model), lr=RATE)
    for index in range(12):
        if index % 3 == 0:
            found = [int(row.count_nonzero()) for row in model.gates()]
        remote.clear()
        run(model, optimizer, steps=1, start=index)
        # All ranks until the first look and at each look; in between, those that were alive after the last one.
        if index < 3 or index % 3 == 2:
            assert remote == [None, None]
        else:
            assert remote == [None if count == SIZE else count for count in found]


def test_remote_gates_free_to_come_back_are_all_computed(remote: list[int | None]) -> None:
    run(model := Model(Always()), SGD(trained(model), lr=RATE), steps=RECOUNT + 2)
    assert set(remote) == {None}


@rules
@two_optimizers
@pytest.mark.parametrize(("spare", "multiple"), [pytest.param(1, 1, marks=pytest.mark.slow), (1, 2), (alive.SPARE, alive.MULTIPLE)])
def test_remote_gates_train_alike(
    rule: Revive, make: Callable[..., Optimizer], spare: int, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = Model(rule), Model(rule)
    wanted = run(here, make(trained(here)), steps=3 * RECOUNT)
    monkeypatch.setattr(alive, "_readable", lambda gate: False)
    monkeypatch.setattr(alive, "SPARE", spare)
    monkeypatch.setattr(alive, "MULTIPLE", multiple)
    got = run(there, make(trained(there)), steps=3 * RECOUNT)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "living", "computed"),
    [
        (8, 8, 8),
        (8, 3, 8),
        (8, 0, 0),
        (64, 0, 0),
        (64, 1, 64),
        (256, 64, 64),
        (256, 61, 64),
        (256, 121, 128),
        (256, 129, 256),
        (200, 65, 72),
    ],
)
def test_an_accelerator_leaves_out_many_dead_ranks_or_all(size: int, living: int, computed: int, generator: torch.Generator) -> None:
    lives = torch.zeros(size, dtype=torch.bool)
    lives[torch.randperm(size, generator=generator)[:living]] = True
    index = alive._worth(lives)
    if index is None:
        assert computed == size
        return
    assert len(index) == len(index.unique()) == computed
    assert lives[index[:living]].all()
    assert not lives[index[living:]].any()


def _in_place(slot: Gated, value: Tensor) -> None:
    with torch.no_grad():
        slot.gate.copy_(value)


def _data(slot: Gated, value: Tensor) -> None:
    slot.gate.data = value.clone()


def _state_dict(slot: Gated, value: Tensor) -> None:
    slot.load_state_dict({**slot.state_dict(), "gate": value})


def _parameter(slot: Gated, value: Tensor) -> None:
    slot.gate = nn.Parameter(value.clone())


@pytest.mark.parametrize("write", [_in_place, _data, _state_dict, _parameter])
@pytest.mark.parametrize("when", ["before the forward", "before the step"])
def test_remote_gates_written_from_outside(write: Callable[[Gated, Tensor], None], when: str, remote: list[int | None]) -> None:
    model = Model(Never())
    run(model, SGD(trained(model), lr=RATE), steps=RECOUNT + 1)
    slot, wanted = model.gated[0], torch.full((SIZE,), 0.5)
    optimizer = SGD(trained(model), lr=0.0)
    if when == "before the step":
        model.loss().backward()
    write(slot, wanted)
    if when == "before the step":
        if write is not _parameter:
            optimizer.step()
            assert torch.equal(slot.gate, wanted)
        optimizer.zero_grad()
    remote.clear()
    model.loss().backward()
    assert remote == [None, 3]


# -- settings ----------------------------------------------------------------------------------------------------------------


@rules
def test_rules_are_plain_data(rule: Revive) -> None:
    method = SoRA(revive=rule)
    assert SoRA.decode(method.encode()) == method
    assert isinstance(Revive.decode(rule.encode()), Coded)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="period=0"):
        Every(period=0)
    with pytest.raises(SettingError, match=r"revive='never'.*Always|revive='never'.*always"):
        SoRA(revive="never")  # type: ignore[arg-type]
