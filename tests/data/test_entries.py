"""What an entry takes of its rows: slices, samples, system prompts by the seed, data sets of a hub."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config.data_section import DataConfig, DataEntry
from luthier.config.split_slices import SplitSlice
from luthier.data import hub_sets
from luthier.data.entries import KINDS, load_entry
from luthier.data.locating import locate
from luthier.data.records import Conversation, Document, Labelled, LabelledConversation, Pair, Record
from luthier.data.stream_sources import open_entry
from luthier.foundation.errors import DataError

ROWS = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(1, 41)]


def taken(path: Any, seed: int = 0, **settings: Any) -> list[int]:
    loaded = load_entry(DataEntry(path=str(path), **settings), "train", 0, seed, None)
    assert loaded.report.sampled == loaded.report.kept == len(loaded.records)
    return [record.origin.row for record in loaded.records]


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", range(1, 41)),
        ("train[:70%]", range(1, 29)),
        ("[70%:]", range(29, 41)),
        ("train[10:20]", range(11, 21)),
        ("[-5:]", range(36, 41)),
        ("[:-90%]", range(1, 5)),
        ("[ 5 : 10% ]", None),
        ("[2.5%:5%]", range(2, 3)),
        ("[:]", range(1, 41)),
    ],
)
def test_slices(write, split: str, rows: range | None) -> None:
    path = write("a.json", ROWS)
    if rows is None:
        with pytest.raises(DataError, match=r"a\.json: split '\[ 5 : 10% \]' takes none of the 40 rows"):
            taken(path, split=split)
    else:
        assert taken(path, split=split) == list(rows)


@given(count=st.integers(1, 2000), cuts=st.lists(st.integers(0, 100), max_size=5))
def test_slices_that_meet_are_a_partition(count: int, cuts: list[int]) -> None:
    bounds = sorted({0, 100, *cuts})
    rows: list[int] = []
    for low, high in itertools.pairwise(bounds):
        try:
            rows.extend(SplitSlice.parse(f"train[{low}%:{high}%]").rows(count))
        except ValueError as error:
            assert "takes none" in str(error)
    assert rows == list(range(count))


def test_slices_equal_those_of_datasets() -> None:
    import datasets

    data = datasets.Dataset.from_dict({"n": list(range(37))})
    for text in ("train[:70%]", "train[33%:66%]", "train[-10%:]", "train[3:9]", "train[:-4]", "train[50%:]"):
        instruction = datasets.ReadInstruction.from_spec(text).to_absolute({"train": 37})[0]
        assert SplitSlice.parse(text).rows(37) == range(instruction.from_, instruction.to), text
    assert len(data) == 37


@pytest.mark.parametrize(
    "text", ["", "train[", "train[1]", "train[:101%]", "a+b", "train[1:2:3]", "[a:b]", "train[:50pct]"]
)
def test_what_is_no_slice(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a split|a percentage goes up to 100"):
        DataEntry(path="a.json", split=text)


def test_slices_beyond_the_rows_and_splits_that_are_not_there(write, tmp_path: Path) -> None:
    path = write("a.json", ROWS)
    with pytest.raises(DataError, match="reaches to row 50, but there are only 40 rows"):
        taken(path, split="[:50]")
    with pytest.raises(DataError, match=r"a\.json has no splits, so there is no 'test' in it"):
        taken(path, split="test[:5]")
    with pytest.raises(DataError, match=r"subset is 'x', which has no effect on local files"):
        taken(path, subset="x")
    with pytest.raises(DataError, match=r"folder is 'x', which has no effect on local files"):
        taken(path, folder="x")
    with pytest.raises(DataError, match=r"'name' is no id of a data set on ModelScope"):
        taken("modelscope:name")


def test_a_split_of_files_that_hold_others_too_is_refused(write, tmp_path: Path) -> None:
    folder = tmp_path / "test" / "rows"  # whose own name says nothing of what it holds
    (folder / "more").mkdir(parents=True)
    for name in ("train.jsonl", "a_train_2.jsonl", "latest.jsonl", "device-values.jsonl"):
        write(f"test/rows/{name}", ROWS[:1])
    write("test/rows/more/dev-1.jsonl", ROWS[:1])
    everywhere = f"{folder}/**/*.jsonl"
    assert len(taken(folder, split="train")) == 4 and len(taken(f"{folder}/*.jsonl", split="train")) == 4
    with pytest.raises(
        DataError, match=r"are named for several \(more/dev-1\.jsonl\): split: train would take them all"
    ):
        taken(everywhere, split="train")
    write("test/rows/unit_test.jsonl", ROWS[:1])
    for split in ("train", "train[:1]"):
        with pytest.raises(DataError, match=r"are named for several \(unit_test\.jsonl\)"):
            taken(folder, split=split)
        with pytest.raises(DataError, match=r"named for several"):
            open_entry(DataEntry(path=str(folder), split=split))
    # all files are what is asked for, or one by its name, or what a registry means
    assert len(taken(folder)) == 5 and len(taken(everywhere, split="[:6]")) == 6
    assert taken(folder / "unit_test.jsonl", split="train") == [1]
    registry = f"{write('dataset_info.json', {'mine': {'file_name': 'test/rows', 'split': 'train'}})}#mine"
    assert len(taken(registry)) == 5 and len(list(open_entry(DataEntry(path=registry)).rows())) == 5
    with pytest.raises(DataError, match=r"named for several"):
        taken(registry, split="train")


def test_files_named_for_another_split_are_told_where_all_are_taken(write, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("train.jsonl", "test.jsonl", "dev.jsonl"):
        write(f"rows/{name}", ROWS[:1])
    assert locate(DataEntry(path=str(folder))).shown == f"{folder} (with dev.jsonl, test.jsonl)"
    assert taken(f"{folder}/test*", split="train[:1]") == [1]  # named by the pattern itself
    assert locate(DataEntry(path=f"{folder}/t*", split="[:2]")).shown == f"{folder}/t* ([:2], with test.jsonl)"
    for path in (folder / "test.jsonl", f"{folder}/train*", f"{folder}/dev*"):
        assert locate(DataEntry(path=str(path))).shown == str(path)


def test_slices_of_saved_sets(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=data, test=data.select(range(5))).save_to_disk(tmp_path / "both")
    assert taken(tmp_path / "both", split="test") == [1, 2, 3, 4, 5]
    assert taken(tmp_path / "both", split="train[:10%]") == [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"holds the splits train, test, and no 'dev'"):
        taken(tmp_path / "both", split="dev")


def test_samples_and_heads(write) -> None:
    path = write("a.json", ROWS)
    sample = taken(path, max_samples=5)
    assert len(sample) == 5 and sample == sorted(sample) and sample != [1, 2, 3, 4, 5]
    assert taken(path, max_samples=5) == sample and taken(path, seed=1, max_samples=5) != sample
    assert taken(path, max_samples=5, head=True) == [1, 2, 3, 4, 5]
    assert taken(path, split="[50%:]", max_samples=3, head=True) == [21, 22, 23]
    assert set(taken(path, split="[50%:]", max_samples=15)) <= set(range(21, 41))
    with pytest.raises(ValueError, match="head has no effect without max_samples"):
        DataEntry(path="a", head=True)


def test_a_system_prompt_by_the_seed(write) -> None:
    path = write("a.json", [*ROWS, {**ROWS[0], "system": "own"}])

    def systems(seed: int = 0, **settings: Any) -> list[str]:
        entry = DataEntry(path=str(path), system=["one", "two", "three"], **settings)
        return [record.messages[0].content for record in load_entry(entry, "train", 0, seed, None).records]

    found = systems()
    assert found[-1] == "own" and {"one", "two", "three"} == set(found[:-1])
    assert systems() == found and systems(seed=1) != found
    assert systems(split="[10:]") == found[10:]  # a row's prompt doesn't depend on which others are taken
    with pytest.raises(ValueError, match="at least 1 item"):
        DataEntry(path="a", system=[])


@pytest.fixture
def hub(monkeypatch, tmp_path: Path) -> list[tuple]:
    """A hub that has `owner/name`: a folder of data files, loaded by the library itself."""
    import datasets

    whole = datasets.load_dataset
    folder = tmp_path / "hub" / "name"
    folder.mkdir(parents=True)
    for split, rows in (("train", ROWS), ("test", ROWS[:4])):
        datasets.Dataset.from_list(rows).to_json(folder / f"{split}.jsonl")
    asked: list[tuple] = []

    def load(name: str, subset: str | None = None, **settings: Any) -> Any:
        asked.append((name, subset, settings, datasets.config.HF_HUB_OFFLINE))
        return whole(str(folder), subset, split=settings["split"], cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_sets, "_find", lambda name: True)
    return asked


def test_a_hubs_data_set(hub, monkeypatch) -> None:
    assert taken("owner/name", split="train[:10%]") == [1, 2, 3, 4]
    assert taken("owner/name", split="test") == [1, 2, 3, 4]
    assert taken("huggingface:name") == list(range(1, 41))
    loaded = load_entry(DataEntry(path="owner/name", split="test[1:2]"), "train", 0, 0, None)
    assert (
        str(loaded.records[0].origin) == "owner/name (test), row 2" and loaded.report.path == "owner/name (test[1:2])"
    )
    with pytest.raises(DataError, match=r"owner/name, split dev, can't be loaded: Unknown split \"dev\""):
        taken("owner/name", split="dev")
    with pytest.raises(
        DataError, match=r"owner/name \(wrong\), split train, can't be loaded: BuilderConfig 'wrong' not"
    ):
        taken("owner/name", subset="wrong")
    assert hub[0][:2] == ("owner/name", None) and hub[0][2]["split"] == "train" and hub[0][3] is False
    monkeypatch.setattr(hub_sets, "_find", lambda name: False)
    assert len(taken("owner/name", folder="inside")) == 40 and hub[-1][2]["data_dir"] == "inside" and hub[-1][3] is True


def test_a_hub_that_cannot_be_reached(monkeypatch) -> None:
    import huggingface_hub

    def refused(self: Any, name: str, timeout: float) -> None:
        import httpx2

        raise httpx2.ConnectError("refused")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refused)
    start = time.monotonic()
    with pytest.raises(
        DataError, match=r"can't be loaded \(the hub can't be reached, so only the cache was looked at\)"
    ):
        taken("nobody/has-this-set")
    assert time.monotonic() - start < 10


def test_a_path_that_goes_before_a_hub(write, tmp_path: Path, monkeypatch, hub) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write("owner/name/a.json", ROWS[:2])
    monkeypatch.chdir(tmp_path)
    assert taken("owner/name") == [1, 2] and hub == []
    with pytest.raises(DataError, match=r"'owner/other\.json' does not exist"):
        taken("owner/other.json")
    assert DataConfig(train="owner/name").train[0].path == "owner/name"


def test_rows_of_another_kind_than_the_stage_learns(write) -> None:
    kinds = {
        Conversation: ROWS[:2],
        Pair: [{"instruction": "q", "chosen": "a", "rejected": "b"}],
        LabelledConversation: [{"prompt": "q", "completion": "a", "label": True}],
        Labelled: [{"sentence": "q", "label": 1, "idx": 3}],
    }
    assert set(KINDS) == set(get_args(Record))
    for kind, rows in kinds.items():
        entry = DataEntry(path=str(write("a.json", rows)))
        assert all(isinstance(record, kind) for record in load_entry(entry, "train", 0, 0, kind).records)
        for other in KINDS:
            if other is not kind:
                with pytest.raises(DataError, match=f"a.json holds {KINDS[kind][0]} .* learns {KINDS[other][0]}"):
                    load_entry(entry, "train", 0, 0, other)
    both = DataEntry(path=str(write("b.json", [{"text": "q", "label": "x"}])))
    assert isinstance(load_entry(both, "train", 0, 0, Document).records[0], Document)
    assert isinstance(load_entry(both, "train", 0, 0, Labelled).records[0], Labelled)


def test_tags_reach_the_format(write) -> None:
    path = str(write("a.json", [{"conversations": [{"who": "me", "says": "q"}, {"who": "it", "says": "a"}]}]))
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"}
    records = load_entry(DataEntry(path=path, format="sharegpt", tags=tags), "train", 0, 0, None).records
    assert [(m.role, m.content) for m in records[0].messages] == [("user", "q"), ("assistant", "a")]


def test_the_shared_table_without_a_header(shared_data: Path) -> None:
    loaded = load_entry(DataEntry(path=str(shared_data / "classify" / "sst2_*.tsv")), "train", 0, 0, None)
    assert loaded.report.format == "classification" and (loaded.report.read, loaded.rejected) == (7792, [])
    assert {record.label for record in loaded.records} == {"0", "1"}
