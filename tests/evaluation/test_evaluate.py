"""`luthier evaluate` as a user calls it, on tiny models: losses against transformers, answers, labels, comparisons, the page."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.cli import main
from luthier.commands.evaluate import Asked, evaluate
from luthier.commands.predict import predict
from luthier.commands.reading import beside
from luthier.config.generation_section import GenerationSettings
from luthier.config.schema import ModelConfig
from luthier.data.records import Message
from luthier.data.rendering import Renderer
from luthier.evaluation.comparison import compare
from luthier.evaluation.comparison_page import comparison_page
from luthier.evaluation.matching import PROMPT_HASH, hash_of
from luthier.evaluation.statistics import Drawing
from luthier.foundation.errors import ConfigError, DataError, UserError
from luthier.model import loading
from luthier.model.loading import tokenizer_at
from tests.classify import labelled_rows, write_json_lines
from tests.tiny import config_for, tiny_folder

SHORT = GenerationSettings(max_new_tokens=5)
FEW = Drawing(resamples=99)
EVIL = "</script><script>document.title='stolen'</script>"


def last_object(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_the_loss_of_each_source_is_transformers_own(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    lines = rows.read_text().splitlines()
    parts = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    parts[0].write_text("\n".join(lines[:10]))
    parts[1].write_text("\n".join(lines[10:]))
    found = evaluate(str(tiny_llama), [str(part) for part in parts], Asked(how=FEW, batch_size=3))
    tokenizer, model = tokenizer_at(tiny_llama), AutoModelForCausalLM.from_pretrained(tiny_llama)
    renderer = Renderer(tokenizer)
    sums = []
    for line in lines:
        row = json.loads(line)
        asked = [Message("user", row["instruction"])]
        prompt = len(renderer.prompt_ids(asked))
        ids = torch.tensor([renderer.prompt_ids(asked) + tokenizer(f"{row['output']}<|im_end|>")["input_ids"]])
        logp = model(ids).logits[0].detach().log_softmax(-1)
        nll = -logp[prompt - 1 : -1].gather(1, ids[0, prompt:, None])
        sums.append((float(nll.sum()), nll.shape[0]))
    for source, (start, end) in zip(found.sources, ((0, 10), (10, len(lines))), strict=True):
        nll, count = map(sum, zip(*sums[start:end], strict=True))
        assert (source["rows"], source["targets"]) == (end - start, count)
        assert source["loss"] == pytest.approx(nll / count, rel=1e-5)
        assert source["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
    (number,) = found.numbers
    assert number.value == pytest.approx(sum(n for n, _ in sums) / sum(c for _, c in sums), rel=1e-5)
    assert number.by_source == pytest.approx({str(s["source"]): s["loss"] for s in found.sources})
    assert [row["nll"] for row in found.rows] == pytest.approx([n for n, _ in sums], rel=1e-4)
    assert number.low is not None and number.low < number.value < number.high  # type: ignore[operator]


def test_answers_are_generated_measured_and_taken_again(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "run.json"
    options = ["--metric", "chrf", "--metric", "{name: exact_match, ignore_case: true}", "--resamples", "50"]
    arguments = ["evaluate", str(tiny_llama), "--data", str(rows), *options, "--max-new-tokens", "5", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    said = last_object(capsys)
    assert list(said["metrics"]) == ["loss", "chrf", "exact_match"]
    assert said["metrics"]["exact_match"]["metric"]["ignore_case"] is True
    assert said["settings"]["generation"]["max_new_tokens"] == 5 and sum(said["finish_reasons"].values()) == 24
    predict(str(tiny_llama), [str(rows)], tmp_path / "apart.jsonl", SHORT)
    assert (tmp_path / "made" / "run.predictions.jsonl").read_bytes() == (tmp_path / "apart.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "made" / "run.rows.jsonl").read_text().splitlines()]
    assert len(lines) == 24 and all({"prediction", "reference", "nll", "scores"} <= row.keys() for row in lines)
    assert said["metrics"]["exact_match"]["value"] == pytest.approx(
        np.mean([row["scores"]["exact_match"] for row in lines])
    )
    # the same answers from the file, with and without the rows they are of
    for more in (["--data", str(rows)], []):
        assert main(["evaluate", "--predictions", str(tmp_path / "apart.jsonl"), *more, *options, "--json"]) == 0
        again = last_object(capsys)
        assert list(again["metrics"]) == ["chrf", "exact_match"]
        assert again["metrics"]["chrf"]["value"] == said["metrics"]["chrf"]["value"]
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_rows_that_hold_several_records_have_a_loss_for_each(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """Two instances of a task, and what a plain row for each gives."""
    instances = [[("the quick", "brown fox"), ("your", "name")], [("the fox", "fox"), ("what", "is")]]
    tasks = [
        {"instruction": "go on", "instances": [{"input": one, "output": other} for one, other in task]}
        for task in instances
    ]
    plain = [{"instruction": f"go on\n{one}", "output": other} for task in instances for one, other in task]
    seeds = write_json_lines(tmp_path / "seeds.jsonl", tasks)
    apart = write_json_lines(tmp_path / "plain.jsonl", plain)
    asked = Asked(metrics=["chrf"], generation=SHORT, how=None)
    paths = [tmp_path / "first.json", tmp_path / "again.json"]
    found = evaluate(str(tiny_llama), [str(seeds), str(rows)], replace(asked, out=paths[0]))
    expected = evaluate(str(tiny_llama), [str(apart), str(rows)], asked)
    for name in ("prediction", "reference", PROMPT_HASH, "weight"):
        assert [row[name] for row in found.rows] == [row[name] for row in expected.rows]
    assert [row["nll"] for row in found.rows] == pytest.approx([row["nll"] for row in expected.rows], rel=1e-5)
    losses = [next(number for number in one.numbers if number.name == "loss") for one in (found, expected)]
    assert list(losses[0].by_source.values()) == pytest.approx(list(losses[1].by_source.values()), rel=1e-5)
    evaluate(str(tiny_llama), [str(seeds), str(rows)], replace(asked, out=paths[1]))
    compared = compare(paths, FEW, lambda line: None)
    assert [value.value for value in compared.metrics[0].numbers] == pytest.approx([losses[0].value] * 2, rel=1e-6)
    alone = evaluate(str(tiny_llama), [str(apart)], Asked(how=None))
    assert [row[PROMPT_HASH] for row in alone.rows] == [row[PROMPT_HASH] for row in found.rows[:4]]


def test_loss_and_answers_read_the_weights_once(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.commands.train import train

    train(config_for(tiny_llama, rows, tmp_path / "run", max_steps=2))
    load, calls = loading.load, []

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return load(*args, **more)

    monkeypatch.setattr(loading, "load", counted)
    run, asked = str(tmp_path / "run"), {"how": FEW, "generation": SHORT}
    both = evaluate(run, [str(rows)], Asked(metrics=["chrf"], **asked))
    assert len(calls) == 1
    loss = evaluate(run, [str(rows)], Asked(how=FEW))
    answers = evaluate(run, [str(rows)], Asked(metrics=["chrf"], take_loss=False, **asked))
    assert [number.name for number in both.numbers] == ["loss", "chrf"]
    assert both.numbers == [*loss.numbers, *answers.numbers]
    assert [row["prediction"] for row in both.rows] == [row["prediction"] for row in answers.rows]


def test_a_model_beside_another_shares_its_tensors_and_no_module(tiny_llama: Path) -> None:
    read = AutoModelForCausalLM.from_pretrained(tiny_llama)
    found = beside(read)
    pairs = [
        *zip(read.parameters(), found.parameters(), strict=True),
        *zip(read.buffers(), found.buffers(), strict=True),
    ]
    assert pairs and all(own is other for own, other in pairs)
    assert not set(map(id, read.modules())) & set(map(id, found.modules()))
    found.set_attn_implementation("eager")
    assert read.config._attn_implementation == "sdpa"


def test_a_classifier_is_measured_as_its_run_measured_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.commands.train import train

    model = tiny_folder(tmp_path / "model")
    data = write_json_lines(tmp_path / "train.jsonl", labelled_rows(60))
    test = write_json_lines(tmp_path / "test.jsonl", labelled_rows(30, seed=7))
    config = config_for(model, data, tmp_path / "run", max_steps=8, num_train_epochs=1)
    for head in ("classifier", "generative"):
        config |= {"stage": {"name": "classification", "head": head}, "output_dir": str(tmp_path / head)}
        config["data"] = {"train": str(data), "test": [str(test)]}
        result = train(config)
        found = evaluate(str(tmp_path / head), [str(test)], Asked(how=FEW))
        assert {n.name: n.value for n in found.numbers} == pytest.approx(result.test_metrics)
        assert found.sources[0]["loss"] == pytest.approx(result.test_loss, rel=1e-4)
        assert found.task == "single_label" and {row["label"] for row in found.rows} == {"bad", "good"}
    found.write(tmp_path / "b.json")
    source = ModelConfig(name=str(tmp_path / "classifier"), dtype="bfloat16")
    half = evaluate(source, [str(test)], Asked(how=FEW)).sources[0]["loss"]
    whole = evaluate(str(tmp_path / "classifier"), [str(test)], Asked(how=FEW)).sources[0]["loss"]
    assert half != whole and half == pytest.approx(whole, rel=2e-2)
    evaluate(
        str(tmp_path / "classifier"),
        [str(test)],
        Asked(how=FEW, out=tmp_path / "a.json", metrics=["macro_f1", "accuracy"]),
    )
    compared = compare([tmp_path / "a.json", tmp_path / "b.json"], FEW, lambda line: None)
    assert [metric.name for metric in compared.metrics] == ["macro_f1", "accuracy"]
    assert [metric.pairs[0].test for metric in compared.metrics] == ["permutation", "mcnemar"]
    with pytest.raises(UserError, match="gives labels and writes no answers"):
        evaluate(str(tmp_path / "classifier"), [str(test)], Asked(generate=True))
    named = evaluate(str(tmp_path / "classifier"), [str(test)], Asked(how=FEW, engine={"name": "transformers"}))
    assert named.task == "single_label"
    with pytest.raises(ConfigError, match="rouge can't measure single label predictions"):
        evaluate(str(tmp_path / "classifier"), [str(test)], Asked(metrics=["rouge"]))


def test_label_words_are_those_of_the_classes_that_the_run_learnt(tmp_path: Path) -> None:
    """Rows of one class of three: the two others could be answered too, and are named in the question."""
    from luthier.commands.train import train

    three = [{**row, "label": ("bad", "good", "fair")[n % 3]} for n, row in enumerate(labelled_rows(30))]
    data = write_json_lines(tmp_path / "train.jsonl", three[:18])
    test = write_json_lines(tmp_path / "test.jsonl", three[18:])
    run = tmp_path / "run"
    config = config_for(tiny_folder(tmp_path / "model"), data, run, max_steps=2, num_train_epochs=1)
    config["data"] = {"train": str(data), "test": [str(test)]}
    train(config | {"stage": {"name": "classification", "head": "generative"}})
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["label"] == "good"]
    part = write_json_lines(tmp_path / "part.jsonl", [row for row in three[18:] if row["label"] == "good"])
    found = evaluate(str(run), [str(part)], Asked(how=None))
    assert found.settings["labels"] == ["bad", "fair", "good"]
    assert [row["predicted"] for row in found.rows] == [line["predicted"] for line in own]
    for row, line in zip(found.rows, own, strict=True):
        assert row["probabilities"] == pytest.approx(line["probabilities"], abs=1e-5)
    other = write_json_lines(tmp_path / "other.jsonl", [{"text": "the fox", "label": "excellent"}])
    with pytest.raises(DataError, match="'excellent', which is none of the classes: bad, fair, good"):
        evaluate(str(run), [str(other)], Asked(how=None))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({name: value for name, value in facts.items() if name != "labels"}))
    with pytest.raises(UserError, match="does not say which classes it learnt"):
        evaluate(str(run), [str(part)], Asked(how=None))


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("sft", ""),
        ({"name": "sft", "train_on": "last"}, "taken with stage.train_on last; here with train_on assistant"),
        ("classification", ""),
        (
            {"name": "classification", "class_weights": "balanced", "label_smoothing": 0.1},
            "taken with stage.class_weights balanced, label_smoothing 0.1; here with class_weights None, label_smoothing 0.0",
        ),
        (
            {"name": "classification", "head": "generative", "class_weights": {"bad": 2.0}},
            "class_weights {'bad': 2.0}; here",
        ),
    ],
)
def test_a_loss_that_is_not_the_runs_own_is_remarked_on(stage: Any, told: str, rows: Path, tmp_path: Path) -> None:
    from luthier.commands.train import train

    labelled = "classification" in str(stage)
    data = write_json_lines(tmp_path / "train.jsonl", labelled_rows(12)) if labelled else rows
    model = tiny_folder(tmp_path / "model")
    train(config_for(model, data, tmp_path / "run", max_steps=1, num_train_epochs=1) | {"stage": stage})
    remarks = evaluate(str(tmp_path / "run"), [str(data)], Asked(how=None)).remarks
    assert len(remarks) == bool(told) and all(told in remark for remark in remarks)
    if not labelled:
        assert not evaluate(str(model), [str(data)], Asked(how=None)).remarks


def written(path: Path, answers: list[str], references: list[str]) -> Path:
    lines = [
        {"index": n, "prediction": a, "label": r} for n, (a, r) in enumerate(zip(answers, references, strict=True))
    ]
    return write_json_lines(path, lines)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two evaluations of ten rows: the second has seven more right, and one more wrong."""
    references = [f"word {n}" for n in range(10)]
    first = ["wrong"] * 7 + references[7:]
    second = [*references[:9], EVIL]
    made = []
    for name, answers in (("first", first), ("second", second)):
        predictions = written(tmp_path / f"{name}.jsonl", answers, references)
        asked = Asked(predictions=predictions, metrics=["exact_match", "bleu"], how=FEW, out=tmp_path / f"{name}.json")
        evaluate(None, [], asked)
        made.append(tmp_path / f"{name}.json")
    return made


def test_a_comparison(pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, out = tmp_path / "page.html", tmp_path / "comparison.json"
    arguments = ["evaluate", "--compare", *map(str, pair), "--html", str(html), "--out", str(out), "--resamples", "99"]
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out.splitlines()[-1])
    assert said == json.loads(out.read_text())
    found = said["metrics"]["exact_match"]
    (against,) = found["against_first"]
    assert [value["value"] for value in found["values"]] == [0.3, 0.9]
    assert (against["better"], against["worse"], against["same"], against["test"]) == (7, 1, 2, "mcnemar")
    assert against["p_value"] == pytest.approx(2 * (1 + 8) / 2**8) and against["difference"] == pytest.approx(0.6)
    assert said["metrics"]["bleu"]["against_first"][0]["test"] == "permutation"
    assert [row["place"] for row in said["changed"]] == [1, 2, 3, 4, 5, 6, 7, 10]
    assert said["changed"][-1]["predictions"] == ["word 9", EVIL]
    assert "second against first" in printed.err and "0.0703" in printed.err
    page = html.read_text()
    assert (
        page.count("<script") == 2
        and "default-src 'none'" in page
        and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    )
    assert main(arguments) == 2 and "is there already" in capsys.readouterr().err


def test_the_page_in_a_browser(pair: list[Path], tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here to open the page in (Debian: apt-get install chromium)")
    page = tmp_path / "page.html"
    page.write_text(comparison_page(compare(pair, FEW, lambda line: None)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    shown = done.stdout.split('type="application/json"')[0]
    assert "<title>Comparison of first and second</title>" in shown
    assert shown.count("<article") == 8 and shown.count("<circle") == 4  # two metrics of two runs
    assert "8 of 10 rows" in shown and "&lt;script&gt;document.title" in shown
    assert re.search(r"<td[^>]*>mcnemar</td><td[^>]*>7</td><td[^>]*>1</td><td[^>]*>2</td>", shown)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["evaluate"], "one model is evaluated at a time, found 0"),
        (["evaluate", "a", "b", "--data", "x"], "found 2: a, b"),
        (["evaluate", "a"], "no rows to evaluate on"),
        (["evaluate", "a", "--data", "x", "--html", "p.html"], "--html would have no effect without --compare"),
        (["evaluate", "a", "--predictions", "p.jsonl"], "MODEL would have no effect with --predictions"),
        (["evaluate", "--predictions", "p.jsonl", "--engine", "vllm"], "--engine would have no effect with"),
        (["evaluate", "--compare", "a.json", "--shots", "0"], "--shots would have no effect with --compare"),
        (["evaluate", "--compare", "a.json", "--batch-size", "4"], "--batch-size would have no effect with --compare"),
        (["evaluate", "--predictions", "p.jsonl", "--cutoff-length", "64"], "--cutoff-length would have no effect"),
        (["evaluate", "a", "--benchmark", "b", "--template", "chatml"], "--template would have no effect with --bench"),
        (["evaluate", "--compare", "a.json", "b.json", "--html", "/dev/null/p.html"], "/dev/null is no folder"),
        (["evaluate", "a", "--benchmark", "b", "--out", "/dev/null/o.json"], "/dev/null is no folder"),
        (["evaluate", "--compare", "a.json"], "at least two"),
        (["evaluate", "--compare", "a.json", "--combine", "cat"], "--combine would have no effect with --compare"),
        (
            ["evaluate", "--compare", "a.json", "b.json", "--overwrite"],
            "--overwrite would have no effect without --out",
        ),
        (
            ["evaluate", "a", "--data", "x", "--resamples", "0", "--seed", "3"],
            "--seed would have no effect with --resam",
        ),
        (
            ["evaluate", "a", "--data", "x", "--max-new-tokens", "9"],
            "--max-new-tokens would have no effect without --me",
        ),
        (["evaluate", "a", "--data", "x", "--engine", "openai"], "--engine would have no effect without --metric"),
        (
            ["evaluate", "a", "--data", "x", "--skip-loss", "--batch-size", "2"],
            "--batch-size would have no effect with",
        ),
        (["evaluate", "a", "--harness", "x", "--resamples", "9"], "--resamples would have no effect with --harness"),
        (["evaluate", "a", "--harness", ","], "--harness names no task"),
        (["evaluate", "--predictions", "p.jsonl", "--trust-remote-code"], "--trust-remote-code would have no effect"),
        (
            ["evaluate", "a", "--data", "x", "--generate", "--engine", "openai", "--cutoff-length", "64"],
            "--cutoff-length would have no effect on the loss",
        ),
        (["evaluate", "a", "--data", "x", "--generate", "--engine", "{base_url: x}"], "lack its name"),
        (["evaluate", "--compare", "a.json", "b.json"], "a.json can't be read"),
        (["evaluate", "a", "--data", "x", "--confidence", "1"], "--confidence is 1"),
        (["evaluate", "--predictions", "nothing.jsonl"], "nothing.jsonl can't be read"),
    ],
)
def test_what_is_refused(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err


def test_metrics_are_refused_all_at_once(tiny_llama: Path, rows: Path) -> None:
    with pytest.raises(ConfigError) as told:
        evaluate(
            str(tiny_llama),
            [str(rows)],
            Asked(metrics=["rogue", "pearson", {"name": "chrf", "beta": -1}, "bleu", "bleu"]),
        )
    assert len(told.value.problems) == 4
    assert "there is no metric named 'rogue'. Did you mean 'rouge'" in told.value.problems[0]
    assert "pearson can't measure written answers" in told.value.problems[1]
    assert "metric chrf.beta: must be greater than 0" in told.value.problems[2]
    assert "bleu is chosen twice" in told.value.problems[3]


def test_answers_that_do_not_fit_their_rows(rows: Path, tmp_path: Path, pair: list[Path]) -> None:
    few = written(tmp_path / "few.jsonl", ["a"], ["b"])
    with pytest.raises(UserError, match="has 1 lines for 24 rows"):
        evaluate(None, [str(rows)], Asked(predictions=few))
    other = written(tmp_path / "other.jsonl", ["a"] * 24, ["b"] * 24)
    with pytest.raises(UserError, match="line 1 has the label 'b', but row 1"):
        evaluate(None, [str(rows)], Asked(predictions=other))
    lines = [{"index": index, "prediction": "a", "label": "a"} for index in (0, 2, 0)]
    twice = write_json_lines(tmp_path / "twice.jsonl", lines)
    with pytest.raises(UserError, match="line 3 has the index 0, as line 1 has"):
        evaluate(None, [], Asked(predictions=twice))
    evaluate(None, [], Asked(predictions=write_json_lines(tmp_path / "part.jsonl", lines[:2]), how=FEW))
    same = write_json_lines(tmp_path / "same.jsonl", [{"instruction": "q", "output": "a"}] * 2)
    with pytest.raises(UserError, match="line 2 has the index 2, where 1 should be"):
        evaluate(None, [str(same)], Asked(predictions=tmp_path / "part.jsonl"))
    unlabelled = write_json_lines(tmp_path / "unlabelled.jsonl", [{"prediction": "a", "label": None}])
    with pytest.raises(UserError, match=r"1 of 1 rows have no right answer to compare with \(rows 1\)"):
        evaluate(None, [], Asked(predictions=unlabelled))
    evaluate(None, [], Asked(predictions=few, how=FEW, out=tmp_path / "few.json", metrics=["exact_match"]))
    with pytest.raises(UserError, match=r"has 10 rows and .* has 1"):
        compare([pair[0], tmp_path / "few.json"], FEW, lambda line: None)
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps({"kind": "luthier evaluation", "model": "m", "rows": 1}))
    with pytest.raises(UserError, match="lacks format_version, task, metrics, settings, rows_file"):
        compare([pair[0], changed], FEW, lambda line: None)
    (tmp_path / "first.rows.jsonl").write_text("")
    with pytest.raises(UserError, match=r"tells of 10 rows, but first\.rows\.jsonl beside it has 0"):
        compare(pair, FEW, lambda line: None)


def test_rows_that_can_not_be_measured_are_refused_before_they_are_answered(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(DataError, match="row 1 has no number in its reference"):
        evaluate(str(tiny_llama), [str(rows)], Asked(metrics=["numeric_match"], out=out))
    texts = tmp_path / "texts.txt"
    texts.write_text("a text that nobody answered\n")
    with pytest.raises(UserError, match="1 of 1 rows have no right answer"):
        evaluate(str(tiny_llama), [str(texts)], Asked(metrics=["exact_match"], out=out))
    assert not list(tmp_path.glob("out*"))


def test_a_row_that_ends_with_a_question_is_refused_before_any_is_answered(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    called = {"from": "observation", "value": "d"}
    asking = [{"conversations": turns}, {"conversations": [*turns, turns[0]]}, {"conversations": [*turns, called]}]
    path = write_json_lines(tmp_path / "rows.jsonl", asking)
    told = r"2 of 3 rows have no right answer to compare with \(rows 2, 3\)"
    predictions = tmp_path / "predictions.jsonl"
    predict(str(tiny_llama), [str(path)], predictions, SHORT)
    with pytest.raises(UserError, match=told):
        evaluate(None, [str(path)], Asked(predictions=predictions))
    monkeypatch.setattr("luthier.commands.evaluate.predict", lambda *given, **named: pytest.fail("answered"))
    for metrics in ([], ["exact_match"]):
        with pytest.raises(UserError, match=told):
            evaluate(str(tiny_llama), [str(path)], Asked(generate=True, metrics=metrics))
    assert (
        evaluate(str(tiny_llama), [str(path)], Asked(how=None)).numbers[0].name == "loss"
    )  # of what training would learn


def test_metrics_taken_otherwise_are_not_compared(pair: list[Path], tmp_path: Path) -> None:
    options = {"name": "exact_match", "ignore_case": True}
    asked = Asked(
        predictions=tmp_path / "second.jsonl", metrics=[options, "bleu"], how=FEW, out=tmp_path / "third.json"
    )
    evaluate(None, [], asked)
    found = compare([pair[0], tmp_path / "third.json"], FEW, lambda line: None)
    assert [metric.name for metric in found.metrics] == ["bleu"]
    assert "exact_match is left out" in found.remarks[0] and "other options" in found.remarks[0]


def test_a_loss_that_is_not_finite_is_null_and_remarked_on(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny_folder(tmp_path / "broken"), tmp_path / "out.json"
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    arguments = ["evaluate", str(model), "--data", str(rows), "--out", str(out), "--resamples", "20"]
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    texts = (printed.out.splitlines()[-1], out.read_text(), *(tmp_path / "out.rows.jsonl").read_text().splitlines())
    said, saved, *lines = (json.loads(text, parse_constant=refused) for text in texts)
    for found in (said, saved):
        assert found["metrics"]["loss"]["value"] is None and found["sources"][0]["perplexity"] is None
        (remark,) = found["remarks"]
        assert remark.startswith("loss and numbers of 24 rows are not finite")
    assert lines[0]["nll"] is None and lines[0]["weight"] > 0
    assert "nan" in printed.err and remark in printed.err
    with pytest.raises(UserError, match=r"loss is left out: in .*out\.json it is not finite"):
        compare([out, out], FEW, lambda line: None)


def test_rows_that_ask_something_else_are_not_the_same(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets of questions with the same right answers; and one file, seen from two working directories."""
    made = {}
    for name in ("one", "two"):
        asked = [{"instruction": f"is {name} {n} even?", "output": "yes" if n % 2 else "no"} for n in range(6)]
        write_json_lines(tmp_path / f"{name}.jsonl", asked)
        for kind, metrics in (("answers", ["exact_match"]), ("loss", [])):
            made[name, kind] = tmp_path / f"{name}.{kind}.json"
            how = Asked(metrics=metrics, generation=SHORT, take_loss=not metrics, how=FEW, out=made[name, kind])
            monkeypatch.chdir(tmp_path if name == "one" else tmp_path.parent)
            evaluate(str(tiny_llama), [str((tmp_path / f"{name}.jsonl").relative_to(Path.cwd()))], how)
    for kind in ("answers", "loss"):
        with pytest.raises(UserError, match="row 1 has another prompt in "):
            compare([made["one", kind], made["two", kind]], FEW, lambda line: None)
    again = tmp_path / "again.json"
    monkeypatch.chdir(tmp_path.parent)
    evaluate(str(tiny_llama), [f"{tmp_path.name}/one.jsonl"], Asked(how=FEW, out=again))
    (metric,) = compare([made["one", "loss"], again], FEW, lambda line: None).metrics
    assert metric.pairs[0].difference == 0


@pytest.mark.parametrize("with_rows", [False, True])
def test_answers_with_their_prompts_are_of_the_rows_that_ask_the_same(
    with_rows: bool, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    answers, found = tmp_path / "answers.jsonl", tmp_path / "found.json"
    predict(str(tiny_llama), [str(rows)], answers, SHORT, keep_prompts=True)
    asked = Asked(predictions=answers, metrics=["exact_match"], how=FEW, out=found)
    evaluate(None, [str(rows)] if with_rows else [], asked)
    written = [json.loads(line) for line in (tmp_path / "found.rows.jsonl").read_text().splitlines()]
    expected = [
        {"messages": [{"role": "user", "content": json.loads(line)["instruction"]}]}
        for line in rows.read_text().splitlines()
    ]
    assert [row[PROMPT_HASH] for row in written] == [hash_of(request) for request in expected]
    assert len({row[PROMPT_HASH] for row in written}) == len({json.dumps(request) for request in expected})
