"""What one query may use."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may use before it is stopped.

    Args:
        seconds: wall time of one query.
        rows: rows of its result.
        result_bytes: bytes of all cells of its result, 8 for each number and 8 more than its length for a text or a blob.
        cell_bytes: bytes of one text or blob, also of one in the middle of a computation.
        memory_bytes: memory that SQLite may take; the process around it may take `PROCESS_BYTES` more.
        sql_bytes: length of the query.
    """

    seconds: float = 30.0
    rows: int = 1_000_000
    result_bytes: int = 64 << 20
    cell_bytes: int = 16 << 20
    memory_bytes: int = 256 << 20
    sql_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, found {value!r}")
