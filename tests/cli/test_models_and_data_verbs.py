"""The verbs `models` and `data` as a script meets them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from luthier import cli
from luthier.commands import data, models
from luthier.foundation.errors import HubError
from luthier.training.checkpoints import seal


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    value: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


def test_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path))
    assert cli.main(["models", "list"]) == 0
    assert "smollm2-135m: " in capsys.readouterr().out
    assert cli.main(["models", "list", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["models"][0]["folder"] is None
    assert "smollm2-135m: " in output.err


def test_fetch_ends_with_the_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def fetch(name: str, **options: object) -> Path:
        asked.append((name, options))
        return tmp_path / "model"

    monkeypatch.setattr(models, "fetch", fetch)
    line = (
        "models fetch m --to there --endpoint https://e --revision r --include *.json --include *.txt --jobs 3 --json"
    )
    assert cli.main(line.split()) == 0
    assert last_json(capsys) == {"path": str(tmp_path / "model")}
    options = {"to": "there", "endpoint": "https://e", "revision": "r", "include": ["*.json", "*.txt"], "jobs": 3}
    assert asked == [("m", options)]
    assert cli.main(["models", "fetch", "m"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'model'}\n"


def test_a_hub_that_does_not_answer_is_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, **options: object) -> Path:
        raise HubError("the hub is not there.", "Use a mirror.")

    monkeypatch.setattr(models, "fetch", fetch)
    assert cli.main(["models", "fetch", "m", "--json"]) == 2
    assert last_json(capsys) == {"error": "the hub is not there.", "remedy": "Use a mirror.", "exit_status": 2}


@pytest.mark.parametrize(("listed", "status"), [(b"words", 0), (b"other words", 2), (None, 2)])
def test_verify(capsys: pytest.CaptureFixture[str], tmp_path: Path, listed: bytes | None, status: int) -> None:
    (tmp_path / "file.txt").write_bytes(b"words")
    if listed is not None:
        (tmp_path / "checksum.sha256").write_text(f"{hashlib.sha256(listed).hexdigest()}  file.txt\n")
    assert cli.main(["models", "verify", str(tmp_path), "--json"]) == status
    assert last_json(capsys)["ok"] is (status == 0)


def test_verify_reads_a_checkpoints_manifest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"learnt")
    seal(tmp_path, {"step": 3})
    assert cli.main(["models", "verify", str(tmp_path), "--json"]) == 0
    assert last_json(capsys)["good"] == 1
    weights.write_bytes(b"learnT")
    assert cli.main(["models", "verify", str(tmp_path), "--json"]) == 2
    assert last_json(capsys)["bad"] == 1


def test_show_passes_its_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def show(source: object, overrides: object, **options: object) -> data.ShownRows:
        options.pop("console").print("rows")  # type: ignore[attr-defined]
        asked.append((source, overrides, options))
        return data.ShownRows("test", None, (), (), (), ())

    monkeypatch.setattr(data, "show", show)
    assert cli.main(["data", "show", "model=m", "data.train=a", "--rows", "5", "--split", "test", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["split"] == "test"
    assert output.err == "rows\n"
    options = {"rows": 5, "split": "test", "page": None, "trust_remote_code": False}
    assert asked == [(None, ["model=m", "data.train=a"], options)]
