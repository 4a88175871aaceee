"""Run records for the tests of the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from paring.core.records import ModuleRecord, Point, RunRecord, WholeRecord
from paring.report import render, render_many

BERT = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def modules(stack: str, layers: Iterable[int], kinds: Iterable[str], *, rank: int, live: Callable[[int, int], int]) -> list[ModuleRecord]:
    """Modules of a stack; ``live(layer, kind number)`` is what is left of ``rank``."""
    return [
        ModuleRecord(
            path=f"{stack}.{layer}.{kind}",
            in_features=384,
            out_features=1536 if "intermediate" in kind else 384,
            start_rank=rank,
            live_rank=live(layer, index),
        )
        for layer in layers
        for index, kind in enumerate(kinds)
    ]


def history(steps: int, every: int, start: int, end: int) -> tuple[Point, ...]:
    """Loss and live parameters every so often, evaluation at fewer steps, in points of their own."""
    points = []
    for step in range(every, steps + 1, every):
        part = step / steps
        live = round(end + (start - end) * max(0.0, 1 - 1.3 * part) ** 2)
        loss = 1.1 * math.exp(-3 * part) + 0.35 + 0.05 * math.sin(step * 1.7)
        points.append(
            Point(
                step=step,
                values={
                    "loss": loss,
                    "learning_rate": 1e-3 * (1 - part),
                    "lambda": 0.4 * min(1.0, part * 2),
                    "live_parameters": live,
                    "live_ranks": live // 800,
                    "sparsity": 1 - live / start,
                    "grad_norm": 1 + math.cos(step) / 3,
                    "epoch": 3 * part,
                },
            )
        )
        if step % (every * 5) == 0:
            points.append(
                Point(
                    step=step,
                    values={
                        "eval_loss": loss + 0.08,
                        "eval_accuracy": 0.9 - 0.4 * math.exp(-4 * part),
                        "eval_runtime": 1.2,
                        "eval_macro_f1": 0.87 - 0.4 * math.exp(-4 * part),
                    },
                )
            )
    return tuple(points)


def run(**changes: Any) -> RunRecord:
    """A SoRA run on a BERT of 12 layers."""
    found = modules("encoder.layer", range(12), BERT, rank=8, live=lambda layer, kind: (layer * 5 + kind * 3 + layer * kind) % 9)
    record = RunRecord(
        title="SoRA on tweets",
        method={"name": "sora", "version": 1, "rank": 8, "alpha": 16.0, "schedule": {"name": "linear", "end": 0.4}},
        base_model="all-MiniLM-L6-v2",
        command="paring train --model all-MiniLM-L6-v2 --data tweets.csv --method sora --rank 8",
        started="2025-03-01T14:05:09+00:00",
        seconds=252.4,
        seed=42,
        settings={
            "learning_rate": 1e-3,
            "bf16": False,
            "target_modules": ["query", "key", "value"],
            "optimizer": {"name": "adamw", "betas": [0.9, 0.999]},
            "resume": None,
        },
        versions={"paring": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        machine={"processor": "x86_64", "cores": 2, "threads": 1, "accelerator": None},
        history=(),
        modules=tuple(found),
        metrics={"accuracy": 0.9132, "macro_f1": 0.8871, "eval_loss": 0.2513, "eval_runtime": 1.3},
        head_parameters=1155,
        files={"adapter_config.json": 1204, "adapter_model.safetensors": 1_103_212, "README.md": 2210},
        main_metric="accuracy",
        base_parameters=22_713_216,
        start_bytes=2_101_212,
    )
    record = dataclasses.replace(record, history=history(600, 10, record.start_parameters, record.parameters))
    return dataclasses.replace(record, **changes)


def lora() -> RunRecord:
    """The LoRA run that a SoRA run is compared with."""
    plain = modules("encoder.layer", range(12), BERT, rank=8, live=lambda layer, kind: 8)
    values = {"loss", "learning_rate", "eval_loss", "eval_accuracy", "eval_macro_f1"}
    kept = tuple(
        Point(step=point.step, values={key: 1.05 * value for key, value in point.values.items() if key in values})
        for point in run().history
    )
    return run(
        title="LoRA, r = 8",
        method={"name": "lora", "version": 1, "rank": 8, "alpha": 16.0},
        modules=tuple(plain),
        history=kept,
        metrics={"accuracy": 0.9151, "macro_f1": 0.8902, "eval_loss": 0.2478},
        seconds=231.0,
        files={"adapter_config.json": 900, "adapter_model.safetensors": 2_101_212},
        start_bytes=2_101_212,
    )


def blocks() -> RunRecord:
    """A run that trained the model's own weights."""
    return run(
        title="LISA on tweets",
        method={"name": "lisa", "version": 1, "layers": 2, "interval": 20},
        modules=(),
        history=tuple(Point(step=step, values={"loss": 1 / step}) for step in range(10, 110, 10)),
        head_parameters=0,
        files={"config.json": 900, "model.safetensors": 90_874_112},
        start_bytes=None,
        whole=WholeRecord(
            parameters=20_000_000,
            at_once=15_617_670,
            steps=100,
            blocks={f"encoder.layer.{index}": steps for index, steps in enumerate((60, 40, 0, 20, 40, 40))},
        ),
    )


EVIL = "<script>alert(1)</script>\"' onload=x &amp; $x^2$ </style></title><b>"


def evil() -> RunRecord:
    """Markup wherever a run can bring text of its own."""
    names = [f"{EVIL}.0.{EVIL}", EVIL]
    return RunRecord(
        title=EVIL,
        method={"name": EVIL, EVIL: EVIL},
        base_model=EVIL,
        command=EVIL,
        started=EVIL,
        seconds=math.nan,
        seed=0,
        settings={EVIL: [EVIL], "a": {EVIL: EVIL}},
        versions={EVIL: EVIL},
        machine={EVIL: EVIL},
        metrics={EVIL: 0.5, "eval_" + EVIL: math.nan},
        history=(Point(step=1, values={EVIL: 1.0, "eval_" + EVIL: math.nan}), Point(step=2, values={EVIL: 2.0})),
        modules=tuple(ModuleRecord(path=name, in_features=4, out_features=4, start_rank=2, live_rank=1) for name in names),
        files={EVIL + ".safetensors": 10},
    )


RECORDS = {
    "usual": run,
    "evil": evil,
    "blocks": blocks,
    "nothing": lambda: run(
        history=(),
        modules=(),
        metrics={},
        files={},
        settings={},
        versions={},
        machine={},
        command="",
        base_model=None,
        started="",
        seconds=math.nan,
    ),
    "one point": lambda: run(
        modules=(), history=(Point(step=5, values={"loss": 0.5, "lambda": 0.0, "learning_rate": 1e-5, "live_parameters": 10**9}),)
    ),
    "an empty point": lambda: run(history=(Point(step=5, values={}),)),
    "all NaN": lambda: run(
        modules=(),
        history=tuple(Point(step=step, values={"loss": math.nan, "eval_f1": math.inf}) for step in range(5)),
        metrics={"f1": math.nan},
    ),
    "gaps": lambda: run(
        modules=(), history=tuple(Point(step=step, values={"loss": math.nan if step % 3 else 1.0 / (step + 1)}) for step in range(100))
    ),
    "extremes": lambda: run(
        modules=(), history=tuple(Point(step=10**step, values={"loss": (-1) ** step * 1e308, "grad_norm": 1e-300}) for step in range(5))
    ),
    "zero ranks": lambda: run(history=(), modules=tuple(modules("h", range(3), BERT, rank=8, live=lambda layer, kind: 0))),
    "224 modules": lambda: run(
        history=(), modules=tuple(modules("model.layers", range(32), LLAMA, rank=64, live=lambda layer, kind: (layer * 7 + kind) % 65))
    ),
    "unprintable": lambda: run(
        history=(Point(step=1, values={"eval_\x07\ud801": 1.0}),),
        title="a\x00\ud800\u202eb",
        base_model="漢字 $",
        modules=(dataclasses.replace(run().modules[0], path="x\x1b.1.\udcff"),),
    ),
}


@cache
def page(name: str) -> str:
    """The page of one of :data:`RECORDS`, made once."""
    return render(RECORDS[name]())


@cache
def comparison() -> str:
    """SoRA beside LoRA, made once."""
    return render_many([run(), lora()], title="SoRA beside LoRA")
