"""Trainer with the mixin, and a plain Trainer with the callback alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainerCallback

from paring.attach.config import ParingConfig
from paring.attach.find import slots
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.train import ParingCallback, ParingTrainer, ParingTrainerMixin, create_optimizer
from tests.trust.grids import cell

Make = Callable[..., Any]
KEYS = {"lambda", "live_ranks", "live_parameters", "sparsity"}


class Sink(TrainerCallback):
    """Stands where TensorBoard, W&B and trackio stand: among the trainer's default callbacks."""

    seen: list[dict[str, Any]]

    def __init__(self) -> None:
        type(self).seen = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        type(self).seen.append(dict(logs))


@pytest.fixture
def _sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.trainer, "get_reporting_integration_callbacks", lambda report_to: [Sink])


@pytest.mark.usefixtures("_sink")
@pytest.mark.parametrize("given", [False, True])
def test_reporters_and_history_get_what_is_left_of_the_adapter(adapted: Make, arguments: Make, data: Any, given: bool) -> None:
    model = adapted(SoRA(rank=4, penalty=0.25, fade=None))
    with torch.no_grad():
        slots(model)["first"].gate[:3] = 0.0
    callbacks = [ParingCallback()] if given else None
    trainer = ParingTrainer(
        model=model, args=arguments(max_steps=2, learning_rate=1e-6, eval_strategy="steps", eval_steps=1),
        train_dataset=data, eval_dataset=data, callbacks=callbacks,
    )  # fmt: skip
    assert sum(isinstance(callback, ParingCallback) for callback in trainer.callback_handler.callbacks) == 1
    trainer.train()
    for logs in ([e for e in Sink.seen if "loss" in e], [e for e in trainer.state.log_history if "loss" in e]):
        assert len(logs) == 2
        for entry in logs:
            assert {key: entry[key] for key in KEYS} == {"lambda": 0.25, "live_ranks": 5, "live_parameters": 60, "sparsity": 0.375}
    # Metrics of an evaluation are a return value too; they stay as they were.
    assert all(not KEYS & set(entry) for entry in Sink.seen if "eval_loss" in entry)


def test_callback_alone_logs_into_the_history(adapted: Make, arguments: Make, data: Any) -> None:
    model = adapted()
    trainer = Trainer(
        model=model, args=arguments(max_steps=2), train_dataset=data, optimizers=(create_optimizer(model, lr=1e-3), None),
        callbacks=[ParingCallback()],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*share a parameter group.*")
        trainer.train()
    assert all(set(entry) >= KEYS for entry in trainer.state.log_history if "loss" in entry)


def test_plain_trainer_is_told_once_that_gates_move_at_the_main_rate(adapted: Make, arguments: Make, data: Any) -> None:
    trainer = Trainer(
        model=adapted(SoRA(rank=4, gate_rate=7.0)), args=arguments(max_steps=3), train_dataset=data, callbacks=[ParingCallback()]
    )
    with pytest.warns(UserWarning, match="asks for 7:") as caught:
        trainer.train()
    assert len([item for item in caught if "share a parameter group" in str(item.message)]) == 1


def test_plain_trainer_is_not_told_where_the_main_rate_is_asked_for(adapted: Make, arguments: Make, data: Any) -> None:
    trainer = Trainer(
        model=adapted(SoRA(rank=4, gate_rate=None)), args=arguments(max_steps=1), train_dataset=data, callbacks=[ParingCallback()]
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*share a parameter group.*")
        trainer.train()


def test_lora_trains_and_logs_without_lambda(adapted: Make, arguments: Make, data: Any) -> None:
    trainer = ParingTrainer(model=adapted(LoRA(rank=4)), args=arguments(max_steps=1), train_dataset=data)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert "lambda" not in entry
    assert (entry["live_ranks"], entry["live_parameters"], entry["sparsity"]) == (8, 96, 0.0)


def test_trainer_and_hand_loop_give_the_same_bits(adapted: Make, arguments: Make, data: Any) -> None:
    steps, rate = 6, 2.0**-6
    method = SoRA(rank=4, penalty=1.0, gate_rate=0.5)
    ours, theirs = adapted(method), adapted(method)
    args = arguments(max_steps=steps, learning_rate=rate, lr_scheduler_type="linear", per_device_train_batch_size=32, weight_decay=0.1)
    ParingTrainer(model=theirs, args=args, train_dataset=data, data_collator=lambda rows: batch(data)).train()

    ours.train()
    optimizer = create_optimizer(ours, lr=rate, weight_decay=0.1, fused=args.optim == "adamw_torch_fused")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda index: (steps - index) / steps)
    for _ in range(steps):
        ours(**batch(data))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert any((slot.gate == 0).any() for slot in slots(ours).values())
    for (name, mine), (_, other) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(mine, other), name


def batch(data: Any) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in data]) for key in data[0]}


@cell("trainers", "transformers Trainer", "resumes")
def test_resumed_trainer_equals_the_uninterrupted_one_bit_for_bit(adapted: Make, arguments: Make, data: Any, tmp_path: Path) -> None:
    def trainer(folder: str, model: Any) -> ParingTrainer:
        args = arguments(max_steps=8, output_dir=str(tmp_path / folder), save_strategy="steps", save_steps=5, learning_rate=2e-2)
        return ParingTrainer(model=model, args=args, train_dataset=data)

    method = SoRA(rank=4, penalty=0.9, gate_rate=0.6, dropout=0.25)
    whole = adapted(method)
    first = trainer("whole", whole)
    first.train()
    second = adapted(method)
    resumed = trainer("resumed", second)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert any((slot.gate == 0).any() for slot in slots(whole).values())
    for (name, mine), (_, other) in zip(whole.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(mine, other), name
    assert all(slot.steps == 8 for slot in slots(second).values())
    live = [[entry["live_ranks"] for entry in run.state.log_history if "loss" in entry] for run in (first, resumed)]
    assert live[0] == live[1]


@cell("trainers", "TRL SFTTrainer", "one proximal step a step")
def test_mixin_works_with_trl(arguments: Make, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from tokenizers import Tokenizer, models, pre_tokenizers

    class ParingSFTTrainer(ParingTrainerMixin, trl.SFTTrainer):
        pass

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=5, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=16, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )
    )  # fmt: skip
    args = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], save_strategy="no", disable_tqdm=True,
        use_cpu=True, logging_steps=1, bf16=False, max_length=8, learning_rate=1e-3,
    )  # fmt: skip
    trainer = ParingSFTTrainer(
        model=model, args=args, processing_class=tokenizer, train_dataset=Dataset.from_dict({"text": ["a b a b", "b b a"] * 4}),
        peft_config=ParingConfig(method=SoRA(rank=4, gate_rate=7.0), task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    assert trainer.optimizer.param_groups[-1]["initial_lr"] == 7.0
    assert all(set(entry) >= KEYS for entry in trainer.state.log_history if "loss" in entry)
    assert all(slot.steps == 2 for slot in slots(trainer.model).values())


def test_gates_that_a_trainer_cast_are_float32_before_anything_is_loaded(adapted: Make, arguments: Make) -> None:
    model = adapted()
    for slot in slots(model).values():
        slot.gate.data = slot.gate.data.to(torch.bfloat16)
    ParingTrainer(model=model, args=arguments())
    assert all(slot.gate.dtype == torch.float32 for slot in slots(model).values())
