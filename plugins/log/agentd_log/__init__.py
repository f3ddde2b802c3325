"""log: one JSON line for every event, for audits.

Always true: a line is one write to a file opened for appending, so that lines of several writers never mix. A torn
line, left by a full disk, is ended before the next one; its event is written again, whole. An event counts as handled
only after its line was written (and, with `fsync`, is on disk).
Not here: rotation. Each line opens the file by its name, so that whoever renames it gets a new one.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from agentd.plugin import Context, Event, Gap, Plugin, PluginContext, Signal, StreamReset, portable


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `[plugin.NAME.config]`.

    file: where lines go; created for its owner only. own: what the identity itself says, too. payload: the bytes as the
    platform sent them, too. fsync: an event is not handled before its line is on disk.
    """

    file: Annotated[str, msgspec.Meta(min_length=1)]
    own: bool = False
    payload: bool = False
    fsync: bool = False


plugin = Plugin("log", config=Settings, watches=True)

# Between looking for a torn line and writing behind it, no other thread writes.
_writing = threading.Lock()


@plugin.setup
def try_file(ctx: PluginContext[Settings]) -> None:
    """Find out now whether the file can be written."""
    try:
        with _opened(ctx.config.file):
            pass
    except OSError as error:
        raise ValueError(
            f"plugin.{ctx.name}.config.file: {ctx.config.file} cannot be written ({error.strerror}); "
            "name a file in a folder that exists and is this user's"
        ) from error


@plugin.on(Event, own=True)
def write_event(event: Event, ctx: Context[Settings]) -> None:
    """Write what was said, and whatever else has a place in a conversation."""
    if ctx.config.own or not event.own:
        _write(event, ctx.config)


@plugin.on(Gap)
def write_gap(gap: Gap, ctx: Context[Settings]) -> None:
    """Write what was missing, and whether it was found."""
    _write(gap, ctx.config)


@plugin.on(StreamReset)
def write_reset(reset: StreamReset, ctx: Context[Settings]) -> None:
    """Write that a conversation was numbered anew."""
    _write(reset, ctx.config)


def _write(event: Event | Signal, settings: Settings) -> None:
    told = portable(event)
    if settings.payload and isinstance(event, Event):
        told["payload"] = event.payload.decode("utf-8", "replace")
    line = msgspec.json.encode(told) + b"\n"
    with _opened(settings.file) as file:
        with _writing:
            size = os.fstat(file).st_size
            _append(file, b"\n" + line if _is_torn(file, size) else line)
        if settings.fsync:
            os.fsync(file)
            if not size:
                _keep_name(Path(settings.file))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    """The file's descriptor; a file that is made here is its owner's only. Raises OSError."""
    # Read and write, since the last byte is looked at, and since opening a named pipe like this does not wait.
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(0, "it is no regular file")
        yield file
    finally:
        os.close(file)


def _is_torn(file: int, size: int) -> bool:
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def _append(file: int, line: bytes) -> None:
    written = os.write(file, line)
    if written < len(line):
        raise OSError(f"{written} of {len(line)} bytes were written; make room on the disk")


def _keep_name(path: Path) -> None:
    """A new file's name is on disk only when its folder is."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
