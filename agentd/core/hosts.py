"""Hosts as URLs and settings name them: an address or a name, and whether it is this machine."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Whether only this machine is reached by it. Names other than localhost may be anybody's."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host or "").is_loopback)


def is_address(host: str | None) -> bool:
    """Whether it is an IP address and not a name."""
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True
