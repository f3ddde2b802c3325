"""One child process with its group, its pipes and its end, moved along by the event loop's callbacks.

Its exit is seen through a pidfd and not by reaping it: until `end`, which kills the group first and reaps then, the
number of the group cannot come to mean anybody else.

Always true: nothing here waits for the child, except `line`, which can be cancelled at any time. What waits to be read
is bounded: beyond `output_max_bytes` in one turn the child has failed. `end` leaves no process of the group, no
descriptor and no callback.
Not here: what lines mean (the package's __init__).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence

_PIPE_BYTES = 65_536  # what a pipe holds, unless it was told otherwise


class TooMuchOutput(Exception):
    """The child wrote more to its stdout than a turn may."""


class Child:
    """A running program. complain: called with each line of its stderr, decoded.

    Raises OSError if it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        folder: str | None,
        output_max_bytes: int,
        complaints_max_bytes: int,
        complain: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(  # noqa: S603 -- the operator's own command, without a shell
            list(command),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=dict(environ),
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdin, self._stdout, self._stderr = self._process.stdin, self._process.stdout, self._process.stderr
        self._pidfd = self._watched()
        self._output_max_bytes = output_max_bytes
        self._complaints_max_bytes = complaints_max_bytes
        self.complain = complain
        self._unsent = bytearray()
        self._closing = False
        self._unread = bytearray()
        self._read_bytes = 0
        self._unsaid = bytearray()
        self._said_bytes = 0
        self._stirred: asyncio.Future[None] | None = None
        self.exited = False
        self._ended = False
        for pipe in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(pipe.fileno(), False)
        self._loop.add_reader(self._pidfd, self._exit)
        self._loop.add_reader(self._stdout.fileno(), self._read)
        self._loop.add_reader(self._stderr.fileno(), self._listen)

    def _watched(self) -> int:
        try:
            return os.pidfd_open(self._process.pid)
        except OSError:
            self._process.kill()
            with self._process:  # closes its pipes and reaps it
                raise

    @property
    def pid(self) -> int:
        """Its process id, which is its group's as well."""
        return self._process.pid

    def is_idle(self) -> bool:
        """It runs, has read all that it was fed, and has written nothing that was not read."""
        self._read()
        return not (self.exited or self._unread or self._unsent)

    def begin(self, complain: Callable[[str], None]) -> None:
        """A new turn: what it may write is counted from here."""
        self.complain = complain
        self._read_bytes = self._said_bytes = 0

    def feed(self, content: bytes, *, close: bool) -> None:
        """Write to its stdin, as fast as it reads. close: nothing follows."""
        if self._stdin.closed:
            return
        self._unsent += content
        self._closing = close
        self._loop.add_writer(self._stdin.fileno(), self._write)

    async def line(self) -> bytes | None:
        """The next line of its stdout, without its end; None when it has exited and all was read.

        Raises TooMuchOutput.
        """
        while True:
            if self._read_bytes > self._output_max_bytes:
                raise TooMuchOutput
            end = self._unread.find(b"\n")
            if end < 0 and self.exited:
                end = len(self._unread)
                if not end:
                    return None
            if end >= 0:
                line = bytes(self._unread[:end])
                del self._unread[: end + 1]
                return line
            self._stirred = self._loop.create_future()
            await self._stirred

    def end(self) -> int | None:
        """Kill whatever is left of its group. Returns its exit status, negative for a signal; None if it still ran."""
        if not self._ended:
            self._ended = True
            self._kill_group()
            self._listen()
            self._complain_of(self._unsaid)
            for pipe in (self._pidfd, self._stdout.fileno(), self._stderr.fileno()):
                self._loop.remove_reader(pipe)
            self._stop_feeding()
            os.close(self._pidfd)
            self._stdout.close()
            self._stderr.close()
            if self._process.poll() is None:
                # It dies of the signal; a large one takes its time, for which the loop does not wait.
                threading.Thread(target=self._process.wait, name=f"reap-{self.pid}", daemon=True).start()
        return self._process.returncode if self.exited else None

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        # What it left behind must not hold its pipes open, nor outlive the turn.
        self._kill_group()
        self._read()
        self.exited = True
        self._stir()

    def _read(self) -> None:
        """Take what it has written, up to what a turn may."""
        while self._read_bytes <= self._output_max_bytes:
            content = _read_now(self._stdout.fileno())
            if not content:
                if content is not None:
                    self._loop.remove_reader(self._stdout.fileno())
                break
            self._unread += content
            self._read_bytes += len(content)
        else:
            self._loop.remove_reader(self._stdout.fileno())
        self._stir()

    def _listen(self) -> None:
        content = _read_now(self._stderr.fileno())
        if content is None:
            return
        if not content:
            self._loop.remove_reader(self._stderr.fileno())
            return
        room = self._complaints_max_bytes - self._said_bytes
        self._said_bytes += len(content)
        self._unsaid += content[: max(0, room)]
        *lines, self._unsaid = self._unsaid.split(b"\n")
        for line in lines:
            self._complain_of(line)
        if 0 <= room < len(content):
            self._complain_of(self._unsaid)
            self._unsaid.clear()
            self.complain(f"... more than {self._complaints_max_bytes} bytes in one turn; the rest is not shown")

    def _complain_of(self, line: bytearray) -> None:
        if text := line.decode("utf-8", "replace").rstrip():
            self.complain(text)

    def _write(self) -> None:
        try:
            while self._unsent:
                written = os.write(self._stdin.fileno(), self._unsent[:_PIPE_BYTES])
                del self._unsent[:written]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want the rest; what it makes of that shows in its answer
            self._unsent.clear()
            self._closing = True
        if self._closing:
            self._stop_feeding()
        else:
            self._loop.remove_writer(self._stdin.fileno())

    def _stop_feeding(self) -> None:
        if not self._stdin.closed:  # or the number may be somebody else's by now
            self._loop.remove_writer(self._stdin.fileno())
            self._stdin.close()

    def _stir(self) -> None:
        if self._stirred is not None and not self._stirred.done():
            self._stirred.set_result(None)


def _read_now(pipe: int) -> bytes | None:
    """What is there; empty at the end of the pipe, None if there is nothing now."""
    try:
        return os.read(pipe, _PIPE_BYTES)
    except BlockingIOError:
        return None
