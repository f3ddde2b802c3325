"""Where the control socket lies.

A daemon listens in its state folder, and under systemd in $RUNTIME_DIRECTORY as well, where a client finds it that
knows nothing of the unit.

Always true: any path can be used, however long, though the system's own limit for a socket's name is 107 bytes.
Not here: listening (api.py), asking (client.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from agentd.config import find_state

SOCKET_NAME = "control.sock"

_SYSTEM_RUNTIME = Path("/run/agentd")  # what RuntimeDirectory=agentd makes
_NAME_MAX_BYTES = 107


def listening_paths(state: Path, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The sockets that a daemon with this state folder serves."""
    return tuple(dict.fromkeys(folder / SOCKET_NAME for folder in (state, *_runtime_folders(environ))))


def find_socket(config: Path | None, environ: Mapping[str, str]) -> Path:
    """The socket that a client should try: the first that exists, or where it would be.

    AGENTD_STATE, where set, is the only place looked at. config: a configuration file, or None for the usual one.
    """
    named = find_state(config, environ) / SOCKET_NAME
    if environ.get("AGENTD_STATE"):
        return named
    runtime = [folder / SOCKET_NAME for folder in _runtime_folders(environ)]
    of_services = [folder / SOCKET_NAME for folder in _of_services(environ)]
    return next((path for path in (*runtime, named, *of_services) if _is_there(path)), named)


def is_a_services(socket: Path, environ: Mapping[str, str]) -> bool:
    """Whether it lies where nobody but a service manager makes folders."""
    return socket.parent in (*_runtime_folders(environ), *_of_services(environ))


def _of_services(environ: Mapping[str, str]) -> list[Path]:
    folder = environ.get("XDG_RUNTIME_DIR")  # where the user's own service has its RuntimeDirectory=agentd
    return [*([Path(folder) / "agentd"] if folder else []), _SYSTEM_RUNTIME]


def _is_there(path: Path) -> bool:
    try:
        return path.is_socket()
    except OSError:  # a folder that this user may not enter
        return False


def _runtime_folders(environ: Mapping[str, str]) -> list[Path]:
    folders = environ.get("RUNTIME_DIRECTORY")  # systemd; several are joined by colons
    return [Path(folders.split(":")[0])] if folders else []


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name for the socket that fits into an address, good while the context lasts."""
    if len(os.fsencode(path)) <= _NAME_MAX_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
