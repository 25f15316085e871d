"""What should not be learnt by heart: secrets and e-mail addresses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from luthier.data.checking.findings import Hit
from luthier.data.checking.masking import emails_in, secrets_in
from luthier.data.checking.rows import RowTexts


def find(rows: Sequence[RowTexts]) -> Iterator[Hit]:
    """`secrets` and `emails`; the details hold none of them whole."""
    for row in rows:
        for text in row.every:
            for kind, shown in secrets_in(text):
                yield Hit("secrets", row.split, row.origin, f"{kind}: {shown}")
            for shown in emails_in(text):
                yield Hit("emails", row.split, row.origin, shown)
