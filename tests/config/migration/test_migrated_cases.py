"""Configs in LLaMA-Factory's style, and beside each what luthier makes of it.

An expected file holds luthier's whole config, as it is once luthier has everything that the config asks for. Where
luthier lacks something today, the key must be refused, by luthier's own word, and the config be the same without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import typer
import yaml

from luthier import cli
from luthier.config.loading import validate
from luthier.config.migration import asking, migrating
from luthier.config.migration.answers import Outcome
from luthier.config.migration.migrating import Migration, migrate
from luthier.config.migration.sources import from_file
from tests.tiny import tiny_folder, tiny_tokenizer, write_rows

CASES = Path(__file__).parent / "cases"
EVERYTHING = {
    "train": frozenset({"--resume", "--overwrite"}),
    "predict": frozenset(
        {"--template", "--temperature", "--max-new-tokens", "--num-beams", "--top-p", "--top-k", "--max-length"}
    ),
    "export": frozenset({"--max-shard-size", "--dtype", "--format"}),
    "chat": frozenset({"--template", "--temperature", "--top-p", "--max-new-tokens"}),
}
NAMES = sorted(path.name for path in CASES.iterdir() if ".expected" not in path.name)
LACKS = ("luthier has no", "luthier can't train", "which luthier does not have yet", "has no")


def verbs_of_today() -> dict[str, frozenset[str]]:
    group: Any = typer.main.get_command(cli.app)
    return {
        name: frozenset(option for parameter in command.params for option in parameter.opts)
        for name, command in group.commands.items()
    }


def expected_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CASES / f"{name}.expected.yaml").read_text(encoding="utf-8"))
    return found


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """A config by dotted key, its short forms spelt out."""
    if place in ("model", "stage", "method", "training.optim") and isinstance(value, str):
        return {f"{place}.name": value}
    if not isinstance(value, dict) or place.startswith("data.train"):
        return {place: value}
    parts = [flat(part, f"{place}.{key}" if place else key) for key, part in value.items()]
    return {key: part for found in parts for key, part in found.items()}


def with_everything(monkeypatch: pytest.MonkeyPatch, name: str) -> Migration:
    """Migrated as by a luthier that lacks nothing."""
    default_of = asking.default_of

    def own_or_any_default(target: str, chosen: Mapping[str, str]) -> Any:
        try:
            return default_of(target, chosen)
        except AssertionError:  # luthier lacks the key: whatever its default will be
            return ANY

    with monkeypatch.context() as patch:
        patch.setattr(asking, "default_of", own_or_any_default)
        patch.setattr(asking, "refusal", lambda target, value, chosen: None)
        patch.setattr(migrating, "_problems_of", lambda config: [])
        return migrate(from_file(CASES / name), EVERYTHING)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_config_and_every_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, found = expected_of(name), with_everything(monkeypatch, name)
    assert found.config == expected.get("config")
    assert found.command == expected.get("command", "")
    assert [problem.partition(":")[0] for problem in found.problems] == expected.get("problems", [])
    for status in ("changed", "refused"):
        assert {outcome.key for outcome in found.having(status)} == set(expected.get(status, [])), status
    assert all(outcome.note or (outcome.luthier and outcome.status == "mapped") for outcome in found.outcomes)


@pytest.mark.parametrize("name", NAMES)
def test_what_luthier_lacks_is_refused_by_its_own_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, whole = expected_of(name), with_everything(monkeypatch, name)
    today = migrate(from_file(CASES / name), verbs_of_today())
    settings = {outcome.key: outcome.luthier for outcome in whole.outcomes}
    lacking: list[Outcome] = [
        outcome for outcome in today.having("refused") if outcome.key not in expected.get("refused", [])
    ]
    for outcome in lacking:
        assert any(lack in outcome.note for lack in LACKS), outcome
    if today.config is None:
        assert today.problems or today.command
        return
    refused = {
        f"{target}.name" if target in asking.CHOICES and target != asking.ENGINE else target
        for item in lacking
        for target in settings[item.key]
    }
    assert flat(today.config) == {key: value for key, value in flat(whole.config).items() if key not in refused}
    validate(today.config)


def data_sets(folder: Path) -> None:
    """A registry with the names that the cases use."""
    write_rows(folder / "rows.jsonl", 24)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"the fox {n} " * 9}) + "\n" for n in range(12)))
    registry: dict[str, Any] = {
        name: {"file_name": "rows.jsonl"} for name in ("identity", "alpaca_en_demo", "example_text2sql_train")
    }
    turns = {"conversations": [{"from": "human", "value": "what is your name"}]}
    answers = {"chosen": {"from": "gpt", "value": "the fox"}, "rejected": {"from": "gpt", "value": "the dog"}}
    (folder / "pairs.jsonl").write_text((json.dumps({**turns, **answers}) + "\n") * 12)
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    registry["dpo_en_demo"] = {
        "file_name": "pairs.jsonl",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": columns,
    }
    registry["wiki_demo"] = {"file_name": "text.jsonl", "columns": {"prompt": "text"}}
    (folder / "dataset_info.json").write_text(json.dumps(registry))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("workplace")
    for folder in ("data", "dbgpt_hub/data"):
        (place / folder).mkdir(parents=True)
        data_sets(place / folder)
    tiny_folder(place / "model", hidden_size=128, num_key_value_heads=4)  # as wide as the largest rank of the cases
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.pad_token  # llama2's template begins with it
    tokenizer.save_pretrained(place / "model")
    return place


TRAINED = [name for name in NAMES if expected_of(name).get("config") and expected_of(name).get("planned", True)]


@pytest.mark.parametrize("name", TRAINED)
def test_what_can_be_trained_is_planned(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from luthier.commands.plan import plan

    found = migrate(from_file(CASES / name), verbs_of_today())
    if found.config is None:
        assert found.problems
        pytest.skip(found.problems[0])
    monkeypatch.chdir(workplace)
    model = found.config["model"] if isinstance(found.config["model"], dict) else {}
    without_adapters = {key: value for key, value in model.items() if key not in ("adapters", "continue_adapter")}
    config = {**found.config, "model": {**without_adapters, "name": str(workplace / "model")}}
    config["output_dir"] = str(tmp_path)
    assert plan(config).total_steps > 0
