"""One short run with each trainer, all asked for in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, TrainingArguments, get_scheduler

import paring
from paring import train
from paring.train import ParingTrainer, ParingTrainerMixin
from tests.trust import language, proof

ROWS = 4
RATE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is to do.

    Attributes:
        steps: of the optimizer, all in all.
        schedule: of the learning rates, "constant" or "linear".
        accumulate: batches a step.
        save_at: the step after which the run is saved; ``None`` for not at all.
        resume: the saved run to go on from.
        settings: further settings of the trainer.
    """

    steps: int = 4
    schedule: str = "constant"
    accumulate: int = 1
    save_at: int | None = None
    resume: Path | None = None
    settings: tuple[tuple[str, Any], ...] = ()


Run = Callable[[Any, Path, Plan], Any]
"""Trains a model, in a folder, by a plan; returns the trainer if there is one."""


def checkpoint(folder: Path, step: int) -> Path:
    """Where a run in a folder is saved after a step."""
    return folder / f"checkpoint-{step}"


def _batches(plan: Plan) -> list[Tensor]:
    return [language.tokens(ROWS, seed=index) for index in range(plan.steps * plan.accumulate)]


def _examples(plan: Plan) -> list[Tensor]:
    return [row for batch in _batches(plan) for row in batch]


# -- loops of one's own --------------------------------------------------------------------------------------------------------


def plain(model: nn.Module, folder: Path, plan: Plan) -> None:
    """A loop with nothing but torch."""
    optimizer = train.create_optimizer(model, lr=RATE, weight_decay=0.1)
    schedule = get_scheduler(plan.schedule, optimizer, num_warmup_steps=0, num_training_steps=plan.steps)
    done = 0
    if plan.resume is not None:
        saved = torch.load(plan.resume / "run.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["generator"])
        done = saved["done"]
    model.train()
    for index, batch in enumerate(_batches(plan)):
        if index < done * plan.accumulate:
            continue
        (model(input_ids=batch, labels=batch).loss / plan.accumulate).backward()
        if (index + 1) % plan.accumulate == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done == plan.save_at:
                place = checkpoint(folder, done)
                place.mkdir(parents=True)
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                torch.save({**states, "generator": torch.get_rng_state(), "done": done}, place / "run.pt")


def accelerated(model: nn.Module, folder: Path, plan: Plan) -> None:
    """A loop around accelerate."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=plan.accumulate)
    optimizer = train.create_optimizer(model, lr=RATE, weight_decay=0.1)
    schedule = get_scheduler(plan.schedule, optimizer, num_warmup_steps=0, num_training_steps=plan.steps)
    # With a generator of its own: a loader draws from it when it begins, and a run that goes on begins once more.
    loader: DataLoader[Tensor] = DataLoader(_examples(plan), batch_size=ROWS, generator=torch.Generator())  # type: ignore[arg-type]
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    done = 0
    if plan.resume is not None:
        accelerator.load_state(str(plan.resume))
        done = int(plan.resume.name.rpartition("-")[2])
        loader = accelerator.skip_first_batches(loader, done * plan.accumulate)
    model.train()
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(input_ids=batch, labels=batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                done += 1
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and done == plan.save_at:
            accelerator.save_state(str(checkpoint(folder, done)))


def lightning(model: nn.Module, folder: Path, plan: Plan) -> None:
    """Lightning's Trainer, with the module that its users write."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            loss: Tensor = self.model(input_ids=batch, labels=batch).loss
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = train.create_optimizer(self.model, lr=RATE, weight_decay=0.1)
            schedule = get_scheduler(plan.schedule, optimizer, num_warmup_steps=0, num_training_steps=plan.steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["generator"] = torch.get_rng_state()

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.generator = checkpoint["generator"]

        def on_train_start(self) -> None:
            # Lightning calls eval() on nothing, and train() on nothing: a module stays as it was given.
            self.train()

        def on_train_batch_start(self, batch: Tensor, index: int) -> None:
            # Lightning leaves the generator of dropout to its users.
            if plan.resume is not None and self.trainer.global_step == int(plan.resume.name.rpartition("-")[2]):
                torch.set_rng_state(self.generator)

        def on_train_batch_end(self, outputs: Any, batch: Tensor, index: int) -> None:
            if self.trainer.global_step == plan.save_at:
                self.trainer.save_checkpoint(checkpoint(folder, plan.save_at) / "run.ckpt", weights_only=False)

    trainer = Trainer(
        accelerator="cpu",
        max_steps=plan.steps,
        accumulate_grad_batches=plan.accumulate,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader: DataLoader[Tensor] = DataLoader(_examples(plan), batch_size=ROWS)  # type: ignore[arg-type]
    trainer.fit(Module(), loader, ckpt_path=None if plan.resume is None else plan.resume / "run.ckpt")


# -- Trainer and its descendants -----------------------------------------------------------------------------------------------


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


def transformers(model: nn.Module, folder: Path, plan: Plan) -> Any:
    """The Trainer of transformers, with the mixin."""
    rows = [{"input_ids": row, "labels": row} for row in _examples(plan)]
    return _go(ParingTrainer(model=model, args=TrainingArguments(**arguments(folder, plan)), train_dataset=rows), plan)


def _rows(plan: Plan) -> int:
    return ROWS * plan.steps * plan.accumulate


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
    from sentence_transformers.models import Pooling, Transformer

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

    from sentence_transformers.losses import MultipleNegativesRankingLoss

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
