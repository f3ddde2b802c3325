"""The client, where no daemon answers or the answer makes no sense."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.control import client
from agentd.control.client import Client
from agentd.control.refusal import UnreachableError


class Listener:
    """A far end that says what it is told, once."""

    def __init__(self, path: Path, answer: bytes | None) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.answer = answer
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._answer)
        self.thread.start()

    def _answer(self) -> None:
        connection, _ = self.socket.accept()
        with connection:
            connection.recv(65_536)
            if self.answer is None:
                self.over.wait(10)
            else:
                connection.sendall(self.answer)

    def close(self) -> None:
        self.over.set()
        self.thread.join()
        self.socket.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def listener(request: pytest.FixtureRequest, path: Path) -> Iterator[Listener]:
    listener = Listener(path, request.param)
    yield listener
    listener.close()


def test_without_a_daemon_the_remedy_is_told(path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"no daemon answers at .*; start one with: agentd run"):
        Client(path).status()
    with pytest.raises(UnreachableError, match="no daemon answers"):
        next(Client(path).tail())


def test_where_the_service_keeps_its_socket_the_remedy_is_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentd.control.client._OF_THE_SERVICE", (Path("/nowhere"),))
    with pytest.raises(UnreachableError, match="; start the service with: systemctl start agentd"):
        Client(Path("/nowhere/control.sock")).status()


def test_a_socket_that_nobody_listens_on_is_no_daemon(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(UnreachableError, match="no daemon answers"):
        Client(path).status()


def test_nothing_is_said_to_a_socket_that_another_user_has_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    was = os.geteuid()
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as planted:
        Path(folder).chmod(0o777)
        path = Path(folder) / "control.sock"
        if was == 0:
            os.seteuid(65_534)
        try:
            planted.bind(str(path))
            path.chmod(0o666)
            planted.listen()
            planted.setblocking(False)
            if was == 0:
                os.seteuid(0)
                os.seteuid(65_533)
            else:
                monkeypatch.setattr(os, "geteuid", lambda: was + 1)
            with pytest.raises(UnreachableError, match="belongs to another user"):
                Client(path).send("@bob", {"text": "secret"})
        finally:
            os.seteuid(was)
        connection, _ = planted.accept()
        with connection:
            assert connection.recv(65_536) == b""


def test_a_path_through_a_file_is_no_daemon(path: Path) -> None:
    path.write_text("")
    with pytest.raises(UnreachableError, match="no daemon answers"):
        Client(path / "control.sock").status()


@pytest.mark.parametrize(
    "listener",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nOops",
    ],
    indirect=True,
)
def test_an_answer_that_breaks_off_is_told_as_such(listener: Listener, path: Path) -> None:
    with pytest.raises(UnreachableError, match="broke off its answer"):
        Client(path).status()


@pytest.mark.parametrize("listener", [None], indirect=True)
def test_a_daemon_that_hangs_is_told_as_such(listener: Listener, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.Client._ask, "__defaults__", (None, 0.05))
    with pytest.raises(UnreachableError, match="does not answer in time"):
        Client(path).status()


@pytest.mark.parametrize("listener", [None], indirect=True)
def test_a_tail_that_does_not_begin_is_not_taken_for_silence(listener: Listener, path: Path) -> None:
    with pytest.raises(UnreachableError, match="does not answer in time"):
        next(Client(path, patience_s=0.05).tail())


def test_a_tail_may_be_silent_for_longer_than_an_answer_may_take(served: Any) -> None:
    records = Client(served.path, patience_s=2.0).tail()
    threading.Timer(2.5, served.happen, [{"position": 1}]).start()
    assert next(records) == {"position": 1}


@pytest.mark.parametrize(
    "listener", [b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":'], indirect=True
)
def test_a_stream_cut_within_a_record_ends_without_that_record(listener: Listener, path: Path) -> None:
    with pytest.raises(UnreachableError, match="ended the stream"):
        next(Client(path).tail())
