"""Plain texts of a tokenizer that puts tokens around them: what comes before the text stays, and nothing stands behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from luthier.commands.benchmark import Benchmark, benchmark
from luthier.commands.predict import predict
from luthier.config.generation_section import GenerationSettings
from luthier.config.schema import ModelConfig
from luthier.evaluation.benchmarks import load_benchmark, prompt_of
from luthier.evaluation.opening import text_to_continue
from luthier.model.loading import tokenizer_at
from tests.evaluation.test_benchmarks import FEW, mmlu
from tests.tiny import SPECIAL, tiny_folder, tiny_tokenizer

BOS, EOS = "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer puts BOS before a text and EOS behind it."""
    path = tiny_folder(tmp_path_factory.mktemp("models") / "both-ends")
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = BOS
    tokenizer.backend_tokenizer.post_processor = processor(f"{BOS} $A {EOS}")
    tokenizer.save_pretrained(path)
    return path


def processor(layout: str) -> TemplateProcessing:
    return TemplateProcessing(layout, special_tokens=[(token, number) for number, token in enumerate(SPECIAL)])


@pytest.mark.parametrize("before", ["", BOS, f"<|endoftext|> {BOS}"])
@pytest.mark.parametrize("behind", ["", EOS, f"{EOS} {EOS}"])
def test_nothing_stands_behind_a_text(before: str, behind: str) -> None:
    tokenizer = tiny_tokenizer()
    if before or behind:
        tokenizer.backend_tokenizer.post_processor = processor(f"{before} $A {behind}".strip())
    ids = text_to_continue(tokenizer)
    start = tokenizer.convert_tokens_to_ids(before.split())
    assert len(tokenizer("the fox")["input_ids"]) == len(ids("the fox")) + len(behind.split())
    for text in ("the fox", "a", "", f"told {EOS}"):  # one that is written out belongs to the text
        assert ids(text) == [*start, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_predict_continues_a_text(folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("the quick brown", "name is")))
    predict(str(folder), [str(rows)], tmp_path / "out.jsonl", GenerationSettings(max_new_tokens=6))
    tokenizer, model = tokenizer_at(folder), AutoModelForCausalLM.from_pretrained(folder)
    for line, text in zip(
        (tmp_path / "out.jsonl").read_text().splitlines(), ("the quick brown", "name is"), strict=True
    ):
        ids = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        answer = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
        found = json.loads(line)
        assert found["prompt_tokens"] == len(ids)
        assert found["prediction"] == tokenizer.decode(answer, skip_special_tokens=True)


def test_the_letter_alone_is_an_answer_in_a_benchmark(folder: Path, tmp_path: Path) -> None:
    place = mmlu(tmp_path / "mmlu")
    (row, *_) = benchmark(ModelConfig(name=str(folder)), Benchmark(place, shots=0, how=FEW)).rows
    tokenizer, model = tokenizer_at(folder), AutoModelForCausalLM.from_pretrained(folder)
    subject = next(one for one in load_benchmark(place, "test", 0) if one.name == row["source"])
    prompt, answers = prompt_of(subject, subject.questions[0], ())
    for answer in answers:
        ids, asked = (
            [1, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in (prompt + answer, prompt)
        )
        logp = model(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
        expected = sum(float(logp[at - 1, ids[at]]) for at in range(len(asked), len(ids)))
        assert row["log_likelihoods"][answer.strip()] == pytest.approx(expected, abs=2e-5)
