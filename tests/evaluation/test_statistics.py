"""Intervals and paired tests against scipy called directly, the exact sums written out, and what they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from luthier.config.plugins import METRICS
from luthier.evaluation.statistics import Drawing, Labelled, Statistics, interval, mcnemar, paired
from luthier.metrics._text import Scored, TextRow

HOW = Drawing(resamples=999, seed=3)


def of_text(name: str, rows: list[tuple[str, str]]) -> Statistics:
    module = METRICS.load(name)
    (scored,) = module.build(module.Options())([TextRow(*row) for row in rows]).values()
    return Statistics(scored)


def test_an_interval_is_scipys() -> None:
    rows_E = np.random.default_rng(0).random(40)
    ours = interval(Statistics(Scored.mean(rows_E)), HOW)
    theirs = scipy.stats.bootstrap(
        (rows_E,), np.mean, n_resamples=999, method="percentile", vectorized=True, rng=np.random.default_rng(3)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    again = interval(Statistics(Scored.mean(rows_E)), HOW)
    assert ours == again != interval(Statistics(Scored.mean(rows_E)), Drawing(resamples=999, seed=4))


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator, inside = np.random.default_rng(0), 0
    for seed in range(100):
        rows_E = generator.random(80) < 0.4
        low, high = interval(Statistics(Scored.mean(rows_E)), Drawing(confidence=0.9, resamples=199, seed=seed)) or (
            0,
            0,
        )
        inside += low <= 0.4 <= high
    assert 80 <= inside <= 97  # 90 expected, sd 3


def test_a_metric_of_sums_is_resampled_as_itself() -> None:
    """BLEU of drawn rows is BLEU computed anew on those rows."""
    rows = [
        ("the cat sat here", "the cat sat there"),
        ("a dog ran off fast", "a dog ran off"),
        ("b", "b"),
        ("x y", "z"),
    ]
    whole = of_text("bleu", rows)
    for drawn in ([0, 0, 1, 3], [2, 2, 2, 1], [1, 0, 2, 3]):
        anew = of_text("bleu", [rows[number] for number in drawn]).value
        assert whole.at(np.array([drawn]))[0] == pytest.approx(anew)
    rows = [("yes", "yes"), ("no", "yes"), ("no", "no"), ("?", "no")]
    whole = of_text("label_macro_f1", rows)
    for drawn in ([0, 0, 1, 3], [0, 1, 0, 1]):
        anew = of_text("label_macro_f1", [rows[number] for number in drawn]).value
        assert whole.at(np.array([drawn]))[0] == pytest.approx(anew)


def test_labels_are_resampled_too() -> None:
    module = METRICS.load("matthews")
    generator = np.random.default_rng(1)
    truth, predicted = generator.integers(0, 3, 30), generator.integers(0, 3, 30)
    sample = Labelled(module.build(module.Options()), truth, predicted)
    low, high = interval(sample, HOW) or (0, 0)
    assert low < sample.value < high
    found = paired(sample, Labelled(sample.metric, truth, truth), HOW)
    assert found.difference == pytest.approx(1 - sample.value) and found.p_value < 0.01 and found.low > 0.5  # type: ignore[operator]


def test_mcnemar_by_hand() -> None:
    # 7 rows got right, 1 got wrong: 2 (C(8,0) + C(8,1)) / 2^8
    assert mcnemar(7, 1) == pytest.approx(2 * (1 + 8) / 2**8)
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0
    first = np.array([0] * 7 + [1] + [1] * 5 + [0] * 5)
    second = np.array([1] * 7 + [0] + [1] * 5 + [0] * 5)
    found = paired(Statistics(Scored.mean(first)), Statistics(Scored.mean(second)), HOW)
    assert (found.test, found.p_value) == ("mcnemar", pytest.approx(18 / 256))
    assert (found.increased, found.decreased, found.equal) == (7, 1, 10)
    assert found.difference == pytest.approx(6 / 18)


def test_few_rows_are_exchanged_in_all_ways() -> None:
    first, second = np.array([0.1, 0.4, 0.35, 0.8, 0.5]), np.array([0.2, 0.6, 0.9, 0.7, 0.95])
    change = second - first
    sums = [abs(np.dot(signs, change)) for signs in itertools.product((1, -1), repeat=5)]
    wanted = np.mean([total >= abs(change.sum()) - 1e-12 for total in sums])
    found = paired(Statistics(Scored.mean(first)), Statistics(Scored.mean(second)), HOW)
    assert (found.test, found.p_value) == ("permutation", pytest.approx(wanted))
    theirs = scipy.stats.permutation_test(
        (first, second), lambda x, y: np.mean(y) - np.mean(x), permutation_type="samples"
    )
    assert found.p_value == pytest.approx(theirs.pvalue)


def test_equally_good_runs_are_called_different_as_often_as_the_level_says() -> None:
    generator, below = np.random.default_rng(5), 0
    for seed in range(100):
        level = generator.random(30)
        first, second = level + generator.normal(size=30), level + generator.normal(size=30)
        how = Drawing(resamples=199, seed=seed)
        below += paired(Statistics(Scored.mean(first)), Statistics(Scored.mean(second)), how).p_value < 0.1
    assert 3 <= below <= 19  # 10 expected, sd 3


def test_corpus_metrics_are_paired() -> None:
    good = [(f"the {word} sat on the mat", f"the {word} sat on the mat") for word in "abcdefghijkl"]
    poor = [(f"some {word} sat at a mat", reference) for (_, reference), word in zip(good, "abcdefghijkl", strict=True)]
    found = paired(of_text("bleu", poor), of_text("bleu", good), HOW)
    assert found.test == "permutation" and found.p_value < 0.01 and found.low is not None and found.low > 0
    assert (found.increased, found.decreased) == (12, 0)
    same = paired(of_text("bleu", good), of_text("bleu", good), HOW)
    assert (same.difference, same.p_value, same.low, same.high, same.equal) == (0, 1, 0, 0, 12)


def test_one_row_has_no_interval() -> None:
    one = Statistics(Scored.mean([1.0]))
    assert interval(one, HOW) is None
    found = paired(one, Statistics(Scored.mean([0.5])), HOW)
    assert found.low is None and found.p_value == 1.0 and math.isclose(found.difference, -0.5)
    with pytest.raises(ValueError, match="1 and 2 rows"):
        paired(one, Statistics(Scored.mean([0.5, 1.0])), HOW)


def test_rows_of_which_all_may_be_drawn_without_a_score_have_no_interval() -> None:
    first, second = (Statistics(Scored.mean_of_known([one, None, None, other])) for one, other in ((1, 0), (0, 0)))
    assert interval(first, HOW) is None
    found = paired(first, second, HOW)
    assert (found.difference, found.low, found.high) == (-0.5, None, None)
