"""What every export format is given, and what it gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from luthier.model.loading import ModelSource
    from luthier.model.placement import Placement


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export.

    Args:
        source: the model's parts on this machine.
        building: an empty folder to fill.
        max_shard_size: largest weight file, such as 5GB.
        dtype: auto (the base's own), float32, bfloat16 or float16.
        placement: where the modules of what is loaded lie; None: in memory.
    """

    source: ModelSource
    building: Path
    max_shard_size: str
    dtype: str
    trust_remote_code: bool
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was exported.

    Args:
        path: the folder. dtype: of its weights. bytes: of all its files.
        largest_logit_difference: between the model that was read and the one that was written, read back, over a
            short text in English and Chinese; largest_logit is the size to compare it with.
        quantized_logit_difference: between the quantized base with its adapter, as it was trained, and the model that was
            written; None where nothing was quantized.
    """

    path: str
    format: str
    dtype: str
    files: int
    bytes: int
    largest_logit_difference: float
    largest_logit: float
    quantized_logit_difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What an exporter measured; see `ExportResult`."""

    dtype: str
    largest_logit_difference: float
    largest_logit: float
    quantized_logit_difference: float | None = None


class Exporter(Protocol):
    """An export format."""

    def export(self, request: ExportRequest) -> Comparison:
        """Fill the folder; raises ModelError for a model that has no such format."""
        ...


SAMPLE_TEXT = "The quick brown fox jumps over the lazy dog. 1 + 1 = 2. 琴匠用云杉和枫木做琴。"


def sample_tokens(source: ModelSource, trust_remote_code: bool) -> list[int]:
    """Token ids of a short text in English and Chinese."""
    from luthier.model.loading import tokenizer_at

    tokenizer = tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
    ids: list[int] = tokenizer(SAMPLE_TEXT).input_ids
    return ids
