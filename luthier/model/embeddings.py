"""The rows of a model's vocabulary: its embedding, and its head over words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def both_embeddings(model: PreTrainedModel) -> list[torch.Tensor]:
    """The weights of embedding and head, once if they are tied; a model for classification has no head over words."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return list({id(module.weight): module.weight for module in modules if module is not None}.values())


def set_rows(model: PreTrainedModel, rows: int) -> None:
    """Give embedding and head as many rows; new ones start as the mean of the old: a neutral token, the same every time."""
    import torch

    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for weight in both_embeddings(model) if rows > old else ():
            weight[old:] = weight[:old].mean(dim=0)
