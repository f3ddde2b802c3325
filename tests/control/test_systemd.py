"""What the service manager is told, over a real datagram socket; and the unit itself where the tools are there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.control.systemd import ServiceManager

UNIT = Path(__file__).parent.parent.parent / "systemd" / "agentd.service"


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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd's tools are not on this machine")
def test_the_unit_is_well_formed_and_exposes_little(tmp_path: Path) -> None:
    # The program's place on a server is not there on a developer's machine; everything else is checked as it stands.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/agentd/bin/agentd", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    exposed = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=12", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert exposed.returncode == 0, exposed.stdout
    assert exposed.stderr == ""
