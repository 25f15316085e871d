"""predictions.jsonl: what a finished run predicts for each row of data.validation and data.test, beside what is true; of
answers that were generated, those to data.test."""

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
    """One line for each row: split, file, row, label, predicted, and the classes' probabilities; or, of an answer, index,
    prediction and label, as `luthier evaluate --predictions` takes them.

    Args:
        held: what was found on each split; None where there is none.
    """
    lines = []
    for split, found in held.items():
        if found is None:
            continue
        if found.outcomes_EC is not None:
            said = [setup.stage.prediction(outcome_C) for outcome_C in found.outcomes_EC]
        else:
            pairs = ((answer.prediction, answer.reference) for answer in found.answers)
            said = [{"index": n, "prediction": text, "label": right} for n, (text, right) in enumerate(pairs)]
        examples = getattr(setup.data, split)
        for number, values in enumerate(said):
            origin = examples[number].origin
            place = {"split": split, "file": origin.path, "row": origin.row}
            lines.append(json.dumps({**place, **values}, ensure_ascii=False))
    write_text(path, "".join(f"{line}\n" for line in lines))
