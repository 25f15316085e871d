"""Tiny tokenizers built in code, and files written for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.data.template_files import load_template, template_names
from tests.tiny import byte_level_bpe

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
# every template can be tried with the tokenizers below: a new one needs no edit here
SPECIAL += dict.fromkeys(
    token for name in template_names() for token in load_template(name).special_tokens if token not in SPECIAL
)
CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: ### Response: [INST] [/INST] <<SYS>> <</SYS>> user assistant system",
    "You are a helpful assistant. Hello, how are you? I am fine, thank you! Who are you? Another question",
    "the quick brown fox jumps over the lazy dog 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ {}%()'\"-_;:+=",
]


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without prefix space, as GPT-2, Llama 3, Qwen and SmolLM2 have."""
    tokenizer = byte_level_bpe(CORPUS, SPECIAL, 400 + len(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", extra_special_tokens=SPECIAL[3:]
    )


@pytest.fixture(scope="session")
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram with a metaspace before every text, as sentencepiece models (Llama 2) have."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    letters = sorted(set("".join(CORPUS)) | {"\n"})
    trainer = trainers.UnigramTrainer(
        vocab_size=300 + len(SPECIAL),
        special_tokens=SPECIAL,
        unk_token="<unk>",
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, "\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=SPECIAL[3:],
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Write a file: bytes and text as they are, a list as JSON or (for .jsonl) one object a line."""

    def put(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8", newline="")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return put


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets that stand beside the project on a development machine; a clone has none."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the project: real data sets are not part of it")
    return folder


@pytest.fixture
def tokenizer_folder(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tokenizer alone: looking at data needs no weights and no model's config."""
    folder = tmp_path / "tokenizer"
    byte_tokenizer.save_pretrained(folder)
    return folder
