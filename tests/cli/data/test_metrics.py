"""Metrics say what their names say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paring.cli.data.metrics import score


def test_classification_against_counts_by_hand() -> None:
    # Predicted 1, 1, 0, 0 where 1, 0, 0, 1 is right: one of each kind.
    logits = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    scores = score("classification", logits, np.array([1, 0, 0, 1]))
    assert scores == pytest.approx({"accuracy": 0.5, "f1": 0.5, "f1_macro": 0.5, "matthews": 0.0})
    assert "f1" not in score("classification", np.eye(3), np.array([0, 1, 2]))


def test_regression_ignores_scale_in_its_correlations_only() -> None:
    values = np.array([[1.0], [2.0], [3.0]])
    scores = score("regression", values, np.array([10.0, 20.0, 30.0]))
    assert scores["pearson"] == pytest.approx(1.0)
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["mse"] == pytest.approx((81 + 324 + 729) / 3)


def test_a_constant_prediction_has_no_correlation() -> None:
    assert math.isnan(score("regression", np.ones(4), np.arange(4.0))["pearson"])
