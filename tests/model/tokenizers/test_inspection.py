"""The stages of a text's way through a tokenizer, and what is counted over many texts."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from luthier.foundation.errors import UserError
from luthier.model.tokenizers.inspection import PreToken, fertility_of, stages_of
from luthier.model.tokenizers.tables import fertility_table, stage_table
from luthier.model.tokenizers.training import TrainingSpec, train
from tests.tiny import tiny_tokenizer

CORPUS = ["low low lower lower newest newest widest widest"]
BERT = train(TrainingSpec("wordpiece", 400), lambda: CORPUS).tokenizer


def test_each_stage() -> None:
    stages = stages_of("bert", BERT, "Lówest 河", "low")
    assert stages.normalized == ("lowest  河 ", "low")
    assert stages.pre_tokens[0] == (PreToken("lowest", 0, 6), PreToken("河", 8, 9))
    window = stages.window
    assert window.tokens == ("[CLS]", "low", "##est", "[UNK]", "[SEP]", "low", "[SEP]")
    assert window.pieces == ("", "Lów", "est", "河", "", "low", "")
    assert window.ids == tuple(BERT("Lówest 河", "low")["input_ids"])
    assert window.offsets[1:4] == ((0, 3), (3, 6), (7, 8))
    assert window.type_ids == (0, 0, 0, 0, 0, 1, 1)
    assert window.special_tokens_mask == (1, 0, 0, 0, 1, 0, 1)
    assert window.attention_mask == (1,) * 7
    assert (stages.decoded, stages.unknown, stages.overflowing) == ("lowest low", 1, ())


def test_windows_repeat_the_stride() -> None:
    text = "low lower newest widest"
    stages = stages_of("bert", BERT, text, max_length=5, stride=1)
    assert stages.window.tokens == ("[CLS]", "low", "lower", "newest", "[SEP]")
    assert [window.tokens for window in stages.overflowing] == [("[CLS]", "newest", "widest", "[SEP]")]
    expected = BERT(text, truncation=True, max_length=5, stride=1, return_overflowing_tokens=True)["input_ids"]
    assert [stages.window.ids, *(window.ids for window in stages.overflowing)] == [tuple(ids) for ids in expected]
    assert stages_of("bert", BERT, text).overflowing == (), "a window of an earlier call stays in no tokenizer"


def test_a_stride_that_leaves_no_room() -> None:
    with pytest.raises(UserError, match="leaves no room"):
        stages_of("bert", BERT, "low", max_length=4, stride=2)


def test_fertility() -> None:
    """`low lower` is 2 tokens of 9 characters; `河河` 2 unknown tokens, 2 words, 6 bytes; the empty text is nothing."""
    row = fertility_of({"bert": BERT}, ["low lower", "河河", ""])[0]
    assert (row.texts, row.characters, row.bytes, row.words, row.tokens, row.unknown) == (3, 11, 15, 4, 4, 2)
    rates = row.as_dict()
    assert rates["characters_per_token"] == 11 / 4
    assert rates["bytes_per_token"] == 15 / 4
    assert rates["tokens_per_word"] == 1.0
    assert rates["unknown_share"] == 0.5


def test_several_tokenizers_read_the_texts_once() -> None:
    rows = fertility_of({"bert": BERT, "bytes": tiny_tokenizer()}, iter(["low lower"] * 1200))
    assert [row.texts for row in rows] == [1200, 1200]
    assert rows[0].tokens == 2400
    assert rows[1].tokens == 1200 * len(tiny_tokenizer()("low lower")["input_ids"])
    assert rows[1].unknown == 0


def test_nothing_to_count() -> None:
    assert fertility_of({"bert": BERT}, [])[0].as_dict()["characters_per_token"] is None


def test_the_table_of_fertility_keeps_its_numbers_whole_in_80_columns() -> None:
    row = replace(
        fertility_of({"a tokenizer with a long name": BERT}, ["low lower"])[0], vocabulary=151_936, tokens=4_567_890
    )
    written = io.StringIO()
    Console(width=80, file=written).print(fertility_table("a.txt", [row]))
    shown = written.getvalue()
    assert "151,936" in shown and "4,567,890" in shown and "characters" in shown and "…" not in shown


def test_names_break_at_their_parts_and_only_where_they_must() -> None:
    def shown(*names: str, width: int = 80) -> str:
        row = replace(fertility_of({"bert": BERT}, ["low lower"])[0], vocabulary=151_936, tokens=4_567_890, words=10**6)
        written = io.StringIO()
        console = Console(width=width, file=written)
        console.print(fertility_table("a.txt", [replace(row, tokenizer=name) for name in names]))
        assert all(cell_len(line.rstrip()) <= width for line in written.getvalue().splitlines())
        return written.getvalue()

    assert "smollm2-135m-words │" in shown("smollm2-135m-words")
    lines = [line.partition("│")[0].strip() for line in shown("Qwen/Qwen2.5-0.5B-Instruct", "词表-河边").splitlines()]
    assert lines[-3:] == ["Qwen/Qwen2.5-0.5B-", "Instruct", "词表-河边"]
    assert "Qwen/Qwen2.5-0.5B-Instruct │" in shown("Qwen/Qwen2.5-0.5B-Instruct", width=100)


def test_stages_name_the_tokenizer_and_the_stage_in_whole_parts() -> None:
    stages = stages_of("bert", BERT, "low lower newest widest " * 4)
    written = io.StringIO()
    names = ["bytes", "pieces", "words", "smollm2-135m", "more", "last"]
    Console(width=80, file=written).print(stage_table([replace(stages, tokenizer=name) for name in names]))
    cells = {cell.strip() for line in written.getvalue().splitlines() for cell in line.replace("┃", "│").split("│")}
    assert {"bytes", "pieces", "smollm2-", "135m", "normalized", "pre-tokens", "their text", "attention"} <= cells
