"""LISA: which blocks train when, that nothing else moves, what the optimizer holds, and that a run which goes on is the same run."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from scipy.stats import chi2, chisquare
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import paring
from paring.core.errors import SettingError, StepError, TargetError
from paring.methods.lora import LoRA
from paring.train import LISA, LayerSampler, LISACallback
from paring.train.blocks import find_blocks

WIDTH = 6
BLOCKS = 5
LEARNED = "embed.weight", "inner.weight", "inner.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + torch.tanh(self.fc(self.norm(x)))
        return found


class Net(nn.Module):
    """Embeddings and an input layer, a list of blocks, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.inner(x) + self.embed((x[..., 0] > 0).long())
        for block in self.blocks:
            y = block(y)
        y = self.head(self.norm(y)).squeeze(-1)
        return {"loss": (y - labels).square().mean() if labels is not None else y.mean(), "logits": y}


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def batch(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"x": torch.randn(4, WIDTH, generator=generator), "labels": torch.randn(4, generator=generator)}


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, zero: bool = True) -> Iterator[int]:
    """Take optimizer steps, and yield the number of each after it."""
    for step in range(first, last):
        model(**batch(step))["loss"].backward()
        optimizer.step()
        if zero:
            optimizer.zero_grad()
        yield step + 1


def training(model: Net) -> tuple[int, ...]:
    """The blocks of which every parameter has requires_grad; no other has one of which some have."""
    marks = [{parameter.requires_grad for parameter in block.parameters()} for block in model.blocks]
    assert all(len(mark) == 1 for mark in marks)
    return tuple(index for index, mark in enumerate(marks) if mark == {True})


def values(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("layers", "interval"), [(1, 1), (2, 3), (3, 4), (5, 2)])
def test_so_many_blocks(layers: int, interval: int) -> None:
    model = net()
    settings = LISA(layers=layers, interval=interval, seed=3)
    optimizer = adamw(model)
    sampler = settings.start(model, optimizer)
    assert training(model) == sampler.active == settings.drawn(0, BLOCKS), "the first draw is before the first step"
    for step in steps(model, optimizer, 0, 6 * interval):
        assert len(training(model)) == layers
        assert training(model) == sampler.active == settings.drawn(step // interval, BLOCKS)
        assert sampler.step == step


def test_frozen_stays() -> None:
    model = net()
    optimizer = adamw(model)
    LISA(layers=2, interval=3).start(model, optimizer)
    active = training(model)
    blocks, rest = [values(block) for block in model.blocks], {name: model.get_parameter(name).clone() for name in LEARNED}
    for _ in steps(model, optimizer, 0, 9, zero=False):
        for index, block in enumerate(model.blocks):
            assert same(values(block), blocks[index]) == (index not in active)
        for name, before in rest.items():
            assert not torch.equal(model.get_parameter(name), before), name
        active = training(model)
        blocks, rest = [values(block) for block in model.blocks], {name: model.get_parameter(name).clone() for name in LEARNED}
        # Also in a loop that forgets zero_grad: what is frozen has no gradient left that a step could use.
        assert all(
            parameter.grad is None for index, block in enumerate(model.blocks) if index not in active for parameter in block.parameters()
        )


def test_embeddings_stand_still_if_asked() -> None:
    model = net()
    before = model.embed.weight.clone()
    optimizer = adamw(model)
    sampler = LISA(layers=1, interval=2, train_embeddings=False).start(model, optimizer)
    moved = {name: model.get_parameter(name).clone() for name in LEARNED[1:]}
    for _ in steps(model, optimizer, 0, 5):
        assert torch.equal(model.embed.weight, before)
    assert all(not torch.equal(model.get_parameter(name), value) for name, value in moved.items())
    assert model.embed.weight not in optimizer.state
    sampler.stop()
    assert model.embed.weight.requires_grad


def test_equally_often() -> None:
    settings, periods = LISA(layers=2, seed=0), 4000
    draws = [settings.drawn(period, BLOCKS) for period in range(periods)]
    single = Counter(index for draw in draws for index in draw)
    assert all(len(set(draw)) == 2 for draw in draws)
    # Blocks of one period are drawn without replacement, so Pearson's statistic is (N - layers) / (N - 1) of a chi-square's.
    statistic = chisquare([single[index] for index in range(BLOCKS)]).statistic * (BLOCKS - 1) / (BLOCKS - 2)
    assert chi2.sf(statistic, BLOCKS - 1) > 1e-3
    pairs = Counter(draws)
    assert len(pairs) == BLOCKS * (BLOCKS - 1) // 2
    assert chisquare(list(pairs.values())).pvalue > 1e-3
    # From one period to the next: as if anew.
    again = sum(len({*one} & {*two}) for one, two in pairwise(draws)) / (periods - 1)
    assert again == pytest.approx(2 * 2 / BLOCKS, abs=0.05)


def test_draws_follow_from_seed_and_period_alone() -> None:
    before = torch.get_rng_state()
    draws = [LISA(layers=3, seed=7).drawn(period, 12) for period in range(20)]
    assert draws == [LISA(layers=3, interval=5, seed=7).drawn(period, 12) for period in range(20)]
    assert draws != [LISA(layers=3, seed=8).drawn(period, 12) for period in range(20)]
    assert torch.equal(torch.get_rng_state(), before), "the process's own generator is left alone"


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """The names of the parameters that the optimizer has a state of."""
    return {name for name, parameter in model.named_parameters() if optimizer.state.get(parameter)}


def test_state_of_what_trains() -> None:
    model = net()
    optimizer = adamw(model)
    sampler = LISA(layers=2, interval=3).start(model, optimizer)
    since: dict[int, int] = {}
    seen = set()
    for step in steps(model, optimizer, 0, 30):
        before = held(model, optimizer)
        own = {int(name.split(".")[1]) for name in before if name.startswith("blocks.")}
        assert own <= set(sampler.active)
        assert set(LEARNED) <= before
        if step % 3:
            assert own == set(sampler.active)
        # Steps that a block has in its state: those since it was drawn, without those of earlier periods that it did not last through.
        since = {index: since.get(index, 0) + 1 for index in own}
        for index in own:
            assert int(optimizer.state[model.blocks[index].fc.weight]["step"]) == since[index]
            seen.add(since[index])
    assert max(seen) > 3, "a block that is drawn twice in a row goes on"
    assert 1 in seen


def test_kept_state_is_that_of_the_released_code() -> None:
    model = net()
    optimizer = adamw(model)
    sampler = LISA(layers=1, interval=2, keep_state=True).start(model, optimizer)
    count: Counter[int] = Counter()
    for _ in range(20):
        count[sampler.active[0]] += 1
        list(steps(model, optimizer, sampler.step, sampler.step + 1))
    assert len(count) > 2
    for index, block in enumerate(model.blocks):
        state = optimizer.state.get(block.fc.weight)
        assert (int(state["step"]) if state else 0) == count[index]


@pytest.mark.parametrize("keep_state", [False, True])
@pytest.mark.parametrize("cut", [4, 6, 7], ids=lambda cut: f"after {cut}")
def test_resume(cut: int, keep_state: bool) -> None:
    settings = LISA(layers=2, interval=3, seed=1, keep_state=keep_state)
    whole = net()
    optimizer = adamw(whole)
    settings.start(whole, optimizer)
    saved: dict[str, Any] = {}
    for step in steps(whole, optimizer, 0, 14):
        if step == cut:
            saved = copy.deepcopy({"model": whole.state_dict(), "optimizer": optimizer.state_dict()})
    torch.manual_seed(99)
    again = Net()
    again.load_state_dict(saved["model"])
    other = adamw(again)
    other.load_state_dict(saved["optimizer"])
    settings.start(again, other, step=cut)
    list(steps(again, other, cut, 14))
    assert same(values(again), values(whole))
    assert held(again, other) == held(whole, optimizer)


def test_stopping_leaves_the_model_as_it_was_given() -> None:
    model = net()
    optimizer = adamw(model)
    sampler = LISA(layers=1, interval=1).start(model, optimizer)
    list(steps(model, optimizer, 0, 3))
    sampler.stop()
    assert all(parameter.requires_grad for parameter in model.parameters())
    list(steps(model, optimizer, 3, 5))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert sampler.step == 3
    LISA(layers=2).start(model, optimizer)
    assert len(training(model)) == 2


def test_what_the_caller_has_frozen_in_a_block_stays_frozen() -> None:
    model = net()
    model.blocks[0].norm.requires_grad_(False)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    LISA(layers=BLOCKS, interval=1).start(model, optimizer)
    list(steps(model, optimizer, 0, 2))
    assert not any(parameter.requires_grad for parameter in model.blocks[0].norm.parameters())
    assert model.blocks[0].fc.weight.requires_grad


def test_a_closure_is_followed_too() -> None:
    model = net()
    optimizer = adamw(model)
    sampler = LISA(layers=1, interval=1).start(model, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(**batch(0))["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    assert sampler.step == 1


# In a Trainer.


class Watch(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Notes which blocks train at each optimizer step, and how often batches were seen until then."""

    def __init__(self, model: Net) -> None:
        self.model = model
        self.seen: list[tuple[int, ...]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(training(self.model))


Arguments = Callable[..., TrainingArguments]


def trained(arguments: TrainingArguments, data: Any, settings: LISA, resume: str | None = None) -> tuple[Net, Watch, Trainer]:
    model = net()
    watch = Watch(model)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[watch, LISACallback(settings)])
    trainer.train(resume_from_checkpoint=resume)
    return model, watch, trainer


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_trainer_switches_at_optimizer_steps(arguments: Arguments, data: Any, accumulated: int) -> None:
    settings = LISA(layers=2, interval=2, seed=5)
    given = arguments(max_steps=8, per_device_train_batch_size=2, gradient_accumulation_steps=accumulated)
    model, watch, trainer = trained(given, data, settings)
    assert watch.seen == [settings.drawn(step // 2, BLOCKS) for step in range(8)]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert trainer.optimizer is not None
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("cut", [3, 4], ids=["inside a period", "between two"])
def test_a_trainer_that_goes_on_is_the_same_run(arguments: Arguments, data: Any, tmp_path: Path, cut: int) -> None:
    settings = LISA(layers=2, interval=2, seed=1)
    more = {"max_steps": 7, "save_strategy": "steps", "save_steps": cut, "output_dir": str(tmp_path / "run")}
    whole, watch, _ = trained(arguments(**more), data, settings)
    again, later, _ = trained(arguments(**more), data, settings, resume=str(tmp_path / "run" / f"checkpoint-{cut}"))
    assert later.seen == watch.seen[cut:]
    assert same(values(again), values(whole))
    state = torch.load(tmp_path / "run" / f"checkpoint-{cut}" / "optimizer.pt", weights_only=True)["state"]
    most = len(LEARNED) + 2 * len(list(whole.blocks[0].parameters()))
    assert len(LEARNED) <= len(state) <= most < len(list(whole.parameters()))


def test_a_trainer_may_train_twice(arguments: Arguments, data: Any) -> None:
    model, watch, trainer = trained(arguments(max_steps=2), data, LISA(layers=1, interval=1))
    trainer.train()
    assert [len(seen) for seen in watch.seen] == [1, 1, 1, 1]
    assert all(parameter.requires_grad for parameter in model.parameters())


def llama(**config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **config))


def causal(model: LlamaForCausalLM, settings: LISA, count: int = 6) -> list[Tensor]:
    """Train a decoder and return its values."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sampler = settings.start(model, optimizer)
    assert sampler.path == "model.layers"
    model.train()
    words = torch.arange(12).view(2, 6)
    for _ in range(count):
        model(input_ids=words, labels=words).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return values(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    wanted = causal(llama(), LISA(layers=1, interval=2))
    model = llama()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for one, two in zip(causal(model, LISA(layers=1, interval=2)), wanted, strict=True):
        torch.testing.assert_close(one, two)


class Checkpointed(Net):
    """The same with each block's inside computed again in the backward, and nothing trained before the blocks."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.embed((x[..., 0] > 0).long())
        for block in self.blocks:
            y = checkpoint(block, y, use_reentrant=self.reentrant)
        y = self.head(self.norm(y)).squeeze(-1)
        return {"loss": (y - labels).square().mean() if labels is not None else y.mean()}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_blocks_without_a_gradient_are_told_at_the_first_step() -> None:
    settings = LISA(layers=1, train_embeddings=False)
    model: Net = Checkpointed(reentrant=True)
    optimizer = adamw(model)
    settings.start(model, optimizer)
    before = values(model)
    with pytest.raises(StepError, match="use_reentrant=True"):
        list(steps(model, optimizer, 0, 1))
    assert same(values(model), before)
    model = Checkpointed(reentrant=False)
    optimizer = adamw(model)
    settings.start(model, optimizer)
    assert list(steps(model, optimizer, 0, 3)) == [1, 2, 3]


def test_tied_embeddings_are_one_with_the_head() -> None:
    model = llama(tie_word_embeddings=True)
    before = model.lm_head.weight.clone()
    causal(model, LISA(layers=1))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, before)
    model = llama(tie_word_embeddings=True)
    causal(model, LISA(layers=1, train_embeddings=False))
    assert torch.equal(model.lm_head.weight, before)


# Which list holds the blocks.


def test_the_blocks_are_the_longest_list_of_alike_modules_that_lies_in_no_other() -> None:
    assert find_blocks(net())[0] == "blocks"
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    assert find_blocks(BertForSequenceClassification(config))[0] == "bert.encoder.layer"
    model = net()
    for block in model.blocks:
        block.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
    assert find_blocks(model)[0] == "blocks", "not the experts in a block"
    model.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(BLOCKS))
    with pytest.raises(TargetError, match=r"'blocks' \(5\), 'heads' \(5\) are equally long"):
        find_blocks(model)
    assert find_blocks(model, "heads")[1] is model.heads
    with pytest.raises(TargetError, match=r"path='block' is no list.*Did you mean 'blocks'"):
        find_blocks(model, "block")
    mixed = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])})
    with pytest.raises(TargetError, match=r"no nn.ModuleList of alike blocks.*'layers' \(2\)"):
        find_blocks(mixed)
    assert len(find_blocks(mixed, "layers")[1]) == 2
    with pytest.raises(TargetError, match="Lists here: none"):
        find_blocks(nn.Linear(2, 2))


# What is refused.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": 0}, "layers=0"),
        ({"interval": 0}, "interval=0"),
        ({"interval": 2.5}, "interval=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
    ],
    ids=str,
)
def test_settings_out_of_range(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=re.escape(said)):
        LISA(**given)


def test_more_blocks_than_there_are_or_a_step_below_0() -> None:
    model = net()
    with pytest.raises(SettingError, match="layers=6: the model has 5 blocks"):
        LISA(layers=6).start(model, adamw(model))
    with pytest.raises(SettingError, match="step=-1"):
        LISA().start(model, adamw(model), step=-1)
    assert all(parameter.requires_grad for parameter in model.parameters()), "nothing has changed"


def test_an_optimizer_that_lacks_something() -> None:
    model = net()
    with pytest.raises(StepError, match=r"SGD does not hold 'blocks\.0\.norm\.weight'"):
        LISA().start(model, torch.optim.SGD([*model.head.parameters(), *model.embed.parameters(), *model.inner.parameters()]))
    with pytest.raises(StepError, match=r"does not hold 'head\.weight'"):
        LISA().start(model, torch.optim.SGD(parameter for name, parameter in model.named_parameters() if "head" not in name))
    with pytest.raises(StepError, match="was given a NoneType"):
        LISA().start(model, None)
    optimizer = adamw(model)
    LISA().start(model, optimizer)
    with pytest.raises(StepError, match=r"has no trainable parameter.*stop\(\)"):
        LISA().start(model, optimizer)


def test_adapters_and_quantised_weights() -> None:
    peft = get_peft_model(net(), LoraConfig(target_modules=["fc"]))
    ours = paring.adapt(net(), LoRA(rank=2), target_modules=["fc"])
    for model in (peft, ours):
        with pytest.raises(TargetError, match="adapter on the model"):
            LISA().start(model, adamw(model))
    packed = net()
    packed.blocks[0].fc.weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TargetError, match=r"'blocks\.0\.fc\.weight' is quantised \(torch\.int8\)"):
        LISA().start(packed, adamw(packed))


def test_models_that_are_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    with pytest.raises(StepError, match="DataParallel decides"):
        LISA().start(nn.DataParallel(model), adamw(model))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        with pytest.raises(StepError, match="DistributedDataParallel decides"):
            LISA().start(nn.parallel.DistributedDataParallel(model), adamw(model))
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        with pytest.raises(StepError, match="There are 2 processes"):
            LISA().start(model, adamw(model))
        monkeypatch.undo()
        sharded = fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(StepError, match="is sharded over processes"):
            LISA().start(sharded, adamw(sharded))
    finally:
        torch.distributed.destroy_process_group()


def test_several_gpus_in_one_process() -> None:
    with pytest.raises(StepError, match="CUDA_VISIBLE_DEVICES"):
        LISACallback(LISA()).on_train_begin(SimpleNamespace(n_gpu=2), None, None)  # type: ignore[arg-type]


def test_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    class State:
        distributed_type = DistributedType.DEEPSPEED

    monkeypatch.setattr("paring.train.blocks.is_initialized", lambda: True)
    monkeypatch.setattr("paring.train.blocks.AcceleratorState", State)
    model = net()
    with pytest.raises(StepError, match="DeepSpeed decides"):
        LISA().start(model, adamw(model))


def test_the_sampler_says_what_it_does() -> None:
    model = net()
    sampler = LISA(layers=2).start(model, adamw(model))
    assert isinstance(sampler, LayerSampler)
    assert (sampler.path, sampler.step, len(sampler.active)) == ("blocks", 0, 2)
