"""True positives, false positives and false negatives of every class."""

from __future__ import annotations

import numpy as np

from luthier.metrics._metric import Array


def counts_by_class(truth: Array, predicted: Array) -> tuple[Array, Array, Array]:
    """tp, fp, fn, each int64 [K].

    Of class numbers [E], the K classes are those that occur in either; of 0 and 1 [E, K], all columns.
    """
    if truth.ndim == 1:
        classes = np.union1d(truth, predicted)
        truth, predicted = truth[:, None] == classes, predicted[:, None] == classes
    truth, predicted = truth.astype(bool), predicted.astype(bool)
    tp = (truth & predicted).sum(axis=0)
    return tp, (~truth & predicted).sum(axis=0), (truth & ~predicted).sum(axis=0)


def f1(tp: Array, fp: Array, fn: Array) -> Array:
    """2 tp / (2 tp + fp + fn), the harmonic mean of precision and recall; 0 where a class neither is nor was predicted."""
    whole = 2 * tp + fp + fn
    return np.where(whole > 0, 2 * tp / np.maximum(whole, 1), 0.0)
