"""Classification and regression from config to predictions: losses, metrics, and what a run leaves behind."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

import luthier
from luthier.commands.chat import chat
from luthier.commands.evaluate import Asked, evaluate
from luthier.commands.export import export
from luthier.config.loading import load
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.preparing import split_rows
from luthier.data.records import Origin
from luthier.foundation.errors import ConfigError, DataError, ModelError
from luthier.model.heads import SequenceHead
from luthier.scoring.readouts import Scores, TargetLogp
from luthier.training.stages import classification, regression
from tests.classify import (
    TELLING,
    bert_folder,
    classification_config,
    encoder_folder,
    labelled_rows,
    write_json_lines,
)

HEAD_FILES = {"adapter_config.json", "adapter_model.safetensors", "head.json"}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.training.metrics_log.plot_losses", lambda *arguments: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json_lines(tmp_path_factory.mktemp("rows") / "rows.jsonl", labelled_rows(76))


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("bert") / "bert")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_decoder_learns_and_is_measured(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    config = classification_config(tiny_llama, data, tmp_path / "run", metric_for_best_model="macro_f1")
    config["data"]["test"] = 12
    result = luthier.train(config)
    assert result.test_metrics == {"accuracy": 1.0, "macro_f1": 1.0, "matthews": 1.0} and result.best_metric == 1.0
    run = tmp_path / "run"
    evaluations = [line for line in lines(run / "metrics.jsonl") if "eval_loss" in line]
    assert len(evaluations) == 4 and {"eval_accuracy", "eval_macro_f1", "eval_matthews"} <= set(evaluations[0])
    assert json.loads((run / "run.json").read_text())["results"]["test_metrics"] == result.test_metrics
    predictions = lines(run / "predictions.jsonl")
    assert [row["split"] for row in predictions] == ["validation"] * 12 + ["test"] * 12
    rows = lines(data)
    for row in predictions:
        assert row["label"] == row["predicted"] == rows[row["row"] - 1]["label"] and row["file"] == str(data)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert max(row["probabilities"], key=row["probabilities"].get) == row["predicted"]
    assert {path.name for path in (run / "final").iterdir()} >= HEAD_FILES

    with pytest.raises(ModelError, match=r"it gives bad, good and can't talk\.\n.*predictions\.jsonl"):
        chat(str(run), prompt="hello")
    export(str(run), tmp_path / "merged")
    answers = transformers.pipeline("text-classification", model=str(tmp_path / "merged"))
    for word, label in ((word, label) for label, word in TELLING.items()):
        (answer,) = answers(f"the {word} fox")
        assert answer["label"] == label and answer["score"] > 0.9
    assert [answer["label"] for answer in answers(["the quick fox is", "brown"], batch_size=2)] == ["good", "bad"]


def test_an_encoder_with_pairs_in_a_full_run(tiny_bert: Path, tmp_path: Path) -> None:
    rows = write_json_lines(tmp_path / "rows.jsonl", labelled_rows(76, pairs=True))
    config = classification_config(tiny_bert, rows, tmp_path / "run", "full", num_train_epochs=8, learning_rate=2e-3)
    result = luthier.train(config)
    assert (
        result.route == "padded"
        and [line for line in result.history if "eval_loss" in line][-1]["eval_accuracy"] == 1.0
    )
    answers = transformers.pipeline("text-classification", model=str(tmp_path / "run" / "final"))
    answer = answers({"text": "the fox is", "text_pair": "name quick"})
    assert answer["label"] == "good" and answer["score"] > 0.9


def test_a_resumed_run_ends_with_the_same_bits(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """Of a method whose own loading leaves the head alone, and of one that peft does not save."""
    import shutil

    for method in ("prefix_tuning", "adapter"):
        run = tmp_path / method
        steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
        config = classification_config(tiny_llama, data, run, method, **steps)
        del config["data"]["validation"]
        luthier.train(config)

        def weights(run: Path = run) -> dict[str, bytes]:
            return {path.name: path.read_bytes() for path in (run / "final").glob("*.safetensors")}

        whole = weights()
        shutil.rmtree(run / "final")
        shutil.rmtree(run / "checkpoints" / "step-00000006")
        luthier.train(config, resume=True)
        assert weights() == whole


def test_two_ranks_measure_what_one_does(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """Batches of 5 over 12 rows: one rank has two of them, the other one."""
    from tests.training.test_ranks import start_warm

    still = {"max_steps": 2, "save_strategy": "no", "optim": "tests.training.plain_sgd", "learning_rate": 0.01}
    sizes = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 5}
    one = classification_config(tiny_llama, data, tmp_path / "one", "full", **still, **sizes)
    two = classification_config(
        tiny_llama, data, tmp_path / "two", "full", **still, **sizes, per_device_train_batch_size=2
    )
    luthier.train(one)
    statuses, said = start_warm(two, tmp_path)
    assert statuses == [0, 0], said
    mine, theirs = (lines(tmp_path / name / "predictions.jsonl") for name in ("one", "two"))
    assert len(mine) == 12 and [(row["row"], row["label"]) for row in mine] == [(r["row"], r["label"]) for r in theirs]
    for own, other in zip(mine, theirs, strict=True):
        assert own["probabilities"] == pytest.approx(other["probabilities"], abs=2e-6)
    measured = [
        {key: value for key, value in lines(tmp_path / name / "metrics.jsonl")[-1].items() if key.startswith("eval_")}
        for name in ("one", "two")
    ]
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)


def test_the_loss_is_torchs_weighted_mean_however_a_step_is_cut(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"name": "classification", "class_weights": {"good": 3.0}, "label_smoothing": 0.2}
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss = classification.HeadClassification.loss

    def noted(self: Any, scores: Any, batch: Any) -> torch.Tensor:
        seen.append((scores[self.readout].detach(), batch.extras["label"].long()))
        return loss(self, scores, batch)

    monkeypatch.setattr(classification.HeadClassification, "loss", noted)
    found = []
    for size, count in ((8, 1), (2, 4)):
        seen.clear()
        steps = {"max_steps": 3, "eval_strategy": "no", "save_strategy": "no", "logging_steps": 1}
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
        config = classification_config(tiny_llama, data, tmp_path / f"run{size}", "lora", stage, **steps, **sizes)
        del config["data"]["validation"]
        result = luthier.train(config)
        losses = [line["loss"] for line in result.history if "loss" in line]
        first = [torch.cat(parts) for parts in zip(*seen[:count], strict=True)]
        expected = F.cross_entropy(first[0], first[1], weight=torch.tensor([1.0, 3.0]), label_smoothing=0.2)
        assert losses[0] == pytest.approx(float(expected), rel=1e-5)
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_sets_that_are_measured_apart(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    held = [write_json_lines(tmp_path / f"{name}.jsonl", labelled_rows(6, seed)) for seed, name in enumerate("ab")]
    settings = {"max_steps": 1, "save_strategy": "no", "metric_for_best_model": "b_accuracy"}
    config = classification_config(tiny_llama, data, tmp_path / "run", "lora", **settings)
    config["data"] |= {"validation": [str(path) for path in held], "evaluate_each": True}
    result = luthier.train(config)
    line = next(line for line in result.history if "eval_loss" in line)
    assert line["eval_accuracy"] == pytest.approx((line["eval_a_accuracy"] + line["eval_b_accuracy"]) / 2)
    assert result.best_metric == line["eval_b_accuracy"] and "eval_a_matthews" in line
    assert [row["file"] for row in lines(tmp_path / "run" / "predictions.jsonl")] == [str(held[0])] * 6 + [
        str(held[1])
    ] * 6


def test_balanced_classes_count_alike() -> None:
    stage = classification.build(classification.Options(class_weights="balanced"))
    stage.labelling.labels = ("a", "b")
    stage.labelling.meet = lambda data: np.array([30, 10])  # type: ignore[method-assign, assignment]
    stage.meet(None)  # type: ignore[arg-type]
    weights = stage.weights_K(torch.zeros(1))
    assert weights.tolist() == pytest.approx([40 / (2 * 30), 40 / (2 * 10)])
    assert weights[0] * 30 == pytest.approx(float(weights[1] * 10))
    stage.labelling.meet = lambda data: np.array([30, 10, 0])  # type: ignore[method-assign, assignment]
    stage.meet(None)  # type: ignore[arg-type]
    assert stage.weights_K(torch.zeros(1)).tolist() == [*weights.tolist(), 1.0]


def test_a_class_whose_rows_are_all_held_out_is_a_class(tiny_llama: Path, tmp_path: Path) -> None:
    """With its classes from the file, or from the config, and counting alike."""
    rows = labelled_rows(40)
    path = write_json_lines(tmp_path / "rows.jsonl", rows)
    config = classification_config(tiny_llama, path, tmp_path / "run", max_steps=1, save_strategy="no")
    held = split_rows(40, {"validation": 12}, load(config).data_seed())["validation"]
    rows[held[0]]["label"] = "rare"
    write_json_lines(path, rows)
    for labels in (None, ["bad", "good", "rare"]):
        stage = {"name": "classification", "class_weights": "balanced", "labels": labels}
        result = luthier.train({**config, "stage": stage}, overwrite=True)
        assert np.isfinite(next(line["eval_loss"] for line in result.history if "eval_loss" in line))
        told = lines(tmp_path / "run" / "predictions.jsonl")
        assert [row["row"] - 1 for row in told if row["label"] == "rare"] == [held[0]] and len(told) == 12
        assert set(told[0]["probabilities"]) == {"bad", "good", "rare"}


def test_several_labels(tiny_llama: Path, tmp_path: Path) -> None:
    rows = []
    for row in labelled_rows(90, seed=4):
        also = ["fox"] if "fox" in row["text"] else []
        rows.append({"text": row["text"], "labels": [row["label"], *also] if row["label"] == "good" else also})
    stage = {"name": "classification", "multi_label": True}
    config = classification_config(
        tiny_llama, write_json_lines(tmp_path / "rows.jsonl", rows), tmp_path / "run", "lora", stage, num_train_epochs=5
    )
    result = luthier.train(config)
    last = [line for line in result.history if "eval_loss" in line][-1]
    assert last["eval_accuracy"] > 0.8 and last["eval_micro_f1"] > 0.85 and "eval_matthews" not in last
    for row in lines(tmp_path / "run" / "predictions.jsonl"):
        assert row["label"] == sorted(rows[row["row"] - 1]["labels"])
        assert row["predicted"] == [name for name, p in row["probabilities"].items() if p >= 0.5]
    config = json.loads((tmp_path / "run" / "final" / "head.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and config["id2label"] == {"0": "fox", "1": "good"}


def test_numbers(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": row["text"].count("fox") / 2} for row in labelled_rows(90, seed=5)]
    config = classification_config(
        tiny_bert, write_json_lines(tmp_path / "rows.jsonl", rows), tmp_path / "run", "full", "regression",
        num_train_epochs=5, learning_rate=5e-3, metric_for_best_model="mean_squared_error",
    )  # fmt: skip
    result = luthier.train(config)
    evaluations = [line for line in result.history if "eval_loss" in line]
    assert evaluations[-1]["eval_pearson"] > 0.9 and evaluations[-1]["eval_spearman"] > 0.7
    # the loss is the mean squared error, and the smallest is the best
    errors = [line["eval_mean_squared_error"] for line in evaluations]
    assert errors == pytest.approx([line["eval_loss"] for line in evaluations], rel=1e-5)
    assert result.best_metric == min(errors)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    (first, *_) = lines(tmp_path / "run" / "predictions.jsonl")
    with torch.no_grad():
        logits = model(**tokenizer(rows[first["row"] - 1]["text"], return_tensors="pt")).logits
    assert float(logits) == pytest.approx(first["predicted"], rel=1e-4) and model.config.problem_type == "regression"


def test_numbers_far_from_zero_are_learnt_standardised(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prices: what a run learns of them, a reader of its folder tells in their unit, and so does a run that goes on."""
    rows = [
        {"text": row["text"], "label": 100_000 + 20_000 * row["text"].count("fox")} for row in labelled_rows(90, seed=5)
    ]
    path = write_json_lines(tmp_path / "rows.jsonl", rows)
    steps = {"num_train_epochs": 5, "learning_rate": 5e-3}
    config = classification_config(tiny_bert, path, tmp_path / "run", "lora", "regression", **steps)
    result = luthier.train(config)
    assert "each with a number, learnt less the mean" in capsys.readouterr().err
    last = [line for line in result.history if "eval_loss" in line][-1]
    held = [row["label"] for row in lines(tmp_path / "run" / "predictions.jsonl")]
    assert last["eval_pearson"] > 0.9 and last["eval_mean_squared_error"] < 0.3 * float(np.var(held))
    head = json.loads((tmp_path / "run" / "final" / "head.json").read_text())
    assert last["eval_loss"] == pytest.approx(last["eval_mean_squared_error"] / head["label_scale"] ** 2, rel=1e-4)
    told = {row["row"]: row["predicted"] for row in lines(tmp_path / "run" / "predictions.jsonl")}

    measured = evaluate(str(tmp_path / "run"), [str(path)], Asked(how=None))
    read = {row["row"]: row["predicted"] for row in measured.rows}
    assert {number: read[number] for number in told} == pytest.approx(told, rel=1e-4)

    export(str(tmp_path / "run"), tmp_path / "merged")
    for model in (tmp_path / "run", tmp_path / "merged"):  # the same rows, and so the same statistics are not asked for
        again = classification_config(model, path, tmp_path / f"{model.name}-on", "full", "regression")
        again["training"] |= {"num_train_epochs": 1, "learning_rate": 1e-12, "save_strategy": "no"}
        again["data"]["train"] = [str(path), str(path)]
        luthier.train({**again, "data": {**again["data"], "validation": str(path)}})
        for row in lines(tmp_path / f"{model.name}-on" / "predictions.jsonl"):
            assert row["row"] not in told or row["predicted"] == pytest.approx(told[row["row"]], rel=1e-4)
        saved = json.loads((tmp_path / f"{model.name}-on" / "final" / "config.json").read_text())
        assert (saved["label_mean"], saved["label_scale"]) == (head["label_mean"], head["label_scale"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    row, predicted = next(iter(told.items()))
    with torch.no_grad():
        logit = float(model(**tokenizer(rows[row - 1]["text"], return_tensors="pt")).logits)
    assert logit * model.config.label_scale + model.config.label_mean == pytest.approx(predicted, rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "asked", "expected"),
    [
        ([0.0, 1.0], None, (0, 1)),
        ([0.0, 1.0], True, (0.5, 0.5)),
        ([100.0, 101.0], None, (100.5, 0.5)),
        ([100.0, 101.0], False, (0, 1)),
        ([-40.0, 40.0], None, (0, 40)),
        ([0.001, 0.003], None, (0.002, 0.001)),
    ],
)
def test_which_numbers_are_standardised(labels: list[float], asked: bool | None, expected: tuple[float, float]) -> None:
    stage = regression.build(regression.Options(standardize=asked))
    data = SimpleNamespace(
        train=SimpleNamespace(numbers=lambda name: np.array(labels)), report=SimpleNamespace(labels=())
    )
    head = stage.meet(data)  # type: ignore[arg-type]
    assert (head.mean, head.scale) == (stage.mean, stage.scale) == pytest.approx(expected)


def test_numbers_that_float32_can_not_tell_apart_are_refused() -> None:
    """Near 1.7e9 its numbers are 128 apart."""
    stage = regression.build(regression.Options())
    labels = 1_700_000_000.0 + np.arange(100)
    data = SimpleNamespace(train=SimpleNamespace(numbers=lambda name: labels), report=SimpleNamespace(labels=()))
    with pytest.raises(DataError, match=r"1700000000 to 1700000099, lie so close.*rounds them by up to 6\d"):
        stage.meet(data)  # type: ignore[arg-type]
    labels -= 1_699_999_000
    assert stage.meet(data).mean == labels.mean()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "asked", "unit", "message"),
    [
        ([100.0, 101.0], True, (0.0, 1.0), "standardize is true, but the model's head has learnt labels as they are"),
        ([100.0, 101.0], False, (5.0, 2.0), "standardize is false, but .* learnt labels less 5, divided by 2"),
        ([100.0, 101.0], True, (5.0, 2.0), None),
        ([100.0, 101.0], False, (0.0, 1.0), None),
        ([100.0, 101.0], None, (0.0, 1.0), None),
        ([-1.0, 1.0], True, (0.0, 1.0), None),
    ],
)
def test_a_head_that_is_trained_further_keeps_its_unit(
    labels: list[float], asked: bool | None, unit: tuple[float, float], message: str | None
) -> None:
    stage = regression.build(regression.Options(standardize=asked))
    data = SimpleNamespace(
        train=SimpleNamespace(numbers=lambda name: np.array(labels)), report=SimpleNamespace(labels=())
    )
    stage.meet(data)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=message) if message else nullcontext():
        stage.keep(SequenceHead("regression", (), *unit))
        assert (stage.mean, stage.scale) == unit


def test_label_words_are_compared_by_their_likelihood(
    tiny_llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"bad": "no", "good": "yes it is"}
    stage = {"name": "classification", "head": "generative", "prompt": "Good? {text}", "label_words": words}
    config = classification_config(tiny_llama, data, tmp_path / "run", "full", stage)
    result = luthier.train(config)
    assert [line for line in result.history if "eval_loss" in line][-1]["eval_accuracy"] == 1.0
    final = tmp_path / "run" / "final"
    model = transformers.AutoModelForCausalLM.from_pretrained(final).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(final)
    losses = tokens = 0.0
    for row in lines(tmp_path / "run" / "predictions.jsonl"):
        question = {"role": "user", "content": f"Good? {lines(data)[row['row'] - 1]['text']}"}
        prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(prompt).input_ids)
        likelihood = {}
        for label, word in words.items():
            ids = torch.tensor([tokenizer(f"{prompt}{word}<|im_end|>").input_ids])
            with torch.no_grad():
                logp = model(ids).logits[0].log_softmax(dim=1)
            picked = logp[start - 1 : -1].gather(1, ids[0, start:, None])
            likelihood[label] = picked.sum()
            if label == row["label"]:
                losses, tokens = losses - float(picked.sum()), tokens + len(picked)
        expected = torch.stack(list(likelihood.values())).softmax(dim=0).tolist()
        assert list(row["probabilities"].values()) == pytest.approx(expected, abs=1e-4)
    last = [line for line in result.history if "eval_loss" in line][-1]
    assert last["eval_loss"] == pytest.approx(losses / tokens, rel=1e-4)
    answer = chat(str(tmp_path / "run"), prompt="Good? the quick fox", max_new_tokens=30)
    assert answer is not None and answer.answer == "yes it is"


def test_the_right_answer_alone_is_computed_in_training() -> None:
    """Loss, gradient and denominator are those of all answers, of which the wrong ones weigh nothing."""
    stage = classification.build(classification.Options(head="generative"))
    stage.know(("a", "b", "c"))
    answers = [TokenSequence((1, 2, 3, word, 9), (0, 0, 0, 1, 1)) for word in (4, 5, 6)]
    examples = [
        TokenizedExample(tuple(answers), Origin("rows", number), 15, {"label": float(label)})
        for number, label in enumerate((2, 0))
    ]
    whole, right = pack(examples), pack([stage.learnt(example) for example in examples])
    assert right.targets_N.tolist() == [6, 9, 4, 9] and right.tokens == 10
    assert stage.denominator(whole) == stage.denominator(right) == 4
    logp = torch.linspace(-3, -1, 6)  # by target: the tokens 4, 5, 6 and 9
    of = {4: logp[0], 5: logp[1], 6: logp[2], 9: logp[3]}
    losses = [
        stage.loss(Scores({TargetLogp(): torch.stack([of[int(token)] for token in batch.targets_N])}), batch)
        for batch in (whole, right)
    ]
    assert losses[0] == pytest.approx(losses[1])
    assert float(losses[1]) == pytest.approx(-float(logp[2] + logp[0] + 2 * logp[3]))


def test_training_goes_on_from_a_classifier(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    steps = {"num_train_epochs": 2, "save_strategy": "no"}
    first = luthier.train(classification_config(tiny_llama, data, tmp_path / "first", "lora", **steps))
    again = classification_config(tmp_path / "first", data, tmp_path / "second", "full", learning_rate=1e-9, **steps)
    result = luthier.train(again)
    before, after = ([line["eval_loss"] for line in run.history if "eval_loss" in line] for run in (first, result))
    assert after[0] == pytest.approx(before[-1], rel=1e-4), "the head was kept"
    again["output_dir"] = str(tmp_path / "third")
    with pytest.raises(ModelError, match=r"classification of bad, good; this run's rows need .* of bad, good, odd\."):
        luthier.train({**again, "stage": {"name": "classification", "labels": ["bad", "good", "odd"]}})
    with pytest.raises(ModelError, match="no head over words to train"):
        generative = {"name": "classification", "head": "generative"}
        luthier.train({**again, "stage": generative})


def test_what_cannot_be_learnt_is_refused_before_weights_are_read(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.model.loading.weights_at", lambda *a, **k: pytest.fail("weights were read"))

    def refused(
        rows: list[dict[str, Any]], stage: Any, error: type[Exception], message: str, method: str = "lora"
    ) -> None:
        path = write_json_lines(tmp_path / "some.jsonl", rows)
        config = classification_config(tiny_llama, path, tmp_path / "run", method, stage)
        with pytest.raises(error, match=message):
            luthier.train(config)
        assert not (tmp_path / "run").exists()

    rows = labelled_rows(40)
    one = [{**row, "label": "good"} for row in rows]
    refused(one, "classification", DataError, "all 28 training rows are of the class 'good', so there is nothing")
    refused([{**row, "label": 2} for row in rows], "regression", DataError, "all 28 training rows are labelled 2")
    refused(rows, "regression", DataError, "has the label '(good|bad)', which is no number")
    several = {"name": "classification", "multi_label": True}
    refused([{**row, "label": ["good"]} for row in rows], several, DataError, "have the same labels")
    refused([{**row, "label": ["good", "bad"]} for row in rows], "classification", DataError, "set stage.multi_label")
    weights = {"name": "classification", "class_weights": {"god": 2.0}}
    refused(rows, weights, DataError, "class_weights names god, which is none of the classes.*\n.*bad, good")
    words = {"name": "classification", "head": "generative", "label_words": {"god": "x"}}
    refused(rows, words, DataError, "label_words names 'god'")
    refused(rows, "classification", ModelError, "has no bias terms", "bitfit")


def test_virtual_tokens_on_a_model_that_is_padded_on_the_left(data: Path, tmp_path: Path) -> None:
    config = transformers.XLNetConfig(vocab_size=12, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=0)
    model = encoder_folder(tmp_path / "xlnet", config)
    for method in ("prompt_tuning", "p_tuning"):
        with pytest.raises(ModelError, match="XLNetForSequenceClassification needs its rows padded on the left"):
            luthier.train(classification_config(model, data, tmp_path / "run", method))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"multi_label": True, "head": "generative"}, "multi_label has no effect with head: generative"),
        ({"prompt": "{text}"}, "prompt has no effect with head: classifier"),
        ({"label_smoothing": 0.1, "head": "generative"}, "label_smoothing has no effect"),
        ({"metrics": ["pearson"]}, "pearson can't measure single label predictions; these can: accuracy, macro_f1"),
        ({"metrics": ["acuracy"]}, "there is no metric named 'acuracy'"),
        ({"labels": ["a", "a"]}, "must name at least two classes, each once"),
        ({"class_weights": {"a": 0}}, "class_weights must be above 0"),
        ({"class_weights": "balanced", "multi_label": True}, "balanced is for one label a row"),
    ],
)
def test_settings_that_do_not_fit(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load({"model": "m", "data": {"train": "a.jsonl"}, "stage": {"name": "classification", **stage}})


def test_classes_that_are_numbers() -> None:
    stage = {"name": "classification", "head": "generative", "labels": [0, 1], "label_words": {0: "bad", 1: "good"}}
    options = load({"model": "m", "data": {"train": "a.jsonl"}, "stage": stage}).stage
    assert options.labels == ["0", "1"] and options.label_words == {"0": "bad", "1": "good"}  # type: ignore[attr-defined]


def test_yaml_may_name_them_without_quotes(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    head = "model: m\ndata: {train: a.jsonl}\nstage: {name: classification, class_weights: "
    file.write_text(head + "{0: 1.0, 1: 5.0}}")
    assert load(file).stage.class_weights == {"0": 1.0, "1": 5.0}  # type: ignore[attr-defined]
    file.write_text(head + "{yes: 1.0, a: 5.0}}")  # a truth, to YAML
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert "stage.class_weights.1: the key True must be text: write it in quotes" in caught.value.problems


def test_a_metric_that_the_stage_does_not_give(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    config = classification_config(tiny_llama, data, tmp_path / "run", metric_for_best_model="pearson")
    with pytest.raises(
        ConfigError, match=r"pearson.*an evaluation gives: .*eval_accuracy, eval_macro_f1, eval_matthews"
    ):
        luthier.train(config)


def test_every_option_acts() -> None:
    """Those of the stages; what each does is tested above."""
    assert set(classification.Options.model_fields) == {
        "name", "head", "labels", "multi_label", "class_weights", "label_smoothing", "prompt", "label_words", "metrics",
    }  # fmt: skip
    assert set(regression.Options.model_fields) == {"name", "metrics", "standardize"}
