"""Lines for a stream whose reader may have stopped: a terminal after Ctrl-S, a pipe that nobody reads.

A line is written at once, from the thread that has it, as long as the stream takes it: what was said last before a
death is there to be read. What the stream does not take is kept and written by a thread of its own, up to a bound;
beyond it lines are dropped and counted, and how many is said where they are missing.

Always true: `put` never waits for a reader; no line stands in the middle of another. The stream itself, which others
share, is not changed: what does not block is a second way into it.
Not here: what a line says (logs).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TextIO

_LOOK_MS = 500
_LAST_WORDS_S = 1.0  # how long an end waits for a reader


class Outlet:
    """One stream. notice: makes the line that says how many are missing. backlog_max_bytes: what is kept.

    dropped: lines that were, since the start.
    """

    def __init__(self, stream: TextIO, backlog_max_bytes: int, notice: Callable[[int], str]) -> None:
        self._stream = stream
        self._max_bytes = backlog_max_bytes
        self._notice = notice
        self._write = _way_into(stream)
        self._lock = threading.Lock()
        self._backlog: deque[bytes] = deque()
        self._bytes = 0
        self._missing = 0
        self._drainer: threading.Thread | None = None
        self._closed = False
        self.dropped = 0

    def put(self, line: str) -> None:
        """Write a line, or keep it, or drop it."""
        if self._write is None:
            self._stream.write(line + "\n")
            self._stream.flush()
            return
        content = left = _encoded(line)
        with self._lock:
            if self._closed:
                return  # its descriptor may be another file's by now, such as the journal's
            if not self._backlog and not self._missing:
                left = self._written(content)
            if left:
                self._keep(left, begun=len(left) < len(content))

    def close(self) -> None:
        """Take nothing more. What is kept is still written, should somebody read it."""
        with self._lock:
            if not self._closed and self._write is not None and self._drainer is None:
                self._write.close()
            self._closed = True

    def flush(self, timeout_s: float = _LAST_WORDS_S) -> None:
        """Wait until all is written, but not for long."""
        until = time.monotonic() + timeout_s
        while (drainer := self._drainer) is not None and time.monotonic() < until:
            drainer.join(0.01)

    def _written(self, content: bytes) -> bytes:
        """What is left of it, once the stream takes no more."""
        assert self._write is not None
        while content:
            try:
                content = content[self._write.some(content) :]
            except BlockingIOError:
                break
            except OSError:  # nobody will ever read it
                return b""
        return content

    def _keep(self, content: bytes, *, begun: bool) -> None:
        """begun: some of the line is written, so that the rest must follow."""
        if not begun and (self._missing or self._bytes + len(content) > self._max_bytes):
            self._missing += 1
            self.dropped += 1
        else:
            self._backlog.append(content)
            self._bytes += len(content)
        if self._drainer is None:
            # A daemon thread: a process whose log nobody reads can end all the same.
            self._drainer = threading.Thread(target=self._drain, name="agentd-log", daemon=True)
            self._drainer.start()

    def _drain(self) -> None:
        poll = select.poll()
        poll.register(self._stream.fileno(), select.POLLOUT)
        while True:
            poll.poll(_LOOK_MS)
            with self._lock:
                while self._backlog:
                    line = self._backlog[0]
                    left = self._backlog[0] = self._written(line)
                    self._bytes -= len(line) - len(left)
                    if left:
                        break
                    self._backlog.popleft()
                else:
                    if not self._missing:
                        self._drainer = None
                        if self._closed and self._write is not None:
                            self._write.close()
                        return
                    # Behind all that was kept, which is where the first of them is missing.
                    content = _encoded(self._notice(self._missing))
                    self._missing = 0
                    self._backlog.append(content)
                    self._bytes += len(content)
            # A stream that says it takes something and takes none must not make this a busy loop.
            time.sleep(0.001)


def _encoded(line: str) -> bytes:
    return line.encode(errors="backslashreplace") + b"\n"


class _Way(Protocol):
    """A way into a stream that does not block."""

    def some(self, content: bytes) -> int:
        """Write as much as it takes now. Raises BlockingIOError if that is nothing, OSError if it never will again."""
        ...

    def close(self) -> None:
        """Give it up."""
        ...


class _OwnDescription:
    """Of the same pipe or terminal: O_NONBLOCK on the stream's own would hold for whoever shares it."""

    def __init__(self, descriptor: int) -> None:
        self._own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

    def some(self, content: bytes) -> int:
        """See _Way."""
        return os.write(self._own, content)

    def close(self) -> None:
        """See _Way."""
        os.close(self._own)


class _Socket:
    """Where each write can be told not to wait."""

    def __init__(self, descriptor: int) -> None:
        self._shared = socket.socket(fileno=os.dup(descriptor))

    def some(self, content: bytes) -> int:
        """See _Way."""
        return self._shared.send(content, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """See _Way."""
        self._shared.close()


def _way_into(stream: TextIO) -> _Way | None:
    """What writes to it without waiting, or None where writing never waits for a reader, or cannot be made not to."""
    with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
        stream.flush()
        if stat.S_ISSOCK(mode):
            return _Socket(descriptor)
        if stat.S_ISFIFO(mode) or stream.isatty():
            return _OwnDescription(descriptor)
    return None
