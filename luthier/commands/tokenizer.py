"""`luthier tokenizer train|show|extend`: make a tokenizer, look at what tokenizers do, add words to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.data_section import DataEntry
from luthier.config.schema import ModelConfig
from luthier.data.columns import described, fields_found
from luthier.data.locating import Located, locate
from luthier.data.reading import iterate_files
from luthier.foundation.errors import DataError, UserError
from luthier.foundation.files import free_bytes, human_bytes, is_disk_full, need_file
from luthier.foundation.progress import progress_bar, say
from luthier.foundation.registry import nearest

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from luthier.model.tokenizers.inspection import Fertility, Stages
    from luthier.model.tokenizers.training import TrainingSpec

TEXT = "text"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class TrainedFolder:
    """A tokenizer that was written.

    Args:
        path: its folder.
        algorithm: what made it.
        vocab_size: tokens it has.
        texts: how many it was made from.
        characters: how many they had.
        notes: what a person should know.
    """

    path: str
    algorithm: str
    vocab_size: int
    texts: int
    characters: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train(
    sources: Sequence[str | Path], out: str | Path, spec: TrainingSpec, *, column: str = TEXT, chat_template: str = ""
) -> TrainedFolder:
    """Make a tokenizer from files.

    Args:
        sources: what an entry of `data.train` may be: files, also compressed ones, folders, patterns, hubs' data sets;
            read row by row where the type allows (a .json or .tsv file is read whole).
        out: the folder to write; it appears whole or not at all.
        column: the field with the text, where rows have several.
        chat_template: a name in data/templates, whose special tokens are added; "": none.

    Raises:
        UserError: a setting or a source that can't be used, or the folder is taken.
    """
    from luthier.model.tokenizers import training

    target = free_folder(out)
    found = [located(source) for source in sources]
    spec, template = with_template(spec, chat_template)
    training.prepared(spec)  # refuses what no text can mend
    trained = training.train(spec, lambda: watched(found, column), template)
    with telling_of_disk(target):
        training.save(trained, target)
    for note in trained.notes:
        say(note)
    size = len(trained.tokenizer)
    say(
        f"Wrote {target}: {spec.algorithm}, {size} tokens, from {trained.texts:,} texts ({trained.characters:,} characters)."
    )
    return TrainedFolder(str(target), spec.algorithm, size, trained.texts, trained.characters, trained.notes)


def names_in(option: str | None) -> tuple[str, ...] | None:
    """`nfc,lowercase` -> both names; `none` -> no name; None -> None."""
    if option is None:
        return None
    names = tuple(name.strip() for name in option.split(",") if name.strip())
    return () if names == ("none",) else names


def with_template(spec: TrainingSpec, name: str) -> tuple[TrainingSpec, str | None]:
    """The spec with a chat template's special tokens, and the template's source."""
    from dataclasses import replace

    from luthier.data.template_files import load_template

    if not name:
        return spec, None
    template = load_template(name)
    new = [token for token in template.special_tokens if token not in spec.all_special_tokens]
    return replace(spec, special_tokens=(*spec.special_tokens, *new)), template.text


def free_folder(out: str | Path) -> Path:
    """The folder to write. Raises UserError if something is there already."""
    target = Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{str(target)!r} is there already and not empty.", "Choose another folder with --out.")
    return target


def watched(sources: Sequence[Located], column: str) -> Iterator[str]:
    """The texts of sources one after another, a row in memory at a time; shows how many were read."""
    with progress_bar("reading", unit="rows") as bar:
        for source in sources:
            for text in texts_of(source, column):
                bar.advance()
                yield text
    say(f"Read {bar.completed:,.0f} rows; working out the vocabulary.")


def located(source: str | Path) -> Located:
    """The files of a source: a file, a folder, a pattern, a hub's data set. Raises DataError as `locate` does."""
    return locate(DataEntry(path=str(source)))


def texts_of(source: Located, column: str = TEXT) -> Iterator[str]:
    """The texts of a source; a null is passed over.

    Raises:
        DataError: damaged, not UTF-8 (with the byte), or a row without the column; names file and row.
    """
    for row in iterate_files(source):
        if column not in row.values:
            close = nearest(column, map(str, row.values))
            raise DataError(
                f"{row.origin} has no field {column!r}; its fields are {fields_found(row.values)}.",
                f"Name the one with the text: --column {close[0] if close else next(iter(row.values), 'NAME')}.",
            )
        value = row.values[column]
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{row.origin}: {column} is {described(value)}, not text.",
                "Name a field that holds text with --column.",
            )
        if value is not None:
            yield value


@contextmanager
def telling_of_disk(target: Path) -> Iterator[None]:
    """A full disk, or a folder that may not be written, as an error for people."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise UserError(
                f"the disk is full: {target} could not be written ({human_bytes(free_bytes(target))} free).",
                "Make room, or choose another disk; nothing was left behind.",
            ) from error
        if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
            raise UserError(f"{target} could not be written: {error.strerror}.", "Choose another --out.") from error
        raise


@dataclass(frozen=True)
class Shown:
    """What tokenizers do with a text, and with a file.

    Args:
        stages: one for each tokenizer; empty without a text.
        fertility: one for each tokenizer; empty without a file.
    """

    stages: tuple[Stages, ...]
    fertility: tuple[Fertility, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "tokenizers": [stages.as_dict() for stages in self.stages],
            "fertility": [row.as_dict() for row in self.fertility],
        }


def show(
    tokenizers: Sequence[str],
    text: str | None = None,
    *,
    pair: str | None = None,
    file: str | Path | None = None,
    column: str = TEXT,
    max_length: int | None = None,
    stride: int = 0,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> Shown:
    """Print each stage of a text's way through tokenizers side by side, and what a file costs in each.

    Args:
        tokenizers: names of models, or folders that `luthier tokenizer train` wrote.
        text: what to follow; None: only the file.
        pair: a second text.
        file: what a source of `train` may be; every text of it is counted.
        column: the file's field with the text.
        max_length: longest window in tokens.
        stride: tokens that a window repeats.
        console: where to print; standard output by default.

    Raises:
        UserError: nothing to show, or a name or file that can't be used.
    """
    from rich.console import Console

    from luthier.model.tokenizers.inspection import fertility_of, stages_of
    from luthier.model.tokenizers.tables import fertility_table, stage_table

    refuse_settings_without_effect(tokenizers, text, pair, file, max_length, stride)
    source = None if file is None else located(file)
    opened = {name: open_tokenizer(name, trust_remote_code) for name in dict.fromkeys(tokenizers)}
    console = console or Console(highlight=False)
    stages: list[Stages] = []
    if text is not None:
        for name, tokenizer in opened.items():
            stages.append(stages_of(name, tokenizer, text, pair, max_length=max_length, stride=stride))
        console.print(stage_table(stages))
    fertility: list[Fertility] = []
    if source is not None:
        fertility = fertility_of(opened, texts_of(source, column))
        if not fertility[0].characters:
            raise DataError(f"{file} holds no text: every row is empty.", "Name another file, or another --column.")
        console.print(fertility_table(Path(source.shown).name or source.shown, fertility))
    return Shown(tuple(stages), tuple(fertility))


def refuse_settings_without_effect(
    tokenizers: Sequence[str],
    text: str | None,
    pair: str | None,
    file: str | Path | None,
    max_length: int | None,
    stride: int,
) -> None:
    """Raise UserError for what would show nothing."""
    if not tokenizers:
        raise UserError("there is no tokenizer to show.", "Name one or more: --tokenizer MODEL --tokenizer FOLDER.")
    if text is None and file is None:
        raise UserError("there is nothing to tokenize.", "Give a TEXT, or count a file with --file.")
    if text is None and (pair is not None or max_length is not None):
        raise UserError("--pair and --max-length concern a TEXT, and there is none.", "Give a TEXT, or leave them out.")
    if stride and max_length is None:
        raise UserError("--stride has no effect without --max-length.", "Add --max-length, or leave it out.")


def open_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by name, or in a folder that has a tokenizer and no model."""
    from luthier.model.inspection import is_model_folder
    from luthier.model.loading import load_tokenizer, tokenizer_at

    folder = Path(name).expanduser()
    if not is_model_folder(folder) and any((folder / file).is_file() for file in TOKENIZER_FILES):
        return tokenizer_at(folder, trust_remote_code=trust_remote_code)
    return load_tokenizer(ModelConfig(name=name), trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class ExtendedFolder:
    """A model with new words that was written; see `luthier.model.tokenizers.extension.Extension`."""

    path: str
    words: tuple[str, ...]
    ids: tuple[int, ...]
    rows_before: int
    rows: int
    tied: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def extend(
    model: str,
    out: str | Path,
    *,
    words: Sequence[str] = (),
    file: str | Path | None = None,
    init: str = "mean",
    seed: int = 0,
    trust_remote_code: bool = False,
) -> ExtendedFolder:
    """Add words to a model's tokenizer, and rows to its embedding and head.

    Args:
        words: to be added.
        file: with further ones, one a line; after a tabulator, a description.
        init: mean, noise or description.
        seed: of the noise.

    Raises:
        UserError: a word exists already, the folder is taken, or the model can't be used.
    """
    from luthier.model import loading
    from luthier.model.tokenizers.extension import check_init, extend_folder

    target = free_folder(out)
    wanted = words_of(words, file)
    check_init(init, wanted)
    source = loading.find(ModelConfig(name=model))
    with telling_of_disk(target):
        done = extend_folder(source, target, wanted, init=init, seed=seed, trust_remote_code=trust_remote_code)
    known = ", ".join(f"{word} ({number})" for word, number in zip(done.words[:8], done.ids, strict=False))
    more = f" and {len(done.words) - 8} more" if len(done.words) > 8 else ""
    held = "tied embedding" if done.tied else "embedding and head"
    say(f"Wrote {target}: new are {known}{more}; the {held} had {done.rows_before} rows, now {done.rows}.")
    return ExtendedFolder(str(target), done.words, done.ids, done.rows_before, done.rows, done.tied)


def words_of(words: Sequence[str], file: str | Path | None) -> dict[str, str | None]:
    """Words with their descriptions, in order; a word named twice counts once.

    Raises:
        DataError: the file can't be read, or gives a word two descriptions.
    """
    found: dict[str, str | None] = {word.strip(): None for word in words if word.strip()}
    if file is None:
        return found
    path = Path(file).expanduser()
    try:
        need_file(path, "the file of words")
    except UserError as error:
        raise DataError(error.problem, error.remedy) from error
    if path.is_dir():
        raise DataError(f"the file of words {str(path)!r} is a folder.", "Name a text file.")
    from luthier.data.sources._decoding import read_lines

    for number, line in read_lines(path):
        word, _, description = (part.strip() for part in line.partition("\t"))
        if word and found.get(word) and description and found[word] != description:
            raise DataError(f"{path}, line {number}: {word!r} has another description above.", "Keep one of them.")
        if word:
            found[word] = description or found.get(word)
    return found
