"""`luthier doctor` looks at everything, tells what it means, and never hangs."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.commands import doctor as module
from luthier.commands.doctor import (
    disk_finding,
    doctor,
    hub_finding,
    library_findings,
    precision_findings,
    public,
    start_hub_checks,
)
from luthier.foundation import devices


class Hub(BaseHTTPRequestHandler):
    """Answers HEAD with the status its path names."""

    def do_HEAD(self) -> None:
        self.send_response(int(self.path.strip("/") or 200))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def point_to(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, address)


@pytest.mark.parametrize(("load", "said"), [(0.2, False), (1.9, True)])
def test_rates_that_a_neighbour_slowed_are_told(monkeypatch: pytest.MonkeyPatch, load: float, said: bool) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(devices, "choose_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(devices, "matmul_gflops", lambda name, device: 100.0)
    assert ("(load 1.9)" in precision_findings()[0].meaning) == said


def test_the_report_covers_the_machine(monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    point_to(monkeypatch, hub)
    monkeypatch.setattr(
        devices, "matmul_gflops", lambda name, device: {"float32": 100.0, "bfloat16": 1.0}.get(name, 400.0)
    )
    result = doctor()
    found = {finding.topic: finding for finding in result.findings}
    for topic in (
        "python",
        "cpu",
        "cores",
        "threads",
        "memory",
        "disk.cache",
        "disk.here",
        "library.torch",
        "extra.wandb",
    ):
        assert found[topic].meaning, topic
    assert found["hub.huggingface"].value is found["hub.modelscope"].value is found["hub.pypi"].value is True
    assert found["precision.bfloat16"].level == "note"
    assert "100 times slower than float32" in found["precision.bfloat16"].meaning
    assert "4 times float32's rate" in found["precision.float16"].meaning
    assert json.loads(json.dumps(result.as_dict()))["problems"] == 0
    assert "precision.float32" in result.text()


def test_a_silent_hub_does_not_hold_it_up(monkeypatch: pytest.MonkeyPatch, silent: str, hub: str) -> None:
    monkeypatch.setattr(module, "HUB_TIMEOUT_SECONDS", 0.3)
    point_to(monkeypatch, silent)
    started = time.monotonic()
    findings = start_hub_checks()()
    assert time.monotonic() - started < 1.5
    assert [finding.value for finding in findings] == [False, False, False]
    assert "HF_ENDPOINT" in findings[0].meaning


def test_an_environment_without_pip_is_told_so(monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    point_to(monkeypatch, hub)
    for name in [name for name in sys.modules if name.split(".")[0] == "pip"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pip", None)
    *others, last = start_hub_checks()()
    assert [finding.value for finding in others] == [True, True]
    assert (last.topic, last.found, last.level) == ("hub.pypi", "pip is not installed here", "note")
    assert "-m ensurepip" in last.meaning


@pytest.mark.parametrize(("path", "reached"), [("/200", True), ("/401", True), ("/404", True), ("/503", False)])
def test_any_answer_but_a_servers_failure_counts(hub: str, path: str, reached: bool) -> None:
    assert hub_finding("huggingface", hub + path).value is reached


def test_addresses_that_are_none(hub: str) -> None:
    assert hub_finding("pypi", "file:///etc").level == "problem"
    assert hub_finding("pypi", "mirror.example").level == "problem"
    assert hub_finding("pypi", "http://127.0.0.1:1/").value is False


def test_offline_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_finding("huggingface", "https://huggingface.co").found == "offline"


def test_passwords_are_not_shown() -> None:
    assert public("https://me:secret@mirror.example/simple") == "https://mirror.example/simple"


def test_a_missing_library_and_a_missing_extra_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_version", lambda name: None)
    found = {finding.topic: finding for finding in library_findings()}
    assert found["library.torch"].level == "problem"
    assert found["extra.wandb"].level == "note"
    assert 'pip install "luthier[wandb]"' in found["extra.wandb"].meaning


def test_little_disk_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda path: 1024)
    finding = disk_finding("disk.here", tmp_path / "to" / "come", "runs are written here")
    assert finding.level == "note"
    assert "1.0 KiB free" in finding.found


def test_what_bases_can_be_quantized_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of a format is what loading it would say."""
    from luthier.foundation.errors import ModelError
    from luthier.model import quantization

    def only_nf4(how: Any, device: Any) -> None:
        if how.type != "nf4":
            raise ModelError(f"{how} is not done here.", "Use nf4.")

    def only_awq(folder: Path, saved: Any, device: Any, *, training: bool) -> None:
        if saved["quant_method"] != "awq":
            raise ModelError("it is quantized with gptq, which needs optimum.", "Install it.")

    monkeypatch.setattr(quantization, "check_backend", only_nf4)
    monkeypatch.setattr(quantization, "check_saved", only_awq)
    found = {finding.topic.removeprefix("quantization."): finding for finding in module.quantization_findings()}
    assert {name for name, finding in found.items() if finding.value} == {"nf4", "awq", "gguf"}
    assert {finding.level for finding in found.values() if not finding.value} == {"note"}
    assert found["int8"].meaning == "int8 is not done here. Use nf4."
    assert found["gptq"].meaning == "needs optimum."
