"""Bad input: one clear error, exit status 2, no traceback, and nothing written; what can be refused early is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from luthier.cli import main
from tests.tiny import config_for, tiny_folder, tiny_tokenizer

Change = Callable[[dict[str, Any], Path], None]


def set_value(place: str, value: Any) -> Change:
    def change(config: dict[str, Any], folder: Path) -> None:
        *parents, last = place.split(".")
        target: Any = config
        for parent in parents:
            target = target[parent]
        target[last] = value

    return change


def rows_are(text: str, name: str = "bad.jsonl") -> Change:
    def change(config: dict[str, Any], folder: Path) -> None:
        (folder / name).write_text(text)
        config["data"]["train"] = str(folder / name)

    return change


def model_without_weights(config: dict[str, Any], folder: Path) -> None:
    tiny_folder(folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    config["model"] = str(folder / "model")


def model_with_pointer(config: dict[str, Any], folder: Path) -> None:
    tiny_folder(folder / "model")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    (folder / "model" / "model.safetensors").write_text(pointer)
    config["model"] = str(folder / "model")


def model_truncated(config: dict[str, Any], folder: Path) -> None:
    weights = tiny_folder(folder / "model") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    config["model"] = str(folder / "model")


def model_without_template(config: dict[str, Any], folder: Path) -> None:
    config["model"] = str(tiny_folder(folder / "model", template=None))


def encoder_decoder(config: dict[str, Any], folder: Path) -> None:
    small = transformers.T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=300)
    transformers.T5ForConditionalGeneration(small).save_pretrained(folder / "t5")
    tiny_tokenizer().save_pretrained(folder / "t5")
    config["model"] = str(folder / "t5")


def several(config: dict[str, Any], folder: Path) -> None:
    config["traning"] = config.pop("training")
    config["data"]["cutoff_lenght"] = 10
    config["method"] = {"name": "lora", "rank": 0, "alfa": 3}
    config["stage"] = "sfd"
    # what the sound keys name is looked for all the same
    config["model"] = "./no-such-model"
    config["data"] |= {"train": ["no/such.jsonl"], "template": "chatlm"}


MASKED = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x", "weight": 0}]}\n'

CASES: dict[str, tuple[Change, list[str]]] = {
    "unknown key": (set_value("training.learning_rte", 1e-4), ["training.learning_rte", "learning_rate"]),
    "a key of LLaMA-Factory's": (set_value("finetuning_type", "lora"), ["finetuning_type", "method"]),
    "wrong type": (set_value("training.max_steps", "many"), ["training.max_steps", "many"]),
    "missing file": (set_value("data.train", "no/such.jsonl"), ["no/such.jsonl", "does not exist"]),
    "empty file": (rows_are(""), ["bad.jsonl", "empty"]),
    "broken JSON": (rows_are('[{"instruction": "a",\n "output": }]', "bad.json"), ["bad.json", "line 2", "column"]),
    "broken JSONL": (rows_are('{"instruction": "a", "output": "b"}\n{"instruction": \n'), ["bad.jsonl", "2"]),
    "a row lacks a field": (
        rows_are('{"instruction": "a", "output": "b"}\n{"instruction": "c"}\n'),
        ["bad.jsonl", "row 2", "output", "instruction"],
    ),
    "unknown columns": (rows_are('{"frage": "a", "antwort": "b"}\n'), ["bad.jsonl", "frage", "antwort"]),
    "every label masked": (rows_are(MASKED), ["every label", "masked"]),
    "no weights": (model_without_weights, ["model", "no weights"]),
    "a Git-LFS pointer": (model_with_pointer, ["model.safetensors", "LFS pointer"]),
    "a truncated shard": (model_truncated, ["model.safetensors", "truncated"]),
    "no chat template": (model_without_template, ["no chat template", "chatml"]),
    "unknown template": (set_value("data.template", "chatlm"), ["chatlm", "chatml"]),
    "target modules that match nothing": (
        set_value("method", {"name": "lora", "target_modules": ["query"]}),
        ["'query'", "q_proj"],
    ),
    "more layers than there are": (set_value("method", {"name": "freeze", "trainable_layers": 9}), ["9", "3 layers"]),
    "an encoder-decoder model": (encoder_decoder, ["encoder-decoder"]),
    "an optimizer that is not there": (set_value("training.optim", "adamv"), ["adamv", "adamw"]),
    "a model that is not there": (set_value("model", "./no-such-model"), ["no-such-model"]),
    "many at once": (
        several,
        [
            "traning",
            "cutoff_lenght",
            "rank",
            "alfa",
            "sfd",
            "there is no folder './no-such-model'",
            "'no/such.jsonl' does not exist",
            "chatlm",
        ],
    ),
    "early stopping without evaluation": (set_value("training.early_stopping_patience", 2), ["eval_strategy"]),
    "a validation set that is never read": (set_value("data.validation", 0.1), ["eval_strategy"]),
    "schedule settings that do not fit": (
        set_value("training.lr_scheduler_kwargs", {"nonsense": 1.0}),
        ["lr_scheduler_kwargs", "nonsense"],
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_one_clear_error(
    name: str, tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = CASES[name]
    config = config_for(tiny_llama, rows, tmp_path / "run")
    change(config, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["train", str(tmp_path / "config.json")]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    missing = [part for part in expected if part not in said]
    assert not missing, said


def test_what_can_be_refused_before_weights_are_read_is(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every case above but those of the optimizer's own schedule, with loading weights made impossible."""
    from luthier.model import loading

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "weights_at", never)
    for name, (change, _) in CASES.items():
        if name.startswith("schedule"):
            continue
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        config = config_for(tiny_llama, rows, folder / "run")
        change(config, folder)
        (folder / "config.json").write_text(json.dumps(config))
        assert main(["train", str(folder / "config.json")]) == 2, name
    assert "weights were read" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train"], ["train", "--nproc-per-node", "2"], ["plan"]])
def test_what_is_not_there_is_said_before_torch_is_imported(
    arguments: list[str], tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    """In the half second that the checks take, not after the libraries' imports."""
    done = status_and_imports([*arguments, config_file(tiny_llama, rows, tmp_path), "data.train=no/such.jsonl"])
    assert "'no/such.jsonl' does not exist" in done.stderr
    assert done.stdout == "2 set()\n"


@pytest.mark.parametrize("flags", [[], ["--nproc-per-node", "2"]])
def test_a_used_folder_is_said_before_torch_is_imported(
    flags: list[str], tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    for name in ("metrics.jsonl", "run.json"):
        (tmp_path / "run" / name).write_text("{}\n")
    file = config_file(tiny_llama, rows, tmp_path)
    done = status_and_imports(["train", file, "--trust-remote-code", *flags])
    going_on = " ".join(["luthier", "train", file, *flags, "--trust-remote-code", "--resume"])
    assert f"go on with `{going_on}` (resume=True in Python)" in done.stderr
    assert done.stdout == "2 set()\n"


def config_file(model: Path, rows: Path, folder: Path) -> str:
    """A config that may use GPUs, as people's do: `train` counts them."""
    config = config_for(model, rows, folder / "run")
    del config["training"]["use_cpu"]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder / "config.json")


def status_and_imports(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """`luthier ARGUMENTS`, which prints its status and which of torch and transformers it imported."""
    program = "import sys; from luthier.cli import main; print(main(sys.argv[1:]), {'torch', 'transformers'} & {*sys.modules})"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)


def test_a_used_folder(tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "run" / "run.json").write_text("{}\n")
    (tmp_path / "config.json").write_text(json.dumps(config_for(tiny_llama, rows, tmp_path / "run")))
    assert main(["train", str(tmp_path / "config.json")]) == 2
    said = capsys.readouterr().err
    assert "--resume` (resume=True in Python), or start anew with --overwrite (overwrite=True in Python)" in said
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "{}\n"


def test_remote_code_runs_only_with_the_flag(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model folder with Python of its own: its module-level code must not run unasked."""
    folder = tiny_folder(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    marker = tmp_path / "ran"
    (folder / "mine.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(marker)!r}).write_text('ran')\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    config = config_for(folder, rows, tmp_path / "run", max_steps=1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["train", str(tmp_path / "config.json")]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err
    assert not marker.exists()


def test_nothing_is_loaded_by_pickle(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder whose only weights are a pickle is refused, and the pickle is not opened."""
    import os

    folder = tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    torch.save(Trap(), folder / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config_for(folder, rows, tmp_path / "run")))
    assert main(["train", str(tmp_path / "config.json")]) == 2
    assert "safetensors" in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--temperature", "0.7", "--top-p", "0"], r"top_p: .*greater than 0"),
        (["--top-p", "0.9"], r"--top-p 0.9 would act on sampling, and at --temperature 0 .* or leave it out"),
        (["--seed", "7"], r"--seed 7 would act on sampling, and at --temperature 0 .* or leave it out"),
        (["--seed", "7", "--top-p", "0.9"], r"--top-p 0.9 and --seed 7 would act on sampling, .* or leave them out"),
    ],
)
def test_sampling_that_can_not_be(
    given: list[str], told: str, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(tiny_llama), "--prompt", "hello", *given]) == 2
    assert re.search(told, " ".join(capsys.readouterr().err.split()))
