"""Direct preference optimization: the loss written out, TRL's curve, and a reference that is computed once."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import luthier
from luthier.commands import assembly
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin
from luthier.data.token_arrays import MemorySet, Numbering, TokenBlock, TokenJoiner
from luthier.foundation.errors import DataError
from luthier.model import loading
from luthier.scoring.readouts import Scores, TargetLogp
from luthier.scoring.scorer import Scorer
from luthier.training import reference
from luthier.training.stages.dpo import Options, build
from tests.scoring.test_narrowing import norm_in_double
from tests.tiny import config_for, tiny_folder

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


LONG = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "num_train_epochs": 8, "max_steps": -1, "seed": 7}


def plain_loop(folder: Path, pairs: Path, dtype: torch.dtype) -> list[float]:
    """The losses of eight passes in batches of four pairs: transformers on padded rows, torch's AdamW, equation 7."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(7)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, settings).to(dtype)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=5e-3, weight_decay=0.0)
    ids, answers = [], []
    for row in map(json.loads, pairs.read_text().splitlines()):
        prompt = tokenizer(
            f"<|im_start|>user\n{row['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        ).input_ids
        for side in ("chosen", "rejected"):
            answer = tokenizer(f"{row[side][0]['content']}<|im_end|>").input_ids
            ids.append(torch.tensor(prompt + answer))
            answers.append(torch.tensor([0] * len(prompt) + [1] * len(answer)))
    ids_SL, answers_SL = pad_sequence(ids, batch_first=True), pad_sequence(answers, batch_first=True)
    real_SL = pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)

    def logp(start: int) -> Tensor:
        rows = slice(start, start + 8)
        logits = model(input_ids=ids_SL[rows], attention_mask=real_SL[rows], use_cache=False).logits[:, :-1]
        chosen = logits.log_softmax(-1).gather(2, ids_SL[rows, 1:, None])[..., 0]
        return (chosen * answers_SL[rows, 1:]).sum(1)

    with torch.no_grad():
        reference = [logp(start).float() for start in range(0, 24, 8)]  # it is kept in float32
    losses = []
    for step in range(24):
        ratio_E2 = (logp(step % 3 * 8) - reference[step % 3]).view(-1, 2)
        loss = -torch.log(torch.sigmoid(0.3 * (ratio_E2[:, 0] - ratio_E2[:, 1]))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_rounding_alone_parts_the_curve_from_a_plain_loops(
    tiny_llama: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 every loss of eight passes is the same; in float32 both ways part, and further from step to step."""
    apart: dict[torch.dtype, list[float]] = {}
    for dtype in (torch.float32, torch.float64):
        if dtype == torch.float64:
            monkeypatch.setattr(LlamaRMSNorm, "forward", norm_in_double)
            monkeypatch.setattr(reference, "reference_folder", lambda: tmp_path / "double")
        monkeypatch.setattr(assembly, "Scorer", lambda model, *rest, dtype=dtype: Scorer(model.to(dtype), *rest))
        config = dpo_config(tiny_llama, pairs, tmp_path / str(dtype), **LONG, save_strategy="no", prefix_sharing="on")
        config |= {"method": {"name": "lora", "rank": 4, "alpha": 8}, "stage": {"name": "dpo", "beta": 0.3}}
        config["data"] |= {"shuffle": False}
        luthier.train({**config, "model": {"name": str(tiny_llama), "attention": "segmented"}})
        ours, theirs = losses(tmp_path / str(dtype)), plain_loop(tiny_llama, pairs, dtype)
        assert len(ours) == len(theirs) == 24 and theirs[-1] < 0.1 * theirs[0]
        apart[dtype] = [abs(own - other) / other for own, other in zip(ours, theirs, strict=True)]
    assert max(apart[torch.float64]) < 1e-9
    in_passes = [max(apart[torch.float32][start : start + 3]) for start in range(0, 24, 3)]
    assert 1e4 * max(apart[torch.float64]) < in_passes[0] < 1e-5 and max(in_passes[4:]) > in_passes[0]


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


def test_a_model_trained_anew_in_its_place_is_another_reference(
    pairs: Path, rows: Path, tmp_path: Path, own_cache: Path
) -> None:
    """Its files have the same names, sizes and safetensors headers."""
    base = tiny_folder(tmp_path / "base")
    found = []
    for rate in (5e-3, 1e-2):
        config = config_for(base, rows, tmp_path / "sft", max_steps=2, learning_rate=rate)
        luthier.train({**config, "method": "full"}, overwrite=True)
        luthier.train(dpo_config(tmp_path / "sft" / "final", pairs, tmp_path / "dpo", max_steps=1), overwrite=True)
        found.append(losses(tmp_path / "dpo"))
    assert len(list(own_cache.iterdir())) == 2
    assert found == [[pytest.approx(math.log(2), rel=1e-5)]] * 2  # the model is its reference


@pytest.mark.parametrize("changed", ["code_fingerprint", "plugin_code"])
def test_after_a_change_of_code_it_is_another_reference(
    changed: str, tiny_llama: Path, pairs: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """luthier's own, or that of a method of the user's."""
    for name in ("first", "second"):
        monkeypatch.setattr(f"luthier.commands.precomputed.{changed}", lambda *given, name=name: name)
        luthier.train(dpo_config(tiny_llama, pairs, tmp_path / name, max_steps=1))
    assert len(list(own_cache.iterdir())) == 2


def test_a_reference_that_cannot_be_written_ends_no_run(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a full disk: the system refuses what goes beyond so many bytes of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    said: list[str] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        reference._write(own_cache / "key", np.zeros((1000, 2), np.float32), said.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(said) == 1 and "not kept, since" in said[0] and "can't be written" in said[0]
    assert not (own_cache / "key").exists()


def test_other_tokens_of_the_same_files_are_other_references(
    tiny_llama: Path, pairs: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user's own format makes them after a change of its code."""
    from luthier.data import preparing

    luthier.train(dpo_config(tiny_llama, pairs, tmp_path / "first", max_steps=1))
    own = preparing.in_memory

    def changed(*arguments: Any) -> Any:
        sets = own(*arguments)
        sets.splits["train"]._arrays.tokens[-2] += 1
        return sets

    monkeypatch.setattr(preparing, "in_memory", changed)
    config = dpo_config(tiny_llama, pairs, tmp_path / "second", max_steps=1)
    config["data"] |= {"cache": False}
    luthier.train(config)
    assert len(list(own_cache.iterdir())) == 2


@pytest.mark.parametrize(("dtype", "tf32"), [("bfloat16", None), ("float32", False)])
def test_in_another_precision_it_is_another_reference(
    dtype: str, tf32: Any, tiny_llama: Path, pairs: Path, tmp_path: Path, own_cache: Path, monkeypatch: Any
) -> None:
    """What `model.dtype: auto` becomes depends on the processor, which the config does not say."""
    for name, chosen, products in (("first", "float32", None), ("second", dtype, tf32)):
        monkeypatch.setattr(loading, "choose_dtype", lambda *_, chosen=chosen: getattr(torch, chosen))
        luthier.train(dpo_config(tiny_llama, pairs, tmp_path / name, max_steps=1, tf32=products))
    assert len(list(own_cache.iterdir())) == 2


def test_one_set_in_another_file_has_the_reference_already(
    tiny_llama: Path, pairs: Path, tmp_path: Path, own_cache: Path
) -> None:
    luthier.train(dpo_config(tiny_llama, pairs, tmp_path / "first", max_steps=1))
    moved = pairs.rename(tmp_path / "moved.jsonl")
    luthier.train(dpo_config(tiny_llama, moved, tmp_path / "second", max_steps=1))
    assert len(list(own_cache.iterdir())) == 1


def test_sets_measured_apart_share_one_pass(
    tiny_llama: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    own = reference.Reference._compute
    monkeypatch.setattr(
        reference.Reference, "_compute", lambda self, name, rows: computed.append(len(rows)) or own(self, name, rows)
    )
    rows = pairs.read_text().splitlines(keepends=True)
    for name, part in (("one", rows[:3]), ("two", rows[3:8])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    config = dpo_config(tiny_llama, pairs, tmp_path / "run", max_steps=1, eval_strategy="steps", eval_steps=1)
    config["data"] |= {
        "validation": [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")],
        "evaluate_each": True,
    }
    luthier.train(config)
    assert computed == [12, 8]
    kept = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (measured,) = (line for line in kept if "eval_loss" in line)
    parts = (3 * measured["eval_one_loss"] + 5 * measured["eval_two_loss"]) / 8
    assert measured["eval_loss"] == pytest.approx(parts, rel=1e-5)


class SecondRank:
    """What the second of two ranks sees of a run whose first rank has a reference of one pair."""

    rank, world_size, device = 1, 2, torch.device("cpu")

    def lead(self, work: Any) -> bool:
        return True

    def totals(self, *values: float) -> list[float]:
        return [mine + theirs for mine, theirs in zip(values, (-2.0, -1.5), strict=True)]


def test_a_rank_without_the_file_gets_the_first_ranks_numbers(own_cache: Path) -> None:
    """On another machine, say: it must not begin to compute what nobody computes with it."""
    scorer = torch.nn.Identity()  # gives no log-probabilities: computing them would fail
    found = reference.Reference(scorer, SecondRank(), {}, 2, False, print)  # type: ignore[arg-type]
    memory = MemorySet(TokenJoiner(Numbering()), "<u2")
    memory.add(TokenBlock.of([example([0, 0], [0], 1)], "<u2"))
    assert found.logp("train", memory.finish()).tolist() == [[-2.0, -1.5]]


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
    for gone in ("references", "whole/final", "whole/checkpoints/step-00000006"):
        shutil.rmtree(tmp_path / gone)
    again = {**whole, "training": {**whole["training"]}}
    before = losses(tmp_path / "whole")
    luthier.train(again, resume=True)
    assert losses(tmp_path / "whole") == before


def test_a_stream_is_refused(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    config = dpo_config(tiny_llama, pairs, tmp_path / "run", max_steps=2)
    config["data"] |= {"streaming": True}
    with pytest.raises(DataError, match="once for the whole set"):
        luthier.train(config)
