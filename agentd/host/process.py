"""One worker process as the daemon sees it: started, told and heard over a socket, watched, killed, reaped.

Its exit is seen through a pidfd, and its group is killed before it is reaped, so that the group's number cannot become
another's, and nothing that it started is left behind.

Always true: it gets one descriptor of ours, its end of the socket. Nothing here waits for it. What it wrote before its
end is heard before `ended` tells of it, unless something that it started keeps its pipes open.
Not here: what the messages mean, and when to start another (isolated.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, cast

import msgspec

from agentd.host import pipe

log = logging.getLogger("agentd.host.process")

_LAST_WORDS_S = 1.0  # how long its pipes may outlive it: then somebody else holds them
_LINE_MAX_BYTES = 8_192  # of what it prints; a longer line is logged in pieces

Print = Callable[[int, str], None]


class Process:
    """A worker process. take: called with each message. say: called with (level, line) for what it prints.

    on_exit: called as soon as it cannot be told anything any more. ended: how, once all that it said was heard.
    Raises OSError if it cannot be started.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        take: Callable[[pipe.FromWorker], None],
        say: Print,
        on_exit: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._on_exit = on_exit
        self._why = ""
        self._frames = pipe.Frames()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self._socket, self._popen = _spawned(environ)
        self.pid = self._popen.pid
        self._pidfd = self._watched()
        self._loop.add_reader(self._pidfd, self._exited)
        self._open = {"socket", "stdout", "stderr"}
        self._lines = {
            "stdout": _Lines(partial(say, logging.INFO), partial(self._closed, "stdout")),
            "stderr": _Lines(partial(say, logging.WARNING), partial(self._closed, "stderr")),
        }
        self._transports: list[asyncio.BaseTransport] = []
        self._has_exited = False

    def _watched(self) -> int:
        try:
            return os.pidfd_open(self.pid)
        except OSError:
            self._popen.kill()
            self._socket.close()
            with self._popen:  # closes its pipes and reaps it
                raise

    async def connect(self) -> None:
        """Begin to hear it. To be called once, at once."""
        frames = _Socket(self._heard, partial(self._closed, "socket"))
        self._transport, _ = await self._loop.connect_accepted_socket(lambda: frames, self._socket)
        self._transports.append(self._transport)
        for name, lines in self._lines.items():
            file = cast("IO[bytes]", getattr(self._popen, name))
            self._transports.append(await self._reader(lines, file))

    def _unheard(self) -> list[socket.socket | IO[bytes]]:
        """What nobody has begun to hear, where `connect` was broken off."""
        files = (self._socket, self._popen.stdout, self._popen.stderr)
        return [file for file in files[len(self._transports) :] if file is not None]

    async def _reader(self, lines: _Lines, file: IO[bytes]) -> asyncio.BaseTransport:
        transport, _ = await self._loop.connect_read_pipe(lambda: lines, file)
        return transport

    def tell(self, message: pipe.ToWorker) -> None:
        """Write one message; to a process that has ended, in vain. Raises FrameTooLarge."""
        frame = pipe.framed(message)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def kill(self, why: str) -> None:
        """End it and all that it started. why: the first is what `ended` will tell."""
        if not self._has_exited:
            self._why = self._why or why
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _heard(self, content: bytes) -> None:
        try:
            for body in self._frames.fed(content):
                message = pipe.from_worker(body)
                if isinstance(message, pipe.Dying):
                    self._why = self._why or message.why
                self._take(message)
        except (msgspec.MsgspecError, pipe.FrameTooLarge) as error:
            self.kill(f"it wrote what is no message: {error}")

    def _closed(self, name: str) -> None:
        self._open.discard(name)
        if name == "socket" and not self._has_exited:
            # Mostly since it has exited, which is told in a moment, and better.
            self._on_exit()
            self._loop.call_later(_LAST_WORDS_S, self.kill, "it closed its end of the pipe")
        if self._has_exited and not self._open:
            self._end()

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._kill_group()
        self._has_exited = True
        self._on_exit()
        self._popen.poll()
        if self._open:
            self._loop.call_later(_LAST_WORDS_S, self._end)
        else:
            self._end()

    def _end(self) -> None:
        if self.ended.done():
            return
        for each in (*self._transports, *self._unheard()):
            each.close()
        self.ended.set_result(self._why or told(self._popen.returncode))


def _spawned(environ: Mapping[str, str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A worker, and our end of the socket to it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        try:
            return ours, subprocess.Popen(  # noqa: S603 -- our own module, without a shell
                [
                    *(sys.executable, "-u", "-P", "-X", "faulthandler"),
                    *("-m", "agentd.host.worker", str(theirs.fileno()), str(os.getpid())),
                ],
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environ),
                pass_fds=(theirs.fileno(),),
                # A terminal's interrupt is for the daemon, which stops its workers in order. No session of its own:
                # where the kernel shares out its time by session, its niceness would mean nothing to the daemon.
                process_group=0,
            )
        except BaseException:
            ours.close()
            raise


def told(status: int) -> str:
    """How a process ended, in words. status: as of Popen."""
    if status >= 0:
        return f"it exited with status {status}"
    name = signal.Signals(-status).name
    if -status == signal.SIGXCPU:
        return "it burned all the CPU time that cpu_max_s of its settings allows in one stretch (its stack is logged)"
    return f"it was killed by {name}" + (", perhaps for lack of memory" if -status == signal.SIGKILL else "")


class _Socket(asyncio.Protocol):
    """Passes on what is read."""

    def __init__(self, heard: Callable[[bytes], None], closed: Callable[[], None]) -> None:
        self._heard = heard
        self._closed = closed

    def data_received(self, data: bytes) -> None:
        self._heard(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._closed()


class _Lines(asyncio.Protocol):
    """Cuts what is read into lines."""

    def __init__(self, say: Callable[[str], None], closed: Callable[[], None]) -> None:
        self._say = say
        self._closed = closed
        self._unsaid = bytearray()

    def data_received(self, data: bytes) -> None:
        self._unsaid += data
        *lines, rest = self._unsaid.split(b"\n")
        self._unsaid = rest
        for line in lines:
            self._tell(line)
        if len(self._unsaid) >= _LINE_MAX_BYTES:
            self._tell(self._unsaid)
            self._unsaid = bytearray()

    def connection_lost(self, error: Exception | None) -> None:
        self._tell(self._unsaid)
        self._closed()

    def _tell(self, line: bytearray) -> None:
        for begin in range(0, len(line), _LINE_MAX_BYTES):
            self._say(line[begin : begin + _LINE_MAX_BYTES].decode(errors="backslashreplace").rstrip("\r"))
