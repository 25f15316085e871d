"""What became of the data: every row that was read is in one of these numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from luthier.data.examples import Encoded, TokenizedExample

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN_REASONS = 5


@dataclass(slots=True)
class SourceReport:
    """One file.

    Args:
        split: train, validation or test.
        format, reason: the rows' format, and how it was found.
        unused: columns that the format does not read.
        read: rows in the file.
        sampled: rows taken of them (split, max_samples), all without these.
        kept: rows that became records.
        records: what they became; a row may hold several.
        rejected: the others, by reason.
        mixed: records of it in the training data that data.mix makes, repeated ones counted again; None: not mixed.
        examples: to use that came of it; None: not counted apart from the other entries of its split.
    """

    path: str
    split: str
    format: str
    reason: str
    unused: tuple[str, ...]
    read: int
    sampled: int
    kept: int
    records: int
    rejected: Counter[str] = field(default_factory=Counter)
    mixed: int | None = None
    examples: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": self.path,
            "split": self.split,
            "format": self.format,
            "reason": self.reason,
            "unused_columns": list(self.unused),
            "rows_read": self.read,
            "rows_sampled": self.sampled,
            "rows_kept": self.kept,
            "records": self.records,
            "records_mixed": self.mixed,
            "examples": self.examples,
            "rows_rejected": sum(self.rejected.values()),
            "rejected_by_reason": dict(self.rejected.most_common()),
        }


@dataclass(slots=True)
class SplitReport:
    """Training, validation or test examples.

    Args:
        records: rows that were encoded.
        examples: examples to use.
        tokens, targets: in those, after truncation.
        truncated: examples that were cut; truncated_tokens: tokens cut from them.
        zero_target: examples left out because nothing in them is trained.
        dropped: examples left out as too long.
        unrendered: rows that the chat template refused.
        longest: tokens of the longest row (of a pair: of its longer answer with the prompt) before truncation, also of
            rows left out.
        unfinished: examples in which a trained answer lost its stop token.
        findings: what was found odd, by kind.
    """

    records: int
    examples: int
    tokens: int
    targets: int
    truncated: int
    truncated_tokens: int
    zero_target: int
    dropped: int
    unrendered: int
    longest: int
    unfinished: int
    findings: Counter[str]

    @classmethod
    def of(
        cls, records: int, encoded: Encoded, *, learns_labels: bool = False
    ) -> tuple[SplitReport, list[TokenizedExample]]:
        """The report on an encoder's work, and the examples that have something to learn: a target, or a label."""
        used = [example for example in encoded.examples if example.targets or learns_labels]
        cut = [example for example in encoded.examples if example.truncated]
        report = cls(
            records=records,
            examples=len(used),
            tokens=sum(example.tokens for example in used),
            targets=sum(example.targets for example in used),
            truncated=len(cut),
            truncated_tokens=sum(example.untruncated_length - example.tokens for example in cut),
            zero_target=len(encoded.examples) - len(used),
            dropped=len(encoded.dropped),
            unrendered=len(encoded.rejected),
            longest=max((record.tokens for record in encoded.lengths), default=0),
            unfinished=len(encoded.unfinished),
            findings=Counter(encoded.findings),
        )
        return report, used

    @classmethod
    def joined(cls, parts: Sequence[SplitReport]) -> SplitReport:
        """The report on consecutive parts of a split."""
        names = [item.name for item in fields(cls) if item.name not in ("longest", "findings")]
        totals = {name: sum(getattr(part, name) for part in parts) for name in names}
        findings = sum((part.findings for part in parts), Counter[str]())
        return cls(**totals, longest=max((part.longest for part in parts), default=0), findings=findings)

    @property
    def ended(self) -> float:
        """Share of the examples whose trained answers keep their stop tokens."""
        return (self.examples - self.unfinished) / self.examples if self.examples else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rows": self.records,
            "examples": self.examples,
            "tokens": self.tokens,
            "targets": self.targets,
            "truncated_rows": self.truncated,
            "truncated_tokens": self.truncated_tokens,
            "zero_target_rows": self.zero_target,
            "dropped_rows": self.dropped,
            "unrendered_rows": self.unrendered,
            "longest_tokens": self.longest,
            "eos_coverage": round(self.ended, 6),
            "findings": dict(self.findings.most_common()),
        }


@dataclass(slots=True)
class DataReport:
    """All files and all splits.

    Args:
        labels: names of the classes, in the order of their numbers, where rows have such labels.
    """

    sources: list[SourceReport] = field(default_factory=list)
    splits: dict[str, SplitReport] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {
            "sources": [source.as_dict() for source in self.sources],
            "splits": {name: split.as_dict() for name, split in self.splits.items()},
            "labels": list(self.labels),
        }

    def table(self) -> RenderableType:
        """For the terminal: the files, the splits, and what was found odd."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        splits = Table("")
        for name in self.splits:
            splits.add_column(name, justify="right")
        numbers = {name: split.as_dict() for name, split in self.splits.items()}
        for key in next(iter(numbers.values()), {}):
            if key != "findings":
                splits.add_row(key.replace("_", " "), *(_number(values[key]) for values in numbers.values()))
        tables = [self.files_table(), splits] if self.splits else []  # a stream is counted as it is read
        return Group(*tables, *map(escape, self.remarks()))

    def files_table(self) -> RenderableType:
        """For the terminal: what was read of each file, and below how the formats were found."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        files = Table()
        for column in ("file", "split", "format", "read", "kept", "rejected"):
            number = column in ("read", "kept", "rejected")
            files.add_column(column, overflow="fold", justify="right" if number else "left")
        for source in self.sources:
            files.add_row(
                escape(source.path),
                source.split,
                escape(source.format),
                f"{source.read:,}" + (f" ({source.sampled:,} taken)" if source.sampled < source.read else ""),
                f"{source.kept:,}",
                f"{sum(source.rejected.values()):,}",
            )
        reasons = dict.fromkeys(f"{source.format}: {source.reason}" for source in self.sources)
        return Group("Data", files, *map(escape, reasons))

    def remarks(self) -> list[str]:
        """What a person should know before training, one sentence each."""
        found = []
        for source in self.sources:
            if source.mixed is not None:
                found.append(f"{source.path}: {source.mixed:,} records of it in the mix")
            if source.unused:
                found.append(f"{source.path}: columns not used: {', '.join(source.unused)}")
            for reason, count in source.rejected.most_common(SHOWN_REASONS):
                found.append(f"{source.path}: {count:,} rejected: {reason}")
        for name, split in self.splits.items():
            if split.zero_target:
                found.append(f"{name}: {split.zero_target:,} left out, no token of them is trained")
            if split.dropped:
                found.append(f"{name}: {split.dropped:,} dropped as longer than the cutoff")
            if split.truncated:
                found.append(f"{name}: {split.truncated:,} cut to the cutoff, {split.truncated_tokens:,} tokens lost")
            found.extend(f"{name}: {count:,} x {finding}" for finding, count in split.findings.most_common())
        return found


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1%}"
