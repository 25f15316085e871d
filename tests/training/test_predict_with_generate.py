"""Evaluations that generate: the same answers and numbers as predict and evaluate give of the finished run, and what they
decide."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import luthier
from luthier.commands.evaluate import Asked, evaluate
from luthier.commands.predict import predict
from luthier.config.generation_section import GenerationSettings
from luthier.config.loading import load
from luthier.data.encoders.conversation import Options, build
from luthier.data.records import Conversation, Message, Origin
from luthier.data.rendering import Renderer
from luthier.foundation.errors import ConfigError, DataError, MissingExtraError, UserError
from luthier.model.loading import tokenizer_at
from luthier.model.token_text import TokenText
from luthier.training.answering import _text, prompt_and_answer
from tests.tiny import config_for, write_rows


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("held") / "held.jsonl", count=6, seed=9)


def config(tiny_llama: Path, rows: Path, out: Path, held: Path, **training: Any) -> dict[str, Any]:
    settings = {"eval_strategy": "steps", "eval_steps": 4, "predict_with_generate": True, **training}
    made = config_for(tiny_llama, rows, out, **settings)
    made["data"] |= {"validation": [str(held)], "test": [str(held)], "cutoff_length": 200}
    made["generation"] = {"max_new_tokens": 5}
    return made


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_answers_are_those_of_the_finished_run(tiny_llama: Path, rows: Path, held: Path, tmp_path: Path) -> None:
    metrics = ["chrf", {"name": "exact_match", "ignore_case": True}]
    result = luthier.train(config(tiny_llama, rows, tmp_path / "run", held, metrics=metrics))
    predict(str(tmp_path / "run"), [str(held)], tmp_path / "after.jsonl", GenerationSettings(max_new_tokens=5))
    after = [json.loads(line) for line in (tmp_path / "after.jsonl").read_text().splitlines()]
    during = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in during] == [line["prediction"] for line in after]
    assert [line["label"] for line in during] == [line["label"] for line in after]
    assert len({line["prediction"] for line in during}) > 1
    # the files' rows through `luthier evaluate`, and the last evaluation, which measured the same weights on the same rows
    again = evaluate(None, [], Asked(predictions=tmp_path / "run" / "predictions.jsonl", metrics=metrics, how=None))
    values = {number.name: number.value for number in again.numbers}
    assert result.test_metrics == pytest.approx(values)
    last = [line for line in lines(tmp_path / "run") if "eval_loss" in line][-1]
    assert {name: last[f"eval_{name}"] for name in values} == pytest.approx(values)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["results"]["test_metrics"] == result.test_metrics


def test_references_are_decoded_as_answers_are() -> None:
    """A tokenizer that cleans spaces up would make another text of the reference than of the same tokens as an answer."""
    text = "is n't it , you say ?"
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(text.split())}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=True)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) != text
    answer = TokenText(tokenizer)
    for token in ids:
        answer.push(token)
    assert _text(tokenizer, ids) == answer.finish() == text


@pytest.mark.parametrize("beams", [1, 2])
def test_layers_that_learn_above_16_bit_ones_answer(
    beams: int, tiny_llama: Path, rows: Path, held: Path, tmp_path: Path
) -> None:
    """Their float32 states reach a head of 16 bits, which only autocast multiplies them with, in both ways of generating."""
    made = config(tiny_llama, rows, tmp_path / "run", held, max_steps=4, bf16=True, metrics=["chrf"])
    made |= {
        "method": {"name": "freeze", "trainable_layers": 1},
        "generation": {"max_new_tokens": 5, "num_beams": beams},
    }
    result = luthier.train({**made, "model": {"name": str(tiny_llama), "dtype": "bfloat16"}})
    (evaluation,) = (line for line in lines(tmp_path / "run") if "eval_loss" in line)
    assert result.test_metrics["chrf"] == evaluation["eval_chrf"] > 0  # the same rows and weights


def test_it_does_not_change_what_is_learnt(tiny_llama: Path, rows: Path, held: Path, tmp_path: Path) -> None:
    weights = []
    for name, generates in (("with", True), ("without", False)):
        made = config(tiny_llama, rows, tmp_path / name, held, predict_with_generate=generates)
        if not generates:
            del made["generation"]
        luthier.train(made)
        weights.append((tmp_path / name / "final" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert {"eval_rouge-1", "eval_rouge-2", "eval_rouge-l", "eval_bleu-4"} <= lines(tmp_path / "with")[-1].keys()


@pytest.mark.parametrize(("metric", "best"), [("bleu-4", max), ("eval_edit_distance", min)])
def test_a_metric_of_answers_chooses_the_best(
    metric: str, best: Any, tiny_llama: Path, rows: Path, held: Path, tmp_path: Path
) -> None:
    settings = {"metrics": ["bleu4", "edit_distance"], "metric_for_best_model": metric, "load_best_model_at_end": True}
    result = luthier.train(config(tiny_llama, rows, tmp_path / "run", held, save_steps=4, **settings))
    name = f"eval_{metric.removeprefix('eval_')}"
    found = [line[name] for line in lines(tmp_path / "run") if name in line]
    assert len(set(found)) > 1 and result.best_metric == best(found)
    assert result.test_metrics[name.removeprefix("eval_")] == pytest.approx(result.best_metric)


def test_a_metric_of_answers_stops_early(tiny_llama: Path, rows: Path, held: Path, tmp_path: Path) -> None:
    # no answer is ever the reference, so nothing gets better after the first evaluation
    settings = {"metrics": ["exact_match"], "metric_for_best_model": "exact_match", "early_stopping_patience": 1}
    result = luthier.train(config(tiny_llama, rows, tmp_path / "run", held, **settings))
    assert result.steps == 8


def test_generation_settings_act(tiny_llama: Path, rows: Path, held: Path, tmp_path: Path) -> None:
    said = []
    for number, generation in enumerate(
        ({"max_new_tokens": 5}, {"max_new_tokens": 5, "num_beams": 3}, {"max_new_tokens": 2})
    ):
        made = config(tiny_llama, rows, tmp_path / str(number), held, max_steps=4) | {"generation": generation}
        luthier.train(made)
        found = (tmp_path / str(number) / "predictions.jsonl").read_text().splitlines()
        said.append([json.loads(line)["prediction"] for line in found])
    assert said[0] != said[1] and said[0] != said[2]
    predict(
        str(tmp_path / "1"), [str(held)], tmp_path / "beams.jsonl", GenerationSettings(max_new_tokens=5, num_beams=3)
    )
    after = [json.loads(line)["prediction"] for line in (tmp_path / "beams.jsonl").read_text().splitlines()]
    assert said[1] == after


def test_the_prompt_is_the_row_up_to_its_last_answer(tiny_llama: Path) -> None:
    tokenizer = tokenizer_at(tiny_llama)
    renderer = Renderer(tokenizer)
    turns = (
        Message("user", "what"),
        Message("assistant", "the fox"),
        Message("user", "your name"),
        Message("assistant", "fox"),
    )
    encode = build(Options(cutoff_length=256), tokenizer, renderer)
    (example,) = encode([Conversation(turns, Origin("a", 1))]).examples
    prompt, answer = prompt_and_answer(example)
    assert list(prompt) == renderer.prompt_ids(list(turns[:3]))
    assert tokenizer.decode(list(answer)).strip() == "fox<|im_end|>"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"training": {"metrics": ["bleu"]}}, "metrics=.*has no effect: it needs predict_with_generate true"),
        ({"generation": {"num_beams": 2}}, "generation has no effect: it needs training.predict_with_generate true"),
        (
            {"training": {"predict_with_generate": True, "metrics": ["accuracy"]}},
            "accuracy can't measure written answers",
        ),
        ({"training": {"predict_with_generate": True, "metrics": ["rogue"]}}, "there is no metric named 'rogue'"),
        ({"training": {"predict_with_generate": True, "metrics": [{"name": "bleu", "order": 3}]}}, "order"),
        ({"training": {"predict_with_generate": True, "metrics": ["bleu", "bleu"]}}, "metrics give bleu twice"),
        ({"training": {"predict_with_generate": True}}, "there are no rows to generate answers to"),
        ({"training": {"predict_with_generate": True}, "stage": "pretrain"}, "is for stage sft"),
        ({"training": {"predict_with_generate": True}, "stage": {"name": "sft", "train_on": "all"}}, "train_on is all"),
        (
            {"training": {"predict_with_generate": True}, "generation": {"num_return_sequences": 2, "num_beams": 2}},
            "above 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load({"model": "m", "data": {"train": "a"}, **change})


def test_answers_that_a_metric_can_not_measure_are_refused_before_the_first_step(
    tiny_llama: Path, rows: Path, held: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "run" / "run.json"
    earlier.parent.mkdir()
    earlier.write_text('{"an": "earlier run"}')
    with pytest.raises(DataError, match=r"\.jsonl, row 1 has no number in its reference"):
        luthier.train(config(tiny_llama, rows, tmp_path / "run", held, metrics=["numeric_match"]), overwrite=True)
    assert earlier.read_text() == '{"an": "earlier run"}'


@pytest.mark.parametrize(("package", "metrics"), [("jieba", []), ("sacrebleu", ["bleu"])])
def test_a_package_that_a_metric_lacks_is_told_before_anything_is_read(
    package: str,
    metrics: list[str],
    tiny_llama: Path,
    rows: Path,
    held: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it now raises ModuleNotFoundError
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}'"):
        luthier.train(config(tiny_llama, rows, tmp_path / "run", held, metrics=metrics))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("luthier.commands.evaluate.open_engine", lambda *given: pytest.fail("opened"))
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}'"):
        evaluate(str(tiny_llama), [str(held)], Asked(metrics=metrics, generate=True, how=None))
    english = [{"name": "rouge", "tokenizer": "english"}]
    luthier.train(config(tiny_llama, rows, tmp_path / "run", held, metrics=english, max_steps=4))


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_a_metric_that_fails_on_the_test_rows_leaves_the_model(
    save_strategy: str, tiny_llama: Path, rows: Path, held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(options: Any) -> Any:
        def measure(answers: Any) -> Any:
            raise UserError("the judge does not answer.", "Start it.")

        return measure

    made = config(tiny_llama, rows, tmp_path / "run", held, metrics=["chrf"], max_steps=4, save_strategy=save_strategy)
    made["training"] |= {"eval_strategy": "no", "eval_steps": None}
    del made["data"]["validation"]
    with monkeypatch.context() as patched:
        patched.setattr("luthier.metrics.chrf.build", down)
        with pytest.raises(UserError, match="the judge does not answer"):
            luthier.train(made)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    predict(str(tmp_path / "run"), [str(held)], tmp_path / "after.jsonl", GenerationSettings(max_new_tokens=5))
    if save_strategy == "steps":  # nothing is trained again
        assert luthier.train(made, resume=True).test_metrics.keys() == {"chrf"}
        before = (tmp_path / "after.jsonl").read_bytes()
        predict(str(tmp_path / "run"), [str(held)], tmp_path / "again.jsonl", GenerationSettings(max_new_tokens=5))
        assert (tmp_path / "again.jsonl").read_bytes() == before


def test_a_metric_that_evaluations_do_not_give(tiny_llama: Path, rows: Path, held: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metric_for_best_model is 'bleu', but an evaluation gives: .*eval_rouge-1"):
        luthier.train(config(tiny_llama, rows, tmp_path / "run", held, metric_for_best_model="bleu"))


@pytest.mark.slow
def test_two_processes_answer_as_one(tiny_llama: Path, rows: Path, held: Path, tmp_path: Path) -> None:
    found = []
    for name, processes in (("one", 1), ("two", 2)):
        made = config(tiny_llama, rows, tmp_path / name, held, per_device_train_batch_size=4 // processes)
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(made))
        command = [sys.executable, "-m", "luthier.cli", "train", str(file), "--nproc-per-node", str(processes)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=240, check=False, cwd=Path(__file__).parents[2]
        )
        assert done.returncode == 0, done.stderr
        found.append([line["eval_rouge-l"] for line in lines(tmp_path / name) if "eval_loss" in line])
        found.append((tmp_path / name / "predictions.jsonl").read_text())
    assert found[0] == pytest.approx(found[2]) and found[1] == found[3]
