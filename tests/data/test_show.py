"""`data show`: rows as the model sees them."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer

from luthier.commands.data import show
from luthier.foundation.errors import DataError, UserError

ROWS = [
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "[bold]Hi[/bold] \x1b[31m!"}]},
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi", "weight": 0.5}]},
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi", "weight": 0}]},
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
]


@pytest.fixture
def model_folder(tmp_path: Path, byte_tokenizer) -> Path:
    """A tokenizer and a config; `data show` needs no weights."""
    folder = tmp_path / "model"
    byte_tokenizer.save_pretrained(folder)
    assert Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "vocab_size": 400,
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            }
        )
    )
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def run(model: Path, data: dict, **options):
    out = StringIO()
    config = {"model": str(model), **data}
    shown = show(config, console=Console(file=out, width=400, force_terminal=options.pop("colour", False)), **options)
    return shown, out.getvalue()


def test_a_page_that_can_not_be_written_is_refused_before_rows_are_read(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--html '.*' is a folder"):
        run(model_folder, {"data": {"train": "no/such.jsonl"}}, page=str(tmp_path))


def test_trained_tokens_are_marked_without_colour(model_folder: Path, write) -> None:
    data = {"data": {"train": str(write("a.json", ROWS)), "template": "chatml"}}
    shown, text = run(model_folder, data, rows=3)
    assert "trained; the rest is context" in text and "format openai (the column messages holds turns" in text
    assert "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦[bold]Hi[/bold] ␛[31m!<|im_end|>⟧" in text
    assert "⟦0.5: Hi<|im_end|>⟧" in text and "\x1b" not in text
    assert "NOTHING here is trained" in text
    value = json.loads(json.dumps(shown.as_dict()))
    assert len(value["examples"]) == 3 and value["template"] == "chatml"
    first = value["examples"][0]
    assert first["tokens"] == sum(span["tokens"] for span in first["sequences"][0])
    assert first["targets"] == first["sequences"][0][1]["tokens"]
    assert first["sequences"][0][1]["text"] == "[bold]Hi[/bold] \x1b[31m!<|im_end|>"


def test_colours(model_folder: Path, write) -> None:
    data = {"data": {"train": str(write("a.json", ROWS)), "template": "chatml"}}
    _, text = run(model_folder, data, rows=1, colour=True)
    assert "\x1b[32m⟦" in text and "\x1b[31m" not in text


def test_a_tokens_repair_is_told(model_folder: Path, write, byte_tokenizer) -> None:
    data = {"data": {"train": str(write("a.json", ROWS)), "template": "chatml"}}
    shown, text = run(model_folder, data, rows=1)
    assert any("PAD" in note for note in shown.notes) and shown.notes[0] in text.replace("\n", " ")


def test_dropped_and_missing_splits(model_folder: Path, write) -> None:
    path = str(write("a.json", ROWS))
    data = {"data": {"train": path, "template": "chatml", "cutoff_length": 4, "over_length": "drop"}}
    shown, text = run(model_folder, data, rows=2)
    assert shown.examples == () and len(shown.left_out) == 4 and "left out" in text
    with pytest.raises(DataError, match=r"no 'test' data in this config; it has: train"):
        run(model_folder, {"data": {"train": path, "template": "chatml"}}, split="test")


def test_documents_of_a_block(model_folder: Path, write) -> None:
    data = {
        "data": {"train": str(write("a.txt", "one\ntwo\nthree")), "cutoff_length": 64},
        "stage": {"name": "pretrain", "attend_across_documents": False},
    }
    shown, text = run(model_folder, data, rows=1)
    assert shown.template is None and "document 3 of 3" in text and "t⟦wo</s>⟧" in text
