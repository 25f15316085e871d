"""One hash over everything that changes the tokens or their order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.config.data_section import DataConfig
from luthier.data.locating import Located
from luthier.data.sources._compressed import inner_path
from luthier.foundation.files import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# raise it when the same inputs are made into other tokens
DATA_VERSION = 1


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of a tokenizer's rules, vocabulary and special tokens."""
    digest = hashlib.sha256()
    if tokenizer.is_fast:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    else:
        digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
        digest.update(type(tokenizer).__qualname__.encode())
    digest.update(json.dumps({k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())}).encode())
    return digest.hexdigest()


def data_fingerprint(
    data: DataConfig,
    located: Mapping[str, Sequence[Located]],
    seed: int,
    tokenizer: str,
    template: str,
    encoder: str,
    encoder_options: Mapping[str, Any],
) -> str:
    """sha256 over the data files' bytes and every setting that shapes the tokens; names of folders don't matter.

    Args:
        located: the files of each entry of train, validation and test.
        tokenizer: its fingerprint.
        template: the chat template's source, "" where none is used.
    """
    described = {
        "version": DATA_VERSION,
        "train": _entries(located["train"]),
        "validation": _entries(located["validation"]) if isinstance(data.validation, list) else data.validation,
        "test": _entries(located["test"]) if isinstance(data.test, list) else data.test,
        "invalid_rows": data.invalid_rows,
        "shuffle": data.shuffle,
        "mix": data.mix,
        "seed": seed,
        "tokenizer": tokenizer,
        "template": template,
        "encoder": encoder,
        "encoder_options": dict(sorted(encoder_options.items())),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _entries(located: Sequence[Located]) -> list[dict[str, Any]]:
    return [
        {
            "files": [(sha256_of(file), inner_path(file).suffix.lower()) for file in place.files],
            **place.entry.model_dump(exclude={"path"}),
        }
        for place in located
    ]
