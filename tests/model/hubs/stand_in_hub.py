"""A hub on loopback: the part of Hugging Face's and ModelScope's protocols that their clients use, with faults on order.

Hugging Face: model info, tree, resolve (HEAD and GET) with X-Repo-Commit and ETag; large files are sent on to a "CDN"
with X-Linked-ETag and X-Linked-Size; Range gives 206. ModelScope: repo/files, and repo with Range.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "beef"
LARGE_BYTES = 4096  # files from this size on are kept in LFS
PIECE_BYTES = 256 * 1024


@dataclass
class Repository:
    """Files by path, and who may read them."""

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "master": COMMIT})
    gated: bool = False
    token: str | None = None

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.revisions.values() else self.revisions.get(revision)


@dataclass
class Faults:
    """What goes wrong; counts run down as they are used up."""

    stall_after_bytes: int | None = None  # send so much of a large file, then nothing more
    cut_after_bytes: list[int] = field(default_factory=list)  # end so many bodies early, one after the other
    too_many_requests: int = 0
    status: int | None = None
    not_a_hub: bool = False
    flip_a_bit: bool = False
    retry_after: str = "0"


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    status: int = 0
    sent_bytes: int = 0


class StandInHub:
    """The server; `address` is its endpoint."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults = Faults()
        self.requests: list[Seen] = []
        self.stalled = threading.Event()
        self.released = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.port = self.server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        # another origin on the same machine, as a CDN is: the token must not follow
        self.cdn = f"http://localhost:{self.port}"

    def large_requests(self) -> list[Seen]:
        """GETs of large files' bodies."""
        return [
            seen
            for seen in self.requests
            if seen.method == "GET" and (seen.path.startswith("/cdn/") or "FilePath=" in seen.path)
        ]

    @contextmanager
    def running(self) -> Iterator[StandInHub]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self.server.shutdown()
            self.server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True  # the client was killed, which is what many tests do

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.seen = Seen(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.hub.requests.append(self.seen)
        faults = self.hub.faults
        if faults.not_a_hub:
            return self._send(200, b"<html>Welcome to the hotel's network</html>", {"Content-Type": "text/html"})
        if faults.status is not None:
            return self._send(faults.status, b"{}")
        if faults.too_many_requests > 0:
            faults.too_many_requests -= 1
            return self._send(429, b"{}", {"Retry-After": faults.retry_after})
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/cdn/"):
            return self._send_cdn(path.removeprefix("/cdn/"))
        if path.startswith("/api/v1/models/"):
            return self._modelscope(path.removeprefix("/api/v1/models/"))
        if path.startswith("/api/models/"):
            return self._api(path.removeprefix("/api/models/"))
        if "/resolve/" in path:
            return self._resolve(path.lstrip("/"))
        return self._send(404, b"{}")

    # Hugging Face

    def _api(self, rest: str) -> None:
        name, _, verb = rest.partition("/revision/") if "/revision/" in rest else rest.partition("/tree/")
        repository = self._authorize(name)
        if repository is None:
            return None
        commit = repository.commit(verb or "main")
        if commit is None:
            return self._send(404, b'{"error":"Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in rest:
            return self._send_json([_tree_entry(path, data) for path, data in sorted(repository.files.items())])
        siblings = [{"rfilename": path} for path in sorted(repository.files)]
        return self._send_json(
            {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        )

    def _resolve(self, rest: str) -> None:
        name, _, tail = rest.partition("/resolve/")
        repository = self._authorize(name)
        if repository is None:
            return None
        if repository.gated:
            return self._send(
                403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}
            )
        revision, _, path = tail.partition("/")
        commit = repository.commit(revision)
        if commit is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if path not in repository.files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = repository.files[path]
        sha256 = hashlib.sha256(data).hexdigest()
        if len(data) >= LARGE_BYTES:
            headers = {"X-Repo-Commit": commit, "X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            return self._send(302, b"", {**headers, "Location": f"{self.hub.cdn}/cdn/{sha256}"})
        return self._send(200, data, {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(data)}"'})

    def _authorize(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given == "wrong":
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None or (repository.token and not given):
            self._send(401 if repository else 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repository.token and given != repository.token:
            self._send(403, b"{}", {"X-Error-Message": "token lacks permission"})
        else:
            return repository
        return None

    def _send_cdn(self, sha256: str) -> None:
        for repository in self.hub.repositories.values():
            for data in repository.files.values():
                if hashlib.sha256(data).hexdigest() == sha256:
                    return self._send_ranged(data, {"ETag": f'"{sha256}"'})
        return self._send(404, b"{}")

    # ModelScope

    def _modelscope(self, rest: str) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        name = "/".join(rest.split("/")[:2])
        repository = self.hub.repositories.get(name)
        if repository is None or repository.commit(query.get("Revision", "master")) is None:
            return self._send(404, json.dumps({"Code": 10010205001, "Message": "not found", "Success": False}).encode())
        if rest.endswith("/repo/files"):
            entries = [
                {
                    "Path": path,
                    "Name": path,
                    "Size": len(data),
                    "Type": "blob",
                    "Sha256": hashlib.sha256(data).hexdigest(),
                }
                for path, data in sorted(repository.files.items())
            ]
            return self._send_json({"Code": 200, "Success": True, "Data": {"Files": entries}})
        if rest.endswith("/repo") and query.get("FilePath") in repository.files:
            return self._send_ranged(repository.files[query["FilePath"]], {})
        if rest == name:
            return self._send_json({"Code": 200, "Success": True, "Data": {"Path": name}})
        return self._send(404, b"{}")

    # answers

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_ranged(self, data: bytes, headers: dict[str, str]) -> None:
        start = int(self.seen.range.removeprefix("bytes=").partition("-")[0]) if self.seen.range else 0
        if start >= len(data) > 0:
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers = {**headers, "Accept-Ranges": "bytes"}
        if self.seen.range:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(206 if self.seen.range else 200, data[start:], headers, first_byte=start)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, first_byte: int | None = None
    ) -> None:
        self.seen.status = status
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        faults = self.hub.faults
        if first_byte is not None and len(body) >= LARGE_BYTES:
            if faults.flip_a_bit:
                body = bytes([body[0] ^ 1]) + body[1:]
            cut = faults.cut_after_bytes.pop(0) if faults.cut_after_bytes else None
            stall = max(faults.stall_after_bytes - first_byte, 0) if faults.stall_after_bytes is not None else None
            limit = min(limit for limit in (cut, stall, len(body)) if limit is not None)
        else:
            cut = stall = None
            limit = len(body)
        for begin in range(0, limit, PIECE_BYTES):
            self.wfile.write(body[begin : min(begin + PIECE_BYTES, limit)])
            self.seen.sent_bytes = min(begin + PIECE_BYTES, limit)
        self.wfile.flush()
        if limit < len(body):
            self.close_connection = True
            if stall == limit:
                time.sleep(0.05)  # the client takes what is on its way
                self.hub.stalled.set()
                self.hub.released.wait(20)


def git_sha1(data: bytes) -> str:
    """The name git gives a file's content."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _tree_entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
    if len(data) >= LARGE_BYTES:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
