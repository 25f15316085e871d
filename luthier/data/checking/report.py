"""What a check found: counts, lengths, languages and findings, as plain values and for the terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.data.checking.findings import FINDINGS, Hit, by_finding
from luthier.data.checking.lengths import Lengths
from luthier.data.checking.masking import excerpt
from luthier.data.records import Origin, Rejected
from luthier.data.report import DataReport, SourceReport, SplitReport
from luthier.foundation.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

EXAMPLES = 3
SHOWN_REASONS = 10
SHOWN_LANGUAGES = 8
BAR_CHARACTERS = 40
SHOWN_CHARACTERS = 600  # of a reason


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """A split's counts.

    Args:
        summary: as training would report it.
        lengths: of its rows in tokens (of a pair, of its longer answer with the prompt), before anything is cut, those
            left out as too long too; None where no row could be tokenized.
        cutoff: data.cutoff_length.
        trains_tokens: whether the stage learns tokens, rather than labels or from the model's own answers.
    """

    summary: SplitReport
    lengths: Lengths | None
    cutoff: int
    trains_tokens: bool

    @property
    def trained_share(self) -> float:
        """Share of the tokens that have a loss."""
        return self.summary.targets / self.summary.tokens if self.summary.tokens else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.summary.as_dict(),
            "trained_share": round(self.trained_share, 6),
            "lengths": self.lengths.as_dict() if self.lengths else None,
        }


@dataclass(slots=True)
class CheckReport:
    """All that a check found.

    Args:
        sources: the files.
        template: the chat template's name, None where none is used.
        rejected: rows that can't be used, with their values.
        splits: by name, in the order train, validation, test.
        languages: for each split, rows by language (ISO 639 code, `und` where it can't be told).
        findings: the rows of each finding that was made.
        not_looked_for: findings that were not looked for, each with the reason.
    """

    sources: list[SourceReport]
    template: str | None
    rejected: list[Rejected]
    splits: dict[str, SplitCheck] = field(default_factory=dict)
    languages: dict[str, Counter[str]] = field(default_factory=dict)
    findings: dict[str, list[Hit]] = field(default_factory=dict)
    not_looked_for: dict[str, str] = field(default_factory=dict)

    def take(self, hits: Sequence[Hit]) -> None:
        """Sort the hits into findings."""
        self.findings = by_finding(hits)

    @contextmanager
    def needing_extra(self, *findings: str) -> Iterator[None]:
        """Do without what needs a package that is not installed, and note that it was not looked for."""
        try:
            yield
        except MissingExtraError as error:
            self.not_looked_for.update(dict.fromkeys(findings, f"{error.problem} {error.remedy}"))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {
            "template": self.template,
            "sources": [_without_secrets(source) for source in self.sources],
            "rejected": [
                {"reason": reason, "rows": len(items), "examples": [_example(item) for item in items[:EXAMPLES]]}
                for reason, items in self.reasons().items()
            ],
            "splits": {name: split.as_dict() for name, split in self.splits.items()},
            "languages": {name: dict(counts.most_common()) for name, counts in self.languages.items()},
            "findings": {
                name: {
                    "rows": len(hits),
                    "meaning": FINDINGS[name],
                    "examples": [hit.as_dict() for hit in hits[:EXAMPLES]],
                }
                for name, hits in self.findings.items()
            },
            "not_looked_for": dict(self.not_looked_for),
        }

    def reasons(self) -> dict[str, list[Rejected]]:
        """Rejected rows by their reason, the commonest first."""
        found: dict[str, list[Rejected]] = {}
        for item in self.rejected:
            found.setdefault(excerpt(item.reason, SHOWN_CHARACTERS), []).append(item)
        return dict(sorted(found.items(), key=lambda entry: -len(entry[1])))

    def table(self) -> RenderableType:
        """For the terminal."""
        from rich.console import Group

        parts: list[RenderableType] = [DataReport(self.sources).files_table(), self._counts()]
        for name, split in self.splits.items():
            if split.lengths is not None:
                parts.append(_histogram(name, split.lengths, split.cutoff))
        return Group(*parts, self._told())

    def _counts(self) -> RenderableType:
        from rich.table import Table

        table = Table("")
        for name in self.splits:
            table.add_column(name, justify="right")
        columns = {name: _figures(split) for name, split in self.splits.items()}
        for label in next(iter(columns.values()), {}):
            table.add_row(label, *(figures[label] for figures in columns.values()))
        return table

    def _told(self) -> Text:
        """Languages, rejected rows and findings, in lines."""
        from rich.text import Text

        text = Text()
        for name, counts in self.languages.items():
            _line(text, f"\nlanguages of {name}", _shares(counts))
        for reason, items in list(self.reasons().items())[:SHOWN_REASONS]:
            _line(text, f"\n{len(items):,} rejected", reason, "bold red")
            for item in items[:EXAMPLES]:
                text.append(f"    {self._place(item.origin)}: {excerpt(_values(item), 100)}\n", "dim")
        if len(self.reasons()) > SHOWN_REASONS:
            text.append(f"and {len(self.reasons()) - SHOWN_REASONS} reasons more\n")
        for name, hits in self.findings.items():
            _line(text, f"\n{name} ({_rows(len(hits))})", FINDINGS[name], "bold yellow")
            # rejected rows are told above, by reason
            for hit in hits[:EXAMPLES] if name != "rejected" else ():
                text.append(f"    {hit.split}, {self._place(hit.origin)}: {hit.as_dict()['detail']}\n", "dim")
        absent = [name for name in FINDINGS if name not in self.findings and name not in self.not_looked_for]
        _line(text, "\nnot found", ", ".join(absent) or "nothing: every finding was made", "bold green")
        for reason in dict.fromkeys(self.not_looked_for.values()):
            names = [name for name, why in self.not_looked_for.items() if why == reason]
            _line(text, f"not looked for: {', '.join(names)}", reason)
        text.rstrip()
        return text

    def _place(self, origin: Origin) -> str:
        """A row; its file is named where there are several."""
        return str(origin) if len({source.path for source in self.sources}) > 1 else f"row {origin.row}"


def _line(text: Text, head: str, rest: str, style: str = "bold") -> None:
    text.append(head, style)
    text.append(f": {rest}\n")


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    shown = sorted(counts.items(), key=lambda item: -item[1])
    more = f", {len(shown) - SHOWN_LANGUAGES} more" if len(shown) > SHOWN_LANGUAGES else ""
    return ", ".join(f"{name} {count:,} ({count / total:.1%})" for name, count in shown[:SHOWN_LANGUAGES]) + more


def _figures(split: SplitCheck) -> dict[str, str]:
    """A split's numbers by what they are called."""
    summary, lengths = split.summary, split.lengths
    spread = lengths.percentiles if lengths else {}
    trained = {
        "trained tokens": f"{summary.targets:,} ({split.trained_share:.1%})",
        "nothing to learn": f"{summary.zero_target:,}",
        "end with a stop token": f"{summary.ended:.1%}",
    }
    return {
        "records": f"{summary.records:,}",
        "examples": f"{summary.examples:,}",
        "refused by the template": f"{summary.unrendered:,}",
        "left out as too long": f"{summary.dropped:,}",
        "examples cut": f"{summary.truncated:,} ({summary.truncated_tokens:,} tokens lost)",
        "tokens": f"{summary.tokens:,}",
        **(trained if split.trains_tokens else {}),
        "tokens of a row": f"{lengths.shortest:,} to {lengths.longest:,}, mean {lengths.mean:,.0f}" if lengths else "-",
        **{f"  {percent}% have at most": f"{tokens:,}" for percent, tokens in spread.items()},
    }


def _histogram(name: str, lengths: Lengths, cutoff: int) -> Text:
    """Bars of rows by tokens; what is longer than the cutoff in another colour."""
    from rich.text import Text

    text = Text(f"\n{name}: rows by tokens (cutoff_length {cutoff:,})\n", "bold")
    labels = [f"{bar.start:,}+" if bar.end is None else f"{bar.start:,}-{bar.end - 1:,}" for bar in lengths.bars]
    width, most = max(map(len, labels)), max(bar.rows for bar in lengths.bars)
    for label, bar in zip(labels, lengths.bars, strict=True):
        filled = round(bar.rows / most * BAR_CHARACTERS) or int(bar.rows > 0)
        text.append(f"{label:>{width}} ")
        text.append("█" * filled, "green" if bar.start < cutoff else "red")
        text.append(f"{' ' if filled else ''}{bar.rows:,}\n")
    text.rstrip()
    return text


def _without_secrets(source: SourceReport) -> dict[str, Any]:
    """A source's values; its reasons quote rows."""
    reasons = Counter[str]()
    for reason, count in source.rejected.items():
        reasons[excerpt(reason, SHOWN_CHARACTERS)] += count
    return {**source.as_dict(), "rejected_by_reason": dict(reasons.most_common())}


def _values(item: Rejected) -> str:
    return json.dumps(dict(item.values), ensure_ascii=False, default=str)


def _example(item: Rejected) -> dict[str, Any]:
    return {"file": item.origin.path, "row": item.origin.row, "values": excerpt(_values(item), 160)}
