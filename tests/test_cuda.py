"""On a CUDA device: values, gradients and bits, no waiting for the device, loss scaling, compilation, export and moves."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import paring
from paring.attach.find import slots
from paring.kernels.adapted import Live, adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.kernels.orders import Order
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.parts.parameterise.gated import Gated
from paring.parts.update.revive import Always, Every, Never, Revive
from paring.train import ParingTrainer, create_optimizer

# Skipped where there is no such device, which is nearly everywhere; where there is one every test runs and may fail.
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

ORDERS = [Order(merge_forward=f, merge_backward=b) for f, b in itertools.product([False, True], repeat=2)]
N, IN, OUT, R, SCALE = 64, 48, 32, 8, 2.0
RULES: dict[str, Revive] = {"always": Always(), "every": Every(period=4), "never": Never()}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.backends.cuda.matmul.allow_tf32 = before


def far(one: Tensor, other: Tensor) -> float:
    """Relative distance."""
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_values_and_gradients_are_those_of_float64(order: Order, dead: bool, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device="cuda").to(dtype)

    weight, bias = drawn(OUT, IN), drawn(OUT)
    gate = drawn(R).float()
    if dead:
        gate[[1, 4, 5]] = 0.0
    leaves = [tensor.requires_grad_(True) for tensor in (drawn(4, N // 4, IN), drawn(R, IN), drawn(OUT, R), gate)]
    reference = [tensor.detach().double().requires_grad_(True) for tensor in leaves]
    order_of_ranks = torch.cat([gate.detach().nonzero().squeeze(1), (gate.detach() == 0).nonzero().squeeze(1)])
    live = Live(order_of_ranks, int((gate != 0).sum())) if dead else None
    x, a, b, _ = leaves
    y = adapted_linear(x, weight, bias, a, b, gate, SCALE, order, live)
    exact = F.linear(reference[0], weight.double(), bias.double())
    truth = add_low_rank(exact, reference[0], reference[1], reference[2], SCALE * reference[3])
    assert far(y.detach(), truth.detach()) < tolerance
    pull = drawn(*y.shape)
    for got, wanted in zip(torch.autograd.grad(y, leaves, pull), torch.autograd.grad(truth, reference, pull.double()), strict=True):
        assert far(got, wanted) < tolerance


def bert(seed: int = 0, dropout: float = 0.0) -> BertForSequenceClassification:
    """Its weights are drawn with ``seed``."""
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        vocab_size=100,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def model(method: Any, seed: int = 0, dropout: float = 0.0) -> PeftModel:
    """A small BERT with an adapter, on the device."""
    base = bert(seed, dropout)
    return paring.adapt(base, method, task_type="SEQ_CLS", seed=seed).cuda().train()


def batch(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 100, (8, 12), generator=generator)
    return {"input_ids": ids.cuda(), "labels": (ids[:, 0] % 2).cuda()}


def gates(one: PeftModel) -> list[Tensor]:
    return [slot.gate for slot in slots(one).values() if isinstance(slot, Gated)]


def trained(one: PeftModel, steps: int, *, dtype: torch.dtype | None = None, optimizer: Optimizer | None = None) -> list[Tensor]:
    """The losses, still on the device."""
    optimizer = create_optimizer(one, lr=3e-3) if optimizer is None else optimizer
    losses = []
    for number in range(steps):
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = one(**batch(number)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


@rules
def test_training_is_that_of_the_cpu(rule: Revive) -> None:
    method = SoRA(rank=8, alpha=16, penalty=0.5, gate_rate=0.1, revive=rule)
    there = model(method)
    here = copy.deepcopy(there).cpu()
    losses = trained(there, 12)
    optimizer = create_optimizer(here, lr=3e-3)
    for number, other in enumerate(losses):
        loss = here(**{key: value.cpu() for key, value in batch(number).items()}).loss
        assert abs(float(loss) - float(other)) < 1e-3
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    dead_here, dead_there = (torch.cat(gates(one)).cpu() == 0 for one in (here, there))
    assert dead_here.any()
    # A gate that a step just missed may differ by rounding.
    assert int((dead_here != dead_there).sum()) <= 1


@pytest.mark.parametrize(
    "method", [LoRA(rank=8, dropout=0.1), SoRA(rank=8, revive=Always()), SoRA(rank=8, revive=Never(), dropout=0.1)], ids=str
)
def test_a_step_never_waits_for_the_device(method: Any) -> None:
    one = model(method)
    optimizer = create_optimizer(one, lr=3e-3)
    trained(one, 9, optimizer=optimizer)
    given = batch(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    # Never counts live ranks once in eight steps, which waits; the steps between must not.
    for _ in range(6):
        one(**given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@rules
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_same_seed_same_bits(rule: Revive, dtype: torch.dtype | None) -> None:
    runs = []
    for _ in range(2):
        one = model(SoRA(rank=8, penalty=0.5, gate_rate=0.1, dropout=0.1, revive=rule), dropout=0.1)
        torch.manual_seed(1)
        trained(one, 10, dtype=dtype)
        runs.append([parameter.detach().clone() for parameter in one.parameters() if parameter.requires_grad])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_a_gate_without_gradient_dies_after_as_many_steps_as_the_threshold_says(fused: bool) -> None:
    """Gradients of exact zeros, fp16 with a scaler, the third step skipped: rate x penalty = 1/8."""
    one = model(SoRA(rank=4, penalty=0.5, fade=None, revive=Always()))
    with torch.no_grad():
        for gate in gates(one):
            gate.copy_(torch.tensor([0.5, -0.25, 0.375, 1.0]))
    optimizer = AdamW(list(one.parameters()), lr=0.25, weight_decay=0.0, fused=fused, foreach=not fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0)
    alive = []
    for number in range(9):
        with torch.autocast("cuda", torch.float16):
            loss = one(**batch(0)).logits.sum() * 0.0
        scaler.scale(loss).backward()
        if number == 2:
            for parameter in one.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        alive.append((gates(one)[0] != 0).tolist())
    lives = [sum(step[rank] for step in alive) for rank in range(4)]
    # Dead after 4, 2, 3 and 8 real steps; the skipped one is one more step alive for those who had not died before it.
    assert lives == [4, 1, 3, 8]


@rules
def test_what_dies_is_left_out_and_changes_nothing(rule: Revive) -> None:
    one = model(SoRA(rank=8, penalty=0.5, gate_rate=0.1, revive=rule))
    trained(one, 16)
    dead = sum(int((gate == 0).sum()) for gate in gates(one))
    assert 0 < dead < sum(gate.numel() for gate in gates(one))
    plain = copy.deepcopy(one)
    for slot in slots(plain).values():
        assert isinstance(slot, Gated)
        slot.revive = Always()
    got, wanted = (one_of(**batch(99)).logits for one_of in (one, plain))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_in_the_backward(reentrant: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(OUT, IN, device="cuda", generator=generator)
    leaves = [torch.randn(size, device="cuda", generator=generator, requires_grad=True) for size in ((N, IN), (R, IN), (OUT, R), (R,))]

    def function(x: Tensor, a: Tensor, b: Tensor, gate: Tensor) -> Tensor:
        return adapted_linear(x, weight, None, a, b, gate, SCALE, dropout=0.2)

    def gradients(recompute: bool) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        y = checkpoint(function, *leaves, use_reentrant=reentrant) if recompute else function(*leaves)
        grads = torch.autograd.grad if not reentrant else _backward
        return tuple(grads(y.square().sum(), leaves))

    assert all(torch.equal(one, other) for one, other in zip(gradients(True), gradients(False), strict=True))


def _backward(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    for leaf in leaves:
        leaf.grad = None
    torch.autograd.backward(loss)
    return [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]


def test_compiled_whole() -> None:
    """In a process of its own: the annotations that are checked in tests do not compile."""
    code = """
import copy, torch, paring
from torch import nn
from paring.methods.sora import SoRA
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))
model = paring.adapt(base, SoRA(rank=8, alpha=16), target_modules=["0", "2"], seed=0).cuda().train()
for name, p in model.named_parameters():
    if name.endswith("B"):
        torch.nn.init.normal_(p)
twin = copy.deepcopy(model)
x = torch.randn(32, 64, device="cuda")
model(x).square().mean().backward()
torch.compile(twin, fullgraph=True)(x).square().mean().backward()
pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters()) if p.requires_grad]
print(len(pairs), all(torch.allclose(p, q, rtol=1e-3, atol=1e-4) for p, q in pairs))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["6", "True"], done.stderr[-2000:]


def test_exported_from_the_device_and_loaded_by_peft(tmp_path: Path) -> None:
    one = model(SoRA(rank=8, penalty=0.5, gate_rate=0.1))
    trained(one, 12)
    paring.export(one, tmp_path / "adapter")
    stock = PeftModel.from_pretrained(bert(), str(tmp_path / "adapter")).cuda().eval()
    given = batch(5)
    with torch.no_grad():
        torch.testing.assert_close(stock(**given).logits, one.eval()(**given).logits, rtol=1e-4, atol=1e-5)


def test_moved_between_devices_after_ranks_have_died() -> None:
    one = model(SoRA(rank=8, penalty=0.5, gate_rate=0.1, revive=Never()))
    trained(one, 12)
    given = batch(5)
    there = one.eval()(**given).logits
    here = one.cpu()(**{key: value.cpu() for key, value in given.items()}).logits
    torch.testing.assert_close(here, there.cpu(), rtol=1e-4, atol=1e-5)
    one.cuda().train()
    assert torch.isfinite(torch.stack(trained(one, 9))).all()


def test_a_step_needs_no_more_memory_than_pefts() -> None:
    def peak(one: Any) -> int:
        optimizer = AdamW([parameter for parameter in one.parameters() if parameter.requires_grad], lr=1e-3, weight_decay=0.0)
        given = {
            "input_ids": torch.ones(64, 128, dtype=torch.long, device="cuda"),
            "labels": torch.zeros(64, dtype=torch.long, device="cuda"),
        }
        for _ in range(2):
            one(**given).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        one(**given).loss.backward()
        optimizer.step()
        return torch.cuda.max_memory_allocated() - before

    ours = peak(model(SoRA(rank=8)))
    config = LoraConfig(r=8, target_modules="all-linear", task_type="SEQ_CLS")
    assert ours < peak(get_peft_model(bert(), config).cuda().train())


def test_trainer(tmp_path: Path) -> None:
    one = model(SoRA(rank=8, penalty=0.5, gate_rate=0.1), dropout=0.1)
    data = [{key: value[0].cpu() for key, value in batch(number).items()} for number in range(64)]
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=12, bf16=True, report_to=[], save_strategy="no", disable_tqdm=True)
    ParingTrainer(model=one, args=args, train_dataset=data).train()
    assert gates(one)[0].device.type == "cuda"
    assert any(bool((gate == 0).any()) for gate in gates(one))
