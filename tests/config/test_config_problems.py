"""Bad values and keys: every one is reported, with its place, what was found and what would do."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.config.loading import load
from luthier.foundation.errors import ConfigError

GOOD: dict[str, Any] = {"model": "m", "data": {"train": "a.jsonl"}}


def problems_of(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(raw)
    assert caught.value.exit_status == 2
    return caught.value.problems


def with_training(**settings: Any) -> dict[str, Any]:
    return {**GOOD, "training": settings}


def with_data(**settings: Any) -> dict[str, Any]:
    return {**GOOD, "data": {"train": "a.jsonl", **settings}}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({**GOOD, "output_dir": ""}, "output_dir: is empty; name the run's folder, or leave the key out (runs/run)"),
        ({**GOOD, "output_dir": None}, "output_dir: is empty; name the run's folder, or leave the key out (runs/run)"),
        ({**GOOD, "modle": "x"}, "modle: unknown key; did you mean model?"),
        (with_training(learning_rte=1), "training.learning_rte: unknown key; did you mean learning_rate"),
        (with_data(cutof_length=5), "data.cutof_length: unknown key; did you mean cutoff_length"),
        ({**GOOD, "cutoff_length": 5}, "cutoff_length: unknown key here; luthier has it as data.cutoff_length"),
        ({**GOOD, "rank": 5}, "rank: unknown key here; luthier has it as method.rank"),
        ({**GOOD, "path": "a"}, "path: unknown key here; luthier has it as data.train.0.path"),
        (
            {**GOOD, "model": {"name": "m", "density": 0.3}},
            "model.density: unknown key here; luthier has it as model.combine.density",
        ),
        ({**GOOD, "num_train_epoch": 5}, "did you mean training.num_train_epochs"),
        ({**GOOD, "learning-rate": 5}, "learning-rate: unknown key; did you mean training.learning_rate"),
        (
            {**GOOD, "qqqq": 5},
            "qqqq: unknown key; known here: model, data, stage, method, training, generation, output_dir",
        ),
        ({**GOOD, "cutoff_len": 5}, "LLaMA-Factory's cutoff_len is data.cutoff_length here"),
        ({**GOOD, "lora_rank": 5}, "LLaMA-Factory's lora_rank is method.rank here"),
        ({**GOOD, "model_name_or_path": "x"}, "LLaMA-Factory's model_name_or_path is model here"),
        (
            with_training(warmup_ratio=0.1),
            "LLaMA-Factory's warmup_ratio is training.warmup_steps (below 1: a share) here",
        ),
        ({**GOOD, "quantization_bit": 4}, "LLaMA-Factory's quantization_bit is model.quantization.bits here"),
        (
            {**GOOD, "model": {"name": "m", "load_in_4bit": True}},
            "transformers' load_in_4bit is model.quantization: nf4",
        ),
        (
            {**GOOD, "model": {"name": "m", "quantization": {"bnb_4bit_quant_type": "fp4"}}},
            "model.quantization.bnb_4bit_quant_type: unknown key; transformers' bnb_4bit_quant_type is "
            "model.quantization.type here",
        ),
        ({**GOOD, "method": {"name": "lora", "rnak": 4}}, "method.rnak: unknown key; did you mean rank?"),
        (
            {**GOOD, "method": {"name": "full", "rank": 4}},
            "method.rank: unknown key here; it is a setting of the method lora",
        ),
        (
            {**GOOD, "data": {"train": [{"path": "a", "frmat": "x"}]}},
            "data.train.0.frmat: unknown key; did you mean format?",
        ),
        ({**GOOD, "training": {1: 2}}, "training.1: unknown key"),
    ],
)
def test_an_unknown_key_is_answered_with_what_was_meant(raw: dict[str, Any], expected: str) -> None:
    (problem,) = problems_of(raw)
    assert expected in problem


@pytest.mark.parametrize(
    ("raw", "place", "words"),
    [
        (with_training(learning_rate="fast"), "training.learning_rate", "number, found 'fast'"),
        (with_training(learning_rate=True), "training.learning_rate", "must be a number, found true"),
        (with_training(learning_rate=float("nan")), "training.learning_rate", "finite number, found nan"),
        (with_training(learning_rate=float("inf")), "training.learning_rate", "finite number, found inf"),
        (with_training(learning_rate=-1), "training.learning_rate", "must be greater than 0, found -1"),
        (with_training(max_steps=1.5), "training.max_steps", "found 1.5"),
        (with_training(max_steps=True), "training.max_steps", "must be a number, found true"),
        (with_training(bf16="maybe"), "training.bf16", "found 'maybe'"),
        (with_training(eval_strategy="sometimes"), "training.eval_strategy", "must be 'no', 'steps' or 'epoch'"),
        (with_training(lr_scheduler_kwargs={"power": "x"}), "training.lr_scheduler_kwargs.power", "found 'x'"),
        (with_training(lr_scheduler_kwargs=3), "training.lr_scheduler_kwargs", "must be a mapping of keys, found 3"),
        (with_training(optim="lyon"), "training.optim", "did you mean 'lion'"),
        (with_training(optim="adamw_torch"), "training.optim", "transformers' adamw_torch is adamw here"),
        (with_training(optim={"name": "lion", "beta1": 1}), "training.optim.beta1", "less than 1, found 1"),
        (
            with_training(optim={"name": "lion", "rank": 4}),
            "training.optim.rank",
            "it is a setting of the optimizer apollo",
        ),
        (with_training(optim={"name": "galore", "rnk": 4}), "training.optim.rnk", "did you mean rank?"),
        (with_training(optim=3), "training.optim", "must be a name or a mapping with a name, found 3"),
        (with_data(cutoff_length=1), "data.cutoff_length", "greater than or equal to 2, found 1"),
        (with_data(validation=1.5), "data.validation", "must be a share between 0 and 1, a count of rows, or files"),
        (with_data(validation=True), "data.validation", "must be a number, found true"),
        (with_data(validation=float("nan")), "data.validation", "must be a share between 0 and 1"),
        (with_data(validation=[]), "data.validation", "at least 1 item"),
        (with_data(validation=[{"path": 3}]), "data.validation.0.path", "must be a valid string, found 3"),
        (with_data(columns={"a": 1}), "data.columns", "unknown key here; luthier has it as data.train.0.columns"),
        (
            {**GOOD, "data": {"train": {"path": "a", "columns": {"output": 1}}}},
            "data.train.0.columns.output",
            "found 1",
        ),
        ({**GOOD, "data": {"train": []}}, "data.train", "at least 1 item"),
        ({**GOOD, "data": "a.jsonl"}, "data", "must be a mapping of keys, found 'a.jsonl'"),
        ({**GOOD, "model": 5}, "model", "must be a mapping of keys, found 5"),
        ({**GOOD, "model": {}}, "model.name", "is required and missing"),
        ({**GOOD, "method": "lorra"}, "method", "there is no method named 'lorra'. Did you mean 'lora'"),
        ({**GOOD, "method": ["lora"]}, "method", "must be a name or a mapping with a name, found ['lora']"),
        ({**GOOD, "method": None}, "method", "must be a name or a mapping with a name, found None"),
        ({**GOOD, "method": {"name": "lora", "rank": "big"}}, "method.rank", "found 'big'"),
        ({**GOOD, "stage": "no.such.module"}, "stage", "could not be imported"),
        ({**GOOD, "stage": "json"}, "stage", "there is no stage named 'json'"),
        ({**GOOD, "stage": "os.path"}, "stage", "it lacks Options and build"),
        ({**GOOD, "output_dir": ["a"]}, "output_dir", "must be a valid string"),
    ],
)
def test_a_wrong_value_is_one_problem_with_place_and_value(raw: dict[str, Any], place: str, words: str) -> None:
    (problem,) = problems_of(raw)
    assert problem.startswith(f"{place}: ")
    assert words.lower() in problem.lower()


def test_a_union_reports_one_problem() -> None:
    (problem,) = problems_of({**GOOD, "method": {"name": "lora", "target_modules": 3}})
    assert problem == "method.target_modules: must be a valid string or must be a valid list, found 3"


def test_all_problems_are_reported_at_once() -> None:
    problems = problems_of(
        {
            "data": {"train": "a.jsonl", "cutoff": 3, "over_length": "cut"},
            "method": {"name": "lora", "rank": 0, "alfa": 1},
            "stage": "sftt",
            "training": {"seed": "x", "optim": "nothing", "learning_rate": "2e-4"},
        }
    )
    places = sorted(problem.split(":")[0] for problem in problems)
    expected = ["data.cutoff", "data.over_length", "method.alfa", "method.rank", "model", "stage", "training.optim"]
    assert places == [*expected, "training.seed"]


def test_an_empty_config_lacks_model_and_data() -> None:
    assert problems_of({}) == ["model: is required and missing", "data: is required and missing"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (with_training(bf16=True, fp16=True), "choose one"),
        (with_training(max_steps=0), "max_steps is 0"),
        (with_training(eval_strategy="epoch"), "data.validation is unset"),
        (
            {**with_training(optim="badam"), "method": "adalora"},
            "method adalora looks at the gradients of all its weights in every step, but training.optim badam makes those of "
            "one block: use optim adamw",
        ),
        (
            {**with_training(optim="schedule_free"), "method": "adalora"},
            "method adalora sets weights itself, but training.optim schedule_free gives an average of others than those it "
            "learns at, which would not follow: use optim adamw",
        ),
        (with_data(validation=0.1), "would never be read"),
        (with_training(optim="lion", adam_beta1=0.5), "adam_beta1=0.5 has no effect: it needs another optim than lion"),
        (
            with_training(optim="schedule_free", lr_scheduler_type="cosine"),
            "optim schedule_free takes only constant or constant_with_warmup",
        ),
        (
            with_training(optim={"name": "sgd", "momentum": 0, "nesterov": True}),
            "nesterov has no effect with momentum 0",
        ),
        (with_training(early_stopping_patience=2), "early_stopping_patience=2 has no effect: it needs eval_strategy"),
        (
            with_training(grouping="within_buffer", prefix_sharing="off"),
            "computed once, but prefix_sharing is off: set prefix_sharing to auto, or grouping to within_step",
        ),
        (with_training(load_best_model_at_end=True), "needs evaluation and saving at the same moments"),
    ],
)
def test_settings_that_contradict_each_other(raw: dict[str, Any], expected: str) -> None:
    assert any(expected in problem for problem in problems_of(raw))


def test_numbers_written_as_text_are_numbers() -> None:
    config = load({**with_data(validation="0.1"), "training": {"learning_rate": "2e-4", "eval_strategy": "epoch"}})
    assert config.training.learning_rate == 2e-4
    assert config.data.validation == 0.1


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, 0.5), ("0.5", 0.5), (100, 100), ("100", 100), (100.0, 100), (1, 1)]
)
def test_shares_and_counts(value: Any, expected: float) -> None:
    config = load({**with_data(validation=value), "training": {"eval_strategy": "epoch"}})
    assert config.data.validation == expected
    assert type(config.data.validation) is type(expected)


def test_a_bare_no_in_yaml_is_a_strategy() -> None:
    config = load(GOOD, ["training.eval_strategy=no", "training.save_strategy=no"])
    assert (config.training.eval_strategy, config.training.save_strategy) == ("no", "no")
    shared = {word: load(GOOD, [f"training.prefix_sharing={word}"]).training.prefix_sharing for word in ("on", "off")}
    assert shared == {"on": "on", "off": "off"}
    assert load(GOOD, ["training.grouping=off"]).training.grouping == "off"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "steps"),
        ({"save_steps": 2000}, "steps"),
        ({"save_strategy": "epoch"}, "epoch"),
        ({"save_strategy": "no"}, "no"),
        ({"eval_strategy": "epoch"}, "steps"),
        ({"eval_strategy": "epoch", "load_best_model_at_end": True}, "epoch"),
    ],
)
def test_a_stream_of_one_epoch_is_saved_before_its_end(settings: dict[str, Any], expected: str) -> None:
    """A run of 20000 steps over a stream that was killed had no checkpoint: its first one was that of the epoch's end."""
    data: dict[str, Any] = {"train": "a.jsonl", "validation": "held.jsonl"}
    training = {"max_steps": 20000, "eval_strategy": "steps", **settings}
    streamed = load({"model": "m", "data": {**data, "streaming": True}, "training": training})
    assert streamed.training.save_strategy == expected
    if "save_steps" not in settings:
        in_memory = load({"model": "m", "data": data, "training": training})
        assert in_memory.training.save_strategy == settings.get("save_strategy", "epoch")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"model": "m"}, {"model": {"name": "m"}}),
        ({"data": {"train": "a"}}, {"data": {"train": [{"path": "a"}]}}),
        ({"data": {"train": {"path": "a"}}}, {"data": {"train": ["a"]}}),
        ({"method": "full"}, {"method": {"name": "full"}}),
        ({}, {"method": "lora", "stage": "sft"}),
        ({"method": {"rank": 4}}, {"method": {"name": "lora", "rank": 4}}),
        ({"training": {"optim": "lion"}}, {"training": {"optim": {"name": "lion"}}}),
        (
            {"training": {"optim": {"min_8bit_size": 1, "name": "adamw8bit"}}},
            {"training": {"optim": {"name": "adamw8bit", "min_8bit_size": 1}}},
        ),
        ({}, {"training": {"optim": "adamw"}}),
        (
            {"training": {"optim": "schedule_free"}},
            {"training": {"optim": "schedule_free", "lr_scheduler_type": "constant"}},
        ),
        ({"training": {"report_to": "wandb"}}, {"training": {"report_to": ["wandb"]}}),
    ],
)
def test_short_and_long_form_are_the_same(short: dict[str, Any], long: dict[str, Any]) -> None:
    assert load({**GOOD, **short}) == load({**GOOD, **long})


def test_a_config_cannot_be_changed() -> None:
    config = load(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.training.seed = 3  # type: ignore[misc]
