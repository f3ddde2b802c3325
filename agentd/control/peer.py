"""Who is on the other end of a Unix socket, as the kernel knows it."""

from __future__ import annotations

import socket
import struct

_UCRED = struct.Struct("3i")  # pid, uid, gid, as SO_PEERCRED gives them


def uid_of_peer(connection: socket.socket) -> int:
    """The user that connected, or that listened."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])
