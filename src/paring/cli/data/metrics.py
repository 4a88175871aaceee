"""Scores of predictions, by scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, pearsonr, spearmanr  # type: ignore[import-untyped, unused-ignore]
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


def estimated(kind: Kind, predictions: NDArray[Any], labels: NDArray[Any]) -> tuple[float, float]:
    r"""The first metric of a head's outputs, and its standard error over rows.

    Accuracy is a mean, so the error is :math:`s/\sqrt n`. That of Pearson's correlation is bootstrapped: 999 draws of as many rows,
    seed 0.
    """
    value = score(kind, predictions, labels)[FIRST[kind]]
    if len(labels) < 3 or not math.isfinite(value):
        return value, math.nan
    if kind == "classification":
        hits = (np.asarray(predictions).argmax(axis=-1) == labels).astype(np.float64)
        return value, float(hits.std(ddof=1) / math.sqrt(len(hits)))
    pairs = (np.asarray(predictions, dtype=np.float64).reshape(len(labels)), np.asarray(labels, dtype=np.float64))
    draws = bootstrap(pairs, _correlation, paired=True, vectorized=True, n_resamples=999, method="percentile", rng=np.random.default_rng(0))
    return value, float(draws.standard_error)


def estimated_language(losses: NDArray[Any], tokens: NDArray[Any]) -> tuple[float, float]:
    r"""The probability of a token, :math:`e^{-L/N} = 1/\mathrm{perplexity}`, so that larger is better, and its standard error over rows.

    With :math:`L_i` the summed loss and :math:`N_i` the tokens of row i, the loss per token is a ratio of sums, whose error is
    :math:`\sqrt{n/(n-1) \sum_i (L_i - \ell N_i)^2} / N` to first order; that of :math:`e^{-\ell}` is as much times itself.
    """
    rows, total = len(losses), float(tokens.sum())
    if not total:
        return math.nan, math.nan
    loss = float(losses.sum()) / total
    value = math.exp(-loss)
    if rows < 3:
        return value, math.nan
    return value, value * math.sqrt(rows / (rows - 1) * float(((losses - loss * tokens) ** 2).sum())) / total


def _correlation(first: NDArray[Any], second: NDArray[Any], axis: int) -> NDArray[Any]:
    first, second = (values - values.mean(axis=axis, keepdims=True) for values in (first, second))
    size = np.sqrt((first**2).sum(axis=axis) * (second**2).sum(axis=axis))
    with np.errstate(invalid="ignore"):  # a draw may be of one row alone
        return np.asarray((first * second).sum(axis=axis) / size)
