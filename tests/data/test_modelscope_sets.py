"""Data sets of ModelScope by id, through the real client, from a stand-in on loopback."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from luthier.config.data_section import DataEntry
from luthier.data.entries import LoadedEntry, load_entry
from luthier.data.stream_sources import open_entry
from luthier.foundation.errors import DataError, MissingExtraError

pytest.importorskip("modelscope_hub")
CARD = """---
configs:
- config_name: default
  data_files: [{split: train, path: train.jsonl}, {split: test, path: test.jsonl}]
- config_name: other
  data_files: [{split: train, path: other.jsonl}]
---
"""


def _rows(word: str, count: int) -> bytes:
    return "".join(
        json.dumps({"instruction": f"{word} {n}", "output": "a"}) + "\n" for n in range(1, count + 1)
    ).encode()


FILES = {
    "README.md": CARD.encode(),
    "train.jsonl": _rows("train", 10),
    "test.jsonl": _rows("test", 3),
    "other.jsonl": _rows("other", 1),
}


class _StandIn(BaseHTTPRequestHandler):
    """`datasets/owner/name`: its tree, and its files."""

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = unquote(parts.path)
        if path.endswith("datasets/owner/name/repo/tree"):
            files = [
                {
                    "Path": name,
                    "Name": name,
                    "Size": len(data),
                    "Type": "blob",
                    "Sha256": hashlib.sha256(data).hexdigest(),
                }
                for name, data in FILES.items()
            ]
            self._send(200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": files}}).encode())
        elif path.endswith("datasets/owner/name/repo") and query.get("FilePath") in FILES:
            self._send(200, FILES[query["FilePath"]])
        else:
            self._send(404, json.dumps({"Code": 10010205001, "Message": "not found", "Success": False}).encode())

    do_HEAD = do_GET

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _StandIn)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "USE_MODELSCOPE_HUB",
    ):
        monkeypatch.delenv(name, raising=False)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", address)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope-home"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


def loaded(path: str, **settings: str) -> LoadedEntry:
    return load_entry(DataEntry(path=path, **settings), "train", 0, 0, None)


def questions(entry: LoadedEntry) -> list[str]:
    return [record.messages[0].content for record in entry.records]


def test_splits_slices_and_subsets(hub: str) -> None:
    found = loaded("modelscope:owner/name", split="train[:20%]")
    assert questions(found) == ["train 1", "train 2"]
    assert str(found.records[1].origin) == "modelscope:owner/name (train), row 2"
    assert questions(loaded("modelscope:owner/name", split="test")) == ["test 1", "test 2", "test 3"]
    assert questions(loaded("modelscope:owner/name", subset="other")) == ["other 1"]
    with pytest.raises(DataError, match=r"modelscope:owner/name, split dev, can't be loaded: Unknown split"):
        loaded("modelscope:owner/name", split="dev")


def test_the_environments_switch_and_the_stream(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert questions(loaded("owner/name", split="[50%:60%]")) == ["train 6"]
    rows = list(open_entry(DataEntry(path="owner/name", split="train[-20%:]")).rows())
    assert [row.values["instruction"] for row in rows] == ["train 9", "train 10"]


def test_a_set_that_is_not_there(hub: str) -> None:
    with pytest.raises(DataError, match=rf"modelscope:owner/gone can't be had from {hub}: .*\nCheck the spelling"):
        loaded("modelscope:owner/gone")


def test_a_hub_that_cannot_be_reached(
    hub: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(loaded("modelscope:owner/name").records) == 10
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert len(loaded("modelscope:owner/name").records) == 10
        assert "using the copy of owner/name" in capsys.readouterr().err
        with pytest.raises(
            DataError, match=r"modelscope:owner/gone is not wholly in the cache, and .* can't be reached"
        ):
            loaded("modelscope:owner/gone")


def test_without_the_client(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'modelscope'.*\n.*luthier\[modelscope\]"):
        loaded("modelscope:owner/name")


def test_a_registrys_address(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = tmp_path / "dataset_info.json"
    registry.write_text(json.dumps({"mine": {"ms_hub_url": "owner/name", "split": "test"}}))
    assert questions(loaded(f"{registry}#mine")) == ["test 1", "test 2", "test 3"]
