"""Every method by its name alone, as a user runs it: train, stop, go on, talk, export."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.commands.chat import chat
from luthier.commands.export import export
from luthier.config.plugins import METHODS
from luthier.foundation.errors import ModelError
from luthier.model.method import METHOD_STATE, Apply
from luthier.scoring.virtual_tokens import has_virtual_tokens
from tests.tiny import config_for, tiny_folder, tiny_model, tiny_tokenizer, write_rows
from tests.training.whole_runs import launch, traces

VARIANTS: dict[str, dict[str, Any]] = {
    "pissa": {"name": "lora", "init": "pissa", "rank": 4},
    "olora": {"name": "lora", "init": "olora", "rank": 4, "use_dora": True},
    "houlsby": {"name": "adapter", "placement": "houlsby", "reduction_factor": 4},
    "parallel": {"name": "adapter", "placement": "parallel", "scale": 4, "activation": "silu"},
    "lora_plus": {"name": "lora", "lora_plus_ratio": 16},
    "prefix_mlp": {"name": "prefix_tuning", "projection": True},
    "p_lstm": {"name": "p_tuning", "encoder": "lstm", "encoder_dropout": 0.1},
    "prompt_text": {"name": "prompt_tuning", "init": "text", "text": "What is the name?"},
}
NOT_MERGED = (
    "prompt_tuning",
    "prompt_text",
    "p_tuning",
    "p_lstm",
    "prefix_tuning",
    "prefix_mlp",
    "adapter",
    "mam",
    "unipelt",
    "houlsby",
    "parallel",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model", "qwen2")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def puts_virtual_tokens(choice: str) -> bool:
    """Whether a model has virtual tokens, once the method is on it."""
    settings = VARIANTS.get(choice, {"name": choice})
    module = METHODS.load(settings["name"])
    how = Apply(seed=0, tokenizer=tiny_tokenizer())
    return has_virtual_tokens(module.build(module.Options(**settings)).apply(tiny_model("qwen2"), how))


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("choice", [*METHODS.names(), *VARIANTS])
def test_trained_stopped_and_gone_on_with(
    choice: str, base: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("luthier.training.metrics_log.plot_losses", lambda *arguments: None)  # a third of the time
    config = config_for(base, examples, tmp_path / "run", max_steps=6, save_steps=3, per_device_train_batch_size=2)
    config["method"] = VARIANTS.get(choice, choice)
    del config["training"]["learning_rate"]  # the method's own
    luthier.train(config)
    assert ("attention: padded rows, because" in capsys.readouterr().err) == puts_virtual_tokens(choice)
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-00000006"
    whole, final = weights(last), weights(run / "final")
    assert METHOD_STATE not in final

    shutil.rmtree(last)
    shutil.rmtree(run / "final")
    luthier.train(config, resume=True)
    assert weights(last) == whole
    assert weights(run / "final") == final

    answer = chat(str(run), prompt="what is your name", max_new_tokens=3)
    assert answer is not None
    assert isinstance(answer.answer, str)
    if choice in NOT_MERGED:
        with pytest.raises(ModelError, match="can't be merged"):
            export(str(run), tmp_path / "merged")
        measured = export(str(run), tmp_path / "alone", format="adapter")
        assert METHOD_STATE not in weights(tmp_path / "alone")
    else:
        measured = export(str(run), tmp_path / "merged")
    assert measured.largest_logit_difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["adalora", "p_tuning", "vera"])
def test_killed_and_gone_on_with(choice: str, base: Path, examples: Path, tmp_path: Path) -> None:
    """A rank budget that is driven, an encoder that is not saved with the model, matrices made from a seed."""

    def config(name: str) -> dict[str, Any]:
        found = config_for(base, examples, tmp_path / name, max_steps=8, save_steps=3)
        return {**found, "method": choice}

    luthier.train(config("whole"))
    assert launch(config("run"), tmp_path, "--die-at", "step:5").returncode == -signal.SIGKILL
    resumed = launch(config("run"), tmp_path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on from step-00000003" in resumed.stderr
    assert traces(tmp_path / "run") == traces(tmp_path / "whole")
