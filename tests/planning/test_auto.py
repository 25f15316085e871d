"""The rules of `luthier auto` as docs/auto.md states them, and the verb on a tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier import cli
from luthier.commands import auto as command
from luthier.commands.auto import auto, config_text
from luthier.commands.looking import look_at_rows
from luthier.config.loading import validate
from luthier.foundation.errors import DataError, UserError
from luthier.planning.auto import (
    Choice,
    Facts,
    Prediction,
    choose,
    tokens_of_a_step,
    total_steps,
    trained_rows,
    value_of,
)
from luthier.planning.budget import BUDGET_SHARE, LEAST_STEPS, Budget, run_seconds, within
from luthier.planning.fitting import fit
from luthier.planning.planner import Planner
from luthier.planning.step_trace import UntraceableError
from tests.classify import write_json_lines
from tests.tiny import CHATML, tiny_folder, write_rows

GIB = 1024**3
FACTS = Facts(
    kind="conversations",
    rows=1000,
    rejected=0,
    token_lengths=(*range(50, 149), 400),
    trained_tokens=150_000,
    has_tools=False,
    classes={},
    template="auto",
    template_reason="the tokenizer brings its own",
    parameters=134_000_000,
    width=576,
    layers=30,
    positions=8192,
    reads_both_ways=False,
    device="cpu",
    precision="",
    free_bytes=24 * GIB,
    can_quantize=False,
)


def chosen(**changes: Any) -> dict[str, Any]:
    return {choice.key: choice.value for choice in choose(replace(FACTS, **changes), "m", "rows.jsonl", "runs/a")}


def test_the_choices_are_a_config_that_loads_each_with_a_reason() -> None:
    for kind in ("conversations", "text", "classes", "numbers"):
        facts = replace(
            FACTS, kind=kind, classes={"a": 500, "b": 500}, template="auto" if kind == "conversations" else ""
        )
        choices = choose(facts, "m", "rows.jsonl", "runs/a")
        assert all(choice.reason for choice in choices)
        text = config_text(choices, ["made"])
        validate(yaml.safe_load(text))
        for choice in choices:
            assert choice.reason.split()[0] in text


@pytest.mark.parametrize(
    ("kind", "stage"),
    [("conversations", "sft"), ("text", "pretrain"), ("classes", "classification"), ("numbers", "regression")],
)
def test_the_stage_follows_the_rows(kind: Any, stage: str) -> None:
    found = chosen(kind=kind, classes={"a": 3, "b": 3})["stage"]
    assert found == ({"name": stage, "labels": ["a", "b"]} if kind == "classes" else stage)


def test_uneven_classes_count_alike() -> None:
    stage = {"name": "classification", "labels": ["a", "b"]}
    assert chosen(kind="classes", classes={"a": 900, "b": 100})["stage"] == {**stage, "class_weights": "balanced"}
    # 1000 / (2 x 997) and 1000 / (2 x 3), of which no row takes more than ten
    weights = {"a": 0.502, "b": 10.0}
    assert chosen(kind="classes", classes={"a": 997, "b": 3})["stage"] == {**stage, "class_weights": weights}
    several = chosen(kind="classes", classes={"a": 900, "b": 100}, several_labels=True)["stage"]
    assert several == {**stage, "multi_label": True}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, None),
        ({"rejected": 3}, "3 rows can't be used; such"),
        ({"unrendered": 2}, "the template refuses 2 rows; such"),
        ({"unrendered": 2, "sampled": True}, "refuses 2 rows of the sample"),
        ({"sampled": True}, "tried on a sample, and may refuse others"),
        ({"sampled": True, "kind": "text", "template": ""}, None),
    ],
)
def test_rows_that_can_not_be_used_end_no_run(facts: dict[str, Any], reason: str | None) -> None:
    choices = choose(replace(FACTS, **facts), "m", "d", "o")
    found = [choice for choice in choices if choice.key == "data.invalid_rows"]
    assert [choice.value for choice in found] == (["reject"] if reason else [])
    assert reason is None or reason in found[0].reason


@pytest.mark.parametrize(
    ("lengths", "positions", "length"),
    [
        ((50,) * 999 + (400,), 8192, 448),  # the longest, rounded up to a multiple of 64
        ((50,) * 99 + (400,), 8192, 512),  # a sample: a quarter more
        ((50, 3000, 9000), 2048, 2048),  # the model's positions
    ],
)
def test_the_length_takes_the_rows_whole_where_it_can(lengths: tuple[int, ...], positions: int, length: int) -> None:
    assert chosen(token_lengths=lengths, positions=positions)["data.cutoff_length"] == length


@pytest.mark.parametrize(("rows", "held_out"), [(19, None), (100, 0.1), (5000, 0.05), (50_000, 500)])
def test_a_share_is_held_out(rows: int, held_out: float | None) -> None:
    found = chosen(rows=rows)
    assert found.get("data.validation") == held_out
    assert ("training.eval_strategy" in found) == (held_out is not None)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"), [(100, 4, 6), (400, 8, 3), (1000, 16, 3), (7000, 32, 2), (100_000, 64, 1)]
)
def test_steps(rows: int, batch: int, epochs: int) -> None:
    found = chosen(rows=rows)
    assert found["training.per_device_train_batch_size"] == batch
    assert found["training.num_train_epochs"] == epochs


def test_the_best_moment_is_taken_where_rows_are_held_out() -> None:
    assert "training.load_best_model_at_end" not in chosen(rows=19)
    reasons = {choice.key: choice.reason for choice in choose(replace(FACTS, rows=90), "m", "d", "o")}
    assert "a rough choice, by 9 rows" in reasons["training.load_best_model_at_end"]
    assert chosen(rows=600)["training.load_best_model_at_end"] is True


@pytest.mark.parametrize(("width", "rate"), [(576, 1e-3), (2048, 5e-4), (4096, 3e-4), (8192, 2e-4), (20_000, 1e-4)])
def test_the_learning_rate_falls_with_the_width(width: int, rate: float) -> None:
    assert chosen(width=width)["training.learning_rate"] == pytest.approx(rate)


def test_the_method_follows_model_and_rows() -> None:
    assert chosen()["method"] == {"name": "lora", "rank": 16, "alpha": 32}
    assert chosen(trained_tokens=2_000)["method"]["rank"] == 8
    assert chosen(kind="text", trained_tokens=9_000_000)["method"] == "full"
    assert chosen(kind="classes", classes={"a": 1, "b": 1}, reads_both_ways=True)["method"] == "full"
    assert chosen(kind="classes", classes={"a": 1, "b": 1}, reads_both_ways=True)["training.learning_rate"] == 5e-5


def predicted(facts: Facts) -> Any:
    """Memory as a few counts give it: weights, what is trained, and 34 or 68 bytes a token, layer and unit of width
    (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, eq. 2, without the attention matrix)."""

    def predict(choices: tuple[Choice, ...]) -> Prediction:
        found = {choice.key: choice.value for choice in choices}
        each = 0.6 if isinstance(found["model"], dict) else 2 if facts.precision else 4
        trained = facts.parameters if found["method"] == "full" else 0
        tokens = min(facts.longest, found["data.cutoff_length"]) * found["training.per_device_train_batch_size"]
        layers = 1 if found.get("training.gradient_checkpointing") else facts.layers
        activations = tokens * layers * facts.width * (34 if facts.precision else 68)
        return Prediction(int(each * facts.parameters + 12 * trained + activations), 1.0)

    return predict


def fitted(facts: Facts) -> dict[str, Any]:
    choices = fit(facts, choose(facts, "m", "d", "o"), predicted(facts))
    assert predicted(facts)(choices).peak_bytes <= 0.8 * facts.free_bytes
    return {choice.key: choice.value for choice in choices}


def test_what_fits_is_left_alone() -> None:
    assert fitted(FACTS) == chosen() | {"model": "m", "data.train": "d", "output_dir": "o"}


def test_memory_is_saved_by_the_cheapest_change_first() -> None:
    smaller = fitted(replace(FACTS, free_bytes=3 * GIB))
    batch, pieces = smaller["training.per_device_train_batch_size"], smaller["training.gradient_accumulation_steps"]
    assert batch < 16
    assert batch * pieces == 16  # the step is the same
    assert "training.gradient_checkpointing" not in smaller
    long = replace(FACTS, token_lengths=(6000,) * 100, free_bytes=4 * GIB)
    assert fitted(long)["training.gradient_checkpointing"] is True
    seven = replace(
        FACTS, parameters=7_000_000_000, width=4096, layers=32, free_bytes=16 * GIB, precision="bf16", device="cuda"
    )
    with pytest.raises(UserError, match="can't be trained here: it would take at least"):
        fitted(seven)
    assert fitted(replace(seven, can_quantize=True))["model"] == {"name": "m", "quantization": {"bits": 4}}


def test_text_is_learnt_by_adapters_where_the_whole_model_does_not_fit() -> None:
    text = replace(FACTS, kind="text", trained_tokens=9_000_000, template="", parameters=1_000_000_000, width=2048)
    assert fitted(text)["method"] == "full"
    assert fitted(replace(text, free_bytes=12 * GIB))["method"]["name"] == "lora"


def shortened(minutes: float, *, per_step: float = 10.0, **changes: Any) -> tuple[tuple[Choice, ...], Facts, float]:
    """The choices for so many minutes of training, and the seconds that they take."""
    facts = replace(FACTS, **changes)
    whole = choose(facts, "m", "d", "o")
    per_token = per_step / tokens_of_a_step(facts, whole)
    choices = within(facts, whole, per_token, Budget(minutes / BUDGET_SHARE, 0.0, 0.0))
    return choices, facts, run_seconds(facts, choices, per_token)


def test_a_budget_takes_epochs_first_then_rows() -> None:
    # 950 rows are 60 steps of 10 seconds, and 50 held-out ones one more: 610 s an epoch; with one epoch, four evaluations
    assert value_of(shortened(31)[0], "training.num_train_epochs") == 3
    assert value_of(shortened(24)[0], "training.num_train_epochs") == 2
    choices, _, seconds = shortened(5)
    assert value_of(choices, "training.num_train_epochs") == 1
    # a row takes 10 / 16 s; of a sample a fifth is held out and scored four times, in a third of the time
    rows = int(300 / (10 / 16 * (0.8 + 4 * 0.2 / 3)))
    batch = 8  # 2 ** int(log2(0.8 * rows / 25))
    steps = int(0.8 * rows) // batch
    assert value_of(choices, "training.per_device_train_batch_size") == batch
    assert value_of(choices, "data.train") == {"path": "d", "max_samples": int(steps * batch / 0.8)}
    assert value_of(choices, "data.validation") == 0.2
    assert 250 < seconds <= 300
    validate(yaml.safe_load(config_text(choices, [])))


@pytest.mark.parametrize("kind", ["conversations", "text", "classes"])
@pytest.mark.parametrize("minutes", [1, 2, 4, 20, 60, 400])
@pytest.mark.parametrize("rows", [400, 3000, 20_000])
def test_a_shortened_run_takes_no_longer_than_its_budget(kind: Any, minutes: float, rows: int) -> None:
    choices, facts, seconds = shortened(
        minutes, kind=kind, rows=rows, trained_tokens=150 * rows, classes={"a": 1, "b": 1}
    )
    assert seconds <= 60 * minutes
    whole = choose(facts, "m", "d", "o")
    assert seconds > 0.5 * min(run_seconds(facts, whole, 10.0 / tokens_of_a_step(facts, whole)), 60 * minutes)
    assert total_steps(facts, choices) >= LEAST_STEPS
    validate(yaml.safe_load(config_text(choices, [])))


def test_a_small_budget_makes_small_steps_of_short_rows() -> None:
    """A row takes 10 / 16 s, and one evaluation of the fifth that is held out a fifteenth of it more."""
    choices, _, _ = shortened(0.4)
    assert value_of(choices, "training.per_device_train_batch_size") == 2
    assert value_of(choices, "data.over_length") is None
    assert value_of(choices, "training.eval_strategy") == "epoch"
    assert value_of(choices, "training.load_best_model_at_end") is None, "one evaluation has no best"
    long = (*range(50, 149), *[2000] * 60)
    choices, _, seconds = shortened(0.4, token_lengths=long, rows=159)
    assert value_of(choices, "data.cutoff_length") == 192  # the median is 129
    assert value_of(choices, "data.over_length") == "drop"
    # as many are drawn as leave ten steps when the longer ones are gone
    drawn = value_of(choices, "data.train")["max_samples"]
    assert drawn * 0.8 * sum(tokens <= 192 for tokens in long) / 159 >= 2 * LEAST_STEPS
    assert seconds <= 24
    validate(yaml.safe_load(config_text(choices, [])))


def test_a_small_budget_for_text_makes_short_blocks_and_holds_few_texts_out() -> None:
    """30 texts of 7,500 tokens, as encyclopedias have them: one of them is 7 blocks of 1,024."""
    choices, facts, seconds = shortened(1, kind="text", rows=30, trained_tokens=225_000, template="")
    assert value_of(choices, "data.validation") == 1
    assert value_of(choices, "data.cutoff_length") < 1024
    assert value_of(choices, "training.max_steps") == total_steps(facts, choices) >= LEAST_STEPS
    assert 30 < seconds <= 60
    more, _, _ = shortened(30, kind="text", rows=30, trained_tokens=225_000, template="")
    assert value_of(more, "data.cutoff_length") == 1024


def test_of_text_a_count_of_held_out_texts_is_not_one_of_blocks() -> None:
    facts = replace(FACTS, kind="text", rows=30, trained_tokens=30 * 8 * 1024)
    assert trained_rows(facts, 3) == 27 * 8
    assert trained_rows(facts, 0.1) == 27 * 8


def test_a_budget_for_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"are too few .* 4 steps of 2, .* 10 are the least") as caught:
        shortened(0.1)
    assert "Give it --budget 1," in caught.value.remedy
    facts = replace(FACTS, kind="text", rows=30, trained_tokens=225_000)
    with pytest.raises(UserError, match=r"2 minutes .*: 90 seconds went into looking .* 0 steps of 2") as caught:
        within(facts, choose(facts, "m", "d", "o"), 0.01, Budget(2, 90.0, 40.0))
    # ten steps of 2 blocks of 128 tokens, and one text of 7,500 to be scored
    least = 0.01 * (10 * 2 * 128 + 7500 / 3)
    assert f"--budget {math.ceil((130 + least / BUDGET_SHARE) / 60)}," in caught.value.remedy


def test_what_can_not_be_foreseen_is_said(place: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def untraceable(*args: Any, **kwargs: Any) -> None:
        raise UntraceableError("of a kind that nobody knows")

    monkeypatch.setattr(Planner, "_memory", untraceable)
    words = [str(place / "model"), str(place / "rows.jsonl")]
    with pytest.raises(UserError, match=r"--budget needs a prediction: .*of a kind that nobody knows"):
        auto(*words, output=str(tmp_path / "run"), budget=5)
    result = auto(*words, output=str(tmp_path / "run"), dry_run=True)
    assert "Whether the run fits is not known" in capsys.readouterr().err
    assert "Predicted" not in Path(result.config).read_text()


def test_a_run_that_takes_longer_than_predicted_ends_in_time(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that becomes ten thousand times slower than it was."""
    monkeypatch.setattr("luthier.commands.auto._gone", lambda: 0.0)
    monkeypatch.setattr("luthier.commands.auto.WRITING_SECONDS", 1e9)
    monkeypatch.setattr("luthier.commands.auto.Budget", lambda minutes, *others: Budget(minutes, 0.0, 0.0))
    result = auto(str(place / "model"), str(place / "rows.jsonl"), output=str(tmp_path / "run"), budget=60)
    assert result.training is not None and result.training["steps"] == 1
    assert [line["step"] for line in result.evaluations] == [1]
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()
    told = capsys.readouterr().err
    assert (
        "The budget was used up after step 1, sooner than predicted" in told and "--resume` goes on to the end" in told
    )
    again = {"output": str(tmp_path / "run"), "resume": True}
    words = str(place / "model"), str(place / "rows.jsonl")
    with pytest.raises(UserError, match="--resume and --dry-run exclude each other"):
        auto(*words, dry_run=True, **again)
    later = auto(*words, budget=60, **again)
    assert later.training is not None and later.training["steps"] == 2
    assert "--budget only says when to stop" in capsys.readouterr().err
    whole = auto(*words, **again)
    assert whole.training is not None and whole.training["steps"] == 36


@pytest.mark.parametrize(
    ("strategy", "advice"), [("epoch", "--resume` goes on"), ("no", "--overwrite` trains the whole")]
)
def test_what_to_do_when_the_budget_is_used_up_needs_no_config_afterwards(
    strategy: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is edited while the run goes on."""
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: m\ndata: {{train: rows.jsonl}}\ntraining: {{save_strategy: '{strategy}'}}\noutput_dir: run\n"
    )

    def trained(chosen: Any, resume: bool, overwrite: bool, trust: bool, callbacks: Any) -> Any:
        file.write_text("model: [half")
        callbacks[0].stopped_after = 3
        return chosen

    monkeypatch.setattr(command, "_trained", trained)
    command._in_time(command.AutoResult(str(file), (), 0, 0.0, None), 1.0, (None, 1), False, False, False)
    told = capsys.readouterr().err
    assert "used up after step 3" in told and advice in told


# the verb


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    tiny_folder(folder / "model")
    write_rows(folder / "rows.jsonl", 24)
    return folder


@pytest.fixture(autouse=True)
def _free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on the machine."""
    monkeypatch.setattr("luthier.commands.looking.free_memory_bytes", lambda device: 8 * GIB)


def test_it_trains_evaluates_and_leaves_the_config(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["auto", str(place / "model"), str(place / "rows.jsonl"), "--output", str(out)]
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["training"]["steps"] == 6 * 6  # 22 rows by 4, six times
    assert [line["step"] for line in told["evaluations"]] == [6, 12, 18, 24, 30, 36]
    assert told["evaluations"][-1]["eval_loss"] < told["evaluations"][0]["eval_loss"]
    config = yaml.safe_load(Path(told["config"]).read_text())
    assert Path(told["config"]) == tmp_path / "run.yaml"
    assert config["stage"] == "sft"
    assert config["output_dir"] == str(out)
    assert cli.main(words) == 2
    assert "run.yaml is there already" in capsys.readouterr().err
    assert cli.main([*words, "--resume"]) == 0
    assert "is finished: nothing is left to do" in capsys.readouterr().err


def test_a_dry_run_only_writes_the_config(place: Path, tmp_path: Path) -> None:
    result = auto(str(place / "model"), str(place / "rows.jsonl"), output=str(tmp_path / "run"), dry_run=True)
    assert result.training is None
    assert not (tmp_path / "run").exists()
    text = (tmp_path / "run.yaml").read_text()
    assert "# 24 conversations, about " in text
    validate(yaml.safe_load(text))


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows must not be read."""

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the rows were read")

    monkeypatch.setattr("luthier.commands.looking.look", never)


@pytest.mark.parametrize("how", [{}, {"resume": True}])
@pytest.mark.usefixtures("unseen")
def test_a_folder_with_another_run_is_refused_at_once(how: dict[str, bool], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for noted, going_on in (
        ({"command": "luthier train other.yaml training.seed=3"}, "luthier train other.yaml training.seed=3 --resume"),
        ({}, f"luthier train {folder / 'config.yaml'} --resume"),
    ):
        (folder / "run.json").write_text(json.dumps(noted))
        with pytest.raises(UserError, match=r"holds another run \(checkpoints\)") as caught:
            auto("m", "rows.jsonl", output=str(folder), **how)
        assert f"go on with `{going_on}`" in caught.value.remedy
        assert not (tmp_path / "run.yaml").exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (".", "names no folder"),
        ("/", "names no folder"),
        ("..", "names no folder"),
        ("file/run", "can't be written: .*file is no folder"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.usefixtures("unseen")
def test_a_place_that_can_not_be_written_is_refused_at_once(
    output: str, words: str, dry_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=words):
        auto("m", "rows.jsonl", output=output, dry_run=dry_run)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("data/mine.jsonl", "mine"),
        ("huggingface:someone/rows", "rows"),
        ("data/*.jsonl", "data"),
        ("data/train-*-of-03.parquet", "train"),
        ("logs/**/*.jsonl", "logs"),
        ("../*.jsonl", "data"),
        ("/", "data"),
    ],
)
def test_a_run_is_called_after_its_rows(data: str, name: str) -> None:
    assert command._stem(data) == name


@pytest.fixture
def unpredicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds in which this machine is measured."""

    def unforeseen(self: Any, choices: Any) -> Prediction:
        raise command.UnforeseenError("not asked")

    monkeypatch.setattr(command.Predictor, "__call__", unforeseen)


def dry(place: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The config for some rows."""
    file = write_json_lines(place / "given.jsonl", rows)
    result = auto(str(place / "model"), str(file), output=str(place / "dry"), dry_run=True, overwrite=True)
    found: dict[str, Any] = yaml.safe_load(Path(result.config).read_text())
    return found


@pytest.mark.usefixtures("unpredicted")
def test_rows_that_the_template_refuses_are_left_out_of_the_run(place: Path, tmp_path: Path) -> None:
    """One in 24: too few for another template."""
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    rows[7]["output"] = "nothing"
    refusing = "{% for m in messages if m['content'] == 'nothing' %}{{ raise_exception('no') }}{% endfor %}"
    tiny_folder(tmp_path / "model", template=refusing + CHATML)
    file = write_json_lines(tmp_path / "given.jsonl", rows)
    result = auto(str(tmp_path / "model"), str(file), output=str(tmp_path / "run"))
    setting = yaml.safe_load(Path(result.config).read_text())["data"]
    assert result.training is not None
    assert setting["template"] == "auto" and setting["invalid_rows"] == "reject"
    (left,) = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(left)["row"] == 8


@pytest.mark.usefixtures("unpredicted")
def test_rows_with_several_labels(place: Path) -> None:
    rows = [{"text": f"the fox {number}", "labels": ["fox", "odd"] if number % 2 else []} for number in range(24)]
    assert dry(place, rows)["stage"] == {"name": "classification", "labels": ["fox", "odd"], "multi_label": True}
    rows = [{"text": f"the fox {number}", "labels": [["even"], ["odd"]][number % 2]} for number in range(24)]
    assert dry(place, rows)["stage"] == {"name": "classification", "labels": ["even", "odd"]}


@pytest.mark.usefixtures("unpredicted")
def test_a_class_of_one_row_takes_part(place: Path, tmp_path: Path) -> None:
    """Wherever the row ends up."""
    rows = [{"text": f"the fox {number}", "label": number % 2} for number in range(24)]
    file = write_json_lines(tmp_path / "given.jsonl", [*rows, {"text": "seven", "label": 7}])
    result = auto(str(place / "model"), str(file), output=str(tmp_path / "run"))
    stage = yaml.safe_load(Path(result.config).read_text())["stage"]
    assert stage == {"name": "classification", "labels": ["0", "1", "7"], "class_weights": "balanced"}
    assert result.training is not None and result.evaluations


def test_what_is_wrong_with_labels_is_not_the_templates_fault(place: Path) -> None:
    for rows in ([{"text": f"fox {n}", "label": "a"} for n in range(24)], [{"text": "fox", "label": "a"}]):
        with pytest.raises(DataError, match=f"all {len(rows)} training rows are of the class 'a'.*\n.*other labels"):
            dry(place, rows)


def test_columns_of_other_names_are_to_be_renamed(tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text("review,sentiment\nfine,1\npoor,0\n")
    with pytest.raises(
        DataError, match=r"fields are: review, sentiment\.\n.*its class or number: text and label;.*no columns"
    ):
        look_at_rows(str(file))


class Without:
    """The registry of stages before preferences can be learnt."""

    def names(self) -> list[str]:
        return ["pretrain", "sft"]


def test_preferences_are_answered_honestly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert look_at_rows(str(file)).kind == "pairs"
    monkeypatch.setattr("luthier.commands.looking.STAGES", Without())
    with pytest.raises(UserError, match=r"holds preference pairs .* and luthier trains pretrain, sft so far"):
        look_at_rows(str(file))
    judged = tmp_path / "judged.jsonl"
    judged.write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    with pytest.raises(UserError, match=r"holds judged answers .* learnt by kto, and luthier trains"):
        look_at_rows(str(judged))


def test_pairs_that_fill_the_model_are_not_called_whole() -> None:
    reasons = [
        choice.reason
        for positions in (400, 8192)
        for choice in choose(replace(FACTS, kind="pairs", positions=positions), "m", "d", "o")
        if choice.key == "data.cutoff_length"
    ]
    assert "some answers reach them; longer ones are cut" in reasons[0]
    assert "the longest row seen has 400 tokens" in reasons[1]


def test_preferences_are_learnt_slowly() -> None:
    found = chosen(kind="pairs")
    assert found["stage"] == "dpo"
    assert found["training.learning_rate"] == pytest.approx(chosen()["training.learning_rate"] / 20)
    assert found["training.num_train_epochs"] == 2


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["a", "b"], "classes"),
        ([0, 1], "classes"),
        ([0.5, 1.25], "numbers"),
        (["nan", "1.5"], "numbers"),
        (list(range(40)), "numbers"),
    ],
)
def test_numbers_are_told_from_classes(labels: list[Any], kind: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {label}", "label": label}) + "\n" for label in labels))
    assert look_at_rows(str(file)).kind == kind
