"""What a service manager hears of a real process, over a real datagram socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_S = 30.0


@contextmanager
def managed(folder: Path, *words: str, **environ: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process that is told where its manager listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(TIMEOUT_S)
        command = [sys.executable, "-m", "agentd", *words]
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), **environ}
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield process, manager
            finally:
                process.kill()


def heard_until(manager: socket.socket, word: str) -> list[str]:
    """Everything up to this word."""
    heard: list[str] = []
    deadline = time.monotonic() + TIMEOUT_S
    while word not in heard:
        assert time.monotonic() < deadline, heard
        heard.append(manager.recv(1_000).decode())
    return heard


def test_a_daemon_says_when_it_is_ready_how_it_is_that_it_lives_and_that_it_stops(tmp_path: Path) -> None:
    with managed(tmp_path, "run", WATCHDOG_USEC="400000") as (process, manager):
        heard = heard_until(manager, "STATUS=2 live")
        assert "READY=1" in heard
        assert len([word for word in heard if word.startswith("STATUS=")]) == len(
            {word for word in heard if word.startswith("STATUS=")}
        ), "told when it differs"
        heard_until(manager, "WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        heard_until(manager, "STOPPING=1")
        assert process.wait(TIMEOUT_S) == 0


def test_a_daemon_whose_loop_is_blocked_says_no_more_that_it_lives(tmp_path: Path) -> None:
    with managed(tmp_path, "run", WATCHDOG_USEC="400000") as (process, manager):
        heard_until(manager, "STATUS=2 live")
        process.send_signal(signal.SIGSTOP)  # to its manager the same as a loop that does not come back
        manager.settimeout(1.0)
        quiet = False
        for _ in range(100):
            try:
                manager.recv(1_000)
            except TimeoutError:
                quiet = True
                break
        process.send_signal(signal.SIGCONT)
        assert quiet


def test_the_hub_says_when_it_can_be_dialled_and_that_it_stops(tmp_path: Path) -> None:
    with managed(tmp_path, "hub", "--port", "0") as (process, manager):
        assert heard_until(manager, "READY=1") == ["READY=1"]
        assert manager.recv(1_000).startswith(b"STATUS=listens at http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        heard_until(manager, "STOPPING=1")
        assert process.wait(TIMEOUT_S) == 0
