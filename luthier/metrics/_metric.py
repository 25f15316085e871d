"""What every metric is.

A metric's file says with TASKS which kinds of truths and predictions it takes, and with GREATER_IS_BETTER which direction is
good; `build(options)` gives the function.

    single_label   class numbers, int [E]
    multi_label    0 or 1 for every class, int [E, K]
    regression     numbers, float [E]
    text           written answers beside what is right, see `luthier.metrics._text`

A metric of the first three gives one number, named as its file; one of text says with GIVES what its numbers are called. One
that can't measure every reference has `check(options, references)`, of pairs of a place for messages and a reference, which
raises DataError before anything is generated. One that stands on an optional package has `needs(options)`, which raises
MissingExtraError before anything is generated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

Task = Literal["single_label", "multi_label", "regression", "text"]
Array = np.ndarray[Any, np.dtype[Any]]
Metric = Callable[[Array, Array], float]
"""From what is true and what was predicted, of at least one example, to a number."""


class MetricOptions(BaseModel):
    """Base of every metric's `Options`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
