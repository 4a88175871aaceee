"""What a stage of a path is scored by: the task's first metric on a sample of the training rows and on rows that were held out of them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn

from paring.cli.data.encode import for_language, labelled
from paring.cli.data.metrics import estimated, estimated_language
from paring.cli.run.arguments import length_limit
from paring.cli.run.options import TrainOptions
from paring.cli.run.outputs import device_of, language_losses, logits
from paring.cli.run.prepare import Prepared

SAMPLE, SAMPLE_SEED = 1000, 42
"""How many training rows memorization is measured on, and the seed that draws them; both are those of SoRA's authors."""


Encoded: TypeAlias = Dataset | tuple[list[list[str]], NDArray[Any]]
"""Rows of token ids, or texts with their labels."""


class Scorer:
    """Scores the model as it is; all processes of a group score all rows.

    Args:
        options: all options of the run.
        prepared: the model and its task.
        train: rows to train on, of which a sample is scored.
        held_out: rows that are not trained on.

    Raises:
        DataError: rows that the task cannot use.
    """

    def __init__(self, options: TrainOptions, prepared: Prepared, train: Dataset, held_out: Dataset) -> None:
        self.prepared, self.training = prepared, options.training
        self.size = options.training.per_device_eval_batch_size or 2 * options.training.per_device_train_batch_size
        base, task = prepared.base, prepared.task
        self.limit = length_limit(options.data.max_length, task.kind, base.tokenizer.model_max_length, base.model.config)
        sample = train if len(train) <= SAMPLE else train.shuffle(seed=SAMPLE_SEED).select(range(SAMPLE))
        self.sample, self.held_out = self._encoded(sample), self._encoded(held_out)

    def _encoded(self, rows: Dataset) -> Encoded:
        if self.prepared.task.kind == "causal-lm":
            return for_language(rows, self.prepared.task, self.prepared.base.tokenizer, "training")
        texts, labels = labelled(rows, self.prepared.task, "training")
        return texts, np.asarray(labels)

    def __call__(self, model: nn.Module) -> tuple[float, float, float]:
        """The metric on the sample, that on the rows held out, and its standard error."""
        mode = model.training
        model.eval()
        kind = torch.bfloat16 if self.training.bf16 else torch.float16
        try:
            with torch.autocast(device_of(model).type, kind, enabled=self.training.bf16 or self.training.fp16):
                train, _ = self._score(model, self.sample)
                return train, *self._score(model, self.held_out)
        finally:
            model.train(mode)

    def _score(self, model: nn.Module, rows: Encoded) -> tuple[float, float]:
        if isinstance(rows, Dataset):
            losses, tokens = language_losses(model, rows, self.limit, self.size)
            return estimated_language(losses.numpy(), tokens.numpy())
        texts, labels = rows
        found = logits(model, self.prepared.base.tokenizer, texts, self.limit, self.size)
        return estimated(self.prepared.task.kind, found.numpy(), labels)
