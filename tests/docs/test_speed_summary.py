"""The figures of a speed benchmark, made of its rounds."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.training_speed import WORKS, summarize


def one(rate: float, losses: list[float], memory: int) -> dict[str, Any]:
    sums = {"tokens": 100, "computed": 90, "targets": 80, "attended": 1000, "seconds_of_reference": 0.0}
    return {"tokens_per_second": rate, "seconds": 100 / rate, "losses": losses, "peak_rss_mib": memory, **sums}


@pytest.mark.parametrize(
    ("name", "difference"),
    [("sft", 0.25), ("sft-bf16", 0.25), ("text2sql", 0.25), ("text2sql-grouped", None), ("scaling", None)],
)
def test_losses_are_compared_where_both_sides_see_the_same_steps(name: str, difference: float | None) -> None:
    """Of grouped steps and of runs of other lengths there may be more on one side."""
    more = [] if difference else [1.5, 1.25]
    rounds = [
        {"luthier": one(rate, [2.0, 1.0, *more], 300), "peer": one(100.0, [1.6, 1.0], 600), "float32_gflops": 200}
        for rate in (150.0, 400.0, 200.0)
    ]
    found = summarize(name, WORKS[name], rounds)
    assert (found["ratio"], found["memory_ratio"]) == (2.0, 0.5)
    assert found["largest_relative_loss_difference"] == (None if difference is None else pytest.approx(difference))
    assert found.get("times_as_long") == (0.5 if name == "scaling" else None)
