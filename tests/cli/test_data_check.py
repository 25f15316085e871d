"""`luthier data check` as a script meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier import cli
from luthier.config.stage_encoders import STAGE_ENCODERS
from luthier.data.checking.findings import FINDINGS
from tests.tiny import tiny_tokenizer

GOOD = [
    {"instruction": "Who made you?", "output": "The Luthier workshop made me."},
    {"instruction": "How do I tune a guitar?", "output": "Begin with the lowest string and go up."},
    {"instruction": "What is a lute?", "output": "A plucked instrument with a round back."},
    {"instruction": "Name a wood for the top.", "output": "Spruce, as a rule."},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tokenizer in it, and nothing that a model has."""
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def check(*arguments: str) -> int:
    return cli.main(["data", "check", "model=tokenizer", *arguments])


def checked(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert check(*arguments, "--json") == status
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


def test_good_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = lines(folder / "a.jsonl", GOOD)
    assert check(f"data.train={rows}", "--fail-on", "any") == 0
    told = capsys.readouterr().out
    assert "not found: rejected, mended, no_answer" in told and "100.0%" in told and "█" in told
    assert not (folder / "runs").exists()
    value = checked(capsys, f"data.train={rows}")
    train = value["splits"]["train"]
    assert (train["rows"], train["examples"], train["eos_coverage"], value["findings"]) == (4, 4, 1.0, {})
    assert 0 < train["trained_share"] == round(train["targets"] / train["tokens"], 6) < 1
    assert sum(bar["rows"] for bar in train["lengths"]["histogram"]) == 4
    assert value["failed_on"] == [] and set(value["not_looked_for"]) == {"leakage", "near_leakage", "other_language"}


CUT = (
    "The top of a guitar is made of two halves that are glued along the middle. Both come from one piece of wood, opened "
    "like a book, so that the grain runs alike on both sides. Then the maker planes it until it rings, and after that the"
)

BAD = [
    ("rejected", [{"instruction": "Why?", "output": 3}]),
    ("mended", [{"instruction": "x", "output": ""}]),
    ("no_answer", [{"instruction": "x", "output": ""}]),
    ("untrained", [{"instruction": "x", "output": ""}]),
    ("blank_answer", [{"instruction": "x", "output": "..."}]),
    ("short_answer", [{"instruction": "x", "output": "No"}]),
    ("refusal", [{"instruction": "x", "output": "I'm sorry, but I can't do that."}]),
    (
        "echoed_question",
        [{"instruction": "What is the capital of France?", "output": "What is the capital of France?"}],
    ),
    ("looping_answer", [{"instruction": "x", "output": "Again and again, " * 40}]),
    (
        "cut_answer",
        [{"instruction": "x", "output": CUT}],
    ),
    ("duplicates", [GOOD[0]]),
    ("near_duplicates", [{**GOOD[1], "output": GOOD[1]["output"] + "!"}]),
    ("secrets", [{"instruction": "x", "output": "password=" + "abc123def456"}]),
    ("emails", [{"instruction": "x", "output": "Write to jane@company.org"}]),
    ("control_tokens", [{"instruction": "x", "output": "It is <|im_end|> there"}]),
    ("over_length", [{"instruction": "x", "output": "word " * 500}]),
    ("no_stop_token", [{"instruction": "x", "output": "word " * 500}]),
]


@pytest.mark.parametrize(("finding", "rows"), BAD)
def test_each_finding_fails_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str], finding: str, rows: list[dict[str, Any]]
) -> None:
    path = f"data.train={lines(folder / 'a.jsonl', [*GOOD, *rows])}"
    value = checked(
        capsys, path, "data.cutoff_length=900", "--fail-on", finding, "--fail-on", "identical_pair", status=3
    )
    assert value["failed_on"] == [finding]
    found = value["findings"][finding]
    assert found["meaning"] == FINDINGS[finding] and found["rows"] == 1
    assert [(item["split"], item["row"]) for item in found["examples"]] == [("train", 5)]


def test_findings_between_splits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = {"instruction": "Why does wood ring?", "output": CUT + " end."}
    train = f"data.train={lines(folder / 'a.jsonl', [*GOOD, {**near, 'instruction': 'Why does the wood ring?'}])}"
    held = f"data.validation={lines(folder / 'b.jsonl', [{**GOOD[0], 'output': 'Someone.'}, near])}"
    value = checked(capsys, train, held, "training.eval_strategy=epoch", "--fail-on", "any", status=3)
    assert value["failed_on"] == ["leakage", "near_leakage"]
    assert [item["row"] for name in value["failed_on"] for item in value["findings"][name]["examples"]] == [1, 2]


def test_pairs_and_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"instruction": "x", "input": "", "chosen": "Good.", "rejected": "Good."}]
    path = f"data.train={lines(folder / 'p.jsonl', pairs)}"
    assert "identical_pair" in checked(capsys, "stage=dpo", path, "--fail-on", "identical-pair", status=3)["findings"]
    labels = [{"text": "too bad", "label": "no"}, {"text": "too bad", "label": "yes"}]
    path = f"data.train={lines(folder / 'l.jsonl', labels)}"
    value = checked(capsys, "stage=classification", path, "--fail-on", "conflicting_labels", status=3)
    assert list(value["findings"]) == ["conflicting_labels"] and value["splits"]["train"]["examples"] == 2


def test_every_finding_is_tried() -> None:
    elsewhere = {"leakage", "near_leakage", "identical_pair", "conflicting_labels", "other_language"}
    assert {finding for finding, _ in BAD} | elsewhere == set(FINDINGS)


def test_languages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chinese = {"instruction": "请告诉我怎样保持健康", "output": "多吃蔬菜，每天运动，早睡早起。"}
    path = f"data.train={lines(folder / 'a.jsonl', [*GOOD, chinese])}"
    value = checked(capsys, path, "--language", "en", "--fail-on", "other_language", status=3)
    assert value["languages"] == {"train": {"en": 4, "zh": 1}}
    assert value["findings"]["other_language"]["examples"][0]["row"] == 5
    checked(capsys, path, "--language", "en", "--language", "zh", "--fail-on", "other_language")
    error = checked(capsys, path, "--fail-on", "other_language", status=2)
    assert "has no languages" in error["error"]


def test_bad_rows_never_stop_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five bad rows of two reasons, under invalid_rows: error; the file is written where the run's would be."""
    bad = [{"instruction": "Why?", "output": 3}] * 4 + [{"instruction": "Why?"}]
    path = f"data.train={lines(folder / 'a.jsonl', [*GOOD, *bad])}"
    value = checked(capsys, path, "output_dir=out")
    assert [(item["rows"], len(item["examples"])) for item in value["rejected"]] == [(4, 3), (1, 1)]
    assert value["sources"][0]["rows_kept"] == 4 and value["findings"]["rejected"]["rows"] == 5
    assert value["files"] == [str(Path("out", "check", "rejected.jsonl"))]
    written = [json.loads(line) for line in (folder / "out" / "check" / "rejected.jsonl").read_text().splitlines()]
    assert [item["row"] for item in written] == [5, 6, 7, 8, 9] and written[0]["values"] == bad[0]
    # a second check of mended rows leaves no old list behind
    path = f"data.train={lines(folder / 'a.jsonl', GOOD)}"
    checked(capsys, path, "output_dir=out")
    assert not (folder / "out" / "check" / "rejected.jsonl").exists()


def test_rows_rejected_for_want_of_an_answer_are_that_finding_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [*GOOD, {"instruction": "Why?", "output": None}, {"instruction": "Why?"}]
    path = f"data.train={lines(folder / 'a.jsonl', [*rows, {'instruction': '', 'output': 'So.'}])}"
    value = checked(capsys, path, "--fail-on", "no_answer", status=3)
    assert [item["row"] for item in value["findings"]["no_answer"]["examples"]] == [5, 6]
    assert value["findings"]["rejected"]["rows"] == 3
    turns = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    asked = {"messages": turns[0]["messages"][:1]}
    value = checked(capsys, f"data.train={lines(folder / 'm.jsonl', [*turns, asked])}")
    assert [item["row"] for item in value["findings"]["no_answer"]["examples"]] == [2]


def test_a_registrys_columns_tell_which_rejected_rows_have_an_answer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered = {"file_name": "a.jsonl", "columns": {"prompt": "q", "response": "a"}}
    (folder / "dataset_info.json").write_text(json.dumps({"mine": registered}))
    lines(folder / "a.jsonl", [{"q": "Why?", "a": "So."}, {"q": "", "a": "fine"}, {"q": "Why?", "a": None}])
    findings = checked(capsys, "data.train=dataset_info.json#mine")["findings"]
    assert findings["rejected"]["rows"] == 2
    assert [item["row"] for item in findings["no_answer"]["examples"]] == [3]


PAIR = {"instruction": "Why?", "input": "", "chosen": "So it is.", "rejected": "Because of that."}
JUDGED = {"prompt": "Why?", "completion": "So it is.", "label": True}
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": GOOD,
    "pretrain": [{"text": "The Luthier workshop makes lutes."}, {"text": "A lute has a round back."}],
    **{stage: [PAIR, {**PAIR, "instruction": "How?"}] for stage in ("reward", "dpo", "orpo", "simpo")},
    "kto": [JUDGED, {**JUDGED, "prompt": "How?", "label": False}],
    "ppo": GOOD,
    "grpo": GOOD,
    "classification": [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}],
    "regression": [{"text": "good", "label": 4.5}, {"text": "bad", "label": 1}],
}


@pytest.mark.parametrize("stage", STAGE_ENCODERS)
def test_every_stage(folder: Path, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    path = f"data.train={lines(folder / 'a.jsonl', ROWS[stage])}"
    value = checked(capsys, f"stage={stage}", path, "--fail-on", "any")
    train = value["splits"]["train"]
    assert train["rows"] == len(ROWS[stage]) and train["tokens"] > 0
    assert train["examples"] == (1 if stage == "pretrain" else len(ROWS[stage]))
    assert sum(bar["rows"] for bar in train["lengths"]["histogram"]) == len(ROWS[stage])
    assert (train["targets"] > 0) == (stage not in ("ppo", "grpo", "classification", "regression"))
    assert check(f"stage={stage}", path) == 0
    assert ("trained tokens" in capsys.readouterr().out) == (train["targets"] > 0)


def test_only_bad_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"data.train={lines(folder / 'a.jsonl', [{'ask': 'Why?', 'say': 'So.'}] * 2)}"
    value = checked(capsys, path, "data.validation=0.5", "training.eval_strategy=epoch")
    assert value["findings"]["rejected"]["rows"] == 2 and value["splits"]["train"]["examples"] == 0
    assert "no format matches" in value["rejected"][0]["reason"]
    assert check(path) == 0
    assert "2 rejected: no format matches" in capsys.readouterr().out
    assert "does not exist" in checked(capsys, "data.train=absent.jsonl", status=2)["error"]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("split: 'train[1:200]'", "reaches to row 200, but there are only"),
        ("columns: {instruction: ask}", "names the column 'ask', which no row has"),
    ],
)
def test_settings_that_fit_no_row_are_no_matter_of_the_rows(
    folder: Path, capsys: pytest.CaptureFixture[str], entry: str, problem: str
) -> None:
    path = lines(folder / "a.jsonl", GOOD)
    value = checked(capsys, f"data.train={{path: {path}, {entry}}}", status=2)
    assert problem in value["error"]


def test_a_pair_that_is_cut_tells_the_tokens_of_both_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"data.train={lines(folder / 'a.jsonl', [{**PAIR, 'chosen': 'word ' * 500}])}"
    (hit,) = checked(capsys, "stage=dpo", path)["findings"]["over_length"]["examples"]
    assert " tokens (of both answers together), cut to " in hit["detail"]


def test_rows_that_are_too_long_never_stop_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever becomes of them, they are among the lengths: who chooses a cutoff goes by these."""
    path = f"data.train={lines(folder / 'a.jsonl', [*GOOD, {'instruction': 'x', 'output': 'word ' * 500}])}"
    lengths = checked(capsys, path)["splits"]["train"]["lengths"]
    assert lengths["longest"] > 1024
    for mode in ("error", "drop"):
        value = checked(capsys, path, f"data.over_length={mode}")
        train, found = value["splits"]["train"], value["findings"]["over_length"]
        assert train["dropped_rows"] == found["rows"] == 1
        assert train["lengths"] == lengths and train["longest_tokens"] == lengths["longest"]
        assert found["examples"][0]["detail"] == f"{lengths['longest']} tokens: left out"


def test_a_row_that_is_split_is_too_long_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its parts fit, but it does not; and it is one row."""
    turns = [{"role": role, "content": "word " * 60} for _ in range(4) for role in ("user", "assistant")]
    short = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    path = f"data.train={lines(folder / 'm.jsonl', [{'messages': turns}, {'messages': short}])}"
    options = ("data.cutoff_length=800", "data.over_length=split", "--fail-on", "over_length")
    value = checked(capsys, path, *options, status=3)
    train, found = value["splits"]["train"], value["findings"]["over_length"]
    whole = train["lengths"]["longest"]
    assert whole > 800 and train["truncated_rows"] == 0 and train["examples"] > 2
    assert sum(bar["rows"] for bar in train["lengths"]["histogram"]) == 2
    assert [hit["row"] for hit in found["examples"]] == [1]
    assert found["examples"][0]["detail"] == f"{whole} tokens: split into {train['examples'] - 1} examples"


def test_a_row_that_lost_whole_turns_keeps_its_stop_token(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all trained the sequence ends with the template's line break behind it."""
    turns = [{"role": role, "content": "word " * 60} for _ in range(4) for role in ("user", "assistant")]
    path = f"data.train={lines(folder / 'm.jsonl', [{'messages': turns}])}"
    for train_on in ("assistant", "all"):
        stage = f"stage={{name: sft, train_on: {train_on}}}"
        value = checked(capsys, stage, path, "data.cutoff_length=800", "--fail-on", "no_stop_token")
        assert value["splits"]["train"]["truncated_rows"] == 1 and value["splits"]["train"]["eos_coverage"] == 1.0


def test_the_length_of_a_pair_is_what_the_cutoff_goes_by(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"data.train={lines(folder / 'a.jsonl', [{**PAIR, 'chosen': 'word ' * 60, 'rejected': 'word ' * 50}])}"
    longest = checked(capsys, "stage=dpo", path)["splits"]["train"]["lengths"]["longest"]
    for cutoff, status in ((longest, 0), (longest - 1, 3)):
        checked(capsys, "stage=dpo", path, f"data.cutoff_length={cutoff}", "--fail-on", "over_length", status=status)


def test_the_template_may_refuse_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = {
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        "tools": '[{"name": "f"}]',
    }
    plain = {"conversations": tools["conversations"], "tools": ""}
    value = checked(capsys, f"data.train={lines(folder / 'a.jsonl', [plain, tools])}")
    assert value["splits"]["train"]["unrendered_rows"] == value["findings"]["rejected"]["rows"] == 1
    assert "no place for" in value["rejected"][0]["reason"]


def test_an_out_that_is_a_file_is_refused_before_rows_are_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "report.json").write_text("mine")
    assert check("data.train=no/such.jsonl", "--out", "report.json") == 2
    assert f"--out 'report.json' can't be used: {folder / 'report.json'} is no folder." in capsys.readouterr().err
    assert (folder / "report.json").read_text() == "mine"


def test_the_report_is_printed_where_rejected_rows_can_not_be_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out").write_text("a file")
    bad = lines(folder / "a.jsonl", [*GOOD, {"instruction": "x", "output": 3}])
    assert check(f"data.train={bad}", "output_dir=out", "--json") == 0
    told = capsys.readouterr()
    assert f"the rejected rows are not written: {folder / 'out'} is no folder; --out names" in told.err
    value = json.loads(told.out.splitlines()[-1])
    assert value["files"] == [] and value["findings"]["rejected"]
    good = lines(folder / "b.jsonl", GOOD)
    assert check(f"data.train={good}", "output_dir=out") == 0
    assert "not written" not in capsys.readouterr().err


def test_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"data.train={lines(folder / 'a.jsonl', [*GOOD, *GOOD])}"
    value = checked(capsys, path, "--out", "report")
    assert sorted(Path(file).name for file in value["files"]) == ["check.json", "findings.jsonl", "rejected.jsonl"]
    assert json.loads((folder / "report" / "check.json").read_text()) == value
    hits = [json.loads(line) for line in (folder / "report" / "findings.jsonl").read_text().splitlines()]
    assert [(hit["finding"], hit["row"]) for hit in hits] == [("duplicates", row) for row in (5, 6, 7, 8)]


def test_no_secret_is_printed_or_written_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "hf_" + "a1B2c3" * 6
    row = {"instruction": f"Use {secret} now please, it is mine", "output": "No"}
    path = f"data.train={lines(folder / 'a.jsonl', [row, row, {'instruction': secret, 'output': {'key': secret}}])}"
    assert check(path, "--out", "report", "--json") == 0
    told = capsys.readouterr()
    shown = (
        told.out
        + told.err
        + "".join((folder / "report" / name).read_text() for name in ("check.json", "findings.jsonl"))
    )
    assert "hf_a" in shown and secret not in shown and secret[:20] not in shown


def test_without_the_extra_the_rest_is_looked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rensa", None)
    path = f"data.train={lines(folder / 'a.jsonl', [*GOOD, GOOD[0]])}"
    value = checked(capsys, path, "--fail-on", "any", status=3)
    assert value["failed_on"] == ["duplicates"]
    assert "luthier[check]" in value["not_looked_for"]["near_duplicates"]
    error = checked(capsys, path, "--fail-on", "near_duplicates", status=2)
    assert "can't be answered" in error["error"] and "luthier[check]" in error["error"]


def test_an_unknown_finding_names_the_nearest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = checked(capsys, "data.train=a.jsonl", "--fail-on", "duplicate", status=2)
    assert "Did you mean duplicates or near_duplicates" in value["remedy"]


def test_help_names_every_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", "--help"]) == 0
    told = capsys.readouterr().out.replace("\n", " ").replace("  ", "")
    assert all(name in told for name in FINDINGS)
