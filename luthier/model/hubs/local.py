"""A folder on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.foundation.errors import HubError
from luthier.model.hub import CHECKSUMS, MANIFEST, FetchRequest, Hub
from luthier.model.missing import no_such_place


class Options(PluginOptions):
    """A local folder has no settings."""

    name: Literal["local"] = "local"


class LocalFolder:
    """Finds a folder; copies nothing."""

    def fetch(self, request: FetchRequest) -> Path:
        """The folder that `request.name` names.

        Raises:
            HubError: it is missing or no folder, or the request has settings that only a hub could obey.
        """
        request.refuse(
            "a local folder",
            "revision",
            "token",
            "endpoint",
            "include",
            "to",
            "cache_dir",
            because="it is read where it stands",
        )
        folder = Path(request.name).expanduser()
        if not folder.exists():
            raise no_such_place(request.name)
        if not folder.is_dir():
            raise HubError(
                f"the model {request.name!r} is a file, not a folder.", "Name the folder that holds config.json."
            )
        return folder.absolute()

    def expected_hashes(self, folder: Path) -> Mapping[str, str]:
        """What a checkpoint's manifest.json says, and the lines of `checksum.sha256` (as `sha256sum` writes them), where
        the folder has these.

        Raises:
            HubError: a line that is no checksum.
        """
        hashes = _of_manifest(folder / MANIFEST)
        source = folder / CHECKSUMS
        if not source.is_file():
            return hashes
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            digest, _, name = line.partition(" ")
            name = name.strip().removeprefix("*")
            if len(digest) != 64 or not name or Path(name).is_absolute() or ".." in Path(name).parts:
                raise HubError(
                    f"{source}, line {number}: expected '<sha256>  <file>', found {line!r}.", "Write it with sha256sum."
                )
            hashes[name] = f"sha256:{digest.lower()}"
        return hashes


def _of_manifest(path: Path) -> dict[str, str]:
    """The hashes in a checkpoint's or an export's manifest; none where a file of this name is something else."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): f"sha256:{facts['sha256']}" for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def build(options: Options) -> Hub:
    """The local disk as a model source."""
    return LocalFolder()
