"""Mixing: which rows, in which order, how often; the two stopping rules against `datasets.interleave_datasets`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config.data_section import DataConfig
from luthier.data.mixing import interleave
from luthier.data.preparing import LoadedRecords, load_records
from luthier.foundation.errors import DataError

COUNTS = st.lists(st.integers(1, 40), min_size=2, max_size=5)


def test_by_turns_worked_out_by_hand() -> None:
    assert interleave([2, 3], [None, None], 0, oversample=False) == [(0, 0), (1, 0), (0, 1)]
    over = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0), (1, 2)]  # the shorter begins anew
    assert interleave([2, 3], [None, None], 0, oversample=True) == over


@settings(deadline=None, max_examples=30)  # the first call imports the library
@given(counts=COUNTS, oversample=st.booleans())
def test_by_turns_equals_datasets(counts: list[int], oversample: bool) -> None:
    import datasets

    sets = [datasets.Dataset.from_dict({"n": [[i, n] for n in range(count)]}) for i, count in enumerate(counts)]
    rule = "all_exhausted" if oversample else "first_exhausted"
    theirs = [tuple(pair) for pair in datasets.interleave_datasets(sets, stopping_strategy=rule)["n"]]
    ours = interleave(counts, [None] * len(counts), 0, oversample=oversample)
    # `datasets` goes on to the end of the round in which the last source ends
    assert theirs[: len(ours)] == ours and len(theirs) - len(ours) < len(counts)


@given(counts=COUNTS, weight=st.floats(0.2, 5), seed=st.integers(0, 2**31), oversample=st.booleans())
def test_by_weight(counts: list[int], weight: float, seed: int, oversample: bool) -> None:
    weights = [weight, *[None] * (len(counts) - 1)]
    mixed = interleave(counts, weights, seed, oversample=oversample)
    assert mixed == interleave(counts, weights, seed, oversample=oversample)
    used = Counter(source for source, _ in mixed)
    for source, count in enumerate(counts):
        assert [row for which, row in mixed if which == source] == [n % count for n in range(used[source])]
    if oversample:
        assert all(used[source] >= count for source, count in enumerate(counts))
        assert used[mixed[-1][0]] == counts[mixed[-1][0]]
    else:
        assert all(used[source] <= count for source, count in enumerate(counts))
        assert used[mixed[-1][0]] == counts[mixed[-1][0]]


def test_weights_are_proportions() -> None:
    mixed = interleave([40_000, 40_000], [3.0, None], 5, oversample=False)
    share = sum(source == 0 for source, _ in mixed) / len(mixed)
    assert abs(share - 0.75) < 0.01  # over four standard deviations of 50,000 draws


def test_weights_that_would_never_end() -> None:
    with pytest.raises(DataError, match=r"weights \['1e-06', '1'\] would make about 10,000,010 rows of 20"):
        interleave([10, 10], [1e-6, None], 0, oversample=True)


def load(write: Any, seed: int = 0, **given_settings: Any) -> LoadedRecords:
    paths = []
    for name, count in (("a", 10), ("b", 30)):
        rows = [{"instruction": f"{name} {i}", "output": "x"} for i in range(count)]
        paths.append({"path": str(write(f"{name}.json", rows)), **given_settings.pop(name, {})})
    return load_records(DataConfig(train=paths, **given_settings), seed)


def files(records: list) -> Counter[str]:
    return Counter(Path(record.origin.path).name for record in records)


def test_mixed_training_data(write) -> None:
    whole = load(write)
    assert files(whole.splits["train"]) == {"a.json": 10, "b.json": 30}
    assert [source.mixed for source in whole.report.sources] == [None, None]
    under = load(write, mix="interleave_under")
    assert files(under.splits["train"]) == {"a.json": 10, "b.json": 9}
    over = load(write, mix="interleave_over", a={"weight": 1}, b={"weight": 2})
    counted = files(over.splits["train"])
    assert counted["a.json"] >= 10 and counted["b.json"] >= 30
    sources = over.report.as_dict()["sources"]
    assert [source["records_mixed"] for source in sources] == [counted["a.json"], counted["b.json"]]
    assert any("records of it in the mix" in remark for remark in over.report.remarks())
    other = load(write, seed=1, mix="interleave_over", a={"weight": 1}, b={"weight": 2})
    assert [r.origin for r in other.splits["train"]] != [r.origin for r in over.splits["train"]]


def test_repeated_rows_never_stand_in_validation(write) -> None:
    loaded = load(write, mix="interleave_over", validation=8, test=0.1)
    parts = [{record.origin for record in loaded.splits[name]} for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [28, 8, 4] and len(set.union(*parts)) == 40
    assert len(loaded.splits["train"]) > 28


def test_a_source_with_nothing_left(write) -> None:
    one = str(write("one.json", [{"instruction": "q", "output": "a"}]))
    two = str(write("two.json", [{"instruction": "q", "output": "a"}] * 2))
    with pytest.raises(DataError, match=r"data\.train\.\d has no row left to mix"):
        load_records(DataConfig(train=[one, two], validation=2, mix="interleave_under"), 0)


def test_rows_that_hold_several_records(write) -> None:
    tasks = [
        {"instruction": f"{i}", "instances": [{"input": "", "output": f"{n}"} for n in range(3)]} for i in range(4)
    ]
    paths = [str(write("tasks.json", tasks)), str(write("more.json", [{"instruction": "q", "output": "a"}] * 20))]
    loaded = load_records(DataConfig(train=paths, mix="interleave_under"), 0)
    assert [(s.kept, s.records, s.mixed) for s in loaded.report.sources] == [(4, 12, 12), (20, 20, 11)]
    assert files(loaded.splits["train"]) == {"tasks.json": 12, "more.json": 11}


def test_settings_without_effect() -> None:
    for values, message in (
        ({"train": [{"path": "a", "weight": 1}, "b"]}, "weight has no effect with mix: concat"),
        ({"train": ["a"], "mix": "interleave_over"}, "needs at least two entries in train"),
        ({"train": ["a"], "validation": [{"path": "b", "weight": 1}]}, "weight has no effect in validation and test"),
        ({"train": [{"path": "a", "weight": 0}, "b"], "mix": "interleave_over"}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig(**values)
