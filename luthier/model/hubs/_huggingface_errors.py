"""What the hub's refusals mean, one sentence each, and what to do about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.foundation.errors import HubError
from luthier.foundation.files import is_disk_full
from luthier.model.hub import FetchRequest
from luthier.model.hubs._huggingface_resume import has_begun
from luthier.model.missing import not_here

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

MIRROR = "https://hf-mirror.com"


def other_ways(endpoint: str) -> str:
    """What to do where an endpoint does not give a model: another way to it."""
    other = (
        "the hub itself (unset HF_ENDPOINT and model.endpoint)"
        if MIRROR in endpoint
        else f"a mirror (HF_ENDPOINT={MIRROR})"
    )
    return (
        f"Use {other}, ModelScope (modelscope:OWNER/NAME), or the built-in model smollm2-135m; behind a proxy set "
        "HTTPS_PROXY. With the files at hand, name their folder; with a filled cache, set HF_HUB_OFFLINE=1."
    )


def first_line(error: BaseException) -> str:
    """An error's first line with text, or its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def goes_on(request: FetchRequest) -> str:
    """What running the same command again does, where a part of the model is here already; else empty."""
    return "Running the same command again goes on where it stopped. " if has_begun(request) else ""


def seconds_to_wait(error: HfHubHTTPError) -> float | None:
    """How long a 429 asks to wait; None for other errors."""
    if error.response.status_code != 429:
        return None
    try:
        return max(float(error.response.headers.get("Retry-After", "")), 0.0)
    except ValueError:
        return 5.0


def unreachable(cause: Exception | None, request: FetchRequest, endpoint: str) -> HubError:
    """No hub, and no copy in the cache."""
    where = f" in {request.cache_dir}" if request.cache_dir else ""
    revision = f" at revision {request.revision}" if request.revision else ""
    if cause is None:
        return HubError(
            f"{not_here(request.name)}{request.name}{revision} is not wholly in the hub client's cache{where}, and HF_HUB_OFFLINE "
            "forbids to fetch it.",
            "Unset HF_HUB_OFFLINE, fetch it once with a network, or name a local folder.",
        )
    if request.to is not None:
        return HubError(
            f"{not_here(request.name)}{endpoint} can't be reached ({first_line(cause)}), so {request.name}{revision} can't be put "
            f"into {request.to}.",
            f"{goes_on(request)}{other_ways(endpoint)}",
        )
    root: BaseException = cause
    while root.__cause__ is not None:
        root = root.__cause__
    return HubError(
        f"{not_here(request.name)}{endpoint} can't be reached ({type(root).__name__}: {first_line(root)}), and "
        f"{request.name}{revision} is not wholly in the cache{where}.",
        f"{goes_on(request)}{other_ways(endpoint)}",
    )


def no_hub(error: Exception, endpoint: str) -> HubError:
    """Something answers, but not as a hub does."""
    return HubError(
        f"{endpoint} answers, but not as a Hugging Face Hub does ({type(error).__name__}: {first_line(error)}).",
        f"Check HF_ENDPOINT and the proxy. {other_ways(endpoint)}",
    )


def broken_off(error: OSError, request: FetchRequest, endpoint: str) -> HubError:
    """The disk, or a connection that ended early again and again."""
    if is_disk_full(error):
        return HubError(
            f"the disk is full: {request.name} could not be stored ({first_line(error)}).",
            "Make room, or name another disk with cache_dir or --to; the same command then goes on where it stopped.",
        )
    return HubError(
        f"fetching {request.name} from {endpoint} broke off: {first_line(error)}",
        f"{goes_on(request)}{other_ways(endpoint)}",
    )


def explain(error: HfHubHTTPError, request: FetchRequest, endpoint: str) -> HubError:
    """A refusal of the hub, in a sentence."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page, status = f"{endpoint}/{request.name}", error.response.status_code
    token = "the access token" if request.token else "the access token (HF_TOKEN, or `hf auth login`)"
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{request.name} is gated: its owner lets in only those who asked.",
            f"Accept its terms at {page}, then give {token} of that account.",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{request.name} has no revision {request.revision!r}.", f"Its branches and tags are at {page}/tree/main."
        )
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"{not_here(request.name)}{endpoint} has no model {request.name!r}, or it is private.",
            f"Check the spelling of owner/name; for a private model give {token}. A folder must exist to be taken for one.",
        )
    if status == 401:
        return HubError(f"{endpoint} does not accept {token}.", "Make a new one in the hub's settings, or remove it.")
    if status == 403:
        return HubError(f"{endpoint} refuses access to {request.name} (403).", f"Check that {token} may read {page}.")
    if status == 404:
        return HubError(
            f"{endpoint} lacks a file of {request.name}: {first_line(error)}", "Try again; a mirror may be behind."
        )
    if status == 429:
        wait = seconds_to_wait(error)
        return HubError(
            f"{endpoint} has had too many requests and asks to wait {wait:.0f} s.",
            "Run the same command later: it goes on where it stopped. With an access token the limit is higher.",
        )
    if status >= 500:
        return HubError(f"{endpoint} is out of order (status {status}).", f"Try again later. {other_ways(endpoint)}")
    return HubError(f"{endpoint} answers with status {status}: {first_line(error)}", other_ways(endpoint))
