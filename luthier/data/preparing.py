"""From a config's data section to tokenized examples, all of it counted, before any weight is read."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.data_section import DataConfig
from luthier.config.plugins import ENCODERS
from luthier.config.schema import RunConfig
from luthier.config.sections import PluginOptions
from luthier.data.encoder_settings import encoder_settings
from luthier.data.entries import LoadedEntry, load_entry
from luthier.data.examples import Encoded, TokenizedExample
from luthier.data.fingerprints import data_fingerprint, tokenizer_fingerprint
from luthier.data.locating import Located
from luthier.data.mixing import interleave
from luthier.data.records import Document, Record, Rejected
from luthier.data.report import DataReport, SourceReport, SplitReport
from luthier.foundation.errors import DataError
from luthier.foundation.files import write_text
from luthier.foundation.seeding import permutation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

SHOWN_ROWS = 20
SPLITS = ("train", "validation", "test")


@dataclass(slots=True)
class PreparedData:
    """Examples to train and measure on.

    Args:
        train, validation, test: examples in the files' order; empty where the config has no such split.
        report: what became of every row.
        rejected: rows left out: invalid ones under `invalid_rows: reject`, too long ones, ones with nothing to learn.
        fingerprint: sha256 over everything that changes the tokens or their order.
    """

    train: Sequence[TokenizedExample]
    validation: Sequence[TokenizedExample]
    test: Sequence[TokenizedExample]
    report: DataReport
    rejected: Sequence[Rejected]
    fingerprint: str


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


@dataclass(slots=True)
class LoadedRecords:
    """Records of every split, before any tokenizer.

    Args:
        located: the files of each entry of train, validation and test.
    """

    splits: dict[str, list[Record]]
    report: DataReport
    rejected: list[Rejected] = field(default_factory=list)
    located: dict[str, list[Located]] = field(default_factory=dict)

    def add(self, split: str, entries: Sequence[LoadedEntry]) -> None:
        """Take in the entries of a split."""
        self.splits[split] = [record for entry in entries for record in entry.records]
        self.located[split] = [entry.located for entry in entries]
        self.rejected.extend(item for entry in entries for item in entry.rejected)
        self.report.sources.extend(entry.report for entry in entries)


def prepare(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder: str = "conversation",
    encoder_options: Mapping[str, Any] | None = None,
    renderer: Renderer | None = None,
) -> PreparedData:
    """Read, check, split and encode a config's data.

    Args:
        tokenizer: repaired for the template.
        encoder: a name in data/encoders, or a dotted path: what the stage learns from.
        encoder_options: the stage's own settings for it, such as attend_across_documents.
        renderer: of the config's template; made here where the encoder needs one and none is given.

    Raises:
        DataError: a file, row or template that can't be used; records of the wrong kind for the encoder; a split in
            which nothing would be trained.
        ModelError: the tokenizer lacks what the template needs.
    """
    data, seed = config.data, config.data_seed()
    chosen, loaded = choose_and_load(config, tokenizer, encoder, encoder_options or {}, renderer)
    examples: dict[str, list[TokenizedExample]] = {}
    for name, records in loaded.splits.items():
        encoded = chosen.encode(records)
        _refuse(encoded.rejected, data.invalid_rows)
        loaded.rejected.extend(encoded.rejected)
        if chosen.record is not Document:  # a block of joined documents is no row of anyone's
            loaded.rejected.extend(_left_out(encoded, data.cutoff_length, not chosen.trains_tokens))
        loaded.report.splits[name], examples[name] = SplitReport.of(
            len(records), encoded, learns_labels=not chosen.trains_tokens
        )
        if not examples[name]:
            raise _nothing_to_learn(name, loaded.report.splits[name])
    template = chosen.renderer.chat_template if chosen.renderer is not None else ""
    settings = chosen.options.model_dump()
    fingerprint = data_fingerprint(
        data, loaded.located, seed, tokenizer_fingerprint(tokenizer), template, encoder, settings
    )
    train, validation, test = (examples.get(name, []) for name in SPLITS)
    return PreparedData(train, validation, test, loaded.report, loaded.rejected, fingerprint)


def choose_and_load(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    encoder: str,
    encoder_options: Mapping[str, Any],
    renderer: Renderer | None = None,
) -> tuple[ChosenEncoder, LoadedRecords]:
    """An encoder for a config's rows, and the rows; its settings are checked before any of them is read.

    Raises:
        DataError, ModelError: see `prepare`.
    """
    chosen = choose_encoder(config.data, tokenizer, encoder, encoder_options, renderer)
    loaded = load_records(config.data, config.data_seed(), chosen.record)
    if chosen.depends_on_rows:
        train = loaded.splits["train"]
        chosen = choose_encoder(config.data, tokenizer, encoder, encoder_options, chosen.renderer, train)
    return chosen, loaded


def choose_encoder(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    encoder: str,
    encoder_options: Mapping[str, Any],
    renderer: Renderer | None = None,
    train: Sequence[Record] = (),
) -> ChosenEncoder:
    """An encoder set up for a config's data section; a renderer of its template is made where one is needed.

    Args:
        train: the training rows, where the encoder's options depend on them.

    Raises:
        DataError, ModelError: see `prepare`.
    """
    module = ENCODERS.load(encoder)
    options = encoder_settings(module, data, encoder_options, train)
    if not module.NEEDS_TEMPLATE:
        renderer = None
    elif renderer is None:
        from luthier.data.rendering import Renderer

        renderer = Renderer(tokenizer, data.template)
    return ChosenEncoder(
        module.RECORD,
        options,
        renderer,
        module.build(options, tokenizer, renderer),
        trains_tokens=getattr(module, "TRAINS_TOKENS", True),
        depends_on_rows=hasattr(module, "from_records"),
        sequence_names=getattr(module, "SEQUENCE_NAMES", ()),
    )


def _left_out(encoded: Encoded, cutoff: int, learns_labels: bool) -> list[Rejected]:
    """Rows that were encoded and are not used, for rejected.jsonl."""
    too_long = [Rejected(origin, f"longer than data.cutoff_length ({cutoff})") for origin in encoded.dropped]
    untrained = [
        Rejected(example.origin, "no token of it is trained")
        for example in encoded.examples
        if not (example.targets or learns_labels)
    ]
    return [*too_long, *untrained]


def load_records(data: DataConfig, seed: int, accepts: type | None = None) -> LoadedRecords:
    """Read and split rows, without any tokenizer.

    Args:
        accepts: the kind of record the encoder takes; None takes any.

    Raises:
        DataError: see `prepare`.
    """
    loaded = LoadedRecords({}, DataReport())
    for name in SPLITS:
        asked = getattr(data, name)
        if isinstance(asked, list):
            loaded.add(name, [load_entry(entry, name, index, seed, accepts) for index, entry in enumerate(asked)])
    _refuse(loaded.rejected, data.invalid_rows)
    for name, records in loaded.splits.items():
        if not records:
            raise DataError(f"the {name} data has no row that can be used.", _first_reason(loaded.rejected))
    shares = {
        name: getattr(data, name) for name in ("test", "validation") if isinstance(getattr(data, name), (int, float))
    }
    parts = split_rows(len(loaded.splits["train"]), shares, seed)
    rows = loaded.splits["train"]
    if data.mix != "concat":
        parts["train"] = _mixed(data, parts["train"], loaded.report.sources[: len(data.train)], seed)
    loaded.splits.update({name: [rows[index] for index in indices] for name, indices in parts.items()})
    loaded.splits = {name: loaded.splits[name] for name in SPLITS if name in loaded.splits}
    return loaded


def split_rows(count: int, asked: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Disjoint sets of row indices that cover all rows: one for each share (below 1) or count asked for, and `train`.

    A share is rounded to the nearest row, at least one. Indices are in the files' order.

    Raises:
        DataError: nothing would be left to train on.
    """
    order = permutation(count, seed, "split")
    parts: dict[str, list[int]] = {}
    taken = 0
    for name, size in asked.items():
        number = max(1, round(size * count)) if isinstance(size, float) else int(size)
        parts[name] = sorted(order[taken : taken + number])
        taken += number
    if taken >= count:
        wanted = ", ".join(f"data.{name}={size:g}" for name, size in asked.items())
        raise DataError(
            f"{wanted} takes {taken} of the {count} usable training rows, which leaves none to train on.",
            "Ask for fewer, or name a file of their own.",
        )
    parts["train"] = sorted(order[taken:])
    return parts


def _mixed(data: DataConfig, indices: Sequence[int], sources: Sequence[SourceReport], seed: int) -> list[int]:
    """The training rows as data.mix orders, leaves out and repeats them; each source's count goes into its report."""
    ends = list(accumulate(source.records for source in sources))
    of_source: list[list[int]] = [[] for _ in sources]
    for index in indices:
        of_source[bisect_right(ends, index)].append(index)
    weights = [entry.weight for entry in data.train]
    oversample = data.mix == "interleave_over"
    mixed = interleave(list(map(len, of_source)), weights, seed, oversample=oversample)
    counts = Counter(source for source, _ in mixed)
    for place, source in enumerate(sources):
        source.mixed = counts[place]
    return [of_source[source][row] for source, row in mixed]


def write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """Write rows that were left out as JSONL: file, row, reason and the row's values."""
    lines = [
        json.dumps(
            {"file": item.origin.path, "row": item.origin.row, "reason": item.reason, "values": dict(item.values)},
            ensure_ascii=True,
            default=str,
        )
        for item in rejected
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _refuse(rejected: Sequence[Rejected], invalid_rows: str) -> None:
    """Raise one `DataError` for all bad rows, unless they are to be rejected and counted."""
    if not rejected or invalid_rows == "reject":
        return
    shown = "\n".join(f"  - {item.origin}: {item.reason}" for item in rejected[:SHOWN_ROWS])
    more = f"\n  and {len(rejected) - SHOWN_ROWS:,} more" if len(rejected) > SHOWN_ROWS else ""
    raise DataError(
        f"{len(rejected):,} row{'s' if len(rejected) > 1 else ''} can't be used:\n{shown}{more}",
        "Mend them, or set data.invalid_rows to reject: they are counted, left out and written to rejected.jsonl.",
    )


def _first_reason(rejected: Sequence[Rejected]) -> str:
    return f"The first of {len(rejected):,} rejected: {rejected[0].origin}: {rejected[0].reason}" if rejected else ""


def _nothing_to_learn(split: str, report: SplitReport) -> DataError:
    """Why a split has no example with a target."""
    if report.dropped == report.records:
        return DataError(
            f"every row of the {split} data is longer than data.cutoff_length (the longest has {report.longest} tokens), "
            "and data.over_length is drop.",
            "Raise data.cutoff_length.",
        )
    found = (
        ", ".join(f"{count} x {finding}" for finding, count in report.findings.most_common())
        or "weight 0 or train: false"
    )
    return DataError(
        f"every label of the {split} data is masked: none of its {report.records:,} rows has a token to learn ({found}; "
        f"{report.truncated:,} cut, {report.dropped:,} dropped, {report.unrendered:,} refused by the template).",
        "Give assistant turns a weight above 0, an answer, and a data.cutoff_length that leaves room for it.",
    )
