"""Models whose head reads a row at a fixed column, whatever stands there: which side padding has to go, and who can't be padded.

transformers' XLNet (and XLM, where it is set so) hands its head the last column of a row or the mean over all of them: right of
a shorter row that is padding, and a text's numbers would depend on the texts beside it.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from luthier.foundation.errors import ModelError

RELATIVE = "xlnet"  # counts positions from token to token, so padding before a row moves nothing


def reads_last_column(model: PreTrainedModel, virtual: bool) -> bool:
    """Whether a model with a head for classification needs its rows padded on the left.

    Args:
        virtual: whether virtual tokens stand before every row.

    Raises:
        ModelError: padding on either side would change what it gives; virtual tokens stand left of the padding, and it would
            move them away from the text.
    """
    summary: Any = getattr(model, "sequence_summary", None)
    kind = getattr(summary, "summary_type", "first")
    if kind == "first":
        return False
    if kind != "last" or model.config.model_type != RELATIVE:
        raise ModelError(
            f"the head of {type(model).__name__} reads padding like text: summary_type is {kind} in its config.json, so a text's "
            "numbers would depend on the texts beside it.",
            "Choose another model.",
        )
    if virtual:
        raise ModelError(
            f"{type(model).__name__} needs its rows padded on the left, where virtual tokens stand: they would lie farther from "
            "a shorter text.",
            "Use method: lora.",
        )
    return True
