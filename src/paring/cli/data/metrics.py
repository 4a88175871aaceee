"""Scores of predictions, by scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr  # type: ignore[import-untyped, unused-ignore]
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error

from paring.cli.data.task import Kind

FIRST = {"classification": "accuracy", "regression": "pearson", "causal-lm": "loss"}
"""The metric that says which model is the best one, by task."""

METRICS: Mapping[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "f1_macro", "matthews", "f1", "loss"),
    "regression": ("pearson", "spearman", "mse", "loss"),
    "causal-lm": ("loss", "mean_token_accuracy", "entropy"),
}
"""What an evaluation gives, by task (``f1`` where there are two classes)."""

SMALLER_IS_BETTER = frozenset({"loss", "mse", "perplexity"})


def score(kind: Kind, predictions: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Metrics of a head's outputs.

    Args:
        kind: classification or regression.
        predictions: logits ``(n, classes)``, or values ``(n,)`` or ``(n, 1)``.
        labels: class indices or numbers, ``(n,)``.

    Returns:
        Classification: ``accuracy``, ``f1`` (of class 1, where there are two), ``f1_macro`` and ``matthews``.
        Regression: ``pearson``, ``spearman`` (NaN where all predictions are equal) and ``mse``.
    """
    if kind == "regression":
        values = np.asarray(predictions, dtype=np.float64).reshape(len(labels))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a constant prediction has no correlation; NaN says so
            pearson, spearman = (float(test(values, labels).statistic) if len(labels) > 1 else math.nan for test in (pearsonr, spearmanr))
        return {"pearson": pearson, "spearman": spearman, "mse": float(mean_squared_error(labels, values))}
    chosen = np.asarray(predictions).argmax(axis=-1)
    scores = {
        "accuracy": float(accuracy_score(labels, chosen)),
        "f1_macro": float(f1_score(labels, chosen, average="macro", zero_division=0.0)),
        "matthews": float(matthews_corrcoef(labels, chosen)),
    }
    if np.asarray(predictions).shape[-1] == 2:
        scores["f1"] = float(f1_score(labels, chosen, pos_label=1, zero_division=0.0))
    return scores
