"""A run's folder: what may be in it, what is never lost, what it remembers and what it never holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.cli import main
from luthier.commands.chat import chat
from luthier.foundation.errors import ConfigError, MissingExtraError, ModelError, UserError
from tests.tiny import config_for, tiny_folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_token_never_reaches_the_disk_or_the_screen(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_for(tiny_llama, rows, tmp_path / "run", max_steps=1)))
    assert main(["train", str(tmp_path / "config.json"), f"model.name={tiny_llama}", "model.token=hf_SECRET"]) in (0, 2)
    from luthier.commands.train import command_line

    assert "hf_SECRET" not in command_line("c.yaml", ["model.token=hf_SECRET", "model={name: x, token: hf_SECRET}"])
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and b"hf_SECRET" in path.read_bytes()]
    captured = capsys.readouterr()
    assert "hf_SECRET" not in captured.out + captured.err


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}, {}])
def test_files_of_someone_else_are_never_removed(
    how: dict[str, bool], tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "important.txt").write_text("mine")
    with pytest.raises(UserError, match="no run of luthier's"):
        luthier.train(config_for(tiny_llama, rows, tmp_path / "run"), **how)
    assert (tmp_path / "run" / "final" / "important.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong",
    [
        {"report_to": ["nope"]},
        {"lr_scheduler_kwargs": {"a": 1.0}},
        {"callbacks": ["no.such.Callback"]},
        {"eval_strategy": "epoch", "metric_for_best_model": "accuracy"},
    ],
)
def test_overwrite_removes_nothing_before_the_new_run_can_start(
    wrong: dict[str, Any], tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=2)
    luthier.train(config)
    before = snapshot(tmp_path / "run")
    config["training"] |= wrong
    if "eval_strategy" in wrong:
        config["data"]["validation"] = 4
    with pytest.raises(UserError):
        luthier.train(config, overwrite=True)
    assert snapshot(tmp_path / "run") == before


def test_a_missing_service_leaves_the_folder_free(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mlflow", None)
        with pytest.raises(MissingExtraError):
            luthier.train(config_for(tiny_llama, rows, tmp_path / "run", report_to=["mlflow"]))
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", max_steps=1))


@pytest.mark.parametrize("part", ["", "final", "checkpoints/step-00000004"])
def test_overwrite_does_not_remove_the_model_it_starts_from(
    part: str, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", max_steps=4))
    before = snapshot(tmp_path / "run")
    with pytest.raises(UserError, match="is the model to start from"):
        luthier.train(config_for(tmp_path / "run" / part, rows, tmp_path / "run"), overwrite=True)
    assert {name: data for name, data in snapshot(tmp_path / "run").items() if name != ".lock"} == before


def test_one_process_at_a_time(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    from luthier.commands.run_folder import locked

    with locked(tmp_path / "run"), pytest.raises(UserError, match="another process is training"):
        luthier.train(config_for(tiny_llama, rows, tmp_path / "run"))
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", max_steps=1))


@pytest.mark.parametrize("out", ["rows.jsonl/run", "/proc/nothing/here"])
def test_a_folder_that_can_not_be_made(out: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be"):
        luthier.train(config_for(tiny_llama, rows, tmp_path / out))


def test_a_home_relative_output_dir(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = luthier.train(config_for(tiny_llama, rows, Path("~/run"), max_steps=1))
    assert result.output_dir == str(tmp_path / "run")


def test_a_run_that_goes_on_is_its_newest_checkpoint(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extended run that stops on the way: the old final/ must not be taken for its model."""
    from luthier.model.resolving import find_in_run

    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=4)
    luthier.train(config)
    config["training"] |= {"max_steps": 12, "callbacks": ["tests.commands.test_run_folders.StopHard"]}
    monkeypatch.setenv("LUTHIER_TEST_STOP", "9")
    with pytest.raises(KeyboardInterrupt):
        luthier.train(config, resume=True)
    assert find_in_run(tmp_path / "run").name == "step-00000008"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


from transformers import TrainerCallback  # noqa: E402


class StopHard(TrainerCallback):
    """A Ctrl-C that nobody waits for."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == int(os.environ.get("LUTHIER_TEST_STOP", "-1")):
            raise KeyboardInterrupt


def test_a_run_remembers_where_its_base_stands(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path in the config, and talking to the run from another folder."""
    monkeypatch.chdir(tiny_llama.parent)
    config = config_for(Path(tiny_llama.name), rows, tmp_path / "run", max_steps=4)
    luthier.train({**config, "method": "full"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert chat(str(tmp_path / "run"), prompt="hi?", max_new_tokens=3, compare_base=True) is not None


def test_weights_that_are_partly_missing(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """transformers would fill them with random numbers and go on."""
    from safetensors.torch import load_file, save_file

    folder = tiny_folder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "layers.1." not in name and name != "lm_head.weight"}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 10 of LlamaForCausalLM's tensors.*lm_head"):
        luthier.train(config_for(folder, rows, tmp_path / "run"))
    with pytest.raises(ModelError, match="tensors"):
        chat(str(folder), prompt="hi?")


def test_a_model_that_reads_both_ways(rows: Path, tmp_path: Path) -> None:
    import transformers

    from tests.tiny import tiny_tokenizer

    small = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**small, intermediate_size=16)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="both directions"):
        luthier.train(config_for(tmp_path / "bert", rows, tmp_path / "run"))


def test_learned_positions_are_an_end(rows: Path, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "gpt2", n_positions=24)
    with pytest.raises(ModelError, match="positions up to 24, each with a learned embedding"):
        luthier.train(config_for(folder, rows, tmp_path / "run"))


def test_rotary_positions_are_a_warning(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path / "model", "llama", max_position_embeddings=24)
    luthier.train(config_for(folder, rows, tmp_path / "run", max_steps=1))
    assert "positions up to 24" in capsys.readouterr().err


def test_a_generation_config_that_transformers_would_not_save(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}')
    luthier.train(config_for(folder, rows, tmp_path / "run", max_steps=4))
    assert "do_sample is set" in capsys.readouterr().err
    kept = json.loads((tmp_path / "run" / "final" / "generation_config.json").read_text())
    assert (kept["temperature"], kept["do_sample"]) == (0.9, True)


def test_an_adapter_on_an_adapter_of_a_pinned_base(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """The first adapter names a base with a revision; the second's base is a folder, which has none."""
    luthier.train(config_for(tiny_llama, rows, tmp_path / "first", max_steps=4))
    settings = tmp_path / "first" / "final" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "revision": "v1"}))
    luthier.train(config_for(tmp_path / "first", rows, tmp_path / "second", max_steps=4))
    assert chat(str(tmp_path / "second"), prompt="hi?", max_new_tokens=3, compare_base=True) is not None


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_compare_base_where_tokens_were_added(method: str, rows: Path, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", template=None)
    config = config_for(base, rows, tmp_path / "run", max_steps=4)
    config["data"] |= {"template": "llama3", "cutoff_length": 200}
    luthier.train({**config, "method": method})
    assert chat(str(tmp_path / "run"), prompt="hi?", max_new_tokens=3, compare_base=True) is not None


def test_compare_base_where_biases_were_trained(rows: Path, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", "qwen2")
    config = config_for(base, rows, tmp_path / "run", learning_rate=0.5)
    config["method"]["bias"] = "all"
    luthier.train(config)
    expected = chat(str(base), prompt="hi?", max_new_tokens=8)
    both = chat(str(tmp_path / "run"), prompt="hi?", max_new_tokens=8, compare_base=True)
    assert expected is not None and both is not None
    assert both.base_answer == expected.answer


def test_rows_left_out_are_written_down(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=1)
    config["data"] |= {"cutoff_length": 50, "over_length": "drop"}
    luthier.train(config)
    found = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert found and all("longer than data.cutoff_length (50)" in item["reason"] for item in found)


def test_several_wrong_parts_are_told_together(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path / "no-model", tmp_path / "no-rows.jsonl", tmp_path / "run", report_to=["nope"])
    config["data"]["template"] = "chatlm"
    config["training"]["lr_scheduler_kwargs"] = {"a": 1.0}
    with pytest.raises(ConfigError) as caught:
        luthier.train(config)
    assert len(caught.value.problems) == 5, caught.value.problems


def test_remembered_settings_are_no_problem(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """The resolved config of a run starts the same run again."""
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", max_steps=3))
    before = lines(tmp_path / "run")
    luthier.train(tmp_path / "run" / "config.yaml", overwrite=True)
    assert [line["loss"] for line in lines(tmp_path / "run")] == [line["loss"] for line in before]


def test_an_interrupted_start_is_no_failure(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """--help and errors must not need torch: a bad config is answered without importing it."""
    code = (
        "import sys; from luthier.cli import main; status = main(['train', 'model=x', 'data.train=y', 'traning.seed=1']); "
        "assert status == 2 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_damaged_best_checkpoint_does_not_become_the_model(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    from luthier.foundation.errors import CheckpointError

    config = config_for(
        tiny_llama, rows, tmp_path / "run", max_steps=6, eval_strategy="steps", eval_steps=2, save_steps=2,
        load_best_model_at_end=True, greater_is_better=True,
    )  # fmt: skip
    config["data"]["validation"] = 4
    luthier.train(config)
    best = tmp_path / "run" / "checkpoints" / "step-00000002" / "adapter_model.safetensors"
    data = bytearray(best.read_bytes())
    data[-1] ^= 1
    best.write_bytes(data)
    config["training"]["max_steps"] = 8
    with pytest.raises(CheckpointError, match="the best checkpoint, step-00000002, is damaged"):
        luthier.train(config, resume=True)


def test_an_overwrite_that_was_killed_can_be_done_again(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from luthier.commands import run_folder

    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=4)
    luthier.train(config)
    with monkeypatch.context() as patch:

        def killed(path: Path) -> None:
            raise KeyboardInterrupt

        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run_folder.clear(tmp_path / "run")
    luthier.train(config, overwrite=True)


def test_fewer_steps_than_were_made(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=8)
    luthier.train(config)
    config["training"]["max_steps"] = 4
    with pytest.raises(UserError, match="past the end of this config, which has 4 steps"):
        luthier.train(config, resume=True)


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "trainer_state.json"])
def test_a_broken_file_of_the_run_is_named(name: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=4)
    luthier.train(config)
    (tmp_path / "run" / name).write_text('{"a": ')
    with pytest.raises(UserError, match=name):
        luthier.train(config, resume=True)


def test_early_stopping_loosened_on_resume_goes_on(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(
        tiny_llama, rows, tmp_path / "run", eval_strategy="steps", eval_steps=2, save_steps=2, greater_is_better=True,
        early_stopping_patience=1,
    )  # fmt: skip
    config["data"]["validation"] = 4
    assert luthier.train(config).steps < 12
    config["training"]["logging_steps"] = 2
    assert luthier.train(config, resume=True).steps < 12
    assert "stopped by a callback" in capsys.readouterr().err
    config["training"]["early_stopping_patience"] = 50
    assert luthier.train(config, resume=True).steps == 12


@pytest.mark.parametrize(
    ("kind", "targets"), [("qwen2", ["embed_tokens", "q_proj"]), ("gpt2", ["wte", "c_attn"]), ("qwen2", ["lm_head"])]
)
def test_one_end_of_a_tied_weight_is_no_target(kind: str, targets: list[str], rows: Path, tmp_path: Path) -> None:
    """Merging would put the update into both ends."""
    config = config_for(tiny_folder(tmp_path / "base", kind), rows, tmp_path / "run")
    config["method"]["target_modules"] = targets
    with pytest.raises(ModelError, match="ties to its other end"):
        luthier.train(config)


def test_untied_embeddings_may_be_targets(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    from luthier.commands.export import export

    config = config_for(tiny_llama, rows, tmp_path / "run")
    config["method"]["target_modules"] = ["embed_tokens", "q_proj"]
    luthier.train(config)
    assert export(str(tmp_path / "run"), tmp_path / "out").largest_logit_difference < 1e-4


def test_export_removes_no_files_of_anyone(tiny_llama: Path, tmp_path: Path) -> None:
    from luthier.commands.export import export

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"would remove thesis\.tex"):
        export(str(tiny_llama), tmp_path / "mine", overwrite=True)
    export(str(tiny_llama), tmp_path / "out")
    (tmp_path / "out" / "src").mkdir()
    with pytest.raises(UserError, match="would remove src"):
        export(str(tiny_llama), tmp_path / "out", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_conversation_longer_than_the_model_knows(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "gpt2", n_positions=64)
    result = chat(str(folder), prompt="hi?", max_new_tokens=500)
    assert result is not None, "bounded by the positions that are left"
    with pytest.raises(ModelError, match="knows positions up to 64"):
        chat(str(folder), prompt="hello there " * 60)
