"""Every metric against scikit-learn or scipy, and its value at what can be worked out by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from luthier.config.plugins import METRICS

REFERENCES: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": sklearn.metrics.accuracy_score,
    "macro_f1": lambda t, p: sklearn.metrics.f1_score(t, p, average="macro", zero_division=0),
    "micro_f1": lambda t, p: sklearn.metrics.f1_score(t, p, average="micro", zero_division=0),
    "matthews": sklearn.metrics.matthews_corrcoef,
    "mean_squared_error": sklearn.metrics.mean_squared_error,
    "pearson": lambda t, p: scipy.stats.pearsonr(t, p).statistic,
    "spearman": lambda t, p: scipy.stats.spearmanr(t, p).statistic,
}


def metric(name: str) -> Callable[[Any, Any], float]:
    module = METRICS.load(name)
    return module.build(module.Options())


def expected(name: str, truth: Any, predicted: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both libraries warn of what is not defined
        value = float(REFERENCES[name](truth, predicted))
    return 0.0 if math.isnan(value) else value


def test_every_metric_of_labels_has_a_reference() -> None:
    assert set(REFERENCES) == {name for name in METRICS.names() if {"text"} != METRICS.load(name).TASKS}


def of_task(task: str) -> list[str]:
    return [name for name in METRICS.names() if task in METRICS.load(name).TASKS]


@pytest.mark.parametrize("name", of_task("single_label"))
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_one_label(name: str, rows: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(rows).T
    assert metric(name)(truth, predicted) == pytest.approx(expected(name, truth, predicted), abs=1e-6)


@pytest.mark.parametrize("name", of_task("multi_label"))
@given(st.data())
def test_several_labels(name: str, data: Any) -> None:
    bits = st.lists(st.integers(0, 1), min_size=6, max_size=6)
    rows = np.array(data.draw(st.lists(bits, min_size=1, max_size=20)))
    truth, predicted = rows[:, :3], rows[:, 3:]
    assert metric(name)(truth, predicted) == pytest.approx(expected(name, truth, predicted), abs=1e-6)


numbers = st.integers(-50, 50).map(lambda n: n / 8)  # differences that are exact, so that constant is constant


@pytest.mark.parametrize("name", of_task("regression"))
@given(rows=st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30))
def test_numbers(name: str, rows: list[tuple[float, float]]) -> None:
    truth, predicted = np.array(rows).T
    assert metric(name)(truth, predicted) == pytest.approx(expected(name, truth, predicted), abs=1e-6)


def test_by_hand() -> None:
    truth, predicted = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0])  # tp 2, fn 1, fp 0, tn 1
    assert metric("accuracy")(truth, predicted) == 3 / 4
    assert metric("macro_f1")(truth, predicted) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert metric("matthews")(truth, predicted) == pytest.approx((2 * 1 - 0 * 1) / math.sqrt(2 * 3 * 1 * 2))
    ones = np.ones(3)
    assert metric("pearson")(ones, np.arange(3.0)) == 0.0 and metric("spearman")(np.arange(3.0), ones) == 0.0
    assert metric("spearman")(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3])) == pytest.approx(1.0)
    assert metric("accuracy")(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [1, 0]])) == 0.5
