"""What decides a published number: the choice of a learning rate, the log that runs are taken from, and that a variant is what it says."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paring.attach.find import slots
from paring.methods.sora import SoRA
from paring.parts.allocate.budget import Parameters
from paring.train import create_optimizer

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(vars(sys.modules[name]).get("__file__")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({1: (0.900, 80), 2: (0.899, 20)}, 1),
        ({1: (0.900, 80), 2: (0.910, 80), 3: (0.905, 80)}, 2),
        ({1: (0.900, 50), 2: (0.900, 40), 3: (0.900, 60)}, 2),
    ],
)
def test_the_rate_is_the_most_accurate_and_of_equal_ones_the_smallest(found: dict[float, tuple[float, int]], chosen: float) -> None:
    from accuracy import choose

    rows = {rate: {"accuracy": accuracy, "parameters": size, "scored": 900} for rate, (accuracy, size) in found.items()}
    assert choose(rows) == chosen


def test_finished_jobs_are_taken_from_the_log_and_machines_are_not_mixed(tmp_path: Path) -> None:
    from runs import Job, Runner, measured

    job = Job(task="trec", method=SoRA(rank=8), rate=1e-3, seed=0, size=16, dtype="bf16", device="cpu")
    assert Job.decode(json.loads(json.dumps(job.encode()))) == job
    one: dict[str, Any] = {"job": job.encode(), "accuracy": 0.5, "environment": {"date": "2000-01-01", "machine": "abacus"}}
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(one) + "\n")
    run = Runner(data=tmp_path / "nothing", log=log, workers=1)
    assert run([job, job]) == [one, one]
    assert measured([one, {**one, "environment": {"date": "2000-01-02", "machine": "abacus"}}])["date"] == "2000-01-02"
    with pytest.raises(SystemExit, match="different machines"):
        measured([one, {**one, "environment": {"date": "2000-01-01", "machine": "slide rule"}}])


def test_merged_adapters_are_of_one_seed_or_of_three() -> None:
    from merging import TASKS, Merging, summary

    same = Merging(way="svd", seed=1, starts="same")
    assert list(same.seeds().values()) == [1, 1, 1]
    for seed in range(3):
        assert sorted(Merging(way="svd", seed=seed, starts="different").seeds().values()) == [0, 1, 2]
    accuracies = {same: 0.5, Merging(way="svd", seed=2, starts="same"): 0.7, Merging(way="svd", seed=1, starts="different"): 0.9}
    rows = {
        job: {"scores": {task: {"accuracy": value} for task in TASKS}, "rank": 8, "parameters": 10, "from_mean": 0.5}
        for job, value in accuracies.items()
    }
    one, other = summary(rows, list(rows))
    assert (one["starts"], one["accuracy"]["trec"], one["mean"]) == ("same", [0.5, 0.7], pytest.approx(0.6))
    assert (other["starts"], other["mean"]) == ("different", pytest.approx(0.9))


def _varied(name: str, steps: int = 60) -> tuple[Any, dict[str, Any]]:
    """Two modules of two costs, the first with an update to learn of rank 3, and their slots before anything was trained."""
    from variants import VARIANTS, Look, varied

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 20))
    model = varied(
        net,
        VARIANTS[name],
        Parameters(count=80),
        steps=steps,
        seed=0,
        look=Look([torch.eye(12)], lambda model, rows: (model(rows) - torch.eye(12, 20)).square().sum()),
        target_modules=["0", "2"],
    )
    return model, dict(slots(model))


def _trained(model: Any, steps: int, seen: Callable[[int], None] = lambda step: None) -> None:
    optimizer = create_optimizer(model, lr=1e-2)
    for step in range(1, steps + 1):
        x = torch.randn(32, 12, generator=torch.Generator().manual_seed(step))
        (model(x) - torch.cat([x.flip(1), x[:, :8]], 1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen(step)


def test_a_soft_cut_is_the_proximal_step_of_the_weighted_nuclear_norm() -> None:
    model, found = _varied("soft")
    _trained(model, 11)
    before = {path: slot.factors().materialise().double() for path, slot in found.items()}
    next(iter(found.values())).leader.cut(140)
    after = {path: slot.factors().materialise().double() for path, slot in found.items()}
    spectra = {path: torch.linalg.svd(one, full_matrices=False) for path, one in before.items()}
    # The threshold, from what is left of the largest singular value of one module; all others have to follow from it.
    path, root = "0", {name: slot.cost**0.5 for name, slot in found.items()}
    threshold = float(spectra[path].S[0] - torch.linalg.matrix_norm(after[path], ord=2)) / root[path]
    assert threshold > 0.0
    for name, (u, s, vt) in spectra.items():
        wanted = (u * (s - threshold * root[name]).clamp_min(0.0)) @ vt
        assert torch.allclose(after[name], wanted, atol=1e-6), name
    assert sum(slot.cost * slot.left for slot in found.values()) <= 140


def test_what_an_early_cut_took_may_return_until_the_last() -> None:
    model, found = _varied("returning")
    sizes: dict[int, int] = {}

    def seen(step: int) -> None:
        sizes[step] = sum(slot.cost * int((slot.B != 0).any(dim=0).sum()) for slot in found.values())

    _trained(model, 60, seen)
    start = 8 * (24 + 32)
    assert sizes[11] == start
    assert sizes[12] < start, "the first cut was not made"
    assert sizes[13] == start, "what was cut has not come back"
    assert sizes[36] <= 80
    assert sizes[60] == sizes[36]


def test_the_gradient_gives_the_first_directions() -> None:
    model, found = _varied("from the gradient")
    weights = {path: model.base_model.model[int(path)].get_base_layer().weight for path in found}
    assert not any(weight.requires_grad for weight in weights.values())
    assert all(slot.A.requires_grad and slot.A.grad is None and not slot.B.any() for slot in found.values())
    with model.disable_adapter():
        for weight in weights.values():
            weight.requires_grad_(True)
        (model(torch.eye(12)) - torch.eye(12, 20)).square().sum().backward()
    for path, slot in found.items():
        leading = torch.linalg.svd(weights[path].grad, full_matrices=False).Vh[:8]
        assert torch.allclose((slot.A @ leading.T).abs(), slot.norm * torch.eye(8), atol=1e-4), path


def test_what_was_tried_is_paired_with_the_cut_as_it_is() -> None:
    from tried import PLAIN, Job, summary

    def job(variant: str, seed: int) -> Job:
        return Job(task="trec", variant=variant, share=0.125, rate=1e-3, head=1e-2, seed=seed, device="cpu", dtype="fp32")

    scores = {(PLAIN, 0): 0.5, (PLAIN, 1): 0.7, ("soft", 0): 0.6, ("soft", 1): 0.6}
    found = {job(*key): {"accuracy": value, "parameters": 10, "seconds": 1.0} for key, value in scores.items()}
    plain, soft = summary(found)
    assert plain["differences"] == [0.0, 0.0]
    assert soft["differences"] == [pytest.approx(10.0), pytest.approx(-10.0)]
    assert soft["difference"] == pytest.approx(0.0)


def _planted(contestant: str, share: float | None, pattern: int, seed: int, error: float, parameters: int) -> dict[str, Any]:
    job = {"contestant": contestant, "budget": None, "share": share, "pattern": pattern, "seed": seed, "rate": 3e-3}
    return {"job": job, "error": error, "parameters": parameters}


def test_a_planted_size_is_held_against_the_best_peer_that_is_not_smaller() -> None:
    from planted import least, paired

    found = []
    for pattern, seed in itertools.product(range(3), range(2)):
        factor = 2.0**pattern * 1.5**seed
        found += [
            _planted("spectral", 0.25, pattern, seed, 0.2 * factor * 1.1**pattern, 100),
            _planted("AdaLoRA", 0.25, pattern, seed, 0.4 * factor, 120),
            _planted("LoRA r 1", None, pattern, seed, 0.01, 90),
            # Who knows the updates is no peer.
            _planted("planted updates", None, pattern, seed, 0.0, 800),
            _planted("SoRA", None, pattern, seed, 0.3 * factor, 180),
            {**_planted("LoRA r 8", None, pattern, seed, 0.1 * factor, 800), "cuts": []},
        ]
    every, twice, near = paired(found, "spectral")
    assert (every["peer"], every["times_as_large"], every["patterns"], every["runs"]) == ("LoRA r 8", 8.0, 3, 6)
    assert (twice["peer"], twice["times_as_large"]) == ("SoRA", 1.8)
    assert (near["peer"], near["times_as_large"]) == ("AdaLoRA", 1.2)
    assert every["ratio"] == pytest.approx(2.2)
    assert near["ratio"] == pytest.approx(0.55)
    # Student's t of 1.1 to the powers of 0, 1 and 2: a standard deviation of log(1.1), and 4.303 for two degrees of freedom.
    assert near["high"] / near["ratio"] == pytest.approx(1.1 ** (4.303 / 3**0.5), rel=1e-3)
    tuned = [{"contestant": "SoRA", "rate": rate, "error": error} for rate, error in ((1e-3, 0.3), (3e-3, 0.2), (1e-2, float("nan")))]
    assert least(tuned, "SoRA") == 3e-3
