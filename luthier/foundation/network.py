"""Whether a server can be reached at all, asked before a client that would try again and again; and how long one asks to wait."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import time
import urllib.request
from urllib.parse import urlsplit

REACH_SECONDS = 5.0


def unreachable(endpoint: str) -> str | None:
    """Why a hub's port can't be reached; None if it can, or if a proxy stands between.

    The client tries again for up to a minute, so the question is put first.
    """
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, port), timeout=REACH_SECONDS).close()
    except OSError as error:
        return str(error)
    return None


def asked_wait(retry_after: str | None) -> float | None:
    """Seconds that a server asks to wait with the header Retry-After: a number or a date (RFC 9110, section 10.2.3)."""
    if not retry_after:
        return None
    for read in (float, lambda text: email.utils.parsedate_to_datetime(text).timestamp() - time.time()):
        with contextlib.suppress(ValueError):
            return max(0.0, read(retry_after))
    return None
