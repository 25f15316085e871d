"""The run's own rows for a method that looks at activations before the first step: the same on every rank, and in every run
of the same config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from luthier.commands.setup import Setup
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.streamed import Place
from luthier.foundation.errors import ModelError
from luthier.training.schedule import epoch_order

if TYPE_CHECKING:
    from torch import Tensor

MOST_EXAMPLES = 1024
UNREAD = -100  # label of a token that is no target


def calibration_batches(setup: Setup, least_targets: int) -> list[Mapping[str, Tensor]]:
    """Padded batches of the examples that the run trains on first, in its order.

    Args:
        least_targets: trained tokens that a batch has at least.

    Returns:
        input_ids, attention_mask and labels (-100 where a token is not trained; where a stage trains no tokens, none is),
        each int64 [rows, longest row].

    Raises:
        ModelError: all of them together have fewer trained tokens.
    """
    batches: list[list[TokenSequence]] = []
    waiting: list[TokenSequence] = []
    reads_targets = bool(setup.data.train.targets) if setup.data.stream is None else True
    count = 0
    for sequence in (sequence for example in _first_examples(setup) for sequence in example.sequences):
        waiting.append(sequence)
        count += sequence.targets if reads_targets else len(sequence.input_ids)
        if count >= least_targets:
            batches.append(waiting)
            waiting, count = [], 0
    if not batches:
        raise ModelError(
            f"method.init needs {least_targets} trained tokens to look at, and the run's rows have {count}.",
            "Lower method.rank or method.eva_rho, or give more rows.",
        )
    batches[-1] += waiting
    pad = setup.tokenizer.pad_token_id or 0
    return [_padded(batch, pad, reads_targets) for batch in batches]


def _first_examples(setup: Setup) -> Iterator[TokenizedExample]:
    rows = setup.data.train
    if setup.data.stream is not None:
        found = (item.example for item in setup.data.stream.examples(0, Place()))
        yield from islice((example for example in found if example is not None), MOST_EXAMPLES)
        return
    shuffled = setup.config.data.shuffle
    order = epoch_order(len(rows), setup.config.data_seed(), 0) if shuffled else range(len(rows))
    yield from (rows[index] for index in islice(order, MOST_EXAMPLES))


def _padded(batch: list[TokenSequence], pad: int, reads_targets: bool) -> dict[str, Tensor]:
    import torch

    longest = max(len(sequence.input_ids) for sequence in batch)
    shape = (len(batch), longest)
    input_ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, UNREAD)
    for row, sequence in enumerate(batch):
        ids, length = torch.tensor(sequence.input_ids), len(sequence.input_ids)
        input_ids[row, :length], mask[row, :length] = ids, 1
        read = torch.tensor(sequence.weights) > 0 if reads_targets else torch.ones(length, dtype=torch.bool)
        labels[row, :length][read] = ids[read]
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
