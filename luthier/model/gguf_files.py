"""A GGUF file as a base: converted once into a plain folder in luthier's cache, from which it is trained like any other."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from filelock import FileLock

from luthier.foundation.errors import ModelError, UserError
from luthier.foundation.files import free_bytes, home, human_bytes, sha256_of, whole_folder
from luthier.foundation.progress import say
from luthier.model.gguf_folder import JOIN_PARTS, Origin, convert
from luthier.model.inspection import is_model_folder

SUFFIX = ".gguf"
PART = re.compile(r"-\d{5}-of-\d{5}$")  # how llama.cpp names the files of a model that it split
DISK_PER_BYTE = 8  # four bits become thirty-two


def gguf_in(place: Path) -> Path | None:
    """The GGUF file that a place is, or holds in place of a model folder's files; None where there is none.

    Raises:
        ModelError: a folder with several.
    """
    if place.is_file():
        return place if place.suffix == SUFFIX else None
    if not place.is_dir() or is_model_folder(place) or (place / "run.json").is_file():
        return None
    found = sorted(place.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        if len({PART.sub("", path.stem) for path in found}) == 1:
            raise ModelError(f"{place} holds a model in {len(found)} GGUF files: {found[0].name} and on.", JOIN_PARTS)
        raise ModelError(
            f"{place} holds {len(found)} GGUF files: {', '.join(path.name for path in found[:6])}.",
            f"Name one, such as {found[0]}.",
        )
    return found[0] if found else None


def converted(gguf: Path, cache_dir: Path | None = None) -> Path:
    """The folder with a file's model, dequantized to float32; made at the first call.

    Raises:
        ModelError: a file that can't be converted. UserError: too little disk.
    """
    facts = gguf.stat()
    # a file of the same place, size and time is the same file: hashing gigabytes at every start would take minutes
    key = hashlib.sha256(f"{gguf.absolute()}\0{facts.st_size}\0{facts.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = (cache_dir or home()).expanduser().absolute() / "models" / f"{gguf.stem}-gguf-{key}"
    if is_model_folder(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = facts.st_size * DISK_PER_BYTE, free_bytes(folder)
    if free < needed:
        raise UserError(
            f"converting {gguf} needs up to {human_bytes(needed)} in {folder.parent}, {human_bytes(free)} are free.",
            "Make room, or point LUTHIER_HOME at another disk.",
        )
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if is_model_folder(folder):  # another process was faster
            return folder
        say(f"model: {gguf} is converted once, into {folder}")
        with whole_folder(folder) as building:
            convert(gguf, building, Origin(gguf.stem, "unknown", str(gguf), gguf.name, sha256_of(gguf)))
    return folder
