"""One short run with each trainer, all asked for in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from torch import nn
from transformers import AutoModel, TrainingArguments

import paring
from paring.train import ParingTrainer, ParingTrainerMixin
from tests.trust import language, proof
from tests.trust.loops import RATE, ROWS, Plan, Run, accelerated, examples, lightning, plain


def arguments(folder: Path, plan: Plan, **settings: Any) -> dict[str, Any]:
    """What all kinds of training arguments know."""
    return {
        "output_dir": str(folder),
        "max_steps": plan.steps,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": plan.accumulate,
        "learning_rate": RATE,
        "weight_decay": 0.1,
        "lr_scheduler_type": plan.schedule,
        "warmup_steps": 0,
        "save_strategy": "no" if plan.save_at is None else "steps",
        "save_steps": plan.save_at or 1,
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "seed": 3,
        **settings,
        **dict(plan.settings),
    }


def _go(trainer: Any, plan: Plan) -> Any:
    trainer.train(resume_from_checkpoint=None if plan.resume is None else str(plan.resume))
    return trainer


def transformers(model: nn.Module, folder: Path, plan: Plan, **given: Any) -> Any:
    """The Trainer of transformers, with the mixin."""
    rows = [{"input_ids": row, "labels": row} for row in examples(plan)]
    return _go(ParingTrainer(model=model, args=TrainingArguments(**arguments(folder, plan)), train_dataset=rows, **given), plan)


def _rows(plan: Plan) -> int:
    return ROWS * (plan.steps * plan.accumulate - plan.short)


def sft(model: nn.Module, folder: Path, plan: Plan) -> Any:
    """TRL's SFTTrainer."""
    trl = pytest.importorskip("trl", reason="trl is not installed")

    class Sft(ParingTrainerMixin, trl.SFTTrainer):  # type: ignore[misc, name-defined, unused-ignore]
        pass

    args = trl.SFTConfig(**arguments(folder, plan, max_length=16, gradient_checkpointing=False))
    data = Dataset.from_dict({"text": language.texts(_rows(plan))})
    return _go(Sft(model=model, args=args, processing_class=language.tokenizer(), train_dataset=data), plan)


def preferences(count: int) -> Dataset:
    """Prompts, each with a good and a bad way to go on."""
    ends = {"chosen": language.texts(count, 3, seed=1), "rejected": language.texts(count, 4, seed=2)}
    columns = {name: [f" {text}" for text in found] for name, found in ends.items()}
    return Dataset.from_dict({"prompt": language.texts(count, 3), **columns})


def dpo_trainer(model: nn.Module, folder: Path, plan: Plan, **given: Any) -> Any:
    """TRL's DPOTrainer, not yet trained."""
    trl = pytest.importorskip("trl", reason="trl is not installed")

    class Dpo(ParingTrainerMixin, trl.DPOTrainer):  # type: ignore[misc, name-defined, unused-ignore]
        pass

    args = trl.DPOConfig(**arguments(folder, plan, max_length=16, gradient_checkpointing=False))
    return Dpo(model=model, args=args, processing_class=language.tokenizer(), train_dataset=preferences(_rows(plan)), **given)


def dpo(model: nn.Module, folder: Path, plan: Plan) -> Any:
    """TRL's DPOTrainer, whose reference is a second adapter."""
    return _go(dpo_trainer(model, folder, plan), plan)


def reward(completions: list[str], **kwargs: Any) -> list[float]:
    """More for words late in the alphabet."""
    return [sum(map(ord, completion)) / 100 for completion in completions]


def grpo_trainer(model: nn.Module, folder: Path, plan: Plan, **given: Any) -> Any:
    """TRL's GRPOTrainer, not yet trained."""
    trl = pytest.importorskip("trl", reason="trl is not installed")

    class Grpo(ParingTrainerMixin, trl.GRPOTrainer):  # type: ignore[misc, name-defined, unused-ignore]
        pass

    own = {"num_generations": ROWS, "max_completion_length": 4, "gradient_checkpointing": False, "use_vllm": False, "beta": 0.1}
    args = trl.GRPOConfig(**arguments(folder, plan, **own))
    data = Dataset.from_dict({"prompt": language.texts(_rows(plan), 3)})
    return Grpo(model=model, args=args, processing_class=language.tokenizer(), train_dataset=data, reward_funcs=reward, **given)


def grpo(model: nn.Module, folder: Path, plan: Plan) -> Any:
    """TRL's GRPOTrainer, which generates with the adapter between steps."""
    return _go(grpo_trainer(model, folder, plan), plan)


def encoder(**settings: Any) -> nn.Module:
    """A SentenceTransformer, adapted by its own call."""
    model = _sentence_transformer()
    # What pools inside BERT is not asked for.
    model.add_adapter(paring.ParingConfig(method=proof.method(**settings), exclude_modules=["pooler.dense"], seed=language.SEED))
    proof.start(model)
    return model


def wrapped_encoder(**settings: Any) -> nn.Module:
    """A SentenceTransformer around a PeftModel, which knows mixed batches; its own call makes none."""
    model = _sentence_transformer()
    model[0].model = paring.adapt(model[0].model, proof.method(**settings), exclude_modules=["pooler.dense"], seed=language.SEED)
    proof.start(model)
    return model


def _sentence_transformer() -> Any:
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    inner = Transformer(str(language.bert()))
    return st.SentenceTransformer(modules=[inner, Pooling(16)], device="cpu")


def plain_encoder() -> nn.Module:
    """What is inside, without an adapter."""
    model = AutoModel.from_pretrained(language.bert()).eval()
    assert isinstance(model, nn.Module)
    return model


def sentences(model: nn.Module, folder: Path, plan: Plan) -> Any:
    """sentence-transformers' own trainer."""
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    class Sentences(ParingTrainerMixin, st.SentenceTransformerTrainer):  # type: ignore[misc, name-defined, unused-ignore]
        pass

    args = st.SentenceTransformerTrainingArguments(**arguments(folder, plan))
    data = Dataset.from_dict({"anchor": language.texts(_rows(plan)), "positive": language.texts(_rows(plan), seed=1)})
    loss = MultipleNegativesRankingLoss(model)
    return _go(Sentences(model=model, args=args, train_dataset=data, loss=loss), plan)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of training.

    Attributes:
        row: of the grid.
        run: does it.
        build: makes the model to train, with SoRA's settings.
        base: makes the model beneath.
        peft: makes the model to train around a PeftModel, where ``build`` does not.
        slow: whether it takes more than a few seconds.
    """

    row: str
    run: Run
    build: Callable[..., nn.Module] = language.adapted
    base: Callable[[], nn.Module] = language.llama
    peft: Callable[..., nn.Module] | None = None
    slow: bool = False


WAYS = (
    Way(row="plain loop", run=plain),
    Way(row="transformers Trainer", run=transformers),
    Way(row="TRL SFTTrainer", run=sft, slow=True),
    Way(row="TRL DPOTrainer", run=dpo, slow=True),
    Way(row="TRL GRPOTrainer", run=grpo, slow=True),
    Way(row="accelerate", run=accelerated),
    Way(row="sentence-transformers", run=sentences, build=encoder, base=plain_encoder, peft=wrapped_encoder, slow=True),
    Way(row="Lightning", run=lightning),
)
