"""A log whose reader has stopped: real pipes, terminals and sockets, and a whole daemon that nobody listens to."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import pytest

from agentd.demo.proof import IMPATIENT, Proof
from agentd.outlet import Outlet

LINE = "x" * 99  # a hundred bytes with its end
BACKLOG = 10_000


class FarEnd:
    """An outlet, and how its stream is read. read: what is there within a moment."""

    def __init__(self, stream: TextIO, read: Callable[[], bytes], close: Callable[[], None]) -> None:
        self.outlet = Outlet(stream, BACKLOG, lambda missing: f"{missing} missing")
        self.stream = stream
        self._read = read
        self.close = close

    def read_until(self, end: str) -> list[str]:
        """All lines up to the one that begins so."""
        content, until = b"", time.monotonic() + 20
        while not any(line.startswith(end) for line in _lines(content)):
            assert time.monotonic() < until, content[-500:]
            content += self._read()
        return _lines(content)


def _lines(content: bytes) -> list[str]:
    whole, _, _ = content.replace(b"\r\n", b"\n").rpartition(b"\n")
    return whole.decode().split("\n")


def _some(descriptor: int) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], 1.0)
    return os.read(descriptor, 1_000) if ready else b""


def on_a_pipe() -> FarEnd:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    return FarEnd(stream, partial(_some, reader), lambda: os.close(reader))


def on_a_terminal() -> FarEnd:
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w")
    return FarEnd(stream, partial(_some, master), lambda: os.close(master))


def on_a_socket() -> FarEnd:
    ours, theirs = socket.socketpair()
    stream = os.fdopen(theirs.detach(), "w")
    return FarEnd(stream, partial(_some, ours.fileno()), ours.close)


@pytest.fixture(params=[on_a_pipe, on_a_terminal, on_a_socket])
def far_end(request: pytest.FixtureRequest) -> Iterator[FarEnd]:
    made = request.param()
    yield made
    made.close()
    made.outlet.flush(20)  # nobody will read it: what is left is let go
    made.outlet.close()
    made.stream.close()


def test_lines_that_nobody_reads_are_kept_then_dropped_and_told_where_they_are_missing(far_end: FarEnd) -> None:
    put = 0
    while not far_end.outlet.dropped:
        far_end.outlet.put(f"{put} {LINE}")
        put += 1
    for _ in range(9):
        far_end.outlet.put("not kept")
    kept = put - 1
    assert far_end.outlet.dropped == 10
    lines = far_end.read_until("10 missing")
    assert lines == [*(f"{number} {LINE}" for number in range(kept)), "10 missing"]
    far_end.outlet.flush(20)
    far_end.outlet.put("afterwards")
    assert far_end.read_until("afterwards") == ["afterwards"]
    assert far_end.outlet.dropped == 10


def test_a_line_is_there_as_soon_as_it_was_put_where_somebody_reads(far_end: FarEnd) -> None:
    far_end.outlet.put("at once")
    assert far_end._read().replace(b"\r\n", b"\n") == b"at once\n", "no other thread had to run for it"


def test_a_stopped_terminal_holds_nobody_up(tmp_path: Path) -> None:
    far_end = on_a_terminal()
    termios.tcflow(far_end.stream.fileno(), termios.TCOOFF)  # what Ctrl-S does
    for number in range(5):
        far_end.outlet.put(f"line {number}")
    termios.tcflow(far_end.stream.fileno(), termios.TCOON)
    assert far_end.read_until("line 4") == [f"line {number}" for number in range(5)]
    far_end.close()
    far_end.stream.close()


def test_the_stream_that_others_share_still_blocks_for_them() -> None:
    far_end = on_a_pipe()
    assert os.get_blocking(far_end.stream.fileno())
    far_end.outlet.put("a line")
    assert os.get_blocking(far_end.stream.fileno())
    far_end.outlet.close()
    far_end.close()
    far_end.stream.close()


def test_a_line_that_was_begun_is_ended_whatever_its_length() -> None:
    far_end = on_a_pipe()
    long = "y" * 100_000  # more than a pipe holds, and than is kept beside it
    far_end.outlet.put(long)
    far_end.outlet.put("behind it")
    assert far_end.read_until("1 missing") == [long, "1 missing"]
    far_end.close()
    far_end.stream.close()


@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_process_ends_with_its_last_words_and_also_where_nobody_reads_them(lines: int) -> None:
    program = (
        "import logging; from agentd import logs; logs.configure('info')\n"
        f"for number in range({lines}): logging.info('line %d', number)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        assert process.wait(20) == 0
        assert process.stderr is not None
        told = [json.loads(line)["message"] for line in process.stderr.read().splitlines() if line.endswith("}")]
    assert told[0] == "line 0"
    assert (len(told) == 1) == (lines == 1)


CHATTY = """
from agentd.demo.ledger import plugin
from agentd.plugin import Message


@plugin.on(Message)
async def chat(message, ctx):
    for number in range(10):
        ctx.log.info("line %d about %s %s", number, message.id, "x" * 1_000)
"""


class Unheard(Proof):
    """A daemon whose stderr is a pipe that nobody reads yet."""

    def start(self) -> None:  # type: ignore[override]
        self._daemon = subprocess.Popen(
            [sys.executable, "-m", "agentd", "run", "--config", str(self._config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")},
            cwd=self.folder,
        )

    def heard(self) -> list[str]:
        """All of its log, from now on until its end."""
        assert self._daemon is not None
        assert self._daemon.stderr is not None
        with self._daemon.stderr as log:
            return [json.loads(line)["message"] for line in log]


async def test_mail_flows_while_nobody_reads_the_log_and_what_is_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(CHATTY)
    async with Unheard(tmp_path, 1, settings=IMPATIENT) as proof:
        text = proof._config.read_text().replace("agentd.demo.ledger:plugin", "./chatty.py")
        proof._config.write_text(text.replace("[agentd]\n", "[agentd]\nlog_backlog_max_bytes = 50000\n"))
        proof.peer("peer")
        proof.start()
        await proof.until_live()
        proof.hub.post("peer", proof.identities[0], *(f"message {number}" for number in range(60)))
        assert await proof.until_answered(30), "600 kB of log were in the way"
        assert proof.verdict().clean
        status = await proof.status()
        assert status is not None
        assert status["log_lines_dropped"] > 300
        heard = asyncio.create_task(asyncio.to_thread(proof.heard))
        proof.hub.post("peer", proof.identities[0], "one more")
        assert await proof.until_answered(30)
        assert await proof.stop() == 0
        messages = await heard
    [told] = [line for line in messages if "lines of the log are missing here" in line]
    assert int(told.split()[0]) >= status["log_lines_dropped"]
    said = [line for line in messages if line.startswith("line ")]
    assert len(said) + int(told.split()[0]) >= 610, "every line is there, or counted"
    assert messages.index(told) < messages.index("stopping")


def test_what_comes_after_the_end_is_written_nowhere(far_end: FarEnd, tmp_path: Path) -> None:
    far_end.outlet.put("before")
    assert far_end.read_until("before") == ["before"]
    far_end.outlet.close()
    others = [(tmp_path / str(number)).open("wb") for number in range(8)]  # one of which has the descriptor now
    far_end.outlet.put("after")
    far_end.outlet.close()
    for other in others:
        other.close()
    assert {each.stat().st_size for each in tmp_path.iterdir()} == {0}


def test_what_was_kept_is_written_after_the_end_and_leaves_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    far_end = on_a_pipe()
    for _ in range(2_000):
        far_end.outlet.put(LINE)
    far_end.outlet.put("last")
    far_end.outlet.close()
    far_end.read_until("1")  # the notice is behind all that was kept
    far_end.outlet.flush(20)
    far_end.close()
    far_end.stream.close()
    assert set(os.listdir("/proc/self/fd")) == before
