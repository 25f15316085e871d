"""A hub on loopback, and an environment in which no client finds the user's own cache, token or mirror."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model.hubs.stand_in_hub import Repository, StandInHub

SHARD_BYTES = 24 * 1024 * 1024  # the Hugging Face client writes in pieces of 10 MiB
CLIENT_VARIABLES = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE", "USE_MODELSCOPE_HUB",
                    "MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN")  # fmt: skip


def safetensors_bytes(size: int, tensors: int = 1) -> bytes:
    """A safetensors file of random-looking bytes with about `size` bytes of data."""
    each = size // tensors
    header = {
        f"weight.{i}": {"dtype": "U8", "shape": [each], "data_offsets": [i * each, (i + 1) * each]}
        for i in range(tensors)
    }
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + hashlib.shake_128(b"weights").digest(each * tensors)


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches, tokens and endpoints of the hub clients point into the test's folder, in this process and its children."""
    for name in CLIENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope-home"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    import huggingface_hub.constants as constants
    from huggingface_hub.utils import close_session

    # read when the module is imported, so the variables come too late for this process
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    yield
    close_session()


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    """The stand-in with one small model, `tiny/model`."""
    stand_in = StandInHub()
    stand_in.repositories["tiny/model"] = Repository(
        {
            "config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
            "tokenizer.json": b'{"version": "1.0"}',
            "README.md": b"# tiny\n",
            "pytorch_model.bin": b"pickle" * 2000,
            "model.safetensors": safetensors_bytes(64 * 1024),
        }
    )
    with stand_in.running():
        yield stand_in


@pytest.fixture
def big_hub(hub: StandInHub) -> StandInHub:
    """The stand-in with a model large enough to be killed on the way."""
    hub.repositories["tiny/model"].files["model.safetensors"] = safetensors_bytes(SHARD_BYTES, tensors=3)
    return hub


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a child process; whatever still runs at the end is killed."""
    children: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        children.append(child)
        return child

    yield run
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def fetch_in_child(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Run `luthier.commands.models.fetch` in a child process, which prints the folder."""

    def run(name: str, **settings: object) -> subprocess.Popen[str]:
        code = f"from luthier.commands.models import fetch; print(fetch({name!r}, **{settings!r}))"
        return start(sys.executable, "-c", code)

    return run
