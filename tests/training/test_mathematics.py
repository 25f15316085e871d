"""The numbers that must hold: a step's loss, its gradients, the schedules, the order of data, parity with the Trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import luthier
from luthier.config.loading import validate
from luthier.foundation.errors import TrainingError
from luthier.training.optimization import make_scheduler, parameter_groups, warmup_steps
from luthier.training.schedule import IndexedSchedule
from tests.tiny import CHATML, config_for, tiny_folder, tiny_model, tiny_tokenizer


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_one_by_eight_equals_eight_by_one(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """The loss is a sum over the step divided once, so how a step is cut into batches does not matter."""
    runs = {}
    for batch, accumulation in ((8, 1), (1, 8), (4, 2), (3, 3)):
        if batch * accumulation != 8:
            continue
        out = tmp_path / f"{batch}x{accumulation}"
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 5}
        luthier.train(config_for(tiny_llama, rows, out, **settings))
        runs[batch] = (metrics(out), load_file(out / "final" / "adapter_model.safetensors"))
    lines, weights = runs[8]
    for batch in (1, 4):
        for own, reference in zip(runs[batch][0], lines, strict=True):
            assert own["loss"] == pytest.approx(reference["loss"], rel=1e-5)
            assert own["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
            assert (own["tokens"], own["targets"]) == (reference["tokens"], reference["targets"])
        for name, value in runs[batch][1].items():
            # AdamW divides by a gradient's own size: rounding in a near-zero gradient is a full step, so compare roughly
            assert torch.allclose(value, weights[name], atol=2e-3), name


def test_a_step_written_out(tiny_llama: Path, tmp_path: Path) -> None:
    """Loss and gradient norm of the first step, by hand: two rows of different length, one division by all targets."""
    data = tmp_path / "two.jsonl"
    pairs = [("hi?", "yes."), ("what is your name?", "the quick brown fox is my name.")]
    data.write_text("".join(json.dumps({"instruction": q, "output": a}) + "\n" for q, a in pairs))
    config = config_for(
        tiny_llama, data, tmp_path / "run", max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2
    )
    luthier.train({**config, "method": "full"})

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    total, count = torch.zeros(()), 0
    for question, answer in pairs:
        prompt = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").input_ids
        target = tokenizer(f"{answer}<|im_end|>").input_ids
        logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        total = total + nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum")
        count += len(target)
    (total / count).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    (line,) = metrics(tmp_path / "run")
    assert line["targets"] == count
    assert line["loss"] == pytest.approx(float(total.detach()) / count, rel=1e-5)
    assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_losses_equal_transformers_trainer(method: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """Ten steps of AdamW with decay, clipping, warm-up and a cosine, on the same rows in the same order."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    shared = {
        "learning_rate": 2e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, "lr_scheduler_type": "cosine", "warmup_steps": 3,
        "max_steps": 10, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "seed": 7, "logging_steps": 1,
    }  # fmt: skip
    config = config_for(tiny_llama, rows, tmp_path / "run", **shared, save_steps=100)
    config["data"] |= {"shuffle": False, "cutoff_length": 200}  # nothing is cut: tools cut each in their own way
    config["method"] = {"name": method, **({"rank": 4, "alpha": 8} if method == "lora" else {})}
    luthier.train(config)

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    examples = []
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n").input_ids
        target = tokenizer(f"{row['output']}<|im_end|>").input_ids
        ids = prompt + target
        examples.append({"input_ids": ids, "labels": [-100] * len(prompt) + target})
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    if method == "lora":
        torch.manual_seed(7)
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "peer"), use_cpu=True, save_strategy="no", disable_tqdm=True, **shared
        ),
        train_dataset=examples,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    theirs = [line for line in trainer.state.log_history if "loss" in line]
    ours = metrics(tmp_path / "run")
    assert len(ours) == len(theirs) == 10
    for own, peer in zip(ours, theirs, strict=True):
        assert own["loss"] == pytest.approx(peer["loss"], rel=3e-4)
        assert own["learning_rate"] == pytest.approx(peer["learning_rate"], rel=1e-9)
        assert own["grad_norm"] == pytest.approx(peer["grad_norm"], rel=2e-3)
        assert own["epoch"] == pytest.approx(peer["epoch"])


def test_losses_equal_trl(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """TRL's SFTTrainer on the same prompts and completions: its own tokenization, masking and loss, beside ours."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    shared = {
        "learning_rate": 2e-3, "lr_scheduler_type": "constant", "max_steps": 6, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "seed": 7, "logging_steps": 1,
    }  # fmt: skip
    config = config_for(tiny_llama, rows, tmp_path / "run", **shared, save_strategy="no")
    config["data"] |= {"shuffle": False, "cutoff_length": 200}
    luthier.train({**config, "method": "full"})

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    pairs = []
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        prompt = f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n"
        pairs.append({"prompt": prompt, "completion": row["output"]})  # TRL adds EOS itself

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(tiny_llama),
        args=SFTConfig(
            output_dir=str(tmp_path / "peer"),
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            max_length=200,
            **shared,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    trainer.train()
    theirs = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    ours = [line["loss"] for line in metrics(tmp_path / "run")]
    assert ours == pytest.approx(theirs, rel=3e-4)


def test_decay_leaves_norms_and_biases_alone() -> None:
    for kind in ("llama", "qwen2", "gpt2"):
        model = tiny_model(kind)
        embeddings, decayed, kept = parameter_groups(model, 0.1, 1e-3)
        assert [g["role"] for g in (embeddings, decayed, kept)] == ["embedding", "matrix", "vector"]
        assert [g["weight_decay"] for g in (embeddings, decayed, kept)] == [0.1, 0.1, 0.0]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for parameter in kept["params"]:
            name = names[id(parameter)]
            assert "norm" in name or "ln_" in name or name.endswith("bias"), name
        for parameter in decayed["params"]:
            assert parameter.ndim == 2, names[id(parameter)]
        assert all(
            "emb" in names[id(p)] or "wt" in names[id(p)] or "wp" in names[id(p)] or "head" in names[id(p)]
            for p in embeddings["params"]
        )
        assert sum(len(g["params"]) for g in (embeddings, decayed, kept)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("setting", "total", "expected"), [(0, 50, 0), (5, 50, 5), (0.1, 55, 6), (0.5, 3, 2), (100, 10, 100)]
)
def test_warmup_is_a_count_or_a_share(setting: float, total: int, expected: int) -> None:
    from transformers import TrainingArguments

    assert warmup_steps(setting, total) == expected
    assert TrainingArguments(output_dir="x", warmup_steps=setting, use_cpu=True).get_warmup_steps(total) == expected


def shape(kind: str, step: int, warm: int, total: int) -> float:
    """The schedules as their papers and transformers' documentation state them, relative to the peak."""
    if kind == "constant":
        return 1.0
    if step < warm:
        return 0.2 + 0.8 * step / warm if kind == "warmup_stable_decay" else step / warm
    done = (step - warm) / (total - warm)
    return {
        "constant_with_warmup": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "cosine_with_restarts": 0.5 * (1 + math.cos(math.pi * ((2 * done) % 1.0))),
        # polynomial with power 2 down to 1e-7 of a peak of 1e-2
        "polynomial": ((1 - 1e-5) * (1 - done) ** 2) + 1e-5,
        # cosine down to 1e-3 of a peak of 1e-2
        "cosine_with_min_lr": 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)),
        # the warm-up's length is its time scale
        "inverse_sqrt": math.sqrt(warm / step),
        # a cosine down to a fifth over the last 2 steps, a quarter of all
        "warmup_stable_decay": 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * max(0, step - (total - 2)) / 2)),
    }[kind]


SCHEDULE_KWARGS: dict[str, dict[str, float]] = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr": 1e-3},
    "constant": {},
    "constant_with_warmup": {},
    "polynomial": {"power": 2.0, "lr_end": 1e-7},
    "inverse_sqrt": {},
    "warmup_stable_decay": {"num_decay_steps": 0.25, "min_lr_ratio": 0.2},
}


@pytest.mark.parametrize(
    ("kind", "kwargs", "said"),
    [
        ("linear", {"power": 2.0}, "it takes no power"),
        ("cosine_with_restarts", {"num_cycles": 1.5}, "num_cycles must be a whole number, found 1.5"),
        ("cosine_with_min_lr", {}, "min_lr"),
        ("warmup_stable_decay", {}, "num_decay_steps is missing"),
        ("warmup_stable_decay", {"num_decay_steps": 6}, "num_decay_steps is 6, and 5 steps follow the warm-up"),
    ],
)
def test_settings_that_a_schedule_does_not_take(kind: str, kwargs: dict[str, float], said: str) -> None:
    settings: dict[str, Any] = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": kwargs, "warmup_steps": 3}
    config = validate({"model": "m", "data": {"train": "a"}, "training": settings})
    with pytest.raises(TrainingError, match=f"do not fit the schedule {kind}.*{said}"):
        make_scheduler(config, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), total_steps=8)


@pytest.mark.parametrize("kind", SCHEDULE_KWARGS)
def test_schedules(kind: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    kwargs = SCHEDULE_KWARGS[kind]
    settings = {
        "lr_scheduler_type": kind,
        "lr_scheduler_kwargs": kwargs,
        "warmup_steps": 0 if kind == "constant" else 3,
        "learning_rate": 1e-2,
        "max_steps": 8,
    }
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", **settings, save_strategy="no"))
    rates = [line["learning_rate"] for line in metrics(tmp_path / "run")]
    assert rates == pytest.approx([1e-2 * shape(kind, step, 3, 8) for step in range(8)], rel=1e-6, abs=1e-12)


schedules = st.builds(
    IndexedSchedule,
    examples=st.integers(1, 60),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    epochs=st.sampled_from([0.5, 1.0, 2.0, 2.5]),
    max_steps=st.just(-1),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
)


@given(schedules, st.integers(0, 2))
def test_an_epoch_is_a_permutation_in_steps(schedule: IndexedSchedule, epoch: int) -> None:
    steps = [schedule.indices(epoch, index) for index in range(schedule.steps_per_epoch)]
    seen = [example for step in steps for batch in step for example in batch]
    assert sorted(seen) == list(range(schedule.examples))
    assert all(len(batch) <= schedule.batch_size for step in steps for batch in step)
    assert all(sum(map(len, step)) == schedule.examples_per_step for step in steps[:-1])
    if not schedule.shuffle:
        assert seen == sorted(seen)


@given(schedules, st.integers(1, 3))
def test_ranks_share_a_step(schedule: IndexedSchedule, world: int) -> None:
    """Several ranks take together what one rank with as many batches per step takes."""
    from dataclasses import replace

    whole = replace(schedule, accumulation=schedule.accumulation * world)
    parts = [replace(schedule, rank=rank, world_size=world) for rank in range(world)]
    assert whole.steps_per_epoch == parts[0].steps_per_epoch
    for index in range(whole.steps_per_epoch):
        together = [example for part in parts for batch in part.indices(0, index) for example in batch]
        assert sorted(together) == sorted(example for batch in whole.indices(0, index) for example in batch)


def test_the_order_changes_with_epoch_and_seed_only() -> None:
    made = IndexedSchedule(40, 4, 1, 3.0, -1, 5, True)
    assert made.indices(0, 0) == IndexedSchedule(40, 4, 1, 9.0, -1, 5, True).indices(0, 0)
    assert made.indices(0, 0) != made.indices(1, 0)
    assert made.indices(0, 0) != IndexedSchedule(40, 4, 1, 3.0, -1, 6, True).indices(0, 0)


def test_fractional_epochs_round_up_to_a_step(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    result = luthier.train(config_for(tiny_llama, rows, tmp_path / "run", max_steps=-1, num_train_epochs=1.4))
    assert result.steps == math.ceil(1.4 * 6)
    assert metrics(tmp_path / "run")[-1]["epoch"] == pytest.approx(9 / 6)


def test_pretraining_trains_every_token(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model", template=None)
    text = tmp_path / "text.txt"
    documents = ["the quick brown fox is what it is", "a user and an assistant", "what is your name then"]
    text.write_text("\n".join(documents) + "\n")
    config = config_for(model, text, tmp_path / "run", max_steps=2, per_device_train_batch_size=100)
    config["data"] = {"train": str(text), "cutoff_length": 15}
    losses = {}
    for across in (True, False):
        config["stage"] = {"name": "pretrain", "attend_across_documents": across}
        luthier.train({**config, "output_dir": str(tmp_path / f"run-{across}")})
        losses[across] = metrics(tmp_path / f"run-{across}")[0]
    tokenizer = tiny_tokenizer()
    stream = [token for document in documents for token in [*tokenizer(document).input_ids, tokenizer.eos_token_id]]
    blocks = math.ceil(len(stream) / 15)
    assert losses[True]["tokens"] == losses[False]["tokens"] == len(stream)
    assert losses[True]["targets"] == len(stream) - blocks  # a block's first token has nothing before it
    assert losses[False]["targets"] < losses[True]["targets"]
    assert losses[True]["loss"] != losses[False]["loss"]
    assert CHATML not in (tmp_path / "run-True" / "final" / "tokenizer_config.json").read_text()
