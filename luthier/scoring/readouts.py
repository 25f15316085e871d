"""What is read of a forward pass: log-probabilities, a small head's outputs, a function of the logits; they combine.

Shapes: N targets, P positions that are read, C targets of one chunk, H hidden width, V vocabulary, k outputs, T tokens,
S segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from luthier.data.batch import Batch
    from luthier.scoring.padded import PaddedRows


@dataclass(frozen=True, slots=True)
class TargetLogp:
    """The log-probability of every target, float32 [N]."""


@dataclass(frozen=True, slots=True)
class HeadAt:
    """A small head on hidden states: reward, value, classification, regression; float32 [P, k].

    Args:
        head: the name of a module of the transformers model.
        place: sources, the batch's source positions, or ends, the last token of each sequence, in their order, where
            transformers' `...ForSequenceClassification` reads: trailing padding tokens are passed over.
    """

    head: str = "score"
    place: Literal["sources", "ends"] = "ends"


@dataclass(frozen=True, slots=True)
class PerChunk:
    """A function of the logits, such as an entropy or a teacher's distribution: float32 [N, k].

    Args:
        fn: from the float32 logits [C, V] of some targets, and which of the N they are, to [C, k]. It runs again in
            backward, since logits are not kept.
    """

    fn: Callable[[Tensor, slice], Tensor]


Readout = TargetLogp | HeadAt | PerChunk


@dataclass(frozen=True, slots=True)
class Scores:
    """What a forward pass gives a stage.

    Args:
        readings: the tensor of each readout that was asked for.
        auxiliary_loss: a router's loss, a mean over the batch's tokens, and the method's penalty, in training; None where
            there is neither.
    """

    readings: Mapping[Readout, Tensor]
    auxiliary_loss: Tensor | None = None

    def __getitem__(self, readout: Readout) -> Tensor:
        return self.readings[readout]

    @property
    def logp_N(self) -> Tensor:
        """float32 [N], log-probability of each of the batch's targets; KeyError where `TargetLogp` was not asked for."""
        return self.readings[TargetLogp()]


def as_readouts(readout: Readout | Sequence[Readout]) -> tuple[Readout, ...]:
    """One readout or several, as several."""
    return tuple(readout) if isinstance(readout, Sequence) else (readout,)


class Positions:
    """Where a batch is read for some readouts: its sources, the ends of its sequences, or the ones after the others.

    Args:
        pad_token_id: a token that no sequence ends in.
    """

    def __init__(self, batch: Batch, readouts: Sequence[Readout], pad_token_id: int) -> None:
        at_ends = [isinstance(readout, HeadAt) and readout.place == "ends" for readout in readouts]
        self._sources = 0 if all(at_ends) else len(batch.source_positions_N)
        parts = [] if all(at_ends) else [batch.source_positions_N]
        if any(at_ends):
            parts.append(sequence_ends(batch, pad_token_id))
        self.rows_P = torch.cat(parts) if len(parts) > 1 else parts[0]

    def part(self, of_P: Tensor, place: Literal["sources", "ends"]) -> Tensor:
        """What a place stands for, of something that is there for each of the P."""
        return of_P[: self._sources] if place == "sources" else of_P[self._sources :]


def sequence_ends(batch: Batch, pad_token_id: int) -> Tensor:
    """The row index of each sequence's last token that is not `pad_token_id` (where all are: of its first), int64.

    A sequence whose segment holds nothing else is read in a segment above: of two texts that end in the token that pads, one
    of which begins the other, the shorter one ends in a segment of that token alone.
    """
    device, segments = batch.input_ids_T.device, batch.segments
    row_T = torch.arange(len(batch.input_ids_T), device=device)
    real_T = torch.where(batch.input_ids_T != pad_token_id, row_T, -1).cummax(0).values
    start_S = torch.tensor([segment.start for segment in segments], device=device)
    last_S = torch.tensor([segment.end - 1 for segment in segments], device=device)
    else_S = torch.tensor([segment.start if segment.parent is None else -1 for segment in segments], device=device)
    end_S = torch.where(real_T[last_S] >= start_S, real_T[last_S], else_S)
    parent_S = torch.tensor([segment.parent or 0 for segment in segments], device=device)  # a root has found its own
    for _ in range(_depth(batch)):
        end_S = torch.where(end_S < 0, end_S[parent_S], end_S)
    return end_S[torch.tensor(batch.leaves, device=device)]


def _depth(batch: Batch) -> int:
    """How many segments lie above another one at most."""
    above: list[int] = []
    for segment in batch.segments:
        above.append(0 if segment.parent is None else above[segment.parent] + 1)
    return max(above)


def head_of(model: nn.Module, name: str) -> nn.Module:
    """A head of a transformers model by its name.

    Raises:
        ValueError: it has none of that name.
    """
    head = getattr(model, name, None)
    if not isinstance(head, nn.Module):
        raise ValueError(f"{type(model).__name__} has no head named {name!r}")
    return head


def head_outputs(head: nn.Module, hidden_PH: Tensor) -> Tensor:
    """float32 [P, k]; a head is kept in float32, whatever precision the backbone hands on."""
    kind = next(head.parameters()).dtype
    outputs: Any = head(hidden_PH.to(kind))
    result: Tensor = outputs.float()
    return result


def own_logits(model: nn.Module, rows: PaddedRows, second_text_at_R: Tensor | None, pad_left: bool = False) -> Tensor:
    """float32 [R, k]: what a model with a head for classification gives for padded rows, by its own forward.

    Args:
        model: a transformers model or a peft wrapper around one. It counts positions itself: some families begin at 2.
        second_text_at_R: tokens before each row's second text, for models that are told which text a token is of.
        pad_left: hand the rows on with their padding before them, see `luthier.scoring.sequence_summary`.
    """
    inputs = {"input_ids": rows.input_ids_RL, "attention_mask": rows.attention_mask_RL}
    if second_text_at_R is not None:
        column_L = torch.arange(rows.input_ids_RL.shape[1], device=rows.input_ids_RL.device)
        second_RL = column_L >= second_text_at_R[:, None]
        inputs["token_type_ids"] = second_RL.long() * rows.attention_mask_RL
    if pad_left:
        mask_RL = rows.attention_mask_RL
        column_L = torch.arange(mask_RL.shape[1], device=mask_RL.device)
        from_RL = (column_L + mask_RL.sum(dim=1, keepdim=True)) % len(column_L)
        inputs = {name: value_RL.gather(1, from_RL) for name, value_RL in inputs.items()}
    logits: Tensor = model(**inputs).logits
    return logits.float()
