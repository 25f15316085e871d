"""Streamed training rows: every row once an epoch, shuffled by windows, resumed at any example, nothing read too early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import luthier
from luthier.config.data_section import DataConfig, DataEntry
from luthier.data.encoding import ChosenEncoder
from luthier.data.preparing import choose_encoder
from luthier.data.stream_sources import open_entry
from luthier.data.streamed import Place, Streamed
from luthier.data.training_stream import TrainingStream, open_stream
from luthier.foundation.errors import ConfigError, DataError
from tests.tiny import config_for, tiny_tokenizer, write_rows


@pytest.fixture(scope="module")
def chosen() -> ChosenEncoder:
    return choose_encoder(DataConfig(train=["x"]), tiny_tokenizer(), "conversation", {})


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("streamed") / "rows.jsonl", count=50)


def stream_of(chosen: ChosenEncoder, train: Any, **data: Any) -> TrainingStream:
    return open_stream(DataConfig(train=train, streaming=True, **{"buffer_size": 8, **data}), 3, chosen)


def numbers(found: Iterator[Streamed]) -> list[int]:
    return [item.example.origin.row for item in found if item.example is not None]


def test_an_epoch_holds_every_row_once_and_windows_are_shuffled(chosen: ChosenEncoder, rows: Path) -> None:
    stream = stream_of(chosen, str(rows))
    first, second = (numbers(stream.examples(epoch, Place())) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1, 51))
    assert first != second
    for window in range(6):
        assert sorted(first[window * 8 : window * 8 + 8]) == list(range(window * 8 + 1, window * 8 + 9))
    assert numbers(stream_of(chosen, str(rows), shuffle=False).examples(1, Place())) == list(range(1, 51))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(taken=st.integers(0, 49), epoch=st.integers(0, 2), buffer_size=st.sampled_from([1, 7, 8, 50, 1000]))
def test_it_goes_on_at_any_example(taken: int, epoch: int, buffer_size: int, chosen: ChosenEncoder, rows: Path) -> None:
    stream = stream_of(chosen, str(rows), buffer_size=buffer_size)
    whole = [item for item in stream.examples(epoch, Place()) if item.example is not None]
    place = whole[taken - 1].after if taken else Place()
    assert numbers(stream.examples(epoch, place)) == numbers(iter(whole[taken:]))


def test_what_was_told_is_not_told_again(chosen: ChosenEncoder, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", count=12)
    path.write_text(path.read_text() + '{"instruction": 5, "output": "x"}\n' + '{"instruction": "y", "output": "z"}\n')
    stream = stream_of(chosen, str(path), buffer_size=6, invalid_rows="reject")
    told = [item for item in stream.examples(0, Place()) if item.news is not None]
    assert [line["row"] for item in told for line in item.news.rejected] == [13]  # type: ignore[union-attr]
    assert not [item for item in stream.examples(1, Place()) if item.news is not None]
    assert not [item for item in stream.examples(0, Place(2, 1)) if item.news is not None]
    with pytest.raises(DataError, match="row 13"):
        list(stream_of(chosen, str(path), buffer_size=6).examples(0, Place()))


@pytest.mark.parametrize("mix", ["interleave_under", "interleave_over"])
def test_mixing_draws_as_without_streaming(mix: Any, chosen: ChosenEncoder, rows: Path, tmp_path: Path) -> None:
    from luthier.data.preparing import load_records

    other = write_rows(tmp_path / "other.jsonl", count=9, seed=1)
    train = [{"path": str(rows), "weight": 2.0}, {"path": str(other), "weight": 1.0}]
    stream = stream_of(chosen, train, mix=mix, shuffle=False)
    found = [item.example.origin for item in stream.examples(0, Place()) if item.example is not None]
    whole = load_records(DataConfig(train=train, mix=mix), 3).splits["train"]
    assert found == [record.origin for record in whole]


def test_slices_stream_too_and_a_percentage_counts_first(chosen: ChosenEncoder, rows: Path) -> None:
    def rows_of(**entry: Any) -> list[int]:
        return sorted(numbers(stream_of(chosen, {"path": str(rows), **entry}).examples(0, Place())))

    assert rows_of(split="[10:20]") == list(range(11, 21))
    assert rows_of(split="[:30%]") == list(range(1, 16))
    assert rows_of(split="[-5:]") == list(range(46, 51))
    assert rows_of(split="[10:]", max_samples=3, head=True) == [11, 12, 13]
    with pytest.raises(DataError, match="reaches to row -60"):
        rows_of(split="[-60:]")


def test_only_what_is_needed_is_read(chosen: ChosenEncoder, tmp_path: Path) -> None:
    path = tmp_path / "broken_later.jsonl"
    good = [json.dumps({"instruction": f"q{row}", "output": "a"}) for row in range(3000)]
    path.write_text("\n".join([*good, "{broken"]))
    stream = stream_of(chosen, str(path), buffer_size=100)
    assert len(list(islice(stream.examples(0, Place()), 150))) == 150
    with pytest.raises(DataError, match="line 3001"):
        list(stream.examples(0, Place()))


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


LATE = [{"q": f"q{row}", "a": "a", "id": row} for row in range(1000)] + [{"q": "late", "a": "a", "sys": "Be brief."}]


@pytest.mark.parametrize("format_name", ["auto", "alpaca"])
def test_an_optional_column_may_begin_later(chosen: ChosenEncoder, tmp_path: Path, format_name: str) -> None:
    columns = {"instruction": "q", "output": "a", "system": "sys"}
    train = {"path": written(tmp_path / "a.jsonl", LATE), "columns": columns, "format": format_name}
    stream = stream_of(chosen, train, shuffle=False)
    assert [remark.partition(".jsonl: ")[2] for remark in stream.remarks()[1:]] == [
        "none of the first 1,000 rows has the column 'sys', which columns.system names",
        "columns not used: id (of those in the first 1,000 rows)",
    ]
    assert stream.first_records(1001)[-1].messages[0].content == "Be brief."  # type: ignore[union-attr]


def test_a_column_that_no_row_has_is_refused_where_that_is_known_or_it_is_needed(
    chosen: ChosenEncoder, tmp_path: Path
) -> None:
    columns = {"instruction": "q", "output": "a", "system": "sys"}
    few, many = written(tmp_path / "few.jsonl", LATE[:999]), written(tmp_path / "many.jsonl", LATE)
    with pytest.raises(DataError, match="names the column 'sys', which no row has"):
        stream_of(chosen, {"path": few, "columns": columns})
    with pytest.raises(
        DataError, match=r"columns\.output names the column 'b', which none of the first 1,000 rows has"
    ):
        stream_of(chosen, {"path": many, "columns": {**columns, "output": "b"}})
    remarks = stream_of(chosen, {"path": few, "columns": {"instruction": "q", "output": "a"}}).remarks()
    assert remarks[1:] == [f"{few}: columns not used: id"]


def test_what_a_stream_cannot_do_is_refused(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", dataloader_num_workers=2, max_steps=-1)
    config["data"] |= {"streaming": True, "validation": 0.1, "train": {"path": str(rows), "max_samples": 5}}
    with pytest.raises(ConfigError) as refused:
        luthier.train(config)
    assert "validation is 0.1, which is taken from all training rows" in str(refused.value)
    assert "train.0.max_samples is a random sample of all rows" in str(refused.value)
    config["data"] = {"train": str(rows), "streaming": True}
    with pytest.raises(ConfigError, match=r"set training\.max_steps"):
        luthier.train(config)
    config["data"] = {"train": str(rows), "buffer_size": 5}
    with pytest.raises(ConfigError, match="buffer_size has no effect without streaming"):
        luthier.train(config)


def test_an_empty_window_says_so(chosen: ChosenEncoder, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": "x", "output": 5}) + "\n" for _ in range(9)))
    with pytest.raises(DataError, match="none of the first 8 rows"):
        list(stream_of(chosen, str(path), invalid_rows="reject").examples(0, Place()))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, rows: Path) -> dict[str, Any]:
    """A hub that has `owner/name`, read by the library itself from a file, and tells its size or not."""
    import datasets
    import huggingface_hub

    from luthier.data import hub_sets

    asked: dict[str, Any] = {"count": None, "rows": rows}
    load = datasets.load_dataset

    def local(name: str, subset: str | None, *, split: str, data_dir: Any, streaming: bool, revision: str) -> Any:
        asked.update(name=name, subset=subset, split=split, streaming=streaming, revision=revision)
        found = load("json", data_files={split: str(asked["rows"])}, split=split, streaming=True)
        if asked["count"] is not None:
            found.info.splits = datasets.SplitDict({split: datasets.SplitInfo(split, num_examples=asked["count"])})
        return found

    monkeypatch.setattr(hub_sets, "_find", lambda name: True)
    monkeypatch.setattr(datasets, "load_dataset", local)
    info = huggingface_hub.hf_api.DatasetInfo(id="owner/name", sha="c0ffee")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, **more: info)
    return asked


def test_a_hubs_set_streams(hub: dict[str, Any], chosen: ChosenEncoder) -> None:
    stream = stream_of(chosen, {"path": "owner/name", "subset": "en", "split": "test[3:9]"}, shuffle=False)
    assert numbers(stream.examples(0, Place())) == [4, 5, 6, 7, 8, 9]
    assert (hub["name"], hub["subset"], hub["split"], hub["streaming"], hub["revision"]) == (
        "owner/name", "en", "test", True, "c0ffee",
    )  # fmt: skip
    assert stream.facts()[0]["commit"] == "c0ffee"
    origin = next(item.example for item in stream.examples(0, Place()) if item.example is not None).origin
    assert str(origin) == "owner/name (en, test), row 4"


@pytest.mark.parametrize("array", [True, False], ids=["JSON", "JSONL"])
def test_a_hubs_set_streams_columns_that_differ_in_kind(hub: dict[str, Any], tmp_path: Path, array: bool) -> None:
    texts = [json.dumps({"instruction": "q", "output": output}) for output in ('é "a"\n', 42, "b")]
    hub["rows"] = tmp_path / "rows.json"
    hub["rows"].write_text(f"[{', '.join(texts)}]" if array else "\n".join(texts))
    found = open_entry(DataEntry(path="owner/name")).rows()
    assert [row.values["output"] for row in found] == ['é "a"\n', 42, "b"]


def test_a_percentage_of_a_hubs_set_needs_the_size_that_the_hub_tells(
    hub: dict[str, Any], chosen: ChosenEncoder
) -> None:
    with pytest.raises(DataError, match="counts from the set's size, which the hub does not tell"):
        stream_of(chosen, {"path": "owner/name", "split": "train[:10%]"})
    hub["count"] = 50
    stream = stream_of(chosen, {"path": "owner/name", "split": "train[:10%]"}, shuffle=False)
    assert numbers(stream.examples(0, Place())) == [1, 2, 3, 4, 5]
