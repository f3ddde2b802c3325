"""Which URLs a key may be given to.

Always true: plain text is for this machine only; a URL with credentials in it is refused, since URLs get logged.
"""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from agentd.core.hosts import is_loopback
from agentd.errors import Refused

_ENCRYPTED = ("https", "wss")
_PLAIN = ("http", "ws")


def require_safe(url: str) -> str:
    """Give back the URL's host, or raise Refused with the remedy where a key must not be sent to it."""
    try:
        parts = urlsplit(url)
        host, scheme = parts.hostname, parts.scheme
        _ = parts.port  # raises ValueError where it is not a number
        (host or "").encode("idna")  # and so does this for a name that no resolver is asked for
    except ValueError:
        raise Refused(0, "BAD_URL", "the URL cannot be read; write it as https://host[:port]") from None
    if not host or scheme not in _ENCRYPTED + _PLAIN:
        raise Refused(0, "BAD_URL", "the URL needs a host and one of https, wss, http or ws; write https://host")
    if parts.username is not None or parts.password is not None:
        raise Refused(0, "CREDENTIALS_IN_URL", f"take the credentials out of the URL of {host}; set `key` instead")
    if scheme in _PLAIN and not is_loopback(host):
        raise Refused(
            0, "PLAIN_TEXT", f"{scheme}:// would show the key to the network on the way to {host}; use {scheme}s://"
        )
    return host


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this URL, or None.

    Never one for this machine: plain text would leave it.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)
