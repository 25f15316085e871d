"""Downloads killed at several offsets and taken up again: ours, and the stock clients' beside it."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.commands import models
from luthier.foundation.errors import HubError
from luthier.model.hubs._huggingface_resume import FETCHING
from tests.model.hubs.stand_in_hub import StandInHub

MEBI = 1024 * 1024
Start = Callable[..., subprocess.Popen[str]]


def kill_when_stalled(hub: StandInHub, child: subprocess.Popen[str], place: Path, written: int = 0) -> None:
    """Kill a client once the hub has stopped sending and the client has `written` bytes on the disk."""
    assert hub.stalled.wait(20), child.communicate()[0]
    deadline = time.monotonic() + 10
    while written and max((path.stat().st_size for path in place.rglob("*.incomplete")), default=0) < written:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.stalled.clear()


def same_hashes(hub: StandInHub, folder: Path, names: tuple[str, ...] = ("config.json", "model.safetensors")) -> None:
    for name in names:
        expected = hashlib.sha256(hub.repositories["tiny/model"].files[name]).hexdigest()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name


@pytest.mark.parametrize("into_folder", [False, True])
def test_killed_twice_and_resumed_with_range(
    big_hub: StandInHub, fetch_in_child: Start, tmp_path: Path, into_folder: bool
) -> None:
    settings: dict[str, object] = {"endpoint": big_hub.address}
    settings["to" if into_folder else "cache_dir"] = str(tmp_path / "models")
    # the client writes pieces of 10 MiB
    for sent, written in ((11 * MEBI, 10 * MEBI), (22 * MEBI, 20 * MEBI)):
        big_hub.faults.stall_after_bytes = sent
        kill_when_stalled(big_hub, fetch_in_child("huggingface:tiny/model", **settings), tmp_path, written)
    big_hub.faults.stall_after_bytes = None

    child = fetch_in_child("huggingface:tiny/model", **settings)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 0, output
    folder = Path(output.splitlines()[-1])
    same_hashes(big_hub, folder)
    first, second, third = big_hub.large_requests()
    assert first.range is None
    assert second.range == f"bytes={10 * MEBI}-" and third.range == f"bytes={20 * MEBI}-"
    assert third.status == 206
    assert not list(tmp_path.rglob("*.incomplete"))
    assert models.verify(folder).ok


def test_killed_before_the_first_piece_was_written(big_hub: StandInHub, fetch_in_child: Start, tmp_path: Path) -> None:
    big_hub.faults.stall_after_bytes = 1 * MEBI
    kill_when_stalled(big_hub, fetch_in_child("huggingface:tiny/model", endpoint=big_hub.address), tmp_path)
    big_hub.faults.stall_after_bytes = None
    same_hashes(
        big_hub, models.fetch("huggingface:tiny/model", endpoint=big_hub.address, cache_dir=tmp_path / "hf" / "hub")
    )


def test_a_body_cut_short_is_continued_by_range_in_the_same_process(big_hub: StandInHub, tmp_path: Path) -> None:
    big_hub.faults.cut_after_bytes = [12 * MEBI]
    folder = models.fetch("huggingface:tiny/model", endpoint=big_hub.address, cache_dir=tmp_path)
    same_hashes(big_hub, folder)
    assert [seen.range for seen in big_hub.large_requests()] == [None, f"bytes={10 * MEBI}-"]


def test_ctrl_c_ends_it_at_once_and_it_goes_on_later(big_hub: StandInHub, start: Start, tmp_path: Path) -> None:
    """Also where nothing arrives any more, which the client would wait for."""
    command = (sys.executable, "-m", "luthier.cli", "models", "fetch", "huggingface:tiny/model")
    big_hub.faults.stall_after_bytes = 11 * MEBI
    child = start(*command, HF_ENDPOINT=big_hub.address)
    assert big_hub.stalled.wait(20)
    time.sleep(0.2)  # what has arrived is being written
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 130 and "Traceback" not in output and time.monotonic() - began < 5, output
    (piece,) = tmp_path.rglob("*.incomplete")
    assert piece.stat().st_size == 10 * MEBI
    big_hub.faults.stall_after_bytes = None
    same_hashes(
        big_hub, models.fetch("huggingface:tiny/model", endpoint=big_hub.address, cache_dir=tmp_path / "hf" / "hub")
    )
    assert big_hub.large_requests()[-1].range == f"bytes={10 * MEBI}-"


def test_one_files_fault_ends_the_others(big_hub: StandInHub, tmp_path: Path) -> None:
    files = big_hub.repositories["tiny/model"].files
    files["vocab.txt"] = b"small" * 2000
    big_hub.faults.stall_after_bytes, big_hub.faults.flip_a_bit = 1 * MEBI, True
    began = time.monotonic()
    with pytest.raises(HubError, match=r"vocab\.txt of tiny/model arrived with the sha256"):
        models.fetch("huggingface:tiny/model", endpoint=big_hub.address, cache_dir=tmp_path)
    assert time.monotonic() - began < 5
    (other,) = [thread for thread in threading.enumerate() if thread.name == FETCHING]
    big_hub.faults.stall_after_bytes = None
    big_hub.released.set()  # the body ends early, and the client asks for the rest
    other.join(10)
    assert not other.is_alive()
    (piece,) = tmp_path.rglob("*.incomplete")
    assert piece.stat().st_size < len(files["model.safetensors"]), "nobody wanted the rest"


def test_stock_hf_download_killed_and_run_again(big_hub: StandInHub, start: Start, tmp_path: Path) -> None:
    """The stock command starts a killed file anew (its partial files have random names); the hashes must be right."""
    hf = shutil.which("hf", path=str(Path(sys.executable).parent))
    assert hf
    command = (hf, "download", "tiny/model", "--local-dir", str(tmp_path / "models"))
    big_hub.faults.stall_after_bytes = 11 * MEBI
    kill_when_stalled(big_hub, start(*command, HF_ENDPOINT=big_hub.address), tmp_path)
    big_hub.faults.stall_after_bytes = None
    child = start(*command, HF_ENDPOINT=big_hub.address)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 0, output
    same_hashes(big_hub, tmp_path / "models")
    assert models.verify(tmp_path / "models").ok


def test_what_we_fetched_the_stock_client_takes_as_its_own(hub: StandInHub, start: Start, tmp_path: Path) -> None:
    models.fetch("huggingface:tiny/model", endpoint=hub.address, cache_dir=tmp_path / "hf" / "hub")
    hub.requests.clear()
    hf = shutil.which("hf", path=str(Path(sys.executable).parent))
    child = start(hf or "", "download", "tiny/model", "model.safetensors", HF_ENDPOINT=hub.address)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 0, output
    assert not hub.large_requests()


def test_modelscope_killed_and_resumed_with_range(big_hub: StandInHub, fetch_in_child: Start, tmp_path: Path) -> None:
    settings = {
        "endpoint": big_hub.address,
        "cache_dir": str(tmp_path / "models"),
        "include": ["*.json", "*.safetensors"],
    }
    big_hub.faults.stall_after_bytes = 11 * MEBI
    kill_when_stalled(big_hub, fetch_in_child("modelscope:tiny/model", **settings), tmp_path, 10 * MEBI)
    big_hub.faults.stall_after_bytes = None
    child = fetch_in_child("modelscope:tiny/model", **settings)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 0, output
    folder = Path(output.splitlines()[-1])
    same_hashes(big_hub, folder)
    resumed = [seen for seen in big_hub.large_requests() if "model.safetensors" in seen.path][-1]
    assert resumed.range and int(resumed.range.removeprefix("bytes=").rstrip("-")) >= 10 * MEBI
    assert models.verify(folder).ok
