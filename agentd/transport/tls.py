"""How a far end proves who it is."""

from __future__ import annotations

import ssl
from functools import cache


@cache
def tls_context() -> ssl.SSLContext:
    """The context of every connection: certificate and host name are verified, there is no switch against it.

    The authorities are the system's, or those of the file that the environment names in SSL_CERT_FILE. One context for
    all: reading them costs 10 ms and more, and hundreds of identities dial.
    """
    return ssl.create_default_context()
