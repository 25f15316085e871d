"""From a config's data section to tokenized examples, all of it counted, before any weight is read."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.data_section import DataConfig
from luthier.config.plugins import ENCODERS
from luthier.config.schema import RunConfig
from luthier.data.cache import Sink, from_cache, in_memory
from luthier.data.cache_entries import Request
from luthier.data.encoder_settings import encoder_settings, left_to_rows
from luthier.data.encoding import BlockEncoder, EncodingTask, encoding_processes
from luthier.data.encoding import ChosenEncoder as ChosenEncoder
from luthier.data.entries import LoadedEntry, load_entry
from luthier.data.fingerprints import cache_key, data_fingerprint, describe_data, tokenizer_fingerprint
from luthier.data.locating import Located, locate
from luthier.data.mixing import interleave
from luthier.data.records import Record, Rejected
from luthier.data.rejecting import refuse
from luthier.data.report import DataReport, SourceReport, SplitReport
from luthier.data.sources._compressed import inner_path
from luthier.data.token_arrays import ExamplesPart, StoredExamples, token_dtype
from luthier.data.training_stream import TrainingStream, open_stream
from luthier.foundation.errors import DataError
from luthier.foundation.progress import progress_bar, say
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
        stream: gives the training examples in place of `train`, under `data.streaming`.
        validation_sets: the entries of validation, each by a name of its own, under `data.evaluate_each`.
    """

    train: StoredExamples
    validation: StoredExamples
    test: StoredExamples
    report: DataReport
    rejected: Sequence[Rejected]
    fingerprint: str
    stream: TrainingStream | None = None
    validation_sets: Mapping[str, ExamplesPart] = field(default_factory=dict)


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
    say: Callable[[str], None] = say,
) -> PreparedData:
    """Read, check, split and encode a config's data, or take it from the cache.

    Args:
        tokenizer: repaired for the template.
        encoder: a name in data/encoders, or a dotted path: what the stage learns from.
        encoder_options: the stage's own settings for it, such as attend_across_documents.
        renderer: of the config's template; made here where the encoder needs one and none is given.
        say: told where the data come from, where that is the cache.

    Raises:
        DataError: a file, row or template that can't be used; records of the wrong kind for the encoder; a split in
            which nothing would be trained.
        ModelError: the tokenizer lacks what the template needs.
    """
    data = config.data
    given = encoder_options or {}
    chosen = choose_encoder(data, tokenizer, encoder, given, renderer)
    located = locate_all(data)
    stream = open_stream(data, config.data_seed(), chosen) if data.streaming else None
    template, day = (chosen.renderer.chat_template, chosen.renderer.day) if chosen.renderer is not None else ("", None)
    settings = chosen.options.model_dump() | left_to_rows(ENCODERS.load(encoder), given)
    described = describe_data(
        data, located, config.data_seed(), tokenizer_fingerprint(tokenizer), template, encoder, settings
    )
    if stream is not None:
        described |= {"train": stream.facts(), "buffer_size": data.buffer_size}
    dtype = token_dtype(max(len(tokenizer), *tokenizer.get_vocab().values()) + 1)
    stamps = _stamps(located)

    def build(open_split: Callable[[str], Sink]) -> tuple[DataReport, list[Rejected]]:
        size = sum(size for size, _ in stamps)
        with encoding_processes(chosen, size, data.preprocessing_num_workers) as processes:
            final, loaded = choose_and_load(config, tokenizer, encoder, given, chosen.renderer, located)
            named = data.template if template else None
            task = EncodingTask(encoder, final.options, tokenizer, named, dtype, data.cutoff_length, day)
            _encode(data, BlockEncoder(task, final, processes), loaded, open_split)
        loaded.report.labels = getattr(final.options, "labels", ())
        if _stamps(located) != stamps:
            raise DataError(
                "the data files were written to while they were read.", "Start again when they are complete."
            )
        return loaded.report, loaded.rejected

    request = _request(config, located, described, day)
    # a stream without sets beside it leaves nothing to keep
    sets = from_cache(request, dtype, build, say) if data.cache and located else in_memory(request, dtype, build)
    train, validation, test = (sets.splits.get(name, StoredExamples.empty()) for name in SPLITS)
    each = _sets_by_name(data.validation, validation, sets.report) if data.evaluate_each else {}
    fingerprint = data_fingerprint(described)
    return PreparedData(train, validation, test, sets.report, sets.rejected, fingerprint, stream, each)


def _encode(data: DataConfig, encode: BlockEncoder, loaded: LoadedRecords, open_split: Callable[[str], Sink]) -> None:
    """Send the records of every split through the encoder, let go of them, and add what became of them to the report."""
    count = sum(map(len, loaded.splits.values()))
    with progress_bar("tokenizing", count, unit="rows") as bar:
        for name in loaded.splits:
            sink = open_split(name)
            reports: list[SplitReport] = []
            refused: list[Rejected] = []
            too_long: list[Rejected] = []
            untrained: list[Rejected] = []
            for source, records in _kept_apart(data, name, loaded):
                before = len(reports)
                for block in encode(records):
                    sink.add(block.tokens)
                    reports.append(block.report)
                    refused += block.refused
                    too_long += block.too_long
                    untrained += block.untrained
                    bar.advance(block.report.records)
                if source is not None:
                    source.examples = sum(report.examples for report in reports[before:])
            refuse(refused, data.invalid_rows)
            loaded.rejected += [*refused, *too_long, *untrained]
            loaded.report.splits[name] = SplitReport.joined(reports)
            if not loaded.report.splits[name].examples:
                raise _nothing_to_learn(name, loaded.report.splits[name])
            loaded.splits[name] = []


def _kept_apart(
    data: DataConfig, split: str, loaded: LoadedRecords
) -> Iterator[tuple[SourceReport | None, Sequence[Record]]]:
    """The records of a split that go through the encoder together: all, or under evaluate_each those of each entry."""
    records = loaded.splits[split]
    if split != "validation" or not data.evaluate_each:
        yield None, records
        return
    done = 0
    for source in loaded.report.sources:
        if source.split == split:
            yield source, records[done : done + source.records]
            done += source.records


def _sets_by_name(entries: Any, validation: StoredExamples, report: DataReport) -> dict[str, ExamplesPart]:
    """The examples of each entry of validation under its file's name, numbered where several have one; DataError for an
    entry without an example."""
    sources = [source for source in report.sources if source.split == "validation"]
    found: dict[str, ExamplesPart] = {}
    done = 0
    for entry, source in zip(entries, sources, strict=True):
        if not source.examples:
            raise DataError(
                f"{entry.path} has no example to evaluate on, and data.evaluate_each asks for a loss on it.",
                "Remove the entry; `luthier data check` shows what became of its rows.",
            )
        stem = re.sub(r"\W+", "_", inner_path(Path(entry.path.rpartition("#")[2])).stem).strip("_") or "entry"
        names = (f"{stem}_{number}" if number > 1 else stem for number in range(1, len(found) + 2))
        name = next(name for name in names if name not in found)
        found[name] = ExamplesPart(validation, range(done, done + source.examples))
        done += source.examples
    return found


def locate_all(data: DataConfig) -> dict[str, list[Located]]:
    """The files of each entry of every split that has entries, but for training rows that are streamed.

    Raises:
        DataError: see `locate`.
    """
    asked = {name: getattr(data, name) for name in SPLITS if not (data.streaming and name == "train")}
    return {name: [locate(entry) for entry in entries] for name, entries in asked.items() if isinstance(entries, list)}


def _stamps(located: Mapping[str, Sequence[Located]]) -> list[tuple[int, int]]:
    """Size and time of every file: whether one has changed since it was hashed."""
    stats = [file.stat() for places in located.values() for place in places for file in place.files]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _request(
    config: RunConfig, located: Mapping[str, Sequence[Located]], described: Mapping[str, Any], day: date | None
) -> Request:
    """The cache's entry for a config's data."""
    places = [place for places in located.values() for place in places]
    paths = [name for place in places for name in ([place.named] if place.named is not None else map(str, place.files))]
    options = {name: value for name, value in described["encoder_options"].items() if name != "name"}
    shown = {"model": config.model.name, "encoder": described["encoder"], **options}
    return Request(
        cache_key(described, paths, day),
        paths,
        [place.shown for place in places],
        {**shown, "template": config.data.template},
    )


def choose_and_load(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    encoder: str,
    encoder_options: Mapping[str, Any],
    renderer: Renderer | None = None,
    located: Mapping[str, Sequence[Located]] | None = None,
) -> tuple[ChosenEncoder, LoadedRecords]:
    """An encoder for a config's rows, and the rows; its settings are checked before any of them is read.

    Args:
        located: the entries' files, where they have been looked up already.

    Raises:
        DataError, ModelError: see `prepare`.
    """
    chosen = choose_encoder(config.data, tokenizer, encoder, encoder_options, renderer)
    loaded = load_records(config.data, config.data_seed(), chosen.record, located)
    if chosen.depends_on_rows and not config.data.streaming:
        rows = rows_of_training_files(config.data, loaded.splits)
        chosen = choose_encoder(config.data, tokenizer, encoder, encoder_options, chosen.renderer, rows)
    return chosen, loaded


def rows_of_training_files(data: DataConfig, splits: Mapping[str, Sequence[Record]]) -> list[Record]:
    """The training rows, and those that a share or count holds out of them: a class may have all its few rows there."""
    held_out = [name for name in ("validation", "test") if isinstance(getattr(data, name), (int, float))]
    return [record for name in ("train", *held_out) for record in splits.get(name, ())]


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

        renderer = Renderer(tokenizer, data.template, date.today())
    return ChosenEncoder.of(encoder, options, tokenizer, renderer)


def load_records(
    data: DataConfig,
    seed: int,
    accepts: type | None = None,
    located: Mapping[str, Sequence[Located]] | None = None,
) -> LoadedRecords:
    """Read and split rows, without any tokenizer.

    Args:
        accepts: the kind of record the encoder takes; None takes any.
        located: the entries' files, where they have been looked up already.

    Raises:
        DataError: see `prepare`.
    """
    loaded = LoadedRecords({}, DataReport())
    for name, places in (located or locate_all(data)).items():
        entries = enumerate(zip(getattr(data, name), places, strict=True))
        loaded.add(name, [load_entry(entry, name, index, seed, accepts, place) for index, (entry, place) in entries])
    refuse(loaded.rejected, data.invalid_rows)
    for name, records in loaded.splits.items():
        if not records:
            raise DataError(f"the {name} data has no row that can be used.", _first_reason(loaded.rejected))
    if data.streaming:
        return loaded
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


def _first_reason(rejected: Sequence[Rejected]) -> str:
    return f"The first of {len(rejected):,} rejected: {rejected[0].origin}: {rejected[0].reason}" if rejected else ""


def _nothing_to_learn(split: str, report: SplitReport) -> DataError:
    """Why a split has no example with a target."""
    if report.dropped == report.records:
        return DataError(
            f"every row of the {split} data is longer than data.cutoff_length, and left out.",
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
