"""A tokenized example: what encoders make, what packing turns into batches. No torch here."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

from luthier.data.records import Origin, Rejected


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Tokens that attend causally to each other.

    Args:
        input_ids: token ids, [L].
        weights: loss weight of each token as a target, [L]; 0 means it is context. The first is always 0: nothing
            before it predicts it.
    """

    input_ids: tuple[int, ...]
    weights: tuple[float, ...]
    targets: int = field(init=False, repr=False, compare=False)
    """Tokens with a loss."""

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.weights):
            raise ValueError(f"{len(self.input_ids)} tokens but {len(self.weights)} weights")
        if self.weights and self.weights[0] != 0:
            raise ValueError("the first token of a sequence has nothing before it that could predict it")
        # counted once: this is asked several times for every row, and took a tenth of the time of tokenizing
        object.__setattr__(self, "targets", len(self.weights) - self.weights.count(0.0))


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One training example: one sequence (sft), the two answers of a pair, or the documents of a pretraining block.

    Args:
        sequences: its token sequences.
        origin: the row it came from (of a pretraining block: the row of its first token).
        untruncated_length: tokens before anything was cut.
        extras: numbers that the stage needs (labels, margins).
        number: its place in the set that it is kept in; None where it is in none.
    """

    sequences: tuple[TokenSequence, ...]
    origin: Origin
    untruncated_length: int
    extras: Mapping[str, float] = field(default_factory=dict)
    number: int | None = field(default=None, compare=False)

    @property
    def tokens(self) -> int:
        """Tokens after truncation, over all sequences."""
        return sum(len(sequence.input_ids) for sequence in self.sequences)

    @property
    def targets(self) -> int:
        """Tokens with a loss, over all sequences."""
        return sum(sequence.targets for sequence in self.sequences)

    @property
    def truncated(self) -> bool:
        """Whether anything was cut."""
        return self.tokens < self.untruncated_length


@dataclass(frozen=True, slots=True)
class RecordLength:
    """How long a record is, and what became of it.

    Args:
        tokens: of its longest sequence, before anything is cut; data.cutoff_length goes by it.
        examples: how many were made of it; 0: it was too long, and left out.
    """

    origin: Origin
    tokens: int
    examples: int = 1


@dataclass(slots=True)
class Encoded:
    """What an encoder makes of records.

    Args:
        examples: those to use, zero-target ones included.
        rejected: records that can't be rendered.
        lengths: of all other records, those left out too.
        unfinished: the row of each example in which a trained answer lost its end, the stop token, to truncation.
        findings: what was found odd, and how often.
    """

    examples: list[TokenizedExample] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    lengths: list[RecordLength] = field(default_factory=list)
    unfinished: list[Origin] = field(default_factory=list)
    findings: Counter[str] = field(default_factory=Counter)

    @property
    def dropped(self) -> list[Origin]:
        """Origins of records left out because they are too long."""
        return [record.origin for record in self.lengths if not record.examples]


class Examples(Sequence[TokenizedExample]):
    """Examples that are made when they are asked for; a slice of them is a list."""

    @abstractmethod
    def example(self, place: int) -> TokenizedExample:
        """The example of a number from 0 to len - 1."""

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self.example(place) for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self.example(place)


class ExamplesThrough(Examples):
    """Of each example what a function makes of it; its number stays."""

    def __init__(
        self, examples: Sequence[TokenizedExample], function: Callable[[TokenizedExample], TokenizedExample]
    ) -> None:
        self._examples = examples
        self._function = function

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, place: int) -> TokenizedExample:
        return self._function(self._examples[place])


class ExamplesWith(Examples):
    """Examples with further numbers among their extras.

    Args:
        numbers: of each name, one number an example.
    """

    def __init__(self, examples: Sequence[TokenizedExample], numbers: Mapping[str, Sequence[float]]) -> None:
        self._examples = examples
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, place: int) -> TokenizedExample:
        found = self._examples[place]
        more = {name: float(values[place]) for name, values in self._numbers.items()}
        return replace(found, extras={**found.extras, **more})
