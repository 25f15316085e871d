"""What a model folder's files say before any weight is loaded, and `models verify`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.commands import models
from luthier.foundation.errors import HubError, ModelError
from luthier.model.inspection import check_folder, content_hash, fingerprint
from tests.model.hubs.conftest import safetensors_bytes
from tests.model.hubs.stand_in_hub import COMMIT, StandInHub

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 538090408\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in two shards."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "llama"}')
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name in shards.values():
        (place / name).write_bytes(safetensors_bytes(300))
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    check_folder(place)
    return place


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"neither config\.json nor adapter_config\.json") as caught:
        check_folder(tmp_path)
    assert "notes.txt" in caught.value.remedy


def test_missing_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no weights \(model\.safetensors is missing\)"):
        check_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"only as pickle \(pytorch_model\.bin\)"):
        check_folder(tmp_path)


def test_an_adapter_needs_its_own_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        check_folder(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes(64))
    check_folder(tmp_path)


def test_a_shard_the_index_names_is_missing(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks 1 of the 2 weight files its index names: model-00002-of-00002"):
        check_folder(folder)


def test_a_git_lfs_pointer(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_text(LFS_POINTER)
    with pytest.raises(
        ModelError, match=r"model-00001-of-00002\.safetensors is a Git-LFS pointer of 134 bytes"
    ) as caught:
        check_folder(folder)
    assert "git lfs pull" in caught.value.remedy


@pytest.mark.parametrize("kept", [0, 7, 20, 150, -1])
def test_a_truncated_shard(folder: Path, kept: int) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is truncated"):
        check_folder(folder)


def test_other_broken_weights(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole + b"x")
    with pytest.raises(ModelError, match="longer than it should be"):
        check_folder(folder)
    shard.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(ModelError, match="is no safetensors file"):
        check_folder(folder)
    shard.write_bytes(whole[:8] + b"[" + whole[9:])
    with pytest.raises(ModelError, match="its header is broken"):
        check_folder(folder)


@pytest.mark.parametrize("config", [{"model_type": "t5"}, {"is_encoder_decoder": True, "architectures": ["BartModel"]}])
def test_an_encoder_decoder_model_is_refused_in_one_sentence(folder: Path, config: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is an encoder-decoder model") as caught:
        check_folder(folder)
    assert "\n" not in caught.value.problem


def test_a_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(ModelError, match=r"config\.json is broken JSON"):
        check_folder(folder)
    (folder / "config.json").write_text(LFS_POINTER)
    with pytest.raises(ModelError, match=r"config\.json is a Git-LFS pointer"):
        check_folder(folder)


def test_the_fingerprint_sees_names_sizes_headers_and_config(folder: Path) -> None:
    before = fingerprint(folder)
    assert before.startswith("content:") and fingerprint(folder) == before
    (folder / "README.md").write_text("a card does not change the model")
    assert fingerprint(folder) == before
    (folder / "config.json").write_text('{"model_type": "LLAMA"}')
    changed = fingerprint(folder)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b"weight.0", b"weight.1"))
    assert len({before, changed, fingerprint(folder)}) == 3


def test_the_content_hash_sees_every_byte_of_the_weights(folder: Path) -> None:
    before, named = content_hash(folder), fingerprint(folder)
    assert content_hash(folder) == before
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    assert fingerprint(folder) == named and content_hash(folder) != before


def test_the_content_hash_sees_a_models_own_code(folder: Path) -> None:
    (folder / "modeling_own.py").write_text("SCALE = 1\n")
    before = content_hash(folder)
    (folder / "modeling_own.py").write_text("SCALE = 2\n")
    assert content_hash(folder) != before


def test_a_hub_snapshot_is_its_commit(hub: StandInHub, tmp_path: Path) -> None:
    folder = models.fetch("tiny/model", endpoint=hub.address, cache_dir=tmp_path)
    assert fingerprint(folder) == content_hash(folder) == f"commit:{COMMIT}"


def test_inspection_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from luthier.model.inspection import check_folder, fingerprint; "
        f"p = Path({str(folder)!r}); check_folder(p); fingerprint(p); "
        "from luthier.commands import models; models.verify(p); models.list_models(); "
        "sys.exit('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize("setting", ["cache_dir", "to"])
def test_verify_finds_a_flipped_bit(hub: StandInHub, tmp_path: Path, setting: str) -> None:
    place: dict[str, object] = {setting: tmp_path / "here"}
    folder = models.fetch("tiny/model", endpoint=hub.address, **place)  # type: ignore[arg-type]
    result = models.verify(folder)
    assert result.ok and len(result.having("good")) == 4 and not result.having("unverifiable")
    for name, kind in (("model.safetensors", "sha256"), ("config.json", "git-sha1")):
        path = (folder / name).resolve()
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        (bad,) = models.verify(folder).having("bad")
        assert bad.name == name and bad.detail.startswith(f"{kind} is ")
        content[-1] ^= 1
        path.write_bytes(content)
    (folder / "config.json").resolve().unlink()  # in the cache: the blob that the snapshot links to
    result = models.verify(folder)
    assert not result.ok and [file.name for file in result.having("missing")] == ["config.json"]


def test_verify_by_checksum_file(folder: Path) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "checksum.sha256").write_text("".join(lines))
    (folder / "added.txt").write_text("new")
    result = models.verify(folder)
    assert result.ok and [file.name for file in result.having("unverifiable")] == ["added.txt"]
    (folder / "config.json").unlink()
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    report = models.verify(folder).as_dict()
    assert (report["ok"], report["good"], report["bad"], report["missing"], report["unverifiable"]) == (
        False,
        2,
        1,
        1,
        1,
    )
    json.dumps(report)


def test_verify_without_any_hash_still_sees_a_truncated_shard(folder: Path) -> None:
    assert not models.verify(folder).ok and not models.verify(folder).having("bad")
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert [file.name for file in models.verify(folder).having("bad")] == [shard.name]


def test_a_checksum_file_can_not_point_out_of_its_folder(folder: Path) -> None:
    (folder / "checksum.sha256").write_text(f"{'a' * 64}  ../../etc/passwd\n")
    with pytest.raises(HubError, match="line 1"):
        models.verify(folder)


def test_verify_needs_a_folder() -> None:
    with pytest.raises(HubError, match="is no folder"):
        models.verify("/absent")


def test_fetch_prints_nothing_where_there_is_no_terminal(
    hub: StandInHub, tmp_path: Path, fetch_in_child: Callable[..., subprocess.Popen[str]]
) -> None:
    child = fetch_in_child("tiny/model", endpoint=hub.address, cache_dir=str(tmp_path))
    output, _ = child.communicate(timeout=30)
    assert len(output.splitlines()) == 1, output
