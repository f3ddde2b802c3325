"""What `[agentd.http] listen` says: an address and a port.

Not here: listening (control/http.py).
"""

from __future__ import annotations

from urllib.parse import urlsplit


def listening_address(listen: str) -> tuple[str, int]:
    """(host, port) of "127.0.0.1:8788", "[::1]:8788" or "localhost:8788". Raises ValueError."""
    parts = urlsplit(f"//{listen}")
    if parts.hostname is None or parts.port is None or parts.path or parts.query or parts.username is not None:
        raise ValueError(listen)
    return parts.hostname, parts.port
