"""The stages of a text's way through a tokenizer, and what is counted over many texts."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from luthier.foundation.errors import UserError
from luthier.model.tokenizers.inspection import PreToken, fertility_of, stages_of
from luthier.model.tokenizers.tables import fertility_table
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
