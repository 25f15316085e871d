"""From a GGUF file to a plain model folder that transformers loads: safetensors, config, tokenizer, generation config.

Quantized tensors are dequantized once, to float32, which holds every value a block-quantized format can express.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.foundation.errors import ModelError
from luthier.foundation.files import sha256_of, write_json, write_text
from luthier.model.hub import CHECKSUMS
from luthier.model.quiet import quiet_bars, quiet_loading

# GGUF names the pre-tokenizer (tokenizer.ggml.pre) instead of describing it, and transformers' reader makes every
# byte-level BPE into GPT-2's. These are the descriptions the models were trained with, as tokenizer.json spells them.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
}
JOIN_PARTS = (
    "Join the parts with llama.cpp's `llama-gguf-split --merge FIRST_PART WHOLE.gguf` and name the whole file, or take the "
    "model's safetensors folder instead."
)
# how a model card of a package's model begins, here and in packaged_folder
FROM = re.compile(
    r"^(?:Converted|Taken) by luthier from `.*` in `(?P<package>\S+)` \(sha256 `(?P<sha256>[0-9a-f]+)`\)", re.M
)


@dataclass(frozen=True)
class Origin:
    """What the model card says of a converted model."""

    name: str
    licence: str  # as the SPDX list spells it, or "unknown"
    source: str  # the model's page
    package: str  # what was fetched
    sha256: str


def convert(gguf: Path, folder: Path, origin: Origin) -> None:
    """Write the model of a GGUF file into an existing, empty folder.

    The caller makes the folder appear whole (`files.whole_folder`).

    Raises:
        ModelError: transformers can't read this GGUF, it lacks tensors, or its pre-tokenizer is one we have no description of.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = read_facts(gguf)
    pre_tokenizer = _pre_tokenizer(gguf, facts)
    with quiet_bars(), quiet_loading():  # three bars of a second each; what is missing is told by _check_complete
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            quantized, report = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise ModelError(
                f"{gguf} can't be converted: {error}.", "Take the model's safetensors folder instead."
            ) from error
        _check_complete(gguf, quantized, report)
        _write_weights(quantized, facts, folder)
    tokenizer.model_max_length = facts.context_length or tokenizer.model_max_length
    tokenizer.save_pretrained(folder)
    _mend_tokenizer(folder, pre_tokenizer, facts)
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": facts.bos, "eos_token_id": facts.eos, "pad_token_id": facts.pad},
    )
    write_text(folder / "README.md", model_card(origin, gguf.name))
    write_checksums(folder)


@dataclass(frozen=True)
class Facts:
    """What a GGUF says that its conversion by transformers loses or blurs."""

    architecture: str
    context_length: int
    pre_tokenizer: str
    tokenizer_model: str
    bos: int | None
    eos: int | None
    pad: int | None
    norm_epsilon: float | None


def read_facts(gguf: Path) -> Facts:
    """Read a GGUF's metadata.

    Raises:
        ModelError: not a GGUF file, or one part of several.
    """
    from gguf import GGUFReader

    try:
        fields = GGUFReader(str(gguf)).fields
    except (ValueError, OSError, IndexError) as error:
        raise ModelError(f"{gguf} is no GGUF file: {error}.", "Fetch it again.") from error

    def get(key: str, default: Any = None) -> Any:
        return fields[key].contents() if key in fields else default

    parts = int(get("split.count", 0))
    if parts > 1:  # transformers reads the one file, and knows nothing of the others
        raise ModelError(f"{gguf} is part {int(get('split.no', 0)) + 1} of a model in {parts} files.", JOIN_PARTS)
    architecture = str(get("general.architecture"))
    epsilon = get(f"{architecture}.attention.layer_norm_rms_epsilon")
    return Facts(
        architecture=architecture,
        context_length=int(get(f"{architecture}.context_length", 0)),
        pre_tokenizer=str(get("tokenizer.ggml.pre", "default")),
        tokenizer_model=str(get("tokenizer.ggml.model")),
        bos=get("tokenizer.ggml.bos_token_id"),
        eos=get("tokenizer.ggml.eos_token_id"),
        pad=get("tokenizer.ggml.padding_token_id"),
        # stored as float32: 1e-5 comes out as 9.999999747378752e-06; the shortest decimal that gives the same float32 is meant
        norm_epsilon=None if epsilon is None else float(f"{epsilon:.6g}"),
    )


def _check_complete(gguf: Path, model: Any, report: Any) -> None:
    """Raise ModelError for tensors the file lacks: transformers fills them with random numbers and goes on."""
    absent = sorted(report["missing_keys"])
    if absent:
        raise ModelError(
            f"{gguf} lacks {len(absent)} of {type(model).__name__}'s tensors: "
            f"{', '.join(absent[:6])}{' ...' if len(absent) > 6 else ''}.",
            "Fetch it again, or take the model's safetensors folder instead.",
        )


def _pre_tokenizer(gguf: Path, facts: Facts) -> dict[str, Any] | None:
    """The pre-tokenizer to write; None where transformers' own reading is right (SentencePiece models)."""
    if facts.tokenizer_model != "gpt2":
        return None
    if facts.pre_tokenizer not in PRE_TOKENIZERS:
        raise ModelError(
            f"{gguf} splits text by the rule {facts.pre_tokenizer!r}, which luthier has no description of "
            f"(known: {', '.join(PRE_TOKENIZERS)}); its numbers or punctuation would become other tokens than in training.",
            "Take the model's safetensors folder instead.",
        )
    return PRE_TOKENIZERS[facts.pre_tokenizer]


def _write_weights(quantized: Any, facts: Facts, folder: Path) -> None:
    """Save the dequantized weights through a fresh model: one loaded from GGUF refuses `save_pretrained`."""
    settings = quantized.config.to_dict()
    for mark in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(mark, None)
    if facts.norm_epsilon is not None and "rms_norm_eps" in settings:
        settings["rms_norm_eps"] = facts.norm_epsilon
    plain = type(quantized)(type(quantized.config).from_dict(settings))
    plain.load_state_dict(quantized.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes with the mode of a temporary file


def _mend_tokenizer(folder: Path, pre_tokenizer: dict[str, Any] | None, facts: Facts) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if pre_tokenizer is not None:
        tokenizer["pre_tokenizer"] = pre_tokenizer
        write_text(path, json.dumps(tokenizer, ensure_ascii=False, indent=2))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for passing in ("is_local", "local_files_only", "name_or_path"):  # how it was loaded, not what it is
        settings.pop(passing, None)
    settings["clean_up_tokenization_spaces"] = False
    write_json(path, settings)


def model_card(origin: Origin, gguf_name: str) -> str:
    """README.md of a converted model."""
    return f"""---
license: {origin.licence.lower()}
library_name: transformers
---

# {origin.name}

Converted by luthier from `{gguf_name}` in `{origin.package}` (sha256 `{origin.sha256}`).
The original model is at <{origin.source}>; its licence is {origin.licence}.

The weights were quantized in that file and are stored here dequantized, as float32: they equal the file's values, not
the original model's. `checksum.sha256` lists every file; `luthier models verify` compares them.
"""


def origin_of(folder: Path) -> tuple[str, str] | None:
    """The package that a folder's model card says it is from, and that file's sha256; None where it says neither."""
    card = folder / "README.md"
    said = FROM.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    return (said["package"], said["sha256"]) if said else None


def write_checksums(folder: Path) -> None:
    """Write `checksum.sha256` over all files of a folder, in the form that `sha256sum -c` reads."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names if name != CHECKSUMS]
    write_text(folder / CHECKSUMS, "".join(lines))
