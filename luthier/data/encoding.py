"""Records through an encoder, some hundreds at a time: what comes out is small, so all of it never stands in memory as
Python's objects, and other processes may do it.

An error must tell of all rows it is about. So where a block of records gives one, all records go through the encoder at
once, which says it as if there were no blocks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from luthier.config.plugins import ENCODERS
from luthier.config.sections import PluginOptions
from luthier.data.encoder_settings import joins_records
from luthier.data.examples import Encoded, TokenizedExample
from luthier.data.records import Record, Rejected
from luthier.data.report import SplitReport
from luthier.data.token_arrays import TokenBlock
from luthier.foundation.errors import LuthierError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.encoding_processes import EncodingProcesses
    from luthier.data.rendering import Renderer

BLOCK_RECORDS = 500
# up to here (some 4,000 rows) one process is done before others have started, which takes a second or two
BYTES_FOR_ONE_PROCESS = 3_000_000


@dataclass(frozen=True, slots=True)
class EncodedRecords:
    """What became of records.

    Args:
        refused: by the template; too_long, untrained: left out, with the reason.
    """

    used: list[TokenizedExample]
    report: SplitReport
    refused: list[Rejected]
    too_long: list[Rejected]
    untrained: list[Rejected]


@dataclass(frozen=True, slots=True)
class ChosenEncoder:
    """An encoder, ready for records of its kind.

    Args:
        trains_tokens: examples without a target are of no use.
        depends_on_rows: some of its options are decided by the training rows.
        sequence_names: what the sequences of an example are called ("chosen", "rejected"), where they have names.
    """

    record: type
    options: PluginOptions
    renderer: Renderer | None
    encode: Callable[[Sequence[Record]], Encoded]
    trains_tokens: bool
    depends_on_rows: bool
    sequence_names: tuple[str, ...] = ()

    @property
    def joins_records(self) -> bool:
        """Whether an example may hold several records, so that records can't be encoded apart."""
        return joins_records(self.record)

    def encode_counted(self, records: Sequence[Record], cutoff: int) -> EncodedRecords:
        """Records through the encoder, and what became of each.

        Raises:
            DataError: rows that the encoder refuses.
        """
        encoded = self.encode(records)
        report, used = SplitReport.of(len(records), encoded, learns_labels=not self.trains_tokens)
        too_long = [Rejected(origin, f"longer than data.cutoff_length ({cutoff})") for origin in encoded.dropped]
        untrained = [
            Rejected(example.origin, "no token of it is trained")
            for example in encoded.examples
            if self.trains_tokens and not example.targets
        ]
        if self.joins_records:  # a block of joined documents is no row of anyone's
            too_long, untrained = [], []
        return EncodedRecords(used, report, encoded.rejected, too_long, untrained)

    @classmethod
    def of(
        cls, encoder: str, options: PluginOptions, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
    ) -> ChosenEncoder:
        """The encoder of a name with its options."""
        module = ENCODERS.load(encoder)
        names = getattr(module, "SEQUENCE_NAMES", ())
        return cls(
            module.RECORD,
            options,
            renderer,
            module.build(options, tokenizer, renderer),
            trains_tokens=getattr(module, "TRAINS_TOKENS", True),
            depends_on_rows=hasattr(module, "from_records"),
            sequence_names=getattr(options, names) if isinstance(names, str) else names,
        )


@dataclass(frozen=True, slots=True)
class EncodingTask:
    """What a process needs to encode records: an encoder by its name, and what it is built with.

    Args:
        template: data.template; None where the encoder needs none.
        dtype: of token ids.
        cutoff: data.cutoff_length, for what is said of rows left out.
        day: see `Renderer`.
    """

    encoder: str
    options: PluginOptions
    tokenizer: PreTrainedTokenizerBase
    template: str | None
    dtype: str
    cutoff: int
    day: date | None = None

    def choose(self) -> ChosenEncoder:
        """The encoder, built anew."""
        from luthier.data.rendering import Renderer

        renderer = Renderer(self.tokenizer, self.template, self.day) if self.template is not None else None
        return ChosenEncoder.of(self.encoder, self.options, self.tokenizer, renderer)

    def encode(self, chosen: ChosenEncoder, records: Sequence[Record]) -> EncodedBlock:
        """A block of records through the encoder.

        Raises:
            DataError: rows that the encoder refuses.
        """
        found = chosen.encode_counted(records, self.cutoff)
        return EncodedBlock(
            TokenBlock.of(found.used, self.dtype), found.report, found.refused, found.too_long, found.untrained
        )


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """What became of a block of records.

    Args:
        refused: by the template; too_long, untrained: left out, with the reason.
    """

    tokens: TokenBlock
    report: SplitReport
    refused: list[Rejected]
    too_long: list[Rejected]
    untrained: list[Rejected]


class BlockEncoder:
    """Encodes sets of records block by block.

    Args:
        chosen: the task's encoder, as this process has it.
        processes: others that help; None: this one does all.
    """

    def __init__(self, task: EncodingTask, chosen: ChosenEncoder, processes: EncodingProcesses | None) -> None:
        self._task = task
        self._chosen = chosen
        self._elsewhere = processes.prepare(task) if processes is not None else None

    def __call__(self, records: Sequence[Record]) -> Iterator[EncodedBlock]:
        """The blocks of a set, in order.

        Raises:
            DataError: rows that the encoder refuses, all of them told.
        """
        blocks = _blocks(records, len(records) if self._chosen.joins_records else BLOCK_RECORDS)
        found = self._elsewhere(blocks) if self._elsewhere is not None else (None for _ in blocks)
        for block, encoded in zip(blocks, found, strict=True):
            yield encoded if encoded is not None else self._here(block, records)

    def _here(self, block: Sequence[Record], records: Sequence[Record]) -> EncodedBlock:
        try:
            return self._task.encode(self._chosen, block)
        except LuthierError:
            self._task.encode(self._chosen, records)  # raises for all records
            raise


def encoding_processes(
    chosen: ChosenEncoder, size: int, asked: int | None
) -> AbstractContextManager[EncodingProcesses | None]:
    """As many other processes as are asked for and of use; they end with the context.

    They start before the rows are read, which takes this process as long as it takes them to be ready.

    Args:
        size: bytes of the data files.
        asked: data.preprocessing_num_workers; None: as many as there are cores, for large files.
    """
    count = process_count(size, asked)
    if count == 1 or chosen.joins_records:
        return nullcontext()
    from luthier.data.encoding_processes import EncodingProcesses

    return EncodingProcesses(count)


def process_count(size: int, asked: int | None) -> int:
    """Processes that encode what is in files of `size` bytes: those asked for, or the cores."""
    if asked is None:
        return available_cores() if size > BYTES_FOR_ONE_PROCESS else 1
    return asked


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _blocks(records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    return [records[start : start + size] for start in range(0, len(records), size)]
