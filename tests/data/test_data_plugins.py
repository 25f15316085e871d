"""What every file type, format, encoder and template must do: a new file is tested without editing a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.commands.config import explain, listing, schema
from luthier.config.data_section import DataEntry
from luthier.config.plugins import ENCODERS, FORMATS, SOURCES
from luthier.config.sections import PluginOptions
from luthier.data.columns import FormatOptions
from luthier.data.detection import source_of
from luthier.data.examples import Encoded
from luthier.data.locating import locate
from luthier.data.reading import read_files
from luthier.data.records import (
    Conversation,
    Document,
    Labelled,
    LabelledConversation,
    Message,
    Origin,
    Pair,
    RawRow,
    RowError,
)
from luthier.data.rendering import Renderer
from luthier.data.template_files import load_template, template_list, template_names
from luthier.data.templating import has_generation_tags
from luthier.foundation.errors import DataError

RECORDS = {
    Conversation: Conversation((Message("user", "Hello"), Message("assistant", "Hi there")), Origin("f", 1)),
    Document: Document("Hello, how are you?", Origin("f", 1)),
    Pair: Pair(
        (Message("user", "Hello"),), (Message("assistant", "Hi"),), (Message("assistant", "No"),), Origin("f", 1)
    ),
    LabelledConversation: LabelledConversation(
        (Message("user", "Hello"), Message("assistant", "Hi there")), True, Origin("f", 1)
    ),
    Labelled: Labelled("Hello", 1, Origin("f", 1), "how are you?"),
}


@pytest.mark.parametrize("registry", [SOURCES, FORMATS, ENCODERS], ids=lambda registry: registry.kind)
def test_options_are_frozen_and_bear_the_files_name(registry) -> None:
    assert registry.names()
    for name in registry.names():
        options = registry.load(name).Options()
        assert isinstance(options, PluginOptions) and options.name == name
        with pytest.raises(ValueError, match="frozen"):
            options.name = "other"
        with pytest.raises(ValueError, match="Extra inputs"):
            type(options)(unknown=1)
        for field, info in type(options).model_fields.items():
            assert field == "name" or info.description, f"{registry.kind} {name}: {field} has no description"


def test_plugins_load_without_torch_and_transformers() -> None:
    names = [f"{registry.package}.{name}" for registry in (SOURCES, FORMATS, ENCODERS) for name in registry.names()]
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\n"
    code += "bad = {'torch', 'transformers', 'pyarrow', 'datasets'} & set(sys.modules)\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", SOURCES.names())
def test_sources(name: str, tmp_path: Path) -> None:
    module = SOURCES.load(name)
    for suffix in module.SUFFIXES:
        assert suffix == suffix.lower() and suffix.startswith(".")
        assert source_of(Path(f"x{suffix.upper()}")) is module
    path = tmp_path / f"a{module.SUFFIXES[0]}"
    for content in (b"", b"\x80\x81\x82\x00" * 64):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_files(locate(DataEntry(path=str(path))))
        assert str(path) in caught.value.problem


def test_no_suffix_belongs_to_two_sources() -> None:
    suffixes = [suffix for name in SOURCES.names() for suffix in SOURCES.load(name).SUFFIXES]
    assert len(suffixes) == len(set(suffixes))


@pytest.mark.parametrize("name", FORMATS.names())
def test_formats(name: str) -> None:
    module = FORMATS.load(name)
    options = module.Options()
    assert isinstance(options, FormatOptions) and options.REQUIRED and set(options.REQUIRED) <= set(options.PARTS)
    assert module.RECORD in RECORDS
    assert module.detect({}, options) is None
    convert = module.build(options)
    for values in (
        {},
        dict.fromkeys(options.used()),
        dict.fromkeys(options.used(), 5),
        {column: [5] for column in options.used()},
    ):
        with pytest.raises(RowError) as caught:
            convert(RawRow(values, Origin("f", 1)))
        assert str(caught.value)


@pytest.mark.parametrize("name", ENCODERS.names())
def test_encoders(name: str, byte_tokenizer) -> None:
    module = ENCODERS.load(name)
    decided = module.from_records([RECORDS[module.RECORD]]) if hasattr(module, "from_records") else {}
    options = module.Options(cutoff_length=64, **decided)
    renderer = Renderer(byte_tokenizer, "chatml") if module.NEEDS_TEMPLATE else None
    encode = module.build(options, byte_tokenizer, renderer)
    assert encode([]) == Encoded()
    encoded = encode([RECORDS[module.RECORD]] * 3)
    trains = getattr(module, "TRAINS_TOKENS", True)
    assert encoded.examples and all(
        0 < example.tokens <= 64 and bool(example.targets) is trains for example in encoded.examples
    )
    assert encoded == encode([RECORDS[module.RECORD]] * 3)
    assert [(record.examples, record.tokens > 0) for record in encoded.lengths] == [(1, True)] * 3


@pytest.mark.parametrize("name", template_names())
def test_templates(name: str, byte_tokenizer) -> None:
    template = load_template(name)
    assert has_generation_tags(template.text) and set(template.stop_tokens) <= set(template.special_tokens)
    renderer = Renderer(byte_tokenizer, name)
    messages = RECORDS[Conversation].messages
    pieces = renderer.pieces(messages)
    stops = byte_tokenizer.convert_ids_to_tokens(renderer.stop_token_ids)
    trained = [piece.text for piece in pieces if piece.trained]
    assert len(trained) == 1 and trained[0].endswith(tuple(stops)) and "Hi there" in trained[0]
    # what chat feeds before the answer is what training saw before it
    assert "".join(piece.text for piece in pieces).startswith(renderer.prompt_text(messages[:1]) + trained[0])


def test_help_lists_the_formats_and_marks_unverified_templates() -> None:
    from typer.testing import CliRunner

    from luthier.cli import app

    shown = explain("data.template").text() + listing() + json.dumps(schema())
    assert shown.count("falcon (unverified)") == 3
    page = CliRunner().invoke(app, ["data", "show", "--help"]).output
    assert " ".join(template_list().split()) in " ".join(page.split())
    assert ", ".join(FORMATS.names()) in " ".join(explain("data.train.0.format").text().split())
