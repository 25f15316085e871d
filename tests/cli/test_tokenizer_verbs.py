"""The verb `tokenizer` as a script meets it."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier import cli
from luthier.data import locating

TEXTS = ["the quick brown fox", "jumps over the lazy dog", "我们在河边"]


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


def train(*arguments: object, algorithm: str = "byte-bpe", vocab_size: int = 300) -> int:
    line = ["tokenizer", "train", "--algorithm", algorithm, "--vocab-size", vocab_size, "--json", *arguments]
    return cli.main([str(word) for word in line])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return path


def test_every_kind_of_file_gives_the_same(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, None]))
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f"1,{text}\n" for text in TEXTS), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "a.parquet")
    made = set()
    for file in (corpus, tmp_path / "a.jsonl", tmp_path / "a.csv", tmp_path / "a.parquet"):
        out = tmp_path / f"out-{file.suffix[1:]}"
        assert train("--out", out, file) == 0
        assert last_json(capsys) == {
            "path": str(out),
            "algorithm": "byte-bpe",
            "vocab_size": 300,
            "texts": 3,
            "characters": sum(map(len, TEXTS)),
            "notes": [],
        }
        made.add((out / "tokenizer.json").read_text())
    assert len(made) == 1


def test_sources_are_those_of_the_data(
    corpus: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, compressed, saved = tmp_path / "folder", tmp_path / "a.txt.gz", tmp_path / "saved"
    folder.mkdir()
    (folder / "README.md").write_text("no data")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    compressed.write_bytes(gzip.compress(corpus.read_bytes()))
    table = datasets.Dataset.from_dict({"text": TEXTS})
    table.save_to_disk(str(saved))
    asked = []

    def hub(*arguments: Any) -> Any:
        asked.append(arguments)
        return tuple(Path(item["filename"]) for item in datasets.load_from_disk(str(saved)).cache_files)

    monkeypatch.setattr(locating, "hub_files", hub)
    made, counted = set(), []
    for number, source in enumerate((corpus, folder, f"{folder}/*.txt", compressed, saved, "owner/name")):
        out = tmp_path / f"out-{number}"
        assert train("--out", out, source) == 0, capsys.readouterr().err
        assert last_json(capsys)["texts"] == 3
        made.add((out / "tokenizer.json").read_text())
        assert cli.main(["tokenizer", "show", "--file", str(source), "--tokenizer", str(tiny_llama), "--json"]) == 0
        counted.append(last_json(capsys)["fertility"][0])
    assert len(made) == 1 and counted == counted[:1] * 6 and counted[0]["texts"] == 3
    assert asked == [("owner/name", None, "train", None)] * 2
    (tmp_path / "other.csv").write_text("text\na\n")
    for source, said in ((tmp_path, "not all of one known type"), (f"{folder}/*.csv", "matches no file")):
        assert train("--out", tmp_path / "x", source) == 2
        assert said in last_json(capsys)["error"]


def test_options_reach_the_tokenizer(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = "--normalizer nfc,lowercase --pre-tokenizer digits,byte-level --special-tokens <s>,eos=<end> "
    options += "--min-frequency 2 --chat-template chatml --post-processor template --decoder byte-level --single"
    assert train(*options.split(), "<s> $A <end>", "--out", out, corpus) == 0
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.decode(loaded("LOW 12")["input_ids"]) == "<s>low 12<end>"
    assert loaded.eos_token == "<end>"
    said = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said.startswith("<|im_start|>user\nhi<|im_end|>")
    assert loaded.tokenize("<|im_start|>") == ["<|im_start|>"]


def test_what_can_be_mended_is_2(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "rows.jsonl").write_text('{"texts": "a"}\n')
    (tmp_path / "number.jsonl").write_text('{"text": 7}\n')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "nulls.jsonl").write_text('{"text": null}\n')
    out = tmp_path / "out"
    for arguments, said in (
        ([tmp_path / "nowhere.txt"], "does not exist"),
        ([tmp_path / "empty.txt"], "is empty"),
        ([tmp_path / "blank.txt"], "no text"),
        ([tmp_path / "nulls.jsonl"], "no text"),
        ([tmp_path / "latin.txt"], "latin.txt is not UTF-8 text: byte 3 (line 1) is 0xe9"),
        ([tmp_path / "rows.jsonl"], "--column texts"),
        ([tmp_path / "number.jsonl"], "row 1: text is int 7, not text"),
        ([corpus, "--normalizer", "nfck"], "Did you mean 'nfc"),
        ([corpus, "--chat-template", "chatlm"], "chatml"),
    ):
        assert train("--out", out, *arguments) == 2, said
        told = last_json(capsys)
        assert said in f"{told['error']} {told['remedy']}"
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert train("--out", out, corpus, algorithm="bytebpe") == 2
    assert "Did you mean 'byte-bpe'" in last_json(capsys)["remedy"]
    assert train("--out", tmp_path, corpus) == 2
    assert "is there already" in last_json(capsys)["error"]


KILLED = """
import os, signal, sys
from transformers import PreTrainedTokenizerBase
from luthier.cli import main
save = PreTrainedTokenizerBase.save_pretrained
def killed(*arguments, **options):
    save(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
PreTrainedTokenizerBase.save_pretrained = killed
main(sys.argv[1:])
"""


def test_killed_while_writing_leaves_no_folder(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ["tokenizer", "train", "--algorithm", "bpe", "--vocab-size", "99", "--out", str(out), str(corpus)]
    done = subprocess.run([sys.executable, "-c", KILLED, *line], capture_output=True, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert cli.main(line) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "out"]


def test_show_compares(
    corpus: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    assert train("--out", out, corpus, algorithm="wordpiece") == 0
    capsys.readouterr()
    line = ["tokenizer", "show", "the fox 人", "--pair", "dog", "--tokenizer", str(out), "--tokenizer", str(tiny_llama)]
    assert cli.main([*line, "--file", str(corpus)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "normalized",
        "pre-tokens",
        "type ids",
        "[CLS] | the | fox | [UNK] | [SEP] | dog | [SEP]",
        "characters",
    ):
        assert words in printed
    assert cli.main([*line, "--file", str(corpus), "--max-length", "6", "--stride", "1", "--json"]) == 0
    told = last_json(capsys)
    bert, llama = told["tokenizers"]
    assert bert["overflowing"]
    assert bert["window"]["type_ids"][-1] == 1
    assert llama["tokenizer"] == str(tiny_llama)
    assert told["fertility"][0]["texts"] == 3
    assert told["fertility"][1]["unknown_share"] == 0


def test_show_says_what_it_lacks(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--tokenizer", str(tiny_llama)]
    for arguments, said in (
        (["text"], "no tokenizer"),
        (named, "nothing to tokenize"),
        (["text", *named, "--stride", "2"], "--max-length"),
        (["--pair", "x", *named, "--file", "f.txt"], "concern a TEXT"),
        (["text", *named, "--file", str(tmp_path / "nowhere.txt")], "does not exist"),
        (["text", "--tokenizer", "smollm2-135n "], "Did you mean smollm2-135m"),
    ):
        assert cli.main(["tokenizer", "show", *arguments, "--json"]) == 2
        told = last_json(capsys)
        assert said in f"{told['error']} {told['remedy']}"


def test_extend(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, out = tmp_path / "words.tsv", tmp_path / "out"
    words.write_text("zither\ta quick fox\nviol\tthe dog\n")
    line = ["tokenizer", "extend", str(tiny_llama), "--out", str(out), "--add-file", str(words), "--json"]
    assert cli.main(line) == 2
    assert "--init description" in last_json(capsys)["remedy"]
    assert cli.main([*line, "--init", "description"]) == 0
    told = last_json(capsys)
    assert told["words"] == ["zither", "viol"]
    assert told["rows"] == told["rows_before"] + 2 == AutoModelForCausalLM.from_pretrained(out).config.vocab_size
    assert cli.main(["tokenizer", "extend", str(out), "--out", str(tmp_path / "b"), "--add", "viol", "--json"]) == 2
    assert "'viol' already" in last_json(capsys)["error"]
    words.write_text("viol\tone\nviol\ttwo\n")
    assert cli.main(line) == 2, "the folder is taken"
    assert cli.main([*line[:4], str(tmp_path / "c"), *line[5:], "--init", "description"]) == 2
    assert "line 2: 'viol' has another description" in last_json(capsys)["error"]
