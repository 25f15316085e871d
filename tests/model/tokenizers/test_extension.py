"""New words for a model: one token each, old tokens' logits as before, rows as --init says."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.config.schema import ModelConfig
from luthier.foundation.errors import ModelError, UserError
from luthier.model.embeddings import both_embeddings
from luthier.model.loading import find
from luthier.model.tokenizers.extension import extend, extend_folder
from tests import warm_python
from tests.tiny import KINDS, tiny_folder, tiny_model, tiny_tokenizer

WORDS: dict[str, str | None] = {"zither": None, "河边": None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_plain_transformers_loads(kind: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", kind)
    done = extend_folder(find(ModelConfig(name=str(folder))), tmp_path / "out", WORDS)
    old, new = (AutoModelForCausalLM.from_pretrained(place) for place in (folder, tmp_path / "out"))
    before, after = (AutoTokenizer.from_pretrained(place) for place in (folder, tmp_path / "out"))
    size = len(before)
    assert done.ids == (size, size + 1)
    assert done.tied == (kind != "llama") == (new.get_input_embeddings().weight is new.get_output_embeddings().weight)
    assert new.config.vocab_size == new.get_input_embeddings().weight.shape[0] == done.rows == size + 2
    text = "the quick brown fox, 人 and a zit her"
    ids = before(text, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, after(text, return_tensors="pt")["input_ids"])
    with torch.no_grad():
        # the matrix product of another width may add in another order
        torch.testing.assert_close(new(ids).logits[..., :size], old(ids).logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(new.get_input_embeddings().weight[:size], old.get_input_embeddings().weight)
    assert torch.equal(new.get_output_embeddings().weight[:size], old.get_output_embeddings().weight)
    assert after("zither", add_special_tokens=False)["input_ids"] == [size]
    assert size + 1 in after("在河边走")["input_ids"], "scripts without spaces have no word ends"
    assert size not in after("zithers")["input_ids"]
    assert after.decode(after("a zither, 在河边走")["input_ids"]) == "a zither, 在河边走"
    assert after.chat_template == before.chat_template


@pytest.mark.parametrize("kind", KINDS)
def test_rows_as_init_says(kind: str) -> None:
    described: dict[str, str | None] = {"zither": "the quick", "viol": "fox"}
    for init, words in (("mean", WORDS), ("noise", WORDS), ("description", described)):
        model, tokenizer = tiny_model(kind, len(tiny_tokenizer())), tiny_tokenizer()
        size = len(tokenizer)
        parts = [tokenizer(text or "")["input_ids"] for text in words.values()]
        ids = list(extend(model, tokenizer, words, init, seed=3).ids)
        for weight in both_embeddings(model):
            mean = weight[:size].mean(dim=0)
            if init == "mean":
                torch.testing.assert_close(weight[ids], torch.stack([mean, mean]))
            if init == "description":
                torch.testing.assert_close(weight[ids], torch.stack([weight[tokens].mean(dim=0) for tokens in parts]))
            if init == "noise":
                spread = (weight[ids] - mean).std().item()
                assert 0.7 / weight.shape[1] ** 0.5 < spread < 1.3 / weight.shape[1] ** 0.5


def test_noise_is_a_function_of_the_seed() -> None:
    def rows(seed: int) -> torch.Tensor:
        model = tiny_model("qwen2", len(tiny_tokenizer()))
        return model.get_input_embeddings().weight[list(extend(model, tiny_tokenizer(), WORDS, "noise", seed).ids)]

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))


def test_spare_rows_are_used_first() -> None:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    model = tiny_model("qwen2", size + 5)
    done = extend(model, tokenizer, WORDS)
    assert (done.rows_before, done.rows) == (size + 5, size + 5)
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[size], weight[:size].mean(dim=0))


@pytest.mark.parametrize(
    ("words", "init", "said"),
    [
        ({"a": None, "zither": None}, "mean", "a token for 'a' already"),
        ({"<|im_end|>": None}, "mean", "already"),
        ({}, "mean", "no words"),
        (WORDS, "meen", "Did you mean 'mean'"),
        (WORDS, "description", "'zither', '河边' have no description"),
        ({"zither": "strings"}, "mean", "does not read"),
    ],
)
def test_refusals(words: dict[str, str | None], init: str, said: str, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        extend_folder(find(ModelConfig(name=str(tiny_llama))), tmp_path / "out", words, init=init)
    assert said in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), LoraConfig(target_modules="all-linear"))
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="is an adapter"):
        extend_folder(find(ModelConfig(name=str(tmp_path / "adapter"))), tmp_path / "out", WORDS)


KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import PreTrainedTokenizerBase
from luthier.config.schema import ModelConfig
from luthier.model.loading import find
from luthier.model.tokenizers.extension import extend_folder
if sys.argv[3] == "kill":
    # the weights are written, the tokenizer is not
    PreTrainedTokenizerBase.save_pretrained = lambda *a, **b: os.kill(os.getpid(), signal.SIGKILL)
extend_folder(find(ModelConfig(name=sys.argv[1])), Path(sys.argv[2]), {"zither": None})
"""


def test_killed_while_writing(tiny_llama: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path / "out"
    program = ("-c", KILLED, str(tiny_llama), str(out))
    done = warm_python.run(*program, "kill", outputs=tmp_path_factory.mktemp("outputs"))
    assert done.returncode == -signal.SIGKILL
    assert not out.exists(), "no half a model under the name that was asked for"
    done = warm_python.run(*program, "go on", outputs=tmp_path_factory.mktemp("outputs"))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the next writer removes what was left"
    AutoTokenizer.from_pretrained(out)
