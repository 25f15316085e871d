"""What changes the fingerprint of the data, and what makes the cache build anew: a decision for every field of the config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.config.data_section import DataConfig, DataEntry
from luthier.config.plugins import METHODS, STAGES
from luthier.config.schema import RunConfig
from luthier.config.sections import Section
from luthier.config.training_section import TrainingConfig
from luthier.data import fingerprints, preparing
from luthier.data.encoders import conversation
from luthier.data.fingerprints import cache_key, data_fingerprint, describe_data
from luthier.data.locating import Located
from luthier.data.preparing import prepare

# every field, as a value unlike the default; then whether it changes the fingerprint, and whether the cache's key
ENTRY_FIELDS: dict[str, tuple[Any, bool, bool]] = {
    "path": ("other.json", False, False),
    "format": ("openai", True, True),
    "columns": ({"a": "b"}, True, True),
    "tags": ({"role_tag": "r"}, True, True),
    "split": ("[:5]", True, True),
    "subset": ("s", True, True),
    "folder": ("f", True, True),
    "system": ("s", True, True),
    "max_samples": (3, True, True),
    "head": (True, True, True),
    "weight": (2.0, True, True),
}
DATA_FIELDS: dict[str, tuple[Any, bool, bool]] = {
    "validation": (2, True, True),
    "test": (2, True, True),
    "evaluate_each": (True, True, True),
    "invalid_rows": ("reject", True, True),
    "mix": ("interleave_over", True, True),
    "shuffle": (False, True, False),  # the order of each epoch is drawn when it is trained
    "preprocessing_num_workers": (3, False, False),
    "cache": (False, False, False),
}
# the template's source and the encoder's options stand for these (see the tests below), and what a stream says of itself
ELSEWHERE = {"train", "template", "cutoff_length", "over_length", "max_source_length", "max_target_length"}
ELSEWHERE |= {"streaming", "buffer_size"}


@pytest.fixture
def file(write) -> Path:
    return Path(write("a.json", [{"instruction": f"q {i}", "output": f"a {i}"} for i in range(10)]))


def hashes(file: Path, entry: DataEntry, seed: int = 0, template: str = "", **data: Any) -> tuple[str, str]:
    """(fingerprint, key) of a config with one entry."""
    made = DataConfig(train=[str(file), str(file)]).model_copy(update=data)
    described = describe_data(made, {"train": [Located(entry, (file,))]}, seed, "", template, "conversation", {})
    return data_fingerprint(described), cache_key(described, [str(file)])


def test_every_field_of_the_data_section(file) -> None:
    assert set(ENTRY_FIELDS) == set(DataEntry.model_fields), "a new field of DataEntry: say what it changes"
    assert set(DATA_FIELDS) | ELSEWHERE == set(DataConfig.model_fields), (
        "a new field of DataConfig: say what it changes"
    )
    entry = DataEntry(path=str(file))
    before = hashes(file, entry)
    changed = {field: hashes(file, entry.model_copy(update={field: value[0]})) for field, value in ENTRY_FIELDS.items()}
    changed |= {field: hashes(file, entry, **{field: value[0]}) for field, value in DATA_FIELDS.items()}
    for field, (_, *expected) in {**ENTRY_FIELDS, **DATA_FIELDS}.items():
        assert [new != old for new, old in zip(changed[field], before, strict=True)] == expected, field
    acting = [field for field, value in {**ENTRY_FIELDS, **DATA_FIELDS}.items() if value[2]]
    assert len({changed[field][1] for field in acting}) == len(acting)


@pytest.mark.parametrize(
    ("draws", "entry", "data"),
    [
        (False, {}, {}),
        (False, {"max_samples": 3, "head": True}, {}),
        (False, {"system": "s"}, {}),
        (False, {}, {"mix": "interleave_over"}),
        (True, {"max_samples": 3}, {}),
        (True, {"system": ["s", "t"]}, {}),
        (True, {"weight": 2.0}, {"mix": "interleave_over"}),
        (True, {}, {"validation": 0.1}),
        (True, {}, {"test": 2}),
    ],
)
def test_a_seed_that_decides_nothing_changes_no_key(file, draws, entry, data) -> None:
    first, second = (hashes(file, DataEntry(path=str(file), **entry), seed, **data)[1] for seed in (1, 2))
    assert (first != second) is draws


def test_the_day_counts_where_a_template_writes_it(file, monkeypatch) -> None:
    class Tomorrow:
        @staticmethod
        def today() -> Any:
            from datetime import date

            return date(2999, 1, 1)

    entry, dated = DataEntry(path=str(file)), "{{ strftime_now('%d') }}"
    today = hashes(file, entry), hashes(file, entry, template=dated)
    monkeypatch.setattr(fingerprints, "date", Tomorrow)
    assert hashes(file, entry) == today[0]
    # a run that is resumed on the next day is the same run
    assert hashes(file, entry, template=dated)[0] == today[1][0]
    assert hashes(file, entry, template=dated)[1] != today[1][1]


def test_code_and_libraries_count(file, tmp_path, monkeypatch) -> None:
    entry = DataEntry(path=str(file), format="cache_test_hook")
    dotted = entry.model_copy(update={"format": "cachetestpkg.hook"})
    package = tmp_path / "cachetestpkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "hook.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = hashes(file, dotted)[1]
    (package / "hook.py").write_text("A = 2\n")
    assert hashes(file, dotted)[1] != before
    before = hashes(file, entry)[1]
    monkeypatch.setattr(fingerprints.metadata, "version", lambda name: "0")
    other_library = hashes(file, entry)[1]
    monkeypatch.setattr(fingerprints, "code_fingerprint", lambda *patterns: "other")
    assert len({before, other_library, hashes(file, entry)[1]}) == 3


class Asked(Exception):
    """Carries the key that was looked for."""


def key_of(config: RunConfig, tokenizer: Any, **given: Any) -> str:
    try:
        prepare(config, tokenizer, **given)
    except Asked as asked:
        return str(asked)
    raise AssertionError("the cache was not asked")


@pytest.fixture
def asked_for(monkeypatch) -> None:
    def stop(request: Any, *others: Any) -> None:
        raise Asked(request.key)

    monkeypatch.setattr(preparing, "from_cache", stop)


def run_config(file: Path, **data: Any) -> RunConfig:
    return RunConfig(
        model="m",
        data=DataConfig(train=[str(file)], **{"template": "chatml", **data}),
        stage=STAGES.load("sft").Options(),
        method=METHODS.load("lora").Options(),
        training=TrainingConfig(),
    )


def test_lengths_template_and_the_stages_settings_change_the_key(file, byte_tokenizer, asked_for) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"template": "llama3"},
        {"cutoff_length": 512},
        {"over_length": "drop"},
        {"max_source_length": 100, "max_target_length": 200},
        {"max_source_length": 100, "max_target_length": 201},
        {"max_source_length": 101, "max_target_length": 200},
    ]
    keys = [key_of(run_config(file, **change), byte_tokenizer) for change in changes]
    keys.append(key_of(run_config(file), byte_tokenizer, encoder_options={"train_on": "last"}))
    assert len(set(keys)) == len(keys)
    # of an encoder's options every one is hashed; a new setting of a stage that its encoder takes is among them
    assert "train_on" in conversation.Options.model_fields


def leaves(section: Section) -> Iterator[tuple[str, ...]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from ((name, *rest) for rest in leaves(value))
        else:
            yield (name,)


def changed(section: Section, place: tuple[str, ...]) -> Section:
    """The section with a value at `place` that nothing can use."""
    first, *rest = place
    value = changed(getattr(section, first), tuple(rest)) if rest else object()
    return section.model_copy(update={first: value})


def test_no_other_field_of_the_config_matters(file, byte_tokenizer, asked_for) -> None:
    config = run_config(file)
    key = key_of(config, byte_tokenizer)
    places = [place for place in leaves(config) if place[0] != "data"]
    assert len(places) > 40
    for place in places:
        assert key_of(changed(config, place), byte_tokenizer) == key, ".".join(place)
