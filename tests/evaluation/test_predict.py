"""`luthier predict` as a user calls it, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.cli import main
from luthier.commands.evaluate import Asked, evaluate
from luthier.commands.predict import predict
from luthier.config.data_section import DataEntry
from luthier.config.generation_section import GenerationSettings
from luthier.data.entries import load_entry
from luthier.data.records import Message
from luthier.data.rendering import Renderer
from luthier.evaluation.prompts import load_records, prompt_of, prompts_of
from luthier.foundation.errors import UserError
from luthier.model.loading import tokenizer_at

ASKED = [{"role": "user", "content": "a"}]
ANSWERED = [{"role": "assistant", "content": "b"}]
CALLED = [
    {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"up": "a"}}}]},
    {"role": "tool", "content": "found"},
    {"role": "assistant", "content": "b"},
]
EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "formats").glob("*.jsonl"))
SHORT = GenerationSettings(max_new_tokens=6)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_row_out_for_each_row_in_in_order(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictions.jsonl"
    status = main(
        ["predict", str(tiny_llama), "--data", str(rows), "--out", str(out), "--max-new-tokens", "6", "--json"]
    )
    assert status == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    found, given = lines_of(out), lines_of(rows)
    assert (result["rows"], result["resumed"], sum(result["finish_reasons"].values())) == (24, 0, 24)
    assert [line["index"] for line in found] == list(range(24))
    assert [line["label"] for line in found] == [row["output"] for row in given]
    assert result["tokens"] == sum(line["tokens"] for line in found)
    tokenizer = tokenizer_at(tiny_llama)
    renderer = Renderer(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for row, line in zip(given, found, strict=True):
        ids = renderer.prompt_ids([Message("user", row["instruction"])])
        assert line["prompt_tokens"] == len(ids)
        expected = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
        assert line["prediction"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert not (tmp_path / "predictions.jsonl.partial").exists()


def test_a_file_that_is_there_is_not_written_over(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(UserError, match="there already"):
        predict(str(tiny_llama), [str(rows)], out, SHORT)
    assert out.read_text() == "mine"
    predict(str(tiny_llama), [str(rows)], out, SHORT, overwrite=True)
    assert len(lines_of(out)) == 24


def test_nothing_that_is_read_or_still_good_is_lost(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    before = rows.read_bytes()
    with pytest.raises(UserError, match="is a file that is read here"):
        predict(str(tiny_llama), [str(rows)], rows, overwrite=True)
    out = tmp_path / "out.jsonl"
    out.write_text("answers of yesterday")
    with pytest.raises(UserError, match="there is no generation engine named"):
        predict(str(tiny_llama), [str(rows)], out, engine="vlm", overwrite=True)
    assert rows.read_bytes() == before and out.read_text() == "answers of yesterday"


@pytest.mark.parametrize(
    "entry", ["heads/", "heads/*.jsonl", "dataset_info.json#heads", {"path": "heads", "max_samples": 1}]
)
def test_no_file_that_an_entry_stands_for_is_written_over(
    entry: str | dict[str, Any], tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_bytes(rows.read_bytes())
    info = {"heads": {"file_name": "heads"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        out = folder / f"{name}.jsonl"
        with pytest.raises(UserError, match="is a file that is read here"):
            predict(str(tiny_llama), [entry], out, SHORT, overwrite=True)
        with pytest.raises(UserError, match="is a file that is read here"):
            evaluate(str(tiny_llama), [entry], Asked(out=out, overwrite=True))
        assert out.read_bytes() == rows.read_bytes()


def test_a_prompt_that_is_too_long_gets_a_row_with_the_reason(tiny_llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = ["short", "x" * 400, "short too"]
    rows.write_text("".join(json.dumps({"instruction": text, "output": "yes"}) + "\n" for text in texts))
    out = tmp_path / "out.jsonl"
    result = predict(str(tiny_llama), [str(rows)], out, SHORT)
    found = lines_of(out)
    assert result.finish_reasons["prompt_too_long"] == 1
    assert found[1]["prediction"] == "" and found[1]["finish_reason"] == "prompt_too_long"
    assert "knows positions up to 256" in found[1]["reason"]
    assert all(line["tokens"] > 0 for line in (found[0], found[2]))


@pytest.mark.parametrize(
    ("row", "prompt", "label"),
    [
        ({"text": "the quick"}, {"prompt": "the quick"}, None),
        (
            {"prompt": "what?", "chosen": "this", "rejected": "that"},
            {"messages": [{"role": "user", "content": "what?"}]},
            "this",
        ),
        ({"text": "fine", "label": "good"}, {"messages": [{"role": "user", "content": "fine"}]}, "good"),
        (
            {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]},
            {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]},
            "d",
        ),
        ({"instruction": "say", "input": "it"}, {"messages": [{"role": "user", "content": "say\nit"}]}, None),
        ({"instruction": "say", "output": ""}, {"messages": [{"role": "user", "content": "say"}]}, None),
        ({"prompt": "say"}, {"messages": [{"role": "user", "content": "say"}]}, None),
        ({"prompt": ASKED}, {"messages": ASKED}, None),
        ({"prompt": ASKED, "completion": ANSWERED}, {"messages": ASKED}, "b"),
        ({"prompt": ASKED, "completion": ANSWERED, "label": True}, {"messages": ASKED}, "b"),
        ({"prompt": ASKED, "label": True}, {"messages": ASKED}, None),
        ({"prompt": ASKED, "chosen": ANSWERED, "rejected": [{"role": "assistant", "content": "c"}]}, {"messages": ASKED}, "b"),
        ({"prompt": ASKED, "chosen": [*ANSWERED, {"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}], "rejected": [{"role": "assistant", "content": "c"}]}, {"messages": ASKED}, "b"),
        ({"prompt": ASKED, "chosen": CALLED, "rejected": [{"role": "assistant", "content": "c"}]}, {"messages": ASKED}, '[{"name": "look", "arguments": {"up": "a"}}]'),
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}}, {"messages": ASKED}, "b"),
        ({"messages": ASKED, "completion": "of no format that has messages"}, {"messages": ASKED}, None),
        ({"instruction": "say", "instances": [{"input": "it", "output": "it"}]}, {"messages": [{"role": "user", "content": "say\nit"}]}, "it"),
        ({"text": "fine", "label": "good", "prompt": "unused"}, {"messages": [{"role": "user", "content": "fine"}]}, "good"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
            {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]},
            None,
        ),
    ],
)  # fmt: skip
def test_every_kind_of_record_has_a_prompt(
    row: dict[str, Any], prompt: dict[str, Any], label: str | None, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({**row, "number": n}) + "\n" for n in range(2)))
    predict(str(tiny_llama), [str(rows)], tmp_path / "out.jsonl", SHORT, keep_prompts=True)
    line = lines_of(tmp_path / "out.jsonl")[0]
    assert {key: line[key] for key in prompt} == prompt
    assert line["label"] == label


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_rows_that_bring_their_answers_are_read_as_in_training(path: Path) -> None:
    entry = DataEntry(path=str(path))
    records = load_entry(entry, "test", 0, 0, None).records
    assert prompts_of(load_records([entry])) == [prompt_of(record, row) for row, record in enumerate(records)]


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"prompt": "asked", "completion": "said"}, {"asked": ASKED, "said": ANSWERED}),
        ({"prompt": "asked", "chosen": "better", "rejected": "worse"}, {"asked": ASKED, "better": "b", "worse": "c"}),
        ({"chosen": "better", "rejected": "worse"}, {"prompt": ASKED, "better": "b", "worse": "c"}),
    ],
)
def test_answers_in_columns_of_other_names_are_found(
    columns: dict[str, str], row: dict[str, Any], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row))
    prompt = prompt_of(load_records([DataEntry(path=str(rows), columns=columns)])[0], 0)
    assert (prompt.request.messages, prompt.label) == ((Message("user", "a"),), "b")


def test_an_unfinished_run_goes_on_and_another_one_is_refused(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    sampled = GenerationSettings(max_new_tokens=6, do_sample=True, seed=3)
    predict(str(tiny_llama), [str(rows)], whole, sampled)
    # a journal as a kill leaves it: some rows in any order, and half a line
    out = tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    from luthier.evaluation.journal import open_journal

    with pytest.raises(KeyboardInterrupt), open_journal(out, {}) as journal:
        journal.add(0, {"index": 0})
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="differs from this one in"):
        predict(str(tiny_llama), [str(rows)], out, sampled)
    predict(str(tiny_llama), [str(rows)], out, sampled, overwrite=True)
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_settings_without_effect_are_refused(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(tiny_llama), "--data", str(rows), "--out", str(tmp_path / "out.jsonl")]
    assert main([*arguments, "--top-p", "0.5", "--length-penalty", "2", "--set", "num_return_sequences=2"]) == 2
    told = capsys.readouterr().err
    assert "top_p would have no effect without do_sample: true (luthier predict: --temperature above 0)" in told
    assert "length_penalty would have no effect" in told
    assert "num_return_sequences is 2" in told


def test_an_adapter_answers_folded_into_its_base_as_it_does_beside_it(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    import luthier
    from luthier.commands.chat import open_talker
    from luthier.config.schema import ModelConfig
    from tests.tiny import config_for

    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=4, learning_rate=0.05)
    luthier.train(config)
    predict(str(tmp_path / "run"), [str(rows)], tmp_path / "out.jsonl", SHORT)
    talker = open_talker(ModelConfig(name=str(tmp_path / "run")), SHORT)
    base = open_talker(ModelConfig(name=str(tiny_llama)), SHORT)
    asked = [[Message("user", row["instruction"])] for row in lines_of(rows)[:6]]
    found = [line["prediction"] for line in lines_of(tmp_path / "out.jsonl")[:6]]
    assert found == [talker.answer(messages) for messages in asked]
    assert found != [base.answer(messages) for messages in asked]


def test_a_model_that_gives_labels_is_refused(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    from luthier.foundation.errors import ModelError

    folder = tmp_path / "classifier"
    LlamaForSequenceClassification.from_pretrained(tiny_llama, num_labels=2).save_pretrained(folder)
    tokenizer_at(tiny_llama).save_pretrained(folder)
    with pytest.raises(ModelError, match="can't talk"):
        predict(str(folder), [str(rows)], tmp_path / "out.jsonl", SHORT)
