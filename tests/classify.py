"""Labelled rows that a tiny model learns in seconds, and a tiny BERT with a tokenizer of its own."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ("the", "fox", "is", "name", "your", "what")
TELLING = {"bad": "brown", "good": "quick"}


def labelled_rows(count: int, seed: int = 0, *, pairs: bool = False) -> list[dict[str, Any]]:
    """Texts with one telling word near the end; of pairs it stands in the second text."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        label = chance.choice(sorted(TELLING))
        words = chance.choices(WORDS, k=chance.randint(1, 7))
        words.insert(len(words) - chance.randint(0, 1), TELLING[label])
        text = " ".join(words)
        other = " ".join(chance.choices(WORDS, k=3))
        rows.append({"text": other, "text_pair": text, "label": label} if pairs else {"text": text, "label": label})
    return rows


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def bert_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Words, with [CLS] and [SEP] around them and token types for a second text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS, *TELLING.values()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )


def bert_config(**settings: Any) -> transformers.BertConfig:
    return transformers.BertConfig(
        **{
            "vocab_size": 12,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": 0,
            **settings,
        }
    )


def bert_folder(path: Path) -> Path:
    """A tiny BERT encoder without a head, as from a hub."""
    return encoder_folder(path, bert_config())


def encoder_folder(path: Path, config: transformers.PreTrainedConfig) -> Path:
    """A tiny encoder without a head, with words for tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.normal_(0.0, 0.15)
    model.save_pretrained(path)
    bert_tokenizer().save_pretrained(path)
    return path


def classification_config(
    model: Path, rows: Path, out: Path, method: Any = "lora", stage: Any = "classification", **training: Any
) -> dict[str, Any]:
    """A quick run that learns the telling words."""
    return {
        "model": str(model),
        "data": {"train": str(rows), "validation": 12, "cutoff_length": 64},
        "stage": stage,
        "method": method,
        "training": {
            "num_train_epochs": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "eval_strategy": "epoch",
            "use_cpu": True,
            **training,
        },
        "output_dir": str(out),
    }
