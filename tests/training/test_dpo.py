"""Direct preference optimization: the loss written out, TRL's curve, and a reference that is computed once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin
from luthier.foundation.errors import DataError
from luthier.scoring.readouts import Scores, TargetLogp
from luthier.training import reference
from luthier.training.stages.dpo import Options, build
from tests.tiny import config_for

WORDS = ["the", "quick", "brown", "fox", "what", "is", "your", "name"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twelve pairs whose better answer is the longer one."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{WORDS[n % 8]} {WORDS[n * 3 % 8]}?"}],
            "chosen": [{"role": "assistant", "content": " ".join(WORDS[n % 5 : n % 5 + 3])}],
            "rejected": [{"role": "assistant", "content": WORDS[(n + 4) % 8]}],
        }
        for n in range(12)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reference, "reference_folder", lambda: tmp_path / "references")
    return tmp_path / "references"


def dpo_config(model: Path, data: Path, out: Path, **training: Any) -> dict[str, Any]:
    config = config_for(model, data, out, **{"logging_steps": 1, "num_train_epochs": 2, **training})
    config["data"] |= {"cutoff_length": 200}
    return {**config, "stage": "dpo"}


def losses(out: Path) -> list[float]:
    return [
        line["loss"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]


def example(chosen: list[float], rejected: list[float], origin: int) -> TokenizedExample:
    """A pair with so many trained tokens, and the reference's sums."""
    sequences = tuple(
        TokenSequence(tuple(range(3 + len(logps))), (0.0, 0.0, 0.0, *[1.0] * len(logps)))
        for logps in (chosen, rejected)
    )
    return TokenizedExample(sequences, Origin("pairs", origin), 0, {"reference.0": -2.0, "reference.1": -1.0})


def test_the_loss_of_two_pairs_written_out() -> None:
    batch = pack([example([0, 0], [0], 1), example([0], [0, 0], 2)])
    logp_N = torch.tensor([-1.0, -0.5, -3.0, -2.0, -1.0, -1.5])
    stage = build(Options(beta=0.5))
    found = stage.loss(Scores({TargetLogp(): logp_N}), batch)
    first = 0.5 * ((-1.5 - -2.0) - (-3.0 - -1.0))
    second = 0.5 * ((-2.0 - -2.0) - (-2.5 - -1.0))
    expected = math.log(1 + math.exp(-first)) + math.log(1 + math.exp(-second))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert stage.denominator(batch) == 2


def test_the_curve_equals_trl(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    shared = {
        "learning_rate": 5e-3, "lr_scheduler_type": "constant", "max_steps": 5, "per_device_train_batch_size": 4,
        "seed": 7, "logging_steps": 1,
    }  # fmt: skip
    config = dpo_config(tiny_llama, pairs, tmp_path / "run", **shared, save_strategy="no")
    config["data"] |= {"shuffle": False}
    luthier.train({**config, "method": {"name": "lora", "rank": 4, "alpha": 8}, "stage": {"name": "dpo", "beta": 0.3}})

    as_text = []
    for row in map(json.loads, pairs.read_text().splitlines()):
        prompt = f"<|im_start|>user\n{row['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        answers = {side: row[side][0]["content"] for side in ("chosen", "rejected")}  # TRL adds EOS itself
        as_text.append({"prompt": prompt, **answers})

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    torch.manual_seed(7)
    trainer = InOrder(
        model=get_peft_model(
            base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        ),
        args=DPOConfig(
            output_dir=str(tmp_path / "peer"), use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
            report_to="none", max_length=200, beta=0.3, gradient_checkpointing=False, **shared,
        ),
        train_dataset=Dataset.from_list(as_text),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
    )  # fmt: skip
    trainer.train()
    theirs = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    ours = losses(tmp_path / "run")
    assert ours[0] == pytest.approx(math.log(2), rel=1e-5)  # the model is its reference
    assert ours == pytest.approx(theirs, rel=3e-4)
    assert ours[-1] < 0.9 * ours[0]


@pytest.mark.parametrize("method", ["full", {"name": "lora", "init": "pissa"}])
def test_the_reference_is_computed_once(
    method: Any, tiny_llama: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    own = reference.Reference._compute
    monkeypatch.setattr(
        reference.Reference, "_compute", lambda self, name, rows: computed.append(name) or own(self, name, rows)
    )
    for out in ("first", "second"):
        config = dpo_config(tiny_llama, pairs, tmp_path / out, eval_strategy="epoch")
        config["data"] |= {"validation": 2, "test": 2}
        luthier.train({**config, "method": method})
    assert computed == ["train", "validation", "test"]
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    another = dpo_config(tiny_llama, pairs, tmp_path / "third", eval_strategy="epoch", seed=3)
    another["data"] |= {"validation": 2, "test": 2}
    luthier.train({**another, "method": method})
    assert len(computed) == 6  # another seed splits and starts otherwise


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_reference_is_computed_again(
    damage: str, tiny_llama: Path, pairs: Path, tmp_path: Path, own_cache: Path
) -> None:
    luthier.train(dpo_config(tiny_llama, pairs, tmp_path / "first"))
    (file,) = own_cache.glob("*/logp.safetensors")
    kept = file.read_bytes()
    file.unlink() if damage == "gone" else file.write_bytes(kept[:-5])
    luthier.train(dpo_config(tiny_llama, pairs, tmp_path / "second"))
    assert file.read_bytes() == kept
    assert losses(tmp_path / "first") == losses(tmp_path / "second")


def test_a_resumed_run_keeps_the_reference_it_began_with(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    """Also where the cache is gone: the reference is the model before the first step, not the checkpoint's."""
    import shutil

    whole = dpo_config(tiny_llama, pairs, tmp_path / "whole", max_steps=6, save_strategy="steps", save_steps=3)
    luthier.train(whole)
    shutil.rmtree(tmp_path / "references")
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step-00000006")
    again = {**whole, "training": {**whole["training"]}}
    before = losses(tmp_path / "whole")
    luthier.train(again, resume=True)
    assert losses(tmp_path / "whole") == before


def test_a_stream_is_refused(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    config = dpo_config(tiny_llama, pairs, tmp_path / "run", max_steps=2)
    config["data"] |= {"streaming": True}
    with pytest.raises(DataError, match="once for the whole set"):
        luthier.train(config)
