"""predictions.jsonl: what a finished run predicts for each row of data.validation and data.test, beside what is true."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.foundation.files import write_text

if TYPE_CHECKING:
    from luthier.commands.setup import Setup
    from luthier.training.validation import Evaluation


def write_predictions(path: Path, setup: Setup, held: Mapping[str, Evaluation | None]) -> None:
    """One line for each row: split, file, row, label, predicted, and the classes' probabilities.

    Args:
        held: what was found on each split; None where there is none.
    """
    lines = []
    for split, found in held.items():
        if found is None or found.outcomes_EC is None:
            continue
        examples = getattr(setup.data, split)
        for number, outcome_C in enumerate(found.outcomes_EC):
            origin = examples[number].origin
            place = {"split": split, "file": origin.path, "row": origin.row}
            lines.append(json.dumps({**place, **setup.stage.prediction(outcome_C)}, ensure_ascii=False))
    write_text(path, "".join(f"{line}\n" for line in lines))
