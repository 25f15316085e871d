"""Large files of the Hugging Face Hub, fetched so that a killed download goes on where it stopped.

The client (huggingface_hub 2.x) gives every download a file name of its own and removes it afterwards, so a broken
download starts anew. Here the partial file is named by the hash of what it will be, continued with an HTTP Range
request through the client's own `http_get`, hashed, and put where the client looks for a finished file.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from luthier.foundation.errors import HubError
from luthier.foundation.files import free_bytes, human_bytes, sha256_of
from luthier.model.hub import FetchRequest

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

Item = TypeVar("Item")
FETCHING = "fetching"  # the threads' name


def list_files(api: HfApi, name: str, commit: str) -> list[RepoFile]:
    """All files of a repository at a commit, with their sizes and hashes."""
    from huggingface_hub.hf_api import RepoFile

    return [entry for entry in api.list_repo_tree(name, recursive=True, revision=commit) if isinstance(entry, RepoFile)]


def choose(files: list[RepoFile], allow: list[str], ignore: list[str] | None) -> list[RepoFile]:
    """The files that fit the globs, by the client's own rules."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    return list(filter_repo_objects(files, allow_patterns=allow, ignore_patterns=ignore, key=lambda file: file.path))


def bar_class() -> Any:
    """The client's progress bar, which HF_HUB_DISABLE_PROGRESS_BARS switches off."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    return tqdm


def no_bar() -> Any:
    """The same, showing nothing: the client's own bars count the files already fetched here as nought."""
    return partial(bar_class(), disable=True)


def download_large(api: HfApi, request: FetchRequest, commit: str, files: list[RepoFile]) -> None:
    """Fetch the files kept in LFS; the client fetches the small rest.

    Raises:
        HubError: the disk is too small, or a file arrives with another hash than the hub announced.
    """
    from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE

    # larger ones come by Xet only, which the client does itself
    large = [file for file in files if file.lfs is not None and file.lfs.size <= MAX_HTTP_DOWNLOAD_SIZE]
    missing = [file for file in large if not _is_there(request, file)]
    if not missing:
        return
    places = {file.path: _partial_path(request, file) for file in missing}
    have = {path: place.stat().st_size if place.exists() else 0 for path, place in places.items()}
    needed = sum(file.size - have[file.path] for file in missing)
    free = free_bytes(next(iter(places.values())))
    if free < needed:
        raise HubError(
            f"{request.name} needs {human_bytes(needed)} more in {_storage(request)}, {human_bytes(free)} are free.",
            "Make room, or name another disk with cache_dir or --to.",
        )
    total = sum(file.size for file in missing)
    with bar_class()(
        total=total, initial=sum(have.values()), unit="B", unit_scale=True, desc=request.name, disable=None
    ) as bar:
        in_threads(
            lambda file, stop: _download_one(api, request, commit, file, _Watched(bar, stop)), missing, request.jobs
        )


def in_threads(work: Callable[[Item, Event], None], items: Sequence[Item], jobs: int) -> None:
    """Do the work on all items, `jobs` of them at a time; the first error, or Ctrl-C, ends it at once.

    The threads are daemons, and nobody waits for those that are still at work then: what waits for the network may do so
    for minutes, and a pool of concurrent.futures is waited for even at the process's end.

    Args:
        work: is given an event too, which is set when it is to end: nobody wants what it does any more.
    """
    stop, left, ended = Event(), deque(items), SimpleQueue[BaseException | None]()

    def go_on() -> None:
        while not stop.is_set():
            try:
                item = left.popleft()
            except IndexError:
                return
            try:
                work(item, stop)
            except BaseException as error:  # told by the thread that waits
                ended.put(error)
            else:
                ended.put(None)

    try:
        for _ in range(min(jobs, len(items))):
            Thread(target=go_on, name=FETCHING, daemon=True).start()
        for _ in items:
            if (error := ended.get()) is not None:
                raise error
    finally:
        stop.set()


class _Watched:
    """A progress bar for `http_get`, which tells it of every piece: one that comes after the end was asked for is refused."""

    def __init__(self, bar: Any, stop: Event) -> None:
        self.bar, self.stop = bar, stop

    def update(self, count: int) -> None:
        """So many bytes more.

        Raises:
            StoppedError: nobody wants them any more.
        """
        if self.stop.is_set():
            raise StoppedError
        self.bar.update(count)


class StoppedError(Exception):
    """Ends a download that nobody waits for; what it has written stays, to be gone on with."""


def _storage(request: FetchRequest) -> Path:
    """The folder of a model in the client's documented layout."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if request.to is not None:
        return request.to.expanduser().absolute()
    cache = (request.cache_dir or Path(HF_HUB_CACHE)).expanduser().absolute()
    return cache / f"models--{request.name.replace('/', '--')}"


def has_begun(request: FetchRequest) -> bool:
    """Whether a part of what is asked for is here, so that another fetch would go on with it."""
    place = _storage(request) / (".cache/huggingface/download" if request.to is not None else "blobs")
    return any(path.is_file() and path.suffix != ".lock" for path in place.rglob("*"))


def _finished_path(request: FetchRequest, file: RepoFile) -> Path:
    assert file.lfs is not None
    return _storage(request) / (file.path if request.to is not None else f"blobs/{file.lfs.sha256}")


def _partial_path(request: FetchRequest, file: RepoFile) -> Path:
    assert file.lfs is not None
    folder = ".cache/huggingface/download" if request.to is not None else "blobs"
    return _storage(request) / folder / f"{file.lfs.sha256}.luthier.incomplete"


def _is_there(request: FetchRequest, file: RepoFile) -> bool:
    """Whether the client will find the file; it compares hashes itself where it has doubts."""
    finished = _finished_path(request, file)
    return finished.is_file() and finished.stat().st_size == file.size


def _download_one(api: HfApi, request: FetchRequest, commit: str, file: RepoFile, bar: Any) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    assert file.lfs is not None
    finished, partial = _finished_path(request, file), _partial_path(request, file)
    if not finished.resolve().is_relative_to(_storage(request).resolve()):
        raise HubError(
            f"{request.name} has a file with the path {file.path!r}, which leaves its folder.", "Don't use it."
        )
    for path in (finished, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{partial}.lock"):
        if _is_there(request, file):  # another process was faster
            return
        if partial.exists() and partial.stat().st_size > file.size:
            partial.unlink()
        with partial.open("ab") as stream:
            http_get(
                hf_hub_url(request.name, file.path, revision=commit, endpoint=api.endpoint),
                stream,
                resume_size=partial.stat().st_size,
                # the HTTP library takes the token off when it is sent on to another host
                headers={**build_hf_headers(token=request.token), "Accept-Encoding": "identity"},
                expected_size=file.size,
                _tqdm_bar=bar,
            )
        if (found := sha256_of(partial)) != file.lfs.sha256:
            partial.unlink()
            raise HubError(
                f"{file.path} of {request.name} arrived with the sha256 {found}, the hub announced {file.lfs.sha256}.",
                "The partial file was removed; run the same command again.",
            )
        os.replace(partial, finished)
    Path(f"{partial}.lock").unlink(missing_ok=True)
