"""Whether a server can be reached at all, asked before a client that would try again and again."""

from __future__ import annotations

import socket
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
