"""Rows whose text stands in the data more than once: the same, or the same question in training and in a held-out split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from luthier.data.checking.findings import Hit, seen_from
from luthier.data.checking.rows import RowTexts
from luthier.data.records import Origin


def find(rows: Sequence[RowTexts]) -> Iterator[Hit]:
    """`duplicates`, `conflicting_labels` and `leakage`; white space does not tell texts apart."""
    yield from _duplicates(rows)
    yield from _leakage(rows)


def _duplicates(rows: Sequence[RowTexts]) -> Iterator[Hit]:
    """Two rows of one text and one label are duplicates, two of one text and different labels a conflict."""
    first: dict[tuple[str, bytes], RowTexts] = {}
    for row in rows:
        earlier = first.setdefault((row.split, digest(row.whole)), row)
        if earlier is row:
            continue
        if earlier.label == row.label:
            yield Hit(
                "duplicates",
                row.split,
                row.origin,
                f"the same as {seen_from(earlier.origin, row.origin)}: {row.question}",
            )
        else:
            other = seen_from(earlier.origin, row.origin)
            detail = f"{row.label} here, {earlier.label} in {other}: {row.question}"
            yield Hit("conflicting_labels", row.split, row.origin, detail)


def _leakage(rows: Sequence[RowTexts]) -> Iterator[Hit]:
    held_out = [row for row in rows if row.split != "train"]
    if not held_out:
        return
    learnt: dict[bytes, Origin] = {}
    for row in rows:
        if row.split == "train":
            learnt.setdefault(digest(row.question), row.origin)
    for row in held_out:
        origin = learnt.get(digest(row.question))
        if origin is not None:
            yield Hit(
                "leakage", row.split, row.origin, f"the question of {seen_from(origin, row.origin)}: {row.question}"
            )


def digest(text: str) -> bytes:
    """Hash of a text, the same for any white space between its words."""
    return hashlib.blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=16).digest()
