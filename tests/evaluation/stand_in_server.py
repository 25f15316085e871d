"""A server that speaks as much of OpenAI's protocol as the engine needs, on a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any], dict[str, str]]


def says(text: str, reason: str = "stop") -> Reply:
    """A completion of either kind."""
    choice = {"message": {"role": "assistant", "content": text}, "text": text, "finish_reason": reason}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}, {}


def refuses(status: int, message: str, **headers: str) -> Reply:
    return status, {"error": {"message": message}}, headers


class StandIn:
    """What the server was asked.

    Attributes:
        asked: (path, body, authorization) of each request. most: requests at a time.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.most = 0
        self.now = 0
        self.lock = threading.Lock()


@contextmanager
def stand_in(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[StandIn]:
    """A server on a free port of the loopback.

    Args:
        reply: from a request's body, and how often that was sent before, to status, body and headers.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(raw)
            with found.lock:
                found.now += 1
                found.most = max(found.most, found.now)
                before = sum(1 for _, earlier, _ in found.asked if earlier == body)
                found.asked.append((self.path, body, self.headers.get("Authorization")))
            status, answer, headers = reply(body, before)
            with found.lock:
                found.now -= 1
            data = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = StandIn(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
