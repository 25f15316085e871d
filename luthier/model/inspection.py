"""What a model folder's files say before any weight is loaded. No torch: safetensors headers are read as the JSON they are."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from luthier.foundation.errors import ModelError
from luthier.foundation.files import human_bytes, sha256_of

MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
OWN_METHOD = "luthier_method"  # in an adapter's config: the method of ours that reads it; without it, peft does
MENDING = "loftq.json"  # beside an adapter that mends what quantization took from its base, and belongs to that
WEIGHT_NAMES = ("model.safetensors", "adapter_model.safetensors")
INDEX_NAME = "model.safetensors.index.json"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
# their configs may leave is_encoder_decoder to the class's default, which can't be asked without transformers
# fmt: off
ENCODER_DECODER_TYPES = frozenset({
    "t5", "mt5", "umt5", "longt5", "t5gemma", "switch_transformers",
    "bart", "mbart", "plbart", "pegasus", "pegasus_x", "bigbird_pegasus",
    "marian", "m2m_100", "nllb-moe", "blenderbot", "blenderbot-small", "led",
    "fsmt", "prophetnet", "whisper", "encoder-decoder", "speech-encoder-decoder",
})
# fmt: on
SNAPSHOT = re.compile(r"/models--[^/]+/snapshots/([0-9a-f]{40})$")
FETCH_AGAIN = "Fetch the model again (`luthier models fetch NAME`); `luthier models verify {folder}` checks every file."


def is_model_folder(folder: Path) -> bool:
    """Whether a folder says what model or adapter it holds."""
    return (folder / MODEL_CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file()


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter and no model of its own."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / MODEL_CONFIG).is_file()


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Check that a folder's model or adapter can be loaded, from names, sizes and headers alone.

    Args:
        weights: whether it needs any.

    Raises:
        ModelError: no config, no weights, weights that are Git-LFS pointers, pickled, truncated or missing from the
            index, or an encoder-decoder model.
    """
    if not is_model_folder(folder):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else ""
        raise ModelError(
            f"{folder} is no model folder: it has neither {MODEL_CONFIG} nor {ADAPTER_CONFIG}.",
            f"It holds: {found}." if found else "It is empty or no folder.",
        )
    if is_adapter(folder):
        _read_json(folder / ADAPTER_CONFIG)
    else:
        _refuse_encoder_decoder(folder, _read_json(folder / MODEL_CONFIG))
    for path in weight_files(folder) if weights else ():
        check_safetensors(path)


def weight_files(folder: Path) -> list[Path]:
    """The weight files that a model folder needs, all of them there.

    Raises:
        ModelError: there are none, only pickled ones, or some that the index names are missing.
    """
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(
                f"{index} names no weights (weight_map is {weight_map!r}).", FETCH_AGAIN.format(folder=folder)
            )
        names = sorted({str(name) for name in weight_map.values()})
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {len(missing)} of the {len(names)} weight files its index names: {', '.join(missing[:4])}"
                f"{', ...' if len(missing) > 4 else ''}.",
                FETCH_AGAIN.format(folder=folder),
            )
        return [folder / name for name in names]
    wanted = WEIGHT_NAMES[1:] if is_adapter(folder) else WEIGHT_NAMES[:1]
    if present := [folder / name for name in wanted if (folder / name).is_file()]:
        return present
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED_SUFFIXES)
    if pickled:
        raise ModelError(
            f"{folder} has its weights only as pickle ({', '.join(pickled[:3])}), which can run code when it is loaded.",
            f"luthier reads safetensors only: take a revision that has {wanted[0]}, or convert it in a sandbox.",
        )
    raise ModelError(
        f"{folder} has a config but no weights ({wanted[0]} is missing).", FETCH_AGAIN.format(folder=folder)
    )


def read_header(path: Path) -> bytes:
    """The JSON header of a safetensors file, checked against the file's size.

    Raises:
        ModelError: a Git-LFS pointer, a truncated file, or something else that is no safetensors file.
    """
    size = path.stat().st_size
    again = FETCH_AGAIN.format(folder=path.parent)
    with path.open("rb") as stream:
        start = stream.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ModelError(
                f"{path} is a Git-LFS pointer of {size} bytes, not the weights it points to.",
                "The repository was cloned without Git LFS: run `git lfs pull` in it, or fetch it with `luthier models fetch`.",
            )
        if size < 8:
            raise ModelError(f"{path} is truncated: it has {size} bytes.", again)
        stream.seek(0)
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > MAX_HEADER_BYTES:
            raise ModelError(f"{path} is no safetensors file: it starts with {start[:8]!r}.", again)
        if 8 + length > size:
            raise ModelError(
                f"{path} is truncated: its header alone takes {human_bytes(8 + length)}, the file has {human_bytes(size)}.",
                again,
            )
        return stream.read(length)


def header_of(path: Path) -> dict[str, Any]:
    """Name, type and shape of every tensor in a safetensors file. Raises ModelError as `read_header`."""
    entries: dict[str, Any] = json.loads(read_header(path))
    entries.pop("__metadata__", None)
    return entries


def check_safetensors(path: Path) -> None:
    """Compare a safetensors file's size with what its header says.

    Raises:
        ModelError: as `read_header`, or bytes are missing or too many.
    """
    raw = read_header(path)
    try:
        header = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        needed = 8 + len(raw) + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path} is no safetensors file: its header is broken ({error}).", FETCH_AGAIN.format(folder=path.parent)
        ) from error
    size = path.stat().st_size
    if size != needed:
        what = "truncated" if size < needed else "longer than it should be"
        raise ModelError(
            f"{path} is {what}: it has {size} bytes, its header asks for {needed}.",
            FETCH_AGAIN.format(folder=path.parent),
        )


def fingerprint(folder: Path) -> str:
    """Which model a folder holds: `commit:<hub commit>`, else `content:<sha256>` of names, sizes and headers.

    Config files and an adapter's weights enter with their content; a model's weights with their size and safetensors
    header, so one of any size takes milliseconds. Those changed in place under an unchanged header are not seen: see
    `content_hash`, and `models verify`.
    """
    if match := SNAPSHOT.search(folder.absolute().as_posix()):
        return f"commit:{match[1]}"
    digest = hashlib.sha256()
    for path in _identifying_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        if path.name == WEIGHT_NAMES[1]:  # adapters of one method and base differ in nothing else
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        elif path.suffix == ".safetensors":
            digest.update(read_header(path))
        elif path.name in (MODEL_CONFIG, ADAPTER_CONFIG):
            digest.update(path.read_bytes())
    return f"content:{digest.hexdigest()}"


def content_hash(folder: Path) -> str:
    """The same from every byte of these files: for what is kept beyond a run, and must not outlive a model that was
    trained anew in its place.

    Every byte, since a sample of each tensor misses a few trained rows of an embedding; it takes as long as reading the
    weights does. A hub's commit names its content.
    """
    if match := SNAPSHOT.search(folder.absolute().as_posix()):
        return f"commit:{match[1]}"
    files = [*_identifying_files(folder), *sorted(folder.glob("*.py"))]  # a model's own code, too
    with ThreadPoolExecutor() as threads:  # hashing leaves the interpreter's lock to others
        hashes = list(threads.map(sha256_of, files))
    named = [f"{path.name}\0{found}\0" for path, found in zip(files, hashes, strict=True)]
    return f"bytes:{hashlib.sha256(''.join(named).encode()).hexdigest()}"


def _identifying_files(folder: Path) -> Iterator[Path]:
    known = {
        MODEL_CONFIG,
        ADAPTER_CONFIG,
        INDEX_NAME,
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.json",
    }
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.suffix == ".safetensors" or path.name in known):
            yield path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        pointer = path.read_bytes()[: len(LFS_POINTER)] == LFS_POINTER
        what = "a Git-LFS pointer" if pointer else f"broken JSON: {error}"
        raise ModelError(f"{path} is {what}.", FETCH_AGAIN.format(folder=path.parent)) from error
    if not isinstance(value, dict):
        raise ModelError(
            f"{path} holds {type(value).__name__}, not a JSON object.", FETCH_AGAIN.format(folder=path.parent)
        )
    return value


def _refuse_encoder_decoder(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if config.get("is_encoder_decoder") is True or kind in ENCODER_DECODER_TYPES:
        name = next(iter(config.get("architectures") or []), kind)
        raise ModelError(
            f"{folder} is an encoder-decoder model ({name}); luthier trains decoder-only models.",
            "Choose a causal language model, such as smollm2-135m.",
        )
