"""What `[agentd.http] listen` says: an address and a port, and whether other machines reach it.

Not here: listening (control/http.py).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def listening_address(listen: str) -> tuple[str, int]:
    """(host, port) of "127.0.0.1:8788", "[::1]:8788" or "localhost:8788". Raises ValueError."""
    parts = urlsplit(f"//{listen}")
    if parts.hostname is None or parts.port is None or parts.path or parts.query or parts.username is not None:
        raise ValueError(listen)
    return parts.hostname, parts.port


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. Names other than localhost may be anybody's."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether it is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
