"""One hash over everything that changes the tokens or their order; and the cache's key, over what its entries depend on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence, Set
from datetime import date
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from luthier.config.data_section import DataConfig
from luthier.data.locating import Located
from luthier.data.sources._compressed import inner_path
from luthier.data.templating import writes_date
from luthier.foundation.files import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# raise it when the same inputs are made into other tokens
DATA_VERSION = 2
# luthier's own files that make tokens of data files
CODE = ("data/**/*.py", "config/*.py", "foundation/seeding.py")
LIBRARIES = ("tokenizers", "transformers", "Jinja2", "datasets")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of a tokenizer's rules, vocabulary and special tokens."""
    digest = hashlib.sha256()
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        digest.update(json.dumps({**rules, "truncation": None, "padding": None}).encode())  # these a call may leave
    else:
        digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
        digest.update(type(tokenizer).__qualname__.encode())
        with TemporaryDirectory() as folder:
            for path in sorted(map(Path, tokenizer.save_vocabulary(folder))):
                digest.update(path.read_bytes())
    settings = {**tokenizer.init_kwargs, "split_special_tokens": tokenizer.split_special_tokens}
    plain = {name: value for name, value in settings.items() if isinstance(value, (bool, int, float)) or value is None}
    digest.update(json.dumps(sorted(plain.items())).encode())
    digest.update(json.dumps({k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())}).encode())
    return digest.hexdigest()


def describe_data(
    data: DataConfig,
    located: Mapping[str, Sequence[Located]],
    seed: int,
    tokenizer: str,
    template: str,
    encoder: str,
    encoder_options: Mapping[str, Any],
) -> dict[str, Any]:
    """The data files' bytes (hashed) and every setting that shapes the tokens; names of folders don't matter.

    Args:
        located: the files of each entry of train, validation and test.
        tokenizer: its fingerprint.
        template: the chat template's source, "" where none is used.
    """
    return {
        "version": DATA_VERSION,
        "train": _entries(located.get("train", [])),
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
        **({"evaluate_each": True} if data.evaluate_each else {}),
    }


def data_fingerprint(described: Mapping[str, Any]) -> str:
    """sha256 over what `describe_data` gives: what a run learns from, in which order."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def cache_key(described: Mapping[str, Any], paths: Sequence[str], day: date | None = None) -> str:
    """Name of a cache's entry: a hash over all that an entry's content depends on, and nothing else.

    Left out of what `describe_data` gives are `shuffle`, which orders examples anew each epoch, and a seed that decides
    nothing. Added are the code that reads, renders and tokenizes: luthier's own, the libraries', a user's plug-ins'.

    Args:
        paths: the data files as they are called, of which some may be the same.
        day: that a template which writes the date is told; None: today.
    """
    kept = {name: value for name, value in described.items() if name != "shuffle"}
    parts = [described[name] for name in ("train", "validation", "test")]
    entries = [entry for part in parts if isinstance(part, list) for entry in part]
    if not (any(isinstance(part, (int, float)) for part in parts) or any(map(_draws, entries))):
        del kept["seed"]
    return data_fingerprint(
        {
            **kept,
            # not what the files are called, but which of them are one
            "same_files": [list(paths).index(path) for path in paths],
            "code": code_fingerprint(*CODE),
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
            "python": sys.version_info[:2],
            "plugins": plugin_code({described["encoder"], *(entry["format"] for entry in entries)}),
            "day": (day or date.today()).isoformat() if writes_date(described["template"]) else None,
        }
    )[:32]


@lru_cache
def code_fingerprint(*patterns: str) -> str:
    """sha256 of luthier's own files that fit one of some patterns, so that what they computed is not read after a change of
    theirs."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted({path for pattern in patterns for path in package.glob(pattern)}):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _draws(entry: Mapping[str, Any]) -> bool:
    """Whether a random choice is made in an entry of the config: rows sampled, system prompts or turns drawn."""
    sampled = entry["max_samples"] is not None and not entry["head"]
    return sampled or isinstance(entry["system"], list) or entry["weight"] is not None


def plugin_code(names: Set[str]) -> dict[str, str]:
    """The code of those names that are of outside packages, each a module's file: sha256 by name."""
    specs = {name: importlib.util.find_spec(name) for name in sorted(names) if "." in name}
    return {
        name: sha256_of(Path(spec.origin)) if spec is not None and spec.origin is not None else ""
        for name, spec in specs.items()
    }


def _entries(located: Sequence[Located]) -> list[dict[str, Any]]:
    return [
        {
            "files": [(sha256_of(file), inner_path(file).suffix.lower()) for file in place.files],
            **place.entry.model_dump(exclude={"path"}),
        }
        for place in located
    ]
