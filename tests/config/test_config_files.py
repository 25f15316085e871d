"""Reading config files: what is broken is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.config.files import read_file
from luthier.config.loading import dump, dump_yaml, load
from luthier.foundation.errors import UserError

SHORT = "model: smollm2-135m\ndata: {train: rows.jsonl}\n"


def written(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problem_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    written(tmp_path, SHORT, "conf.yaml")
    message = problem_of(tmp_path / "config.yaml")
    assert "does not exist" in message
    assert "conf.yaml" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty (0 bytes)"),
        ("# only a comment\n", "holds nothing, not a mapping"),
        ("- a\n- b\n", "holds list, not a mapping"),
        ("model: a\ndata: [1, 2\n", "broken YAML at line 3, column 1"),
        ("model: a\n\tdata: 1\n", "broken YAML at line 2, column 1"),
        ("model: a\ndata: {train: b}\nmodel: c\n", "the key 'model' stands twice, in lines 1 and 3"),
        ("model: a\ntraining:\n  seed: 1\n  seed: 2\n", "the key 'seed' stands twice, in lines 3 and 4"),
        ("{a: b}: c\n", "a key must be a word"),
        ("model: !!python/object/apply:os.getcwd []\n", "broken YAML at line 1, column 8"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_broken_yaml_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problem_of(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"model": "a",\n "data": {"train": }}', "broken JSON at line 2, column 20"),
        ('{"model": "a", "model": "b"}', "the key 'model' stands twice"),
        ('{"model": "a"} x', "broken JSON at line 1, column 16"),
        ('["model"]', "holds list, not a mapping"),
    ],
)
def test_broken_json_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problem_of(written(tmp_path, text, "config.json"))


def test_a_folder_is_not_a_config(tmp_path: Path) -> None:
    assert "is a folder" in problem_of(tmp_path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"model: caf\xe9\n")
    assert "is not UTF-8 text" in problem_of(path)


def test_a_byte_order_mark_and_tabs_in_json_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('\ufeff{\t"model": "m",\t"data": {"train": "a.jsonl"}}', encoding="utf-8")
    assert load(path).model.name == "m"


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    text = "base: &base {train: a.jsonl, cutoff_length: 64}\ndata:\n  <<: *base\n  cutoff_length: 128\n"
    assert read_file(written(tmp_path, text))["data"] == {"train": "a.jsonl", "cutoff_length": 128}


def test_a_date_stays_text(tmp_path: Path) -> None:
    text = "model: {name: m, revision: 2026-01-31}\ndata: {train: a}\n"
    assert load(written(tmp_path, text)).model.revision == "2026-01-31"


def test_json_and_yaml_give_the_same_config(tmp_path: Path) -> None:
    as_yaml = load(written(tmp_path, SHORT))
    as_json = load(written(tmp_path, '{"model": "smollm2-135m", "data": {"train": "rows.jsonl"}}', "config.json"))
    assert as_yaml == as_json == load({"model": "smollm2-135m", "data": {"train": "rows.jsonl"}})


def test_what_is_dumped_loads_equal(tmp_path: Path) -> None:
    config = load(
        {
            "model": "m",
            "data": {"train": ["a", {"path": "b", "columns": {"output": "答案"}}], "validation": 0.125},
            "method": {"name": "lora", "rank": 3, "alpha": 7.5},
            "stage": "pretrain",
            "training": {"learning_rate": 1e-7, "eval_strategy": "no", "lr_scheduler_kwargs": {"power": 2}}
            | {"eval_strategy": "epoch", "report_to": "tensorboard"},
        }
    )
    assert load(written(tmp_path, dump_yaml(config))) == config
    assert load(dump(config)) == config


def test_the_example_round_trips() -> None:
    example = Path(__file__).parents[2] / "examples" / "identity" / "config.yaml"
    config = load(example)
    assert load(dump(config)) == config
    assert (config.stage.name, config.method.name) == ("sft", "lora")


def test_the_resolved_config_names_the_rate_that_it_trains_with() -> None:
    """So that a run that goes on after the default has changed says so."""
    config = load({"model": "m", "data": {"train": "a"}, "method": "full", "training": {"optim": "lion"}})
    assert dump(config)["training"]["learning_rate"] == config.learning_rate()
    assert config.learning_rate_origin() == "default of method full with optim lion"
    again = load(dump(config))
    assert again.learning_rate() == config.learning_rate()
    assert again.learning_rate_origin() == "training.learning_rate"
    assert dump(again) == dump(config)


def test_a_token_is_neither_dumped_nor_shown() -> None:
    config = load({"model": {"name": "m", "token": "secret-token"}, "data": {"train": "a"}})
    assert config.model.token == "secret-token"
    assert "secret-token" not in dump_yaml(config) + repr(config)


def test_loading_leaves_the_callers_dict_alone() -> None:
    raw = {"model": "m", "data": {"train": "a"}}
    load(raw, ["model.dtype=float32", "data.train.0.system=Hi"])
    assert raw == {"model": "m", "data": {"train": "a"}}
