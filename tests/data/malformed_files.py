"""Files that can't be read, each with what the error must say: `FILES[name] = (write, pattern)`.

`write(folder)` makes the file (or whatever stands at its place) and returns its path.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS = [{"instruction": f"question {number}", "output": f"answer {number}, of some length"} for number in range(1, 41)]
JSON = json.dumps(ROWS, indent=1).encode()
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"instruction,output\n" + b"".join(f'"question {n}","answer, {n}"\n'.encode() for n in range(1, 41))
TSV = b"instruction\toutput\tid\n" + b"".join(f"question {n}\tanswer {n}\t{n}\n".encode() for n in range(1, 41))
CHINESE = json.dumps([{"instruction": "你是谁？", "output": "我是助手。"}], ensure_ascii=False)
FRENCH = '{"instruction": "déjà vu", "output": "garçon"}\n'

Write = Callable[[Path], Path]


def _bytes(name: str, content: bytes | Callable[[], bytes]) -> Write:
    """Large contents are made when they are asked for, not when the tests are collected."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content())
        return path

    return write


def zstd(content: bytes) -> bytes:
    """One zstd frame."""
    import pyarrow

    frame = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(frame, "zstd") as stream:
        stream.write(content)
    return bytes(frame.getvalue())


def table_bytes(kind: str, rows: list[dict[str, Any]]) -> bytes:
    """Rows as Parquet, or as an Arrow file or stream of several batches."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    sink = io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, sink, row_group_size=10)
        return sink.getvalue()
    open_writer = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
    with open_writer(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    return sink.getvalue()


def _cut(name: str, content: bytes, pattern: str, places: dict[str, int]) -> dict[str, tuple[Write, str]]:
    """The content cut off at places counted from its start, or (negative) from its end."""
    return {f"{name} cut {where}": (_bytes(name, content[:place]), pattern) for where, place in places.items()}


STAGES = {
    "after a byte": 1,
    "in the first tenth": 100,
    "in the middle": 700,
    "before the end": -9,
    "at the last byte": -1,
}


def _truncated() -> dict[str, tuple[Write, str]]:
    parquet, file, stream = (table_bytes(kind, ROWS) for kind in ("parquet", "file", "stream"))
    binary = "Was the file copied or written completely"
    # the cuts of a text fall inside a row: at the end of one, nobody can tell that rows are missing
    return {
        **_cut("a.json", JSON, r"a\.json is broken JSON at line \d+, column \d+", {**STAGES, "at the last byte": -2}),
        **_cut("a.jsonl", JSONL, r"a\.jsonl is broken JSON at line (1|2|11|40), column", {**STAGES, "at the last byte": -2}),
        **_cut("a.csv", CSV, r"a\.csv, row starting at line (2|24|41): broken table", {"early": 38, "in the middle": 610, "late": -3}),
        **_cut("a.csv", CSV, r"a\.csv, line 2: 1 fields, but the header names 2", {"after a field": 31}),
        **_cut("a.tsv", TSV, r"a\.tsv, line (2|41): [12] fields, but the header names 3", {"early": 30, "late": -12}),
        **_cut("a.parquet", parquet, rf"a\.parquet can't be read as Parquet.*\n{binary}", STAGES),
        **_cut("file.arrow", file, rf"file\.arrow can't be read as an Arrow file.*\n{binary}", STAGES),
        **_cut("stream.arrow", stream, rf"stream\.arrow can't be read as an Arrow file or stream.*\n{binary}", STAGES),
        "an Arrow stream without its end mark": (
            _bytes("a.arrow", stream[:-8]), r"a\.arrow can't be read as an Arrow file or stream after row 40.*end-of-stream"
        ),
        **_cut("a.jsonl.gz", gzip.compress(JSONL), r"a\.jsonl\.gz can't be decompressed as gz", {"early": 5, "late": -9, "in its checksum": -2}),
        **_cut("a.jsonl.zst", zstd(JSONL), r"a\.jsonl\.zst can't be decompressed as zst", {"early": 3, "in the middle": 60, "at the last byte": -1}),
        **_cut("a.csv.gz", gzip.compress(CSV), r"a\.csv\.gz can't be decompressed as gz", {"in the middle": 60}),
    }  # fmt: skip


def _encodings() -> dict[str, tuple[Write, str]]:
    utf16 = FRENCH.encode("utf-16")
    return {
        "gb18030": (_bytes("a.json", CHINESE.encode("gb18030")), r"a\.json is not UTF-8 text: byte \d+ \(line 1\) is 0x"),
        "gb18030 csv": (_bytes("a.csv", "instruction,output\n你,我\n".encode("gb18030")), r"a\.csv is not UTF-8 text: byte 19 \(line 2\)"),
        "shift-jis": (_bytes("a.txt", "こんにちは".encode("shift-jis")), r"a\.txt is not UTF-8 text: byte 0 \(line 1\)"),
        "big5": (_bytes("a.jsonl", JSONL + "{\"text\": \"誰\"}".encode("big5")), r"a\.jsonl is not UTF-8 text: byte \d+ \(line 41\)"),
        "latin-1": (_bytes("a.jsonl", FRENCH.encode("latin-1")), r"a\.jsonl is not UTF-8 text: byte 18 \(line 1\) is 0xe9.\nSave it as UTF-8"),
        "windows-1252 tsv": (_bytes("a.tsv", "text\tlabel\n“q”\tx\n".encode("cp1252")), r"a\.tsv is not UTF-8 text: byte 11 \(line 2\)"),
        "latin-1 in gzip": (_bytes("a.jsonl.gz", gzip.compress(FRENCH.encode("latin-1"))), r"a\.jsonl\.gz is not UTF-8 text: byte 18"),
        "utf-16 jsonl": (_bytes("a.jsonl", utf16), r"a\.jsonl is not UTF-8 text: byte 0 starts a UTF-16"),
        "utf-16 json": (_bytes("a.json", utf16), r"a\.json is not UTF-8 text: byte 0 starts a UTF-16"),
        "utf-16 big endian": (_bytes("a.txt", b"\xfe\xff" + FRENCH.encode("utf-16-be")), r"byte 0 starts a UTF-16"),
        "utf-16 without a mark": (_bytes("a.jsonl", '{"text": "a"}\n'.encode("utf-16-le")), r"a\.jsonl has a NUL byte at byte 1 \(line 1\)"),
        "utf-32": (_bytes("a.csv", "text\na\n".encode("utf-32-le")), r"a\.csv has a NUL byte at byte 1 \(line 1\)"),
        "an encoded surrogate": (_bytes("a.txt", b"fine\n\xed\xa0\x80\n"), r"a\.txt is not UTF-8 text: byte 5 \(line 2\) is 0xed"),
        "an overlong slash": (_bytes("a.txt", b"\xc0\xaf\n"), r"a\.txt is not UTF-8 text: byte 0 \(line 1\) is 0xc0"),
        "two byte order marks": (_bytes("a.jsonl", b"\xef\xbb\xbf\xef\xbb\xbf" + JSONL), r"a\.jsonl is broken JSON at line 1, column 1"),
        "a byte order mark within": (_bytes("a.jsonl", JSONL + b"\xef\xbb\xbf" + JSONL), r"a\.jsonl is broken JSON at line 41, column 1"),
        "only a byte order mark": (_bytes("a.json", b"\xef\xbb\xbf"), r"a\.json holds only white space"),
        "only a byte order mark, jsonl": (_bytes("a.jsonl", b"\xef\xbb\xbf"), r"a\.jsonl holds no rows"),
        "NUL bytes in json": (_bytes("a.json", JSON[:90] + b"\0" + JSON[90:]), r"a\.json has a NUL byte at byte 90 \(line"),
        "NUL bytes in jsonl": (_bytes("a.jsonl", JSONL + b"\0" * 4096), r"a\.jsonl has a NUL byte at byte \d+ \(line 41\)"),
        "NUL bytes in csv": (_bytes("a.csv", CSV + b'"a\0b",c\n'), r"a\.csv has a NUL byte at byte \d+ \(line 42\)"),
        "NUL bytes in text": (_bytes("a.txt", b"one\ntwo\0\n"), r"a\.txt has a NUL byte at byte 7 \(line 2\)"),
    }  # fmt: skip


def _broken_json() -> dict[str, tuple[Write, str]]:
    deep = "[" * 200_000
    return {
        "nested lists": (_bytes("a.json", f'[{{"text": {deep}'.encode()), r"a\.json, row 1: nested too deeply to be read"),
        "nested objects": (_bytes("a.jsonl", b'{"a":' * 200_000), r"a\.jsonl, line 1: nested too deeply"),
        "only brackets": (_bytes("a.json", deep.encode()), r"a\.json, row 1: nested too deeply"),
        "a huge integer": (_bytes("a.jsonl", JSONL + b'{"text": ' + b"9" * 5000 + b"}"), r"a\.jsonl, line 41: a number of more than 4,300 digits"),
        "a huge integer in a list": (_bytes("a.json", b'[{"label": ' + b"9" * 5000 + b"}]"), r"a\.json, row 1: a number of more than"),
        "a key twice": (_bytes("a.jsonl", b'{"text": "a", "text": "b"}\n'), r"a\.jsonl, line 1: the key 'text' stands twice"),
        "a key twice within": (_bytes("a.json", b'[{"text": "a"}, {"m": [{"role": "a", "role": "b"}]}]'), r"a\.json, row 2: the key 'role' stands twice"),
        "single quotes": (_bytes("a.jsonl", b"{'text': 'a'}\n"), r"a\.jsonl is broken JSON at line 1, column 2"),
        "a trailing comma": (_bytes("a.json", b'[{"text": "a"},]'), r"a\.json is broken JSON at line 1, column 16: Illegal trailing comma"),
        "a comment": (_bytes("a.json", b'[{"text": "a"}, // b\n]'), r"a\.json is broken JSON at line 1"),
        "a missing comma": (_bytes("a.json", b'[{"text": "a"}\n{"text": "b"}]'), r"a\.json is broken JSON at line 2, column 1: Expecting ','"),
        "more after the list": (_bytes("a.json", b'[{"text": "a"}] x'), r"a\.json is broken JSON at line 1, column 17: Extra data"),
        "two objects in a line": (_bytes("a.jsonl", b'{"text": "a"} {"text": "b"}\n'), r"a\.jsonl is broken JSON at line 1, column 15: Extra data"),
        "a raw control character": (_bytes("a.jsonl", b'{"text": "a\x01b"}\n'), r"a\.jsonl is broken JSON at line 1, column 12: Invalid control"),
        "a bad escape": (_bytes("a.jsonl", b'{"text": "a\\xb"}\n'), r"a\.jsonl is broken JSON at line 1, column 1\d: Invalid \\escape"),
        "half an escape": (_bytes("a.jsonl", b'{"text": "\\ud8"}\n'), r"a\.jsonl is broken JSON at line 1, column 1\d: Invalid \\uXXXX"),
        "a row that is text": (_bytes("a.json", b'["hello"]'), r"a\.json, row 1: a row must be an object of fields, found str 'hello'"),
        "a row that is null": (_bytes("a.jsonl", JSONL + b"null\n"), r"a\.jsonl, line 41: a row must be an object of fields, found NoneType"),
        "a row that is a list": (_bytes("a.json", b'[{"text": "a"}, ["b"]]'), r"a\.json, row 2: a row must be an object of fields, found list"),
        "a number only": (_bytes("a.json", b"5"), r"a\.json, row 1: a row must be an object of fields, found int"),
        "no JSON at all": (_bytes("a.jsonl", b"<html><body>404</body></html>"), r"a\.jsonl is broken JSON at line 1, column 1"),
        "a pointer of Git LFS": (_bytes("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), r"a\.parquet can't be read as Parquet"),
        "a 10 MB line that never ends": (_bytes("a.jsonl", b'{"text": "' + b"x" * 10_000_000), r"a\.jsonl is broken JSON at line 1, column 10: Unterminated string"),
        "a 10 MB line that is no object": (_bytes("a.jsonl", b'"' + b"x" * 10_000_000 + b'"'), r"a\.jsonl, line 1: a row must be an object of fields, found str 'xxx"),
        "an empty list": (_bytes("a.json", b"[]"), r"a\.json holds no rows"),
        "a list of empty objects": (_bytes("a.json", b"[{}, {}]"), r"no format matches .*a\.json; its fields are: none"),
        "a list in a list": (_bytes("a.json", b'[[{"text": "a"}]]'), r"a\.json, row 1: a row must be an object of fields, found list"),
        "rows inside an object": (_bytes("a.json", json.dumps({"data": ROWS}).encode()), r"no format matches .*a\.json; its fields are: data\."),
    }  # fmt: skip


def _tables() -> dict[str, tuple[Write, str]]:
    return {
        "a quote never closed": (_bytes("a.csv", CSV + b'"open,a\n'), r"a\.csv, row starting at line 42: broken table"),
        "text after a quote": (_bytes("a.csv", b'a,b\n"x"y,z\n'), r"a\.csv, row starting at line 2: broken table"),
        "a field too many": (_bytes("a.csv", CSV + b"a,b,c\n"), r"a\.csv, line 42: 3 fields, but the header names 2"),
        "a field too few": (_bytes("a.tsv", TSV + b"a\tb\n"), r"a\.tsv, line 42: 2 fields, but the header names 3"),
        "a column twice": (_bytes("a.csv", b"text,text\na,b\n"), r"a\.csv, line 1: the column 'text' stands twice"),
        "a column without a name": (_bytes("a.csv", b"text,\na,b\n"), r"a\.csv, line 1: column 2 has no name"),
        "only a header": (_bytes("a.csv", b"instruction,output\n"), r"a\.csv holds no rows"),
        "semicolons": (_bytes("a.csv", b"instruction;output\nq;a\n"), r"a\.csv, line 1: .*fields split by ';', not by ','"),
        "commas in TSV": (_bytes("a.tsv", CSV), r"a\.tsv, line 1: .*fields split by ',', not by '\\t'"),
        "Parquet of numbers": (_table("a.parquet", [{"a": 1, "b": 2.5}]), r"no format matches .*a\.parquet; its fields are: a, b"),
        "Parquet without rows": (_table("a.parquet", []), r"a\.parquet holds no rows"),
        "Parquet of one column of bytes": (_table("a.parquet", [{"text": b"\xff\xfe"}]), r"no format matches .*a\.parquet"),
        "CSV called Parquet": (_bytes("a.parquet", CSV), r"a\.parquet can't be read as Parquet"),
        "Parquet called JSONL": (_table("a.jsonl", ROWS), r"a\.jsonl is (not UTF-8|broken JSON)|a\.jsonl has a NUL byte"),
        "Parquet called Arrow": (_table("a.arrow", ROWS), r"a\.arrow can't be read as an Arrow file or stream"),
        "damaged Parquet pages": (_damaged("a.parquet", "parquet"), r"a\.parquet can't be read as Parquet"),
        "damaged Arrow batches": (_damaged("a.arrow", "stream"), r"a\.arrow can't be read as an Arrow"),
    }  # fmt: skip


def _table(name: str, rows: list[dict[str, Any]]) -> Write:
    return lambda folder: _bytes(name, table_bytes("parquet", rows))(folder)


def _damaged(name: str, kind: str) -> Write:
    """Sizes and offsets overwritten in the middle."""

    def write(folder: Path) -> Path:
        content = bytearray(table_bytes(kind, ROWS))
        content[4:400:3] = b"\xff" * len(content[4:400:3])
        return _bytes(name, bytes(content))(folder)

    return write


def _compressed() -> dict[str, tuple[Write, str]]:
    def spaces() -> bytes:
        return b'{"text": "' + b" " * 80_000_000

    return {
        "a gzip bomb": (_bytes("a.jsonl.gz", lambda: gzip.compress(spaces(), 1)), r"a\.jsonl\.gz \(.*\) decompresses to more than 6\d.*decompression bomb"),
        "a zstd bomb": (_bytes("a.jsonl.zst", lambda: zstd(spaces())), r"a\.jsonl\.zst \(.*\) decompresses to more than 6\d.*decompression bomb"),
        "a gzip bomb of lines": (_bytes("a.txt.gz", lambda: gzip.compress((b" " * 9_999 + b"\n") * 8_000, 1)), r"a\.txt\.gz .*decompression bomb"),
        "text called gzip": (_bytes("a.jsonl.gz", JSONL), r"a\.jsonl\.gz can't be decompressed as gz"),
        "gzip called zstd": (_bytes("a.jsonl.zst", gzip.compress(JSONL)), r"a\.jsonl\.zst can't be decompressed as zst"),
        "gzip in gzip": (_bytes("a.jsonl.gz", gzip.compress(gzip.compress(JSONL))), r"a\.jsonl\.gz is not UTF-8 text: byte 1"),
        "junk after gzip": (_bytes("a.jsonl.gz", gzip.compress(JSONL) + b"junk"), r"a\.jsonl\.gz can't be decompressed as gz"),
        "gzip of nothing": (_bytes("a.jsonl.gz", gzip.compress(b"")), r"a\.jsonl\.gz holds no rows"),
        "compressed Parquet": (_bytes("a.parquet.gz", gzip.compress(b"PAR1")), r"a\.parquet\.gz is a compressed parquet file"),
        "gzip called JSONL": (_bytes("a.jsonl", gzip.compress(JSONL)), r"a\.jsonl is not UTF-8 text: byte 1"),
    }  # fmt: skip


def _places() -> dict[str, tuple[Write, str]]:
    def loop(folder: Path) -> Path:
        (folder / "a.jsonl").symlink_to(folder / "b.jsonl")
        (folder / "b.jsonl").symlink_to(folder / "a.jsonl")
        return folder / "a.jsonl"

    def dangling(folder: Path) -> Path:
        (folder / "a.jsonl").symlink_to(folder / "gone.jsonl")
        return folder / "a.jsonl"

    def folder_loop(folder: Path) -> Path:
        (folder / "inner").mkdir()
        (folder / "inner" / "again").symlink_to(folder)
        return folder / "**" / "*.jsonl"

    def fifo(folder: Path) -> Path:
        os.mkfifo(folder / "a.jsonl")
        return folder / "a.jsonl"

    def folder_of_fifo(folder: Path) -> Path:
        fifo(folder)
        return folder

    def device(folder: Path) -> Path:
        (folder / "a.jsonl").symlink_to("/dev/zero")
        return folder / "a.jsonl"

    def mixed(folder: Path) -> Path:
        _bytes("a.jsonl", JSONL)(folder)
        _bytes("b.csv", CSV)(folder)
        return folder

    def named_like_a_file(folder: Path) -> Path:
        (folder / "a.jsonl").mkdir()
        return folder / "a.jsonl"

    def saved(state: str) -> Write:
        def write(folder: Path) -> Path:
            (folder / "state.json").write_text(state)
            return folder

        return write

    lists_gone = json.dumps({"_data_files": [{"filename": "data-0.arrow"}]})
    return {
        "a missing file": (lambda folder: folder / "a.jsonl", r"the data file '.*a\.jsonl' does not exist"),
        "an empty file": (_bytes("a.jsonl", b""), r"the data file '.*a\.jsonl' is empty \(0 bytes\)"),
        "white space only": (_bytes("a.json", b" \n\t\n"), r"a\.json holds only white space"),
        "empty lines only": (_bytes("a.txt", b"\n\n  \n"), r"a\.txt holds no rows"),
        "an unknown ending": (_bytes("a.xlsx", b"x"), r"a\.xlsx' has the unknown ending '\.xlsx'"),
        "an empty folder": (lambda folder: folder, r"is a folder, which holds nothing, and no data files"),
        "a folder of folders": (named_like_a_file, r"is a folder, which holds nothing"),
        "a folder of several types": (mixed, r"holds files that are not all of one known type: \.csv \(1\), \.jsonl \(1\)"),
        "symbolic links in a circle": (loop, r"'.*a\.jsonl' is a symbolic link which leads in a circle"),
        "a link to nothing": (dangling, r"'.*a\.jsonl' is a symbolic link to .*gone\.jsonl.*, which does not exist"),
        "folders in a circle": (folder_loop, r"the pattern '.*\*\*/\*\.jsonl' matches no file"),
        "a pipe": (fifo, r"'.*a\.jsonl' is no regular file"),
        "a folder with a pipe": (folder_of_fifo, r"is a folder, which holds a\.jsonl, and no data files"),
        "a device": (device, r"'.*a\.jsonl' is no regular file"),
        "a saved set whose file is gone": (saved(lists_gone), r"state\.json lists data-0\.arrow, which is not there"),
        "a saved set that was cut off": (saved(lists_gone[:20]), r"state\.json can't be read as JSON"),
        "a saved set of nothing": (saved("{}"), r"state\.json lists no data files"),
    }  # fmt: skip


FILES: dict[str, tuple[Write, str]] = {
    **_truncated(),
    **_encodings(),
    **_broken_json(),
    **_tables(),
    **_compressed(),
    **_places(),
}
