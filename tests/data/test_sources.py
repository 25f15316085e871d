"""Every file type: what it reads, where rows come from, and what it says of broken files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from luthier.config.data_section import DataEntry
from luthier.data.locating import locate
from luthier.data.reading import read_files
from luthier.data.records import RawRow
from luthier.foundation.errors import DataError

ROWS = [{"instruction": "a", "output": "b\nc"}, {"instruction": "é 你好", "output": '"q", x'}]
CSV = 'instruction,output\na,"b\nc"\n"é 你好","""q"", x"\n'


def read_rows(path: Path | str) -> list[RawRow]:
    return read_files(locate(DataEntry(path=str(path))))


def values(path: Path) -> list[dict]:
    return [dict(row.values) for row in read_rows(path)]


def lines(path: Path) -> list[int]:
    return [row.origin.row for row in read_rows(path)]


def test_json_and_jsonl(write) -> None:
    assert values(write("a.json", ROWS)) == values(write("a.jsonl", ROWS)) == ROWS
    assert lines(write("b.jsonl", '{"a": 1}\n\n  {"a": 2}\r\n')) == [1, 3]
    assert lines(write("a.json", ROWS)) == [1, 2]


def test_json_that_is_jsonl_and_the_other_way_round(write) -> None:
    assert values(write("a.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": 1}, {"a": 2}]
    assert lines(write("a.json", '{"a": 1}\n{"a": 2}\n')) == [1, 2]
    assert values(write("a.jsonl", '\n[{"a": 1},\n {"a": 2}]')) == [{"a": 1}, {"a": 2}]
    assert values(write("a.json", '{"a":\n 1}')) == [{"a": 1}]


def test_csv_and_tsv(write) -> None:
    assert values(write("a.csv", CSV)) == ROWS
    assert lines(write("a.csv", CSV)) == [2, 4]
    assert values(write("a.tsv", 'x\ty\n"a\tb"\t1\n')) == [{"x": "a\tb", "y": "1"}]
    # as in GLUE: never quoted, a sentence may begin with a quote
    unquoted = 'x\ty\n"well" he said\t1\nso "so\t0\n'
    assert values(write("b.tsv", unquoted)) == [{"x": '"well" he said', "y": "1"}, {"x": 'so "so', "y": "0"}]


def test_csv_fields_longer_than_the_modules_default(write) -> None:
    assert len(values(write("a.csv", "text\n" + "x" * 300_000 + "\n"))[0]["text"]) == 300_000


def test_parquet_and_arrow(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    with pyarrow.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        assert values(tmp_path / name) == ROWS
        assert lines(tmp_path / name) == [1, 2]


def test_nulls_that_arrow_puts_into_objects_are_left_out(tmp_path: Path) -> None:
    calls = [{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "search", "arguments": {"limit": 3}}]
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    properties = [{"city": {"type": "string"}}, {"limit": {"type": "integer", "enum": [1, None]}}]
    rows = [
        {"messages": turns, "tools": [{"name": "f", "parameters": {"properties": found}} for found in properties]},
        {"messages": turns[:2], "tools": None},
    ]
    table = pyarrow.Table.from_pylist(rows)
    assert table.to_pylist()[0]["messages"][1]["tool_calls"][0]["arguments"] == {"city": "Paris", "limit": None}
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert values(tmp_path / "a.parquet") == values(tmp_path / "a.arrow") == rows


MIXED = {
    "a number among texts": [{"output": '你好\n"7"'}, {"output": 42}, {"output": None}, {"output": "no {JSON"}],
    "texts and lists of parts": [
        {"messages": [{"role": "user", "content": "é"}, {"role": "user", "content": [{"type": "text", "text": "é"}]}]}
    ],
    "turns with different keys": [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "tool_calls": [{"arguments": {"n": None}}]},
            ]
        }
    ],
    "objects in objects": [
        {"tools": [{"name": "f", "parameters": {"properties": {"city": {"type": "string"}}}}]},
        {"tools": [{"name": "g", "parameters": {"properties": {"limit": {"enum": [1, 2]}}}}]},
    ],
}


@pytest.mark.parametrize("rows", MIXED.values(), ids=MIXED)
def test_columns_that_datasets_keeps_as_json_text(write, tmp_path: Path, rows: list[dict]) -> None:
    import datasets

    path = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert "Json" in str(loaded.features)
    loaded.to_parquet(tmp_path / "a.parquet")
    loaded.save_to_disk(tmp_path / "saved")
    for other in (Path(loaded.cache_files[0]["filename"]), tmp_path / "a.parquet", tmp_path / "saved"):
        assert values(other) == values(path) == rows


def test_text_is_a_document_per_line_or_per_block(write) -> None:
    assert values(write("a.txt", "one\r\ntwo\n\n\n")) == [{"text": "one"}, {"text": "two"}]
    blocks = write("b.txt", "\n\none\n  more\n\n\ntwo\n \nthree")
    assert values(blocks) == [{"text": "one\n  more"}, {"text": "two"}, {"text": "three"}]
    assert lines(blocks) == [3, 7, 9]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_a_byte_order_mark_is_passed_over(write, name: str) -> None:
    content = {"a.json": '[{"text": "x"}]', "a.jsonl": '{"text": "x"}', "a.csv": "text\nx", "a.txt": "x"}[name]
    assert values(write(name, b"\xef\xbb\xbf" + content.encode())) == [{"text": "x"}]


BROKEN = [
    ("a.json", "", "is empty (0 bytes)"),
    ("a.json", " \n ", "holds only white space"),
    ("a.json", "[]", "holds no rows"),
    ("a.jsonl", "\n\n", "holds no rows"),
    ("a.csv", "x,y\n", "holds no rows"),
    ("a.txt", "\n \n", "holds no rows"),
    ("a.json", '[{"a": 1},\n {"a": 2', "broken JSON at line 2, column 9"),
    ("a.json", '[{"a": 1}\n {"a": 2}]', "broken JSON at line 2, column 2: Expecting ',' or ']'"),
    ("a.json", '[{"a": 1},]', "broken JSON at line 1, column 11: Illegal trailing comma"),
    ("a.json", '[{"a": 1}] x', "broken JSON at line 1, column 12: Extra data"),
    ("a.json", '[{"a": 1}', "broken JSON at line 1, column 10"),
    ("a.json", "{'a': 1}", "broken JSON at line 1, column 2"),
    ("a.json", '"text"', "row 1: a row must be an object of fields, found str 'text'"),
    ("a.json", '[{"a": 1}, 5]', "row 2: a row must be an object of fields, found int 5"),
    ("a.json", '[{"a": 1, "a": 2}]', "row 1: the key 'a' stands twice"),
    ("a.json", "[" * 100_000, "nested too deeply"),
    ("a.jsonl", '{"a": 1}\n{"a": \n', "broken JSON at line 2, column 7"),
    ("a.jsonl", '{"a": 1}\n{"a": 2} {"a": 3}\n', "broken JSON at line 2, column 10: Extra data"),
    ("a.jsonl", '{"a": 1}\n[1]\n', "line 2: a row must be an object of fields, found list"),
    ("a.jsonl", b'{"a": "\xff"}', "not UTF-8 text: byte 7 (line 1) is 0xff"),
    ("a.jsonl", b'{"a": 1}\n{"a": "x\x00"}', "NUL byte at byte 17 (line 2)"),
    ("a.json", b'[{"a":\n"\xc3("}]', "not UTF-8 text: byte 8 (line 2) is 0xc3"),
    ("a.json", '[{"a": 1}]'.encode("utf-16"), "UTF-16 byte order mark"),
    ("a.txt", "x".encode("utf-16"), "UTF-16 byte order mark"),
    ("a.csv", b"a,b\n1,\x00\n", "NUL byte at byte 6 (line 2)"),
    ("a.csv", "a,b\n1,2,3\n", "line 2: 3 fields, but the header names 2: a, b"),
    ("a.csv", "a,b\n1\n", "line 2: 1 fields, but the header names 2"),
    ("a.csv", 'a,b\n1,"2\n', "row starting at line 2: broken table: unexpected end of data"),
    ("a.csv", 'a,b\n"1"x,2\n', "row starting at line 2: broken table: ',' expected after '\"'"),
    ("a.csv", "a,,b\n1,2,3\n", "column 2 has no name"),
    ("a.csv", "a,b,a\n1,2,3\n", "the column 'a' stands twice"),
    ("a.tsv", "a\tb\n1\n", "line 2: 1 fields"),
    ("a.parquet", "no parquet", "can't be read as Parquet after row 0"),
    ("a.arrow", "no arrow", "can't be read as an Arrow file or stream after row 0"),
    ("a.arrow", b"ARROW1\x00\x00 cut off", "can't be read as an Arrow file or stream"),
    ("a.pkl", "x", "unknown ending '.pkl'"),
    ("a", "x", "unknown ending ''"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files(write, name: str, content: str | bytes, message: str) -> None:
    path = write(name, content)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert message in caught.value.problem and str(path) in caught.value.problem
    assert caught.value.remedy


def test_truncated_parquet_and_arrow(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"text": f"row {i}"} for i in range(1000)])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(DataError, match="can't be read"):
            read_rows(path)


def test_missing_file_and_folder(tmp_path: Path, write) -> None:
    write("near.json", ROWS)
    with pytest.raises(DataError, match=r"does not exist[\s\S]*near\.json"):
        read_rows(tmp_path / "far.json")
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"sub' is a folder, which holds deep, and no data files\.\n.*sub/\*\*/\*\.jsonl"
    ):
        read_rows(tmp_path / "sub")


def zst(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".zst": zst}
PLAIN = {
    "a.json": json.dumps(ROWS).encode(),
    "a.jsonl": b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "b.jsonl": json.dumps(ROWS).encode(),
    "a.csv": CSV.encode(),
    "a.tsv": CSV.replace(",", "\t").encode(),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", PLAIN)
def test_compressed_files(write, name: str, suffix: str) -> None:
    plain = read_rows(write(name, PLAIN[name]))
    packed = read_rows(write(name + suffix.upper(), COMPRESS[suffix](PLAIN[name])))
    assert [(row.values, row.origin.row) for row in packed] == [(row.values, row.origin.row) for row in plain]
    assert packed[0].origin.path.endswith(name + suffix.upper())


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_of_several_members(write, suffix: str) -> None:
    twice = COMPRESS[suffix](b"one\n\nmore\n") + COMPRESS[suffix](b"\ntwo")
    assert values(write("a.txt" + suffix, twice)) == [{"text": "one"}, {"text": "more"}, {"text": "two"}]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damaged_compressed_files(write, suffix: str) -> None:
    whole = COMPRESS[suffix]("".join(f"row {i * i}\n" for i in range(10_000)).encode())
    for place, content in enumerate((whole[:3], whole[:20], whole[: len(whole) // 2], whole[:-2], b"no such thing")):
        path = write(f"{place}.txt{suffix}", content)
        with pytest.raises(DataError, match=f"can't be decompressed as {suffix[1:]}") as caught:
            read_rows(path)
        assert str(path) in caught.value.problem
    with pytest.raises(DataError, match=r"a\.parquet.* is a compressed parquet file"):
        read_rows(write("a.parquet" + suffix, whole))
    with pytest.raises(DataError, match="holds only white space"):
        read_rows(write("a.json" + suffix, COMPRESS[suffix](b" ")))


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt"])
def test_a_decompression_bomb(write, name: str, suffix: str, monkeypatch) -> None:
    monkeypatch.setattr("luthier.data.sources._compressed.ALWAYS_ALLOWED_BYTES", 2**20)
    path = write(name + suffix, COMPRESS[suffix](b" " * 2**23))
    with pytest.raises(DataError, match=r"decompresses to more than .*, over 200 times its size"):
        read_rows(path)


def test_folders_and_patterns(write, tmp_path: Path) -> None:
    for part in ("b", "a"):
        (tmp_path / "in" / part).mkdir(parents=True)
        write(f"in/{part}.jsonl", [{"a": part}, {"a": part * 2}])
        write(f"in/{part}/c.jsonl.gz", gzip.compress(json.dumps({"a": f"{part}/c"}).encode()))
    for beside in ("README.md", ".hidden.json", "_marks"):
        write(f"in/{beside}", "x")
    rows = read_rows(tmp_path / "in")
    assert [row.values["a"] for row in rows] == ["a", "aa", "b", "bb"]
    assert [(Path(row.origin.path).name, row.origin.row) for row in rows] == [
        ("a.jsonl", 1),
        ("a.jsonl", 2),
        ("b.jsonl", 1),
        ("b.jsonl", 2),
    ]
    assert [row.values["a"] for row in read_rows(f"{tmp_path}/in/*.jsonl")] == ["a", "aa", "b", "bb"]
    found = [row.values["a"] for row in read_rows(f"{tmp_path}/in/**/*.jsonl*")]
    assert found == ["a", "aa", "a/c", "b", "bb", "b/c"]
    assert values(write("in/[a].jsonl", [{"a": 1}])) == [{"a": 1}]  # a file of that name goes before the pattern
    with pytest.raises(DataError, match=r"the pattern '.*\*\.csv' matches no file"):
        read_rows(f"{tmp_path}/*.csv")
    write("in/d.csv", CSV)
    with pytest.raises(DataError, match=r"not all of one known type: \.csv \(1\), \.jsonl \(3\)"):
        read_rows(tmp_path / "in")
    write("in/d.csv", "").rename(tmp_path / "in" / "e.jsonl")
    with pytest.raises(DataError, match=r"e\.jsonl holds no rows"):
        read_rows(f"{tmp_path}/in/*.jsonl")


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    import datasets

    rows = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(10)]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one", num_shards=3)
    assert values(tmp_path / "one") == rows
    data.select([3, 1]).save_to_disk(tmp_path / "picked")
    assert values(tmp_path / "picked") == [rows[3], rows[1]]
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "both")
    with pytest.raises(
        DataError, match=r"both holds the splits train, test\.\nName one of them: \{path: .*both, split"
    ):
        read_rows(tmp_path / "both")
    assert len(read_rows(tmp_path / "both" / "test")) == 10
    next((tmp_path / "one").glob("*00001*.arrow")).unlink()
    with pytest.raises(DataError, match=r"lists data-00001-of-00003\.arrow, which is not there"):
        read_rows(tmp_path / "one")
    for broken in ("{", "[]", "{}"):
        (tmp_path / "one" / "state.json").write_text(broken)
        with pytest.raises(DataError, match=r"state\.json"):
            read_rows(tmp_path / "one")


def test_tsv_without_a_header(write) -> None:
    """The rule: of two columns, a number in the first line, or its second field again below."""
    assert values(write("a.tsv", "a fine film\t1\nso so\t0")) == [
        {"0": "a fine film", "1": "1"},
        {"0": "so so", "1": "0"},
    ]
    assert lines(write("a.tsv", "a fine film\t1\nso so\t0")) == [1, 2]
    words = write("b.tsv", 'a "fine" film\tgood\n"well" he said\tbad\nyes\tgood\n')
    assert [row["1"] for row in values(words)] == ["good", "bad", "good"] and values(words)[1]["0"] == '"well" he said'
    assert values(write("c.tsv", "0\t1\nfine\t1\n")) == [{"0": "fine", "1": "1"}]
    assert values(write("d.tsv", "text\tlabel\nfine\t1\nso\t1\n")) == [
        {"text": "fine", "label": "1"},
        {"text": "so", "label": "1"},
    ]
    with pytest.raises(DataError, match="the column 'x' stands twice"):
        values(write("e.tsv", "x\tx\na\tb\n"))
