"""chat, export and plan, as a user calls them, on tiny models."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GenerationConfig,
    pipeline,
)

import luthier
from luthier.cli import main
from luthier.commands.chat import chat
from luthier.commands.export import export
from luthier.commands.plan import plan
from luthier.foundation.errors import ModelError, UserError
from tests.classify import classification_config, labelled_rows, write_json_lines
from tests.tiny import config_for, tiny_folder, write_rows

MIXTURE: dict[str, Any] = {  # a dense layer, then experts
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "moe_intermediate_size": 24,
    "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": None, "kv_lora_rank": 16,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
TEXT = torch.tensor([[5, 9, 40, 77, 12, 200, 31]])


def run_of(method: str, tiny_llama: Path, rows: Path, out: Path, **training: Any) -> Path:
    config = config_for(tiny_llama, rows, out, **training)
    config["method"] = method
    luthier.train(config)
    return out


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TEXT).logits
    return found


def test_chat_answers_as_plain_transformers_generates(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("lora", tiny_llama, rows, tmp_path / "run", max_steps=30)
    capsys.readouterr()
    result = chat(str(run), prompt="the quick fox?", system="brown", max_new_tokens=12)
    assert result is not None
    assert capsys.readouterr().out.strip() == result.answer.strip(), "what is streamed is the answer"
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), run / "final")
    messages = [{"role": "system", "content": "brown"}, {"role": "user", "content": "the quick fox?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    expected = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert result.answer == expected


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("part", ["", "final", "checkpoints/step-00000008"])
def test_compare_base(method: str, part: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    run = run_of(method, tiny_llama, rows, tmp_path / "run", learning_rate=2e-2)
    base = chat(str(tiny_llama), prompt="hi?", max_new_tokens=8)
    both = chat(str(run / part), prompt="hi?", max_new_tokens=8, compare_base=True)
    assert base is not None and both is not None
    assert both.base_answer == base.answer
    assert both.answer != both.base_answer


def test_compare_base_needs_a_base(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="its base is not known"):
        chat(str(tiny_llama), prompt="hi?", compare_base=True)


def test_sampling_is_seeded(tiny_llama: Path) -> None:
    def once(seed: int) -> str:
        result = chat(str(tiny_llama), prompt="hi?", max_new_tokens=10, temperature=1.0, seed=seed)
        assert result is not None
        return result.answer

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_json_is_the_last_line(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(tiny_llama), "--prompt", "hi?", "--max-new-tokens", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(result) == {"prompt", "answer", "base_answer"}


def test_an_interactive_chat_remembers(tiny_llama: Path, tmp_path: Path) -> None:
    """On a real terminal: two questions, a new conversation, the end. The second answer depends on the first turn."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier.cli", "chat", str(tiny_llama), "--max-new-tokens", "6"],
        stdin=child, stdout=child, stderr=child, env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"},
    )  # fmt: skip
    os.close(child)
    seen = ""

    def wait_for(count: int) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while seen.count("you> ") < count:
            assert time.monotonic() < deadline, seen
            seen += os.read(parent, 4096).decode(errors="replace")

    for number, line in enumerate(["the fox?", "the fox?", "/new", "the fox?", "/exit"], start=1):
        wait_for(number)
        os.write(parent, f"{line}\n".encode())
    try:
        while chunk := os.read(parent, 4096):
            seen += chunk.decode(errors="replace")
    except OSError:  # a terminal whose other end is closed reads as an error on Linux
        assert process.wait(timeout=30) == 0
    os.close(parent)
    answers = [part.split("model> ")[1].split("\r\n")[0] for part in seen.split("you> ") if "model> " in part]
    assert len(answers) == 3
    assert answers[0] == answers[2], "a new conversation forgets"
    assert answers[0] != answers[1], "a conversation remembers"


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_merged_loads_in_plain_transformers(dtype: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    run = run_of("lora", tiny_llama, rows, tmp_path / "run")
    result = export(str(run), tmp_path / "out", dtype=dtype, max_shard_size="40KB")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1, "small shards were asked for"
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), run / "final")
    difference = float((logits(tuned) - logits(model.float())).abs().max())
    if dtype == "auto":
        assert difference < 1e-5 and result.largest_logit_difference < 1e-5
    else:
        assert 1e-4 < result.largest_logit_difference < 0.5, "rounding to 16 bits shows in what is printed"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_llama).chat_template
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("padding", [None, 7])
def test_a_merged_head_reads_before_the_token_that_pads(padding: int | None, tmp_path: Path) -> None:
    """Whatever the base's config says of it: the tokenizer pads with token 0."""
    base = tiny_folder(tmp_path / "base", pad_token_id=padding)
    data = write_json_lines(tmp_path / "rows.jsonl", labelled_rows(16))
    config = classification_config(base, data, tmp_path / "run", num_train_epochs=1, eval_strategy="no")
    del config["data"]["validation"]
    luthier.train(config)
    assert export(str(tmp_path / "run"), tmp_path / "out").largest_logit_difference < 1e-5
    answers = pipeline("text-classification", model=str(tmp_path / "out"), top_k=None)
    texts = ["what is the quick fox", "brown"]
    alone, together = (
        [{label["label"]: label["score"] for label in found} for found in answers(texts, batch_size=size)]
        for size in (1, 2)
    )
    assert together[0] == pytest.approx(alone[0], abs=1e-6) and together[1] == pytest.approx(alone[1], abs=1e-6)
    # and so does the adapter in plain peft, told what stands in head.json
    head = json.loads((tmp_path / "run" / "final" / "head.json").read_text())
    told = {"num_labels": head["num_labels"], "pad_token_id": head["pad_token_id"]}
    tuned = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final", **told).eval()
    rows = AutoTokenizer.from_pretrained(tmp_path / "out")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(tuned(**rows).logits, answers.model(**rows).logits, atol=1e-6)


def test_adapter_loads_in_plain_peft(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    run = run_of("lora", tiny_llama, rows, tmp_path / "run")
    result = export(str(run / "checkpoints" / "step-00000008"), tmp_path / "out", format="adapter")
    assert result.largest_logit_difference == 0.0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not names & {"optimizer.safetensors", "trainer_state.json", "manifest.json"}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "out")
    from luthier.config.schema import ModelConfig
    from luthier.model import loading

    source = loading.find(ModelConfig(name=str(run / "checkpoints" / "step-00000008")))
    assert torch.equal(logits(model), logits(loading.load(source, torch.float32)))


def test_a_full_run_is_exported_in_another_precision(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    run = run_of("full", tiny_llama, rows, tmp_path / "run")
    export(str(run), tmp_path / "out", dtype="float16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float16
    with pytest.raises(ModelError, match="no adapter to export"):
        export(str(run), tmp_path / "adapter", format="adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_transformers_keeps_in_float32_is_exported_so(dtype: str, tmp_path: Path) -> None:
    """A router's biases, added to scores between 0 and 1: at 4 to 8 bfloat16 has steps of 0.03, and other experts are chosen."""
    folder = tiny_folder(tmp_path / "base")
    mixture = DeepseekV3ForCausalLM(DeepseekV3Config(**MIXTURE))
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    mixture.get_buffer(bias).copy_(torch.tensor([4.001, 4.002, 4.003, 4.004]))
    mixture.save_pretrained(folder)
    export(str(folder), tmp_path / "out", dtype=dtype)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(saved.pop(bias), mixture.get_buffer(bias))
    assert {tensor.dtype for tensor in saved.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_export_overwrites_nothing_unasked(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    export(str(tiny_llama), tmp_path / "out")
    before = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="not empty"):
        export(str(tiny_llama), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds the model"):
        export(str(tiny_llama), tiny_llama, overwrite=True)
    export(str(tiny_llama), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns != before
    with pytest.raises(UserError, match="float8"):
        export(str(tiny_llama), tmp_path / "other", dtype="float8")


@pytest.mark.parametrize("method", ["lora", "freeze", "full"])
def test_every_checkpoint_may_stand_where_a_model_may(
    method: str, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    """Trained on, talked to, loaded in plain transformers or peft."""
    run = run_of(method, tiny_llama, rows, tmp_path / "run")
    checkpoint = run / "checkpoints" / "step-00000008"
    if method == "lora":
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), checkpoint)
        assert json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
            tiny_llama
        )
    else:
        AutoModelForCausalLM.from_pretrained(checkpoint)
    assert chat(str(checkpoint), prompt="hi?", max_new_tokens=3) is not None
    again = config_for(checkpoint, rows, tmp_path / "again")
    luthier.train(again)
    if method == "lora":
        base = json.loads((tmp_path / "again" / "final" / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert base == str((tmp_path / "again" / "base").absolute())
        first = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_llama), checkpoint
        ).merge_and_unload()
        assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(base)), logits(first), atol=1e-6)
    lines = (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()
    first_line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert json.loads(lines[0])["loss"] < first_line["loss"], "it goes on from what was learnt"


def test_plan_counts_what_training_does(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=-1, num_train_epochs=2, warmup_steps=0.25)
    config["data"]["cutoff_length"] = 40
    result = luthier.train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    from luthier.model import loading

    monkeypatch.setattr(loading, "weights_at", lambda *args, **kwargs: pytest.fail("weights were read"))
    planned = plan(config)
    assert planned.total_steps == result.steps
    assert planned.warmup_steps == math.ceil(result.steps / 4)
    assert planned.trainable_parameters == result.trainable_parameters
    assert planned.total_parameters == result.total_parameters
    assert 2 * planned.tokens_per_epoch == sum(line["tokens"] for line in lines)
    assert 2 * planned.targets_per_epoch == sum(line["targets"] for line in lines)
    assert planned.data["splits"]["train"]["truncated_rows"] > 0
    assert f"{planned.trainable_parameters:,}" in planned.table()


def test_a_run_of_settings_alone(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        f"model={tiny_llama}", f"data.train={rows}", "data.cutoff_length=64", "method=full", "training.max_steps=2",
        f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(["train", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["steps"] == 2
    assert Path(result["final"]).is_dir()


def test_what_a_run_leaves_behind(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", eval_strategy="steps", eval_steps=4)
    config["data"] |= {"validation": 4, "test": 3}
    result = luthier.train(config)
    run = tmp_path / "run"
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["format_version"] == 1
    assert set(facts["fingerprints"]) == {"config", "data", "model"}
    assert facts["versions"]["transformers"] and facts["hardware"]["threads"]
    assert facts["results"]["test_loss"] == result.test_loss
    state = json.loads((run / "trainer_state.json").read_text())
    assert state["global_step"] == 12
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert set(trained[0]) == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "targets", "seconds"}
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8, 12]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    card = (run / "final" / "README.md").read_text()
    assert "base model" in card and "```yaml" in card
    from luthier.config.loading import load

    assert load(run / "config.yaml").output_dir == str(run)
    for path in run.rglob("*"):
        assert path.suffix not in (".bin", ".pt", ".pth", ".pkl", ".pickle"), path


@pytest.mark.parametrize("path", ["rows*.jsonl", "dataset_info.json#mine"])
def test_rows_named_otherwise_than_by_their_file_are_planned(path: str, tiny_llama: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 8)
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "rows.jsonl"}}')
    result = plan(config_for(tiny_llama, tmp_path / path, tmp_path / "run"))
    assert result.examples == 8


def test_a_data_set_of_a_hub_is_no_missing_file(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = config_for(tiny_llama, Path("owner/name"), tmp_path / "run")
    with pytest.raises(UserError) as caught:
        plan(config)
    assert "does not exist" not in str(caught.value)
    assert "owner/name" in str(caught.value)
