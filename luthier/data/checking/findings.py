"""What a check can find, by name, and one row where it was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from luthier.data.checking.masking import excerpt
from luthier.foundation.errors import UserError
from luthier.foundation.registry import nearest

if TYPE_CHECKING:  # the command line names the findings in its help, which should be instant
    from luthier.data.records import Origin

FINDINGS: Mapping[str, str] = MappingProxyType(
    {
        "rejected": "rows that can't be used, refused by the format or by the chat template",
        "mended": "rows that were mended, such as a last question without an answer taken off",
        "no_answer": "an answer is empty",
        "blank_answer": "an answer is only punctuation, or a placeholder such as N/A or null",
        "short_answer": "an answer has one or two characters",
        "refusal": "an answer refuses, or speaks of itself as an AI language model",
        "echoed_question": "an answer repeats its question",
        "looping_answer": "an answer says the same over and over",
        "cut_answer": "a long answer breaks off in the middle of a sentence or of a block of code",
        "identical_pair": "the chosen and the rejected answer are the same",
        "duplicates": "rows with the same text as an earlier one of their split",
        "near_duplicates": "rows nearly the same as an earlier one of their split",
        "conflicting_labels": "rows with the same text as an earlier one and another label",
        "leakage": "validation or test rows whose question (or text) stands in the training data",
        "near_leakage": "validation or test rows nearly the same as a training row",
        "other_language": "rows in none of the languages that --language names",
        "secrets": "passwords, keys and tokens",
        "emails": "e-mail addresses",
        "control_tokens": "special tokens spelled out in a text, which the tokenizer takes for the tokens",
        "over_length": "rows longer than data.cutoff_length, which are cut, split or left out",
        "no_stop_token": "rows of which a trained answer lost its stop token when it was cut",
        "untrained": "rows without a token to learn",
    }
)
ANY = "any"


@dataclass(frozen=True, slots=True)
class Hit:
    """A row with a finding.

    Args:
        finding: a name in `FINDINGS`.
        detail: what was found, for a person; without secrets.
    """

    finding: str
    split: str
    origin: Origin
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values; the detail short, and with secrets masked."""
        return {
            "finding": self.finding,
            "split": self.split,
            "file": self.origin.path,
            "row": self.origin.row,
            "detail": excerpt(self.detail, 160),
        }


def seen_from(other: Origin, here: Origin) -> str:
    """How to name another row: its file only where it is another one."""
    return f"row {other.row}" if other.path == here.path else str(other)


def checked_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of findings as `FINDINGS` has them; a hyphen may stand for an underscore, a comma between names.

    Raises:
        UserError: no such finding; the nearest are named.
    """
    found = []
    for name in (part for text in names for part in text.split(",")):
        known = name.strip().lower().replace("-", "_")
        if known not in FINDINGS and known != ANY:
            close = nearest(known, [*FINDINGS, ANY])
            hint = f"Did you mean {' or '.join(close)}? " if close else ""
            raise UserError(f"there is no finding named {name!r}.", f"{hint}Known: {', '.join(FINDINGS)}, {ANY}.")
        found.append(known)
    return tuple(found)


def by_finding(hits: Iterable[Hit]) -> dict[str, list[Hit]]:
    """Hits by their finding, in the order of `FINDINGS`; a row counts once for each finding."""
    found: dict[str, dict[tuple[str, Origin], Hit]] = {name: {} for name in FINDINGS}
    for hit in hits:
        found[hit.finding].setdefault((hit.split, hit.origin), hit)
    return {name: list(rows.values()) for name, rows in found.items() if rows}


def failing(found: Mapping[str, Sequence[Hit]], fail_on: Sequence[str]) -> tuple[str, ...]:
    """Which of the findings asked for were made."""
    return tuple(name for name in found if name in fail_on or ANY in fail_on)
