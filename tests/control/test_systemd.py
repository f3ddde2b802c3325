"""What the service manager is told, over a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.control.systemd import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def test_the_manager_hears_each_word(manager: socket.socket) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": manager.getsockname()})
    told.ready()
    told.status("2 identities live")
    told.alive()
    told.stopping()
    before_us = time.monotonic_ns() // 1_000
    told.reloading()
    assert [manager.recv(100) for _ in range(4)] == [
        b"READY=1",
        b"STATUS=2 identities live",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]
    word, _, moment = manager.recv(100).decode().partition("\nMONOTONIC_USEC=")
    assert word == "RELOADING=1"
    assert before_us <= int(moment) <= time.monotonic_ns() // 1_000


async def test_what_a_manager_must_not_miss_is_told_when_it_has_room_again(manager: socket.socket) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": manager.getsockname()})
    words = [b"MAINPID=%d\nWATCHDOG=1" % pid for pid in range(1_000)]  # more than a socket holds
    for pid in range(len(words)):
        told.succeeded_by(pid)
    told.alive()
    told.status("2 live")
    assert [await asyncio.to_thread(manager.recv, 100) for _ in words] == words
    await told.heard(5.0)
    told.status("2 live")
    assert manager.recv(100) == b"STATUS=2 live"


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0agentd-test-{os.getpid()}")
        listening.settimeout(5)
        ServiceManager({"NOTIFY_SOCKET": f"@agentd-test-{os.getpid()}"}).ready()
        assert listening.recv(100) == b"READY=1"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    ServiceManager({}).ready()
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()


def test_the_watchdog_is_fed_only_by_the_process_it_is_meant_for() -> None:
    asked = {"WATCHDOG_USEC": "30000000"}
    assert ServiceManager(asked).watchdog_s == 30.0
    assert ServiceManager({**asked, "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 30.0
    assert ServiceManager({**asked, "WATCHDOG_PID": "1"}).watchdog_s is None
    assert ServiceManager({}).watchdog_s is None


def test_a_reload_is_told_with_its_time_and_ends_with_ready(manager: socket.socket) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": manager.getsockname()})
    before = time.monotonic_ns() // 1_000
    told.reloading()
    told.ready()
    word, moment = manager.recv(200).decode().split("\n")
    assert word == "RELOADING=1"
    name, value = moment.split("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1_000
    assert manager.recv(100) == b"READY=1"


def test_a_status_is_told_again_only_when_it_differs(manager: socket.socket) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": manager.getsockname()})
    for line in ("1 live", "1 live", "1 parked"):
        told.status(line)
    told.alive()
    assert [manager.recv(100) for _ in range(3)] == [b"STATUS=1 live", b"STATUS=1 parked", b"WATCHDOG=1"]


def test_it_is_known_whether_anybody_listens(manager: socket.socket) -> None:
    assert ServiceManager({"NOTIFY_SOCKET": manager.getsockname()}).listens
    assert not ServiceManager({}).listens


def test_another_process_can_be_named_to_be_looked_after(manager: socket.socket) -> None:
    ServiceManager({"NOTIFY_SOCKET": manager.getsockname()}).succeeded_by(42)
    assert manager.recv(100) == b"MAINPID=42\nWATCHDOG=1"
