"""`luthier models`: which models have a short name, fetching one, and checking a folder's files against known hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.config.plugins import HUBS
from luthier.foundation.errors import HubError, ModelError, UserError
from luthier.foundation.files import HASH_BLOCK_BYTES, home, sha256_of
from luthier.model.aliases import ALIASES
from luthier.model.hub import CHECKSUMS, MANIFEST, FetchRequest
from luthier.model.inspection import check_folder, check_safetensors, is_model_folder
from luthier.model.resolving import deliver, load_hub, locate

OWN_FILES = (CHECKSUMS, MANIFEST, ".gitattributes", "CACHEDIR.TAG")
LARGEST_JOBS = 64


def list_models() -> list[dict[str, Any]]:
    """The models with a short name.

    Returns:
        For each: name, source, licence, page, description, download_bytes, disk_bytes, and folder (None: not here yet).
    """
    rows = []
    for alias in ALIASES.values():
        folder = home() / "models" / alias.name
        rows.append(
            {
                "name": alias.name,
                "source": alias.target,
                "licence": alias.licence,
                "page": alias.source,
                "description": alias.description,
                "download_bytes": alias.download_bytes,
                "disk_bytes": alias.disk_bytes,
                "folder": str(folder) if is_model_folder(folder) else None,
            }
        )
    return rows


def fetch(
    name: str,
    *,
    to: str | Path | None = None,
    endpoint: str | None = None,
    revision: str | None = None,
    include: Sequence[str] = (),
    jobs: int = 8,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Bring a model to this machine; one that was broken off goes on where it stopped. Shows a bar on a terminal.

    Args:
        name: a short name, a hub id, or either with a hub's prefix; a GGUF file, which is converted.
        to: folder to put it in, instead of the cache.
        endpoint: address of the hub or a mirror.
        revision: branch, tag or commit.
        include: globs of the files wanted; empty: those that luthier can use, which are then checked.
        jobs: files fetched at the same time.
        token: access token.
        cache_dir: where the hub's client keeps downloads.

    Raises:
        HubError: the hub does not deliver.
        ModelError: what arrived is no model that can be loaded.
    """
    if not 1 <= jobs <= LARGEST_JOBS:
        raise UserError(f"--jobs is {jobs}; it must be between 1 and {LARGEST_JOBS}.", "8 suits most connections.")
    hub, known_as = locate(name)
    folder = deliver(
        hub,
        FetchRequest(
            name=known_as,
            revision=revision,
            cache_dir=Path(cache_dir).expanduser() if cache_dir else None,
            token=token,
            endpoint=endpoint,
            include=tuple(include),
            to=Path(to).expanduser() if to else None,
            jobs=jobs,
        ),
    )
    if not include:
        check_folder(folder)
    return folder


@dataclass(frozen=True)
class FileCheck:
    """One file. status: good, bad (another hash, or broken), missing, or unverifiable (nobody said its hash)."""

    name: str
    status: str
    detail: str = ""


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found."""

    folder: Path
    files: tuple[FileCheck, ...]

    @property
    def ok(self) -> bool:
        """Nothing bad or missing, and at least one file compared."""
        statuses = [file.status for file in self.files]
        return "good" in statuses and not {"bad", "missing"} & set(statuses)

    def having(self, status: str) -> list[FileCheck]:
        """The files of one status."""
        return [file for file in self.files if file.status == status]

    def as_dict(self) -> dict[str, Any]:
        """folder, ok, files (name, status, detail), and a count of each status."""
        counts = {status: len(self.having(status)) for status in ("good", "bad", "missing", "unverifiable")}
        return {"folder": str(self.folder), "ok": self.ok, **counts, "files": [asdict(file) for file in self.files]}


def verify(folder: str | Path) -> VerifyResult:
    """Hash the files of a model folder anew and compare: with the hub's hashes as the client recorded them, or with the
    folder's checksum.sha256. No network.

    Raises:
        HubError: no such folder, or a broken checksum.sha256.
    """
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise HubError(
            f"{str(folder)!r} is no folder.", "Name a model's folder; `luthier models fetch NAME` prints it."
        )
    expected = known_hashes(place)
    present = {
        name
        for path in place.rglob("*")
        if (path.is_file() or path.is_symlink())
        and not (name := path.relative_to(place).as_posix()).startswith(".")
        and name not in OWN_FILES
    }
    return VerifyResult(
        place, tuple(_check(place, name, expected.get(name)) for name in sorted(present | set(expected)))
    )


def known_hashes(folder: Path) -> dict[str, str]:
    """What all model sources together know of a folder's files; a hub's word goes before the folder's own list."""
    hashes: dict[str, str] = {}
    for name in sorted(HUBS.names(), key=lambda hub: hub != "local"):
        hashes.update(load_hub(name).expected_hashes(folder))
    return hashes


def _check(folder: Path, name: str, expected: str | None) -> FileCheck:
    path = folder / name
    if not path.is_file():
        return FileCheck(name, "missing", "listed, and not there")
    if expected is None:
        if path.suffix == ".safetensors":
            try:
                check_safetensors(path)
            except ModelError as error:
                return FileCheck(name, "bad", error.problem)
        return FileCheck(name, "unverifiable", "no hash is known for it")
    kind, _, wanted = expected.partition(":")
    found = sha256_of(path) if kind == "sha256" else git_sha1_of(path)
    if found == wanted:
        return FileCheck(name, "good")
    return FileCheck(name, "bad", f"{kind} is {found}, expected {wanted}")


def git_sha1_of(path: Path) -> str:
    """The name git gives a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
