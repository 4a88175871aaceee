"""TRL's SFTTrainer: the mixin before it, a ParingConfig where a LoraConfig would stand.

python examples/with_trl.py            well under a minute on two cores
python examples/with_trl.py --quick    a few steps
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import small
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

import paring
from paring.methods.sora import SoRA
from paring.train import ParingTrainerMixin


# --8<-- [start:class]
class ParingSFTTrainer(ParingTrainerMixin, SFTTrainer):
    """SFTTrainer with the gates in a parameter group of their own."""


# --8<-- [end:class]


def main(folder: Path, steps: int) -> None:
    set_seed(0)
    base = small.decoder(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    answers = ["blame", "praise"]
    rows = Dataset.from_list(
        [{"prompt": f"{row['text']} :", "completion": f" {answers[int(row['label'])]}"} for row in small.rows(16 * steps)]
    )
    # --8<-- [start:train]
    model = AutoModelForCausalLM.from_pretrained(base)
    arguments = SFTConfig(
        output_dir=str(folder / "run"),
        learning_rate=3e-3,
        max_steps=steps,
        per_device_train_batch_size=16,
        logging_steps=max(1, steps // 6),
        save_strategy="no",
        report_to="none",
        max_length=32,
        bf16=False,
    )
    trainer = ParingSFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=paring.ParingConfig(method=SoRA(rank=8, alpha=16), task_type="CAUSAL_LM"),
    )
    trainer.train()
    paring.export(trainer.model, folder / "adapter", tokenizer=tokenizer)
    # --8<-- [end:train]

    for entry in trainer.state.log_history:
        if "live_ranks" in entry:
            print(f"step {entry['step']:4}  loss {entry['loss']:.3f}  live ranks {entry['live_ranks']}")
    words = tokenizer("In my view the meal warm , fresh and dull . :", return_tensors="pt")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "adapter").eval()
    with torch.inference_mode():
        here, there = trainer.model.eval()(**words).logits, loaded(**words).logits
    print(f"loaded by PEFT: equal to {(here - there).abs().max():.0e}")
    assert torch.allclose(here, there, atol=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), small.steps(120))
