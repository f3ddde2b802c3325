"""The control socket: who may ask, what is answered, and what becomes of the socket itself."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agentd.control.address import find_socket, listening_paths
from agentd.control.api import ControlServer, HandOverRequest
from agentd.control.client import Client
from agentd.control.refusal import ControlError, UnreachableError
from agentd.core.events import Content
from agentd.errors import JournalFull, OutcomeUnknown, Refused, Unavailable
from tests.conftest import ScriptedDaemon, pause_row


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def either(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Any:
    """A server on each of the event loops."""
    return serve(new_loop=request.param)


def refused(call: Callable[[], object]) -> ControlError:
    with pytest.raises(ControlError) as error:
        call()
    return error.value


def raw(path: Path, request: bytes) -> tuple[int, dict[str, Any]]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


# Answers


def test_status_comes_back_as_the_daemon_gave_it(either: Any) -> None:
    assert Client(either.path).status() == either.daemon.status()


def test_status_of_one_identity_leaves_the_others_out(served: Any) -> None:
    answer = Client(served.path).status("bob")
    assert [identity["name"] for identity in answer["identities"]] == ["bob"]
    assert answer["pid"] == 42


def test_an_identity_that_does_not_exist_is_answered_with_the_nearest_name(served: Any) -> None:
    client = Client(served.path)
    for call in (lambda: client.status("alise"), lambda: client.gaps("alise"), lambda: next(client.tail("alise"))):
        error = refused(call)
        assert (error.status, error.code, error.remedy) == (404, "UNKNOWN_IDENTITY", "did you mean 'alice'?")
    error = refused(lambda: client.send("@x", {"text": "hi"}, identity="zzz"))
    assert str(error) == "there is no identity 'zzz'; name one of: alice, bob"
    assert served.daemon.asked == []


def test_a_send_reaches_the_daemon_whole(either: Any) -> None:
    content = {"text": "hi", "data": {"n": 1}, "metadata": {"reply_to": "msg_1"}}
    answer = Client(either.path).send("@echo", content, identity="alice", wait_s=1.5, client_msg_id="key-1")
    assert answer == either.daemon.answer
    expected = Content(text="hi", data={"n": 1}, metadata={"reply_to": "msg_1"})
    assert either.daemon.asked == [("send", "alice", "@echo", expected, 1.5, "key-1")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "truncated"),
        (b'{"target": "@x"}', "missing required field `content`"),
        (b'{"target": "@x", "content": {}}', "neither text, data nor attachment_id"),
        (b'{"target": "", "content": {"text": "x"}}', "$.target"),
        (b'{"target": "@x", "content": {"text": "x"}, "wait_s": -1}', "$.wait_s"),
        (b'{"target": "@x", "content": {"text": "x"}, "speed": 1}', "unknown field `speed`"),
        (b'"' + b"x" * 5_000_000 + b'"', "longer than 4194304 bytes"),
    ],
)
def test_a_send_that_makes_no_sense_is_refused(served: Any, body: bytes, message: str) -> None:
    head = b"POST /v1/send HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    status, answer = raw(served.path, head + body)
    assert (status, answer["code"]) == (400, "BAD_REQUEST")
    assert message in answer["message"]
    assert served.daemon.asked == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ControlError(409, "WHICH", "two identities could be meant", "say --as NAME"), 409, "WHICH"),
        (Refused(403, "BLOCKED", "you are blocked"), 422, "BLOCKED"),
        (Unavailable("no connection"), 503, "UNAVAILABLE"),
        (OutcomeUnknown("no answer"), 504, "OUTCOME_UNKNOWN"),
        (JournalFull("no room on the disk"), 507, "JOURNAL"),
    ],
)
def test_what_the_daemon_cannot_do_is_told_with_its_code(served: Any, error: Exception, status: int, code: str) -> None:
    served.daemon.error = error
    told = refused(lambda: Client(served.path).send("@x", {"text": "hi"}))
    assert (told.status, told.code) == (status, code)


def test_a_state_folder_whose_name_is_not_utf_8_is_told_as_it_is(either: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {**either.daemon.status(), "state_dir": os.fsdecode(b"/srv/caf\xe9")}
    monkeypatch.setattr(either.daemon, "status", lambda: told)
    assert os.fsencode(Client(either.path).status()["state_dir"]) == b"/srv/caf\xe9"


def test_the_number_of_a_letter_that_no_disk_holds_is_a_bad_request(served: Any) -> None:
    for number in (2**53 + 1, 2**64, 10**30):
        assert refused(lambda number=number: Client(served.path).dead_drop(number)).code == "BAD_REQUEST"
        assert refused(lambda number=number: Client(served.path).dead_replay(number)).code == "BAD_REQUEST"
    assert served.daemon.asked == []


def test_a_fault_of_the_daemons_is_in_its_log_and_not_in_the_answer(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    served.daemon.error = RuntimeError("inner words")
    with caplog.at_level(logging.ERROR):
        told = refused(lambda: Client(served.path).send("@x", {"text": "hi"}))
    assert (told.status, told.code) == (500, "INTERNAL")
    assert "inner words" not in str(told)
    assert "inner words" in caplog.text


def test_conversations_are_told_by_how_they_begin(served: Any) -> None:
    client = Client(served.path)
    assert client.conversations("alice", prefix="conv_", limit=7) == [
        {"identity": "alice", "conversation": "conv_2"},
        {"identity": "alice", "conversation": "conv_1"},
    ]
    assert served.daemon.asked == [("conversations", "alice", "conv_", 7)]
    assert refused(lambda: client.conversations("alise")).code == "UNKNOWN_IDENTITY"


def test_gaps_are_asked_for_as_wanted(served: Any) -> None:
    served.daemon.gap_list = [{"identity": "alice", "start": 3, "stop": 5}]
    client = Client(served.path)
    assert client.gaps() == served.daemon.gap_list
    client.gaps("alice", open_only=False, limit=7)
    assert served.daemon.asked == [("gaps", None, True, 100), ("gaps", "alice", False, 7)]
    assert refused(lambda: client.gaps(limit=0)).code == "BAD_REQUEST"


HELD = ("ready", "sending", "unknown", "refused", "expired")


def test_the_outbox_is_asked_for_as_wanted(served: Any) -> None:
    client = Client(served.path)
    assert client.outbox() == list(served.daemon.sends.values())
    client.outbox("alice", states=["refused", "sent"], limit=7)
    assert served.daemon.asked == [("outbox", None, HELD, 100), ("outbox", "alice", ("refused", "sent"), 7)]
    error = refused(lambda: client.outbox(states=["lost"]))
    assert (error.code, error.message) == (
        "BAD_REQUEST",
        "no send is ever 'lost', but ready, sending, unknown, sent, refused, expired, dropped",
    )
    assert refused(lambda: client.outbox("alise")).code == "UNKNOWN_IDENTITY"


def test_a_send_is_named_by_its_key_whatever_stands_in_it(served: Any) -> None:
    key = "@bob/ä?&=%41"
    row = served.daemon.sends["agentd-7-0"]
    served.daemon.sends = {key: row}
    client = Client(served.path)
    assert client.outbox_show(key) == row
    assert client.outbox_retry(key, "alice")["state"] == "ready"
    assert client.outbox_drop(key)["state"] == "dropped"
    assert served.daemon.asked == [
        ("outbox_show", None, key),
        ("outbox_retry", "alice", key),
        ("outbox_drop", None, key),
    ]


def test_dead_letters_are_asked_for_as_wanted(served: Any) -> None:
    client = Client(served.path)
    assert client.dead() == list(served.daemon.letters.values())
    client.dead("alice", dropped_too=True, limit=7)
    assert client.dead_show(3)["event"]["seq"] == 9
    assert client.dead_replay(3)["dropped_at"] is not None
    assert client.dead_drop(3)["dropped_at"] is not None
    assert served.daemon.asked == [
        ("dead", None, False, 100),
        ("dead", "alice", True, 7),
        ("dead_show", 3),
        ("dead_replay", 3),
        ("dead_drop", 3),
    ]


@pytest.mark.parametrize(
    ("request_line", "body"),
    [
        ("GET /v1/outbox/send", b""),
        ("POST /v1/outbox/retry", b"{}"),
        ("POST /v1/outbox/drop", b'{"client_msg_id": ""}'),
        ("POST /v1/outbox/drop", b'{"client_msg_id": "k", "force": true}'),
        ("POST /v1/dead/drop", b'{"number": 0}'),
        ("POST /v1/dead/replay", b"{}"),
        ("GET /v1/dead/letter?number=x", b""),
        ("GET /v1/dead?limit=0", b""),
    ],
)
def test_what_is_held_must_be_named_rightly(served: Any, request_line: str, body: bytes) -> None:
    head = f"{request_line} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    status, answer = raw(served.path, head.encode() + body)
    assert (status, answer["code"]) == (400, "BAD_REQUEST")
    assert served.daemon.asked == []


@pytest.mark.parametrize("query", ["since=x", "since=-1", "since=1e9", "since=" + "9" * 30])
def test_a_position_that_is_no_number_is_refused(served: Any, query: str) -> None:
    status, answer = raw(served.path, f"GET /v1/tail?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (status, answer["message"]) == (400, "since must be a whole number of at most 18 digits")


@pytest.mark.parametrize("request_line", ["GET /v2/status", "GET /", "DELETE /v1/status", "GET /v1/send"])
def test_a_call_that_does_not_exist_is_answered_in_json(served: Any, request_line: str) -> None:
    status, answer = raw(served.path, f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert status in (404, 405)
    assert (answer["code"], answer["remedy"]) == ("UNKNOWN_CALL", "this is API version 1")


def test_the_version_of_the_protocol_can_be_asked(served: Any) -> None:
    assert raw(served.path, b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n")[1]["api"] == 1


def test_a_stop_is_passed_on(served: Any) -> None:
    Client(served.path).stop()
    assert served.daemon.stopped.is_set()


# The stream


def test_a_tail_gives_each_record_as_it_comes(either: Any) -> None:
    records = Client(either.path).tail("alice", 17)
    for position in (18, 19):
        either.happen({"position": position, "text": "über\n"})
        assert next(records) == {"position": position, "text": "über\n"}
    assert either.daemon.asked == [("tail", "alice", 17)]


def test_a_reader_that_goes_away_ends_its_tail_at_once(either: Any) -> None:
    records = Client(either.path).tail()
    either.happen({"position": 1})
    next(records)
    records.close()  # type: ignore[attr-defined]  # it is a generator
    assert either.daemon.tail_ended.wait(5)


def test_a_tail_that_the_daemon_ends_is_not_taken_for_silence(served: Any) -> None:
    served.happen({"position": 1})
    served.happen(None)
    records = Client(served.path).tail()
    next(records)
    with pytest.raises(UnreachableError, match="ended the stream"):
        next(records)


def test_stopping_ends_every_tail(either: Any) -> None:
    ended: list[BaseException] = []
    records = Client(either.path).tail()
    either.happen({"position": 1})
    next(records)

    def read_on() -> None:
        try:
            next(records)
        except UnreachableError as error:
            ended.append(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    either.call(either.server.close())
    reader.join(5)
    assert len(ended) == 1
    assert either.daemon.tail_ended.wait(5)


def test_an_export_gives_the_lines_between_its_first_and_its_last(either: Any) -> None:
    lines = [b'{"position":%d}\n' % position for position in range(1, 5_001)]
    either.daemon.exported = [b'{"up_to":5000}\n', b"".join(lines), b"", b'{"exported":5000,"unreadable":3}\n']
    with Client(either.path).export("alice", "conv_1", "2026-01-01T00:00:00Z") as exported:
        assert exported.up_to == 5_000
        assert list(exported) == lines
        assert exported.unreadable == 3
    assert either.daemon.asked == [("export", "alice", "conv_1", 1_767_225_600.0)]


def test_an_export_that_the_daemon_breaks_off_is_not_taken_for_all(either: Any) -> None:
    either.daemon.exported = [b'{"up_to":2}\n', b'{"position":1}\n', b"gone"]
    with Client(either.path).export() as exported, pytest.raises(UnreachableError, match="broke off"):
        list(exported)


@pytest.mark.parametrize("call", ["GET /v1/export", "GET /v1/tail"])
def test_an_answer_that_breaks_off_has_one_head_and_no_end(
    either: Any, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    either.daemon.exported = [b'{"up_to":2}\n', b"gone"]
    either.happen({"position": 1})
    either.happen({"position": object()})  # which is no JSON
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(either.path))
        connection.sendall(f"{call} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.settimeout(10)
        told = b""
        while some := connection.recv(65_536):
            told += some
    assert told.count(b"HTTP/1.1 ") == 1
    assert not told.endswith(b"0\r\n\r\n"), "whoever reads it must not take it for all"
    assert [each.levelname for each in caplog.records] == ["ERROR"]


def test_an_export_of_what_there_is_not_is_refused_before_it_begins(served: Any) -> None:
    client = Client(served.path)
    assert refused(lambda: client.export(identity="alise")).code == "UNKNOWN_IDENTITY"
    error = refused(lambda: client.export(since="yesterday"))
    assert (error.status, error.message) == (400, "since must be a moment such as 2026-01-02T03:04:05Z")
    assert served.daemon.asked == []
    served.daemon.error = ControlError(404, "UNKNOWN_CONVERSATION", "nothing is recorded of conversation 'c'")
    assert refused(lambda: client.export(conversation="c")).code == "UNKNOWN_CONVERSATION"


def test_a_replay_gives_each_line_as_it_comes(either: Any) -> None:
    client = Client(either.path)
    for step, lines in either.daemon.replays.items():
        assert list(client.replay(step, "echo", "alice", "conv_1", 7, "2026-01-01T00:00:00Z")) == lines
    assert either.daemon.asked == [
        ("replay", step, "echo", "alice", "conv_1", 7, 1_767_225_600.0) for step in either.daemon.replays
    ]


def test_upkeep_is_asked_for_and_told_as_it_goes(either: Any) -> None:
    client = Client(either.path)
    assert client.retain() == 3
    assert list(client.vacuum())[-1] == {"done": True, "bytes_before": 8_192, "bytes": 4_096, "free_bytes": 0}
    either.daemon.error = ControlError(409, "NOT_WHILE_RUNNING", "an older agentd made this journal")
    assert refused(lambda: list(client.vacuum())).code == "NOT_WHILE_RUNNING"
    assert either.daemon.asked == [("retain",), ("vacuum",), ("vacuum",)]


def test_a_replay_that_the_daemon_breaks_off_is_not_taken_for_all(served: Any) -> None:
    served.daemon.replays["count"].insert(2, {"gone": True})
    with pytest.raises(UnreachableError, match="broke off"):
        list(Client(served.path).replay("count", "echo"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("count", "echo", None, None, 7), "from_seq is a place in one conversation, and none is named"),
        (("count", "echo", None, None, None, "yesterday"), "since must be a moment"),
        (("count", "echo", None, "c", -1), "$.from_seq"),
        (("go", "echo"), "Invalid enum value 'go'"),
    ],
)
def test_a_replay_that_makes_no_sense_is_refused(served: Any, asked: tuple[Any, ...], message: str) -> None:
    error = refused(lambda: list(Client(served.path).replay(*asked)))
    assert (error.code, message in error.message) == ("BAD_REQUEST", True)
    assert served.daemon.asked == []


def test_an_event_is_explained_as_asked(served: Any) -> None:
    client = Client(served.path)
    assert client.explain("msg_ä/?&9", "alice", "echo") == served.daemon.explained
    client.explain("17")
    assert served.daemon.asked == [("explain", "msg_ä/?&9", "alice", "echo"), ("explain", "17", None, None)]
    assert refused(lambda: client.explain("")).message == "event is missing"
    assert refused(lambda: client.explain("17", "alise")).code == "UNKNOWN_IDENTITY"


# The socket


def test_only_the_owner_can_open_the_socket(either: Any) -> None:
    assert stat.S_IMODE(either.path.stat().st_mode) == 0o600


def test_another_user_is_refused_whatever_the_mode(serve: Callable[..., Any]) -> None:
    served = serve(owners=[os.geteuid() + 1])
    error = refused(Client(served.path).status)
    assert (error.status, error.code) == (403, "NOT_OWNER")
    assert error.remedy == "run the command as that user or as root"


def test_a_path_longer_than_an_address_works_on_both_ends(serve: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20) / ("name" * 20)
    folder.mkdir(parents=True)
    served = serve(folder)
    assert Client(served.path).status()["pid"] == 42
    served.call(served.server.close())
    assert not served.path.exists()


def test_a_socket_left_by_a_dead_daemon_is_replaced(serve: Callable[..., Any], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "control.sock"))
    assert Client(serve().path).status()["pid"] == 42


async def test_a_socket_that_a_daemon_listens_on_is_not_taken_from_it(served: Any) -> None:
    second = ControlServer(served.daemon, [served.path])
    with pytest.raises(OSError, match="another daemon listens there"):
        await second.start()
    assert (await asyncio.to_thread(Client(served.path).status))["pid"] == 42


async def test_a_daemon_that_takes_no_calls_any_more_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stuck, socket.socket(socket.AF_UNIX) as waiting:
        stuck.bind(str(path))
        stuck.listen(0)
        waiting.connect(str(path))  # nobody accepts it, and there is room for no other
        server = ControlServer(ScriptedDaemon(), [path])
        with pytest.raises(OSError, match="another daemon listens there"):
            await server.start()


async def test_a_file_in_the_sockets_place_is_left_alone(served: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        await ControlServer(served.daemon, [file]).start()
    assert file.read_text() == "precious"


def test_the_socket_goes_with_its_server_but_not_a_successors(serve: Callable[..., Any], tmp_path: Path) -> None:
    first = serve()
    first.path.rename(tmp_path / "moved")
    second = serve()
    first.call(first.server.close())
    assert Client(second.path).status()["pid"] == 42
    second.call(second.server.close())
    assert not second.path.exists()


async def test_a_daemon_serves_every_path_or_none(served: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "one.sock", tmp_path / "two.sock"]
    server = ControlServer(served.daemon, paths)
    await server.start()
    for path in paths:
        assert (await asyncio.to_thread(Client(path).status))["pid"] == 42
    await server.close()
    with pytest.raises(OSError, match="No such file"):
        await ControlServer(served.daemon, [paths[0], tmp_path / "gone" / "two.sock"]).start()
    assert not paths[0].exists()


def test_a_daemon_under_systemd_listens_where_clients_look_too(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": f"{tmp_path}/run:{tmp_path}/more"}
    expected = tmp_path / "run" / "control.sock"
    assert listening_paths(tmp_path / "state", environ) == (tmp_path / "state" / "control.sock", expected)
    assert listening_paths(tmp_path / "state", {}) == (tmp_path / "state" / "control.sock",)


def test_a_client_looks_where_a_socket_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "agentd.toml"
    config.write_text('[agentd]\nstate = "mail"')
    named, runtime = tmp_path / "mail" / "control.sock", tmp_path / "run" / "control.sock"
    environ = {"RUNTIME_DIRECTORY": str(runtime.parent)}
    assert find_socket(config, {}) == named
    for path in (named, runtime):
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    assert find_socket(config, environ) == runtime
    assert find_socket(config, {}) == named
    assert find_socket(config, {**environ, "AGENTD_STATE": "/elsewhere"}) == Path("/elsewhere/control.sock")


def test_a_conversation_is_paused_and_resumed(served):
    client = Client(served.path)
    assert client.pause("@bob")["until"] is None
    assert client.pause("conv_1", "alice", for_s=7_200.0)["until"] is not None
    assert client.resume("conv_1", "alice")["reason"] == "by command"
    assert served.daemon.asked == [
        ("pause", None, "@bob", None),
        ("pause", "alice", "conv_1", 7_200.0),
        ("resume", "alice", "conv_1"),
    ]
    assert refused(lambda: client.pause("conv_1", "alise")).code == "UNKNOWN_IDENTITY"
    for wrong in (0.0, -1.0, 1e9):
        assert refused(lambda wrong=wrong: client.pause("conv_1", for_s=wrong)).code == "BAD_REQUEST"


def test_the_status_of_one_identity_tells_its_pauses_only(served):
    served.daemon.pauses = [pause_row("conv_1"), pause_row("conv_2", identity="bob")]
    client = Client(served.path)
    assert len(client.status()["pauses"]) == 2
    assert [each["conversation"] for each in client.status("bob")["pauses"]] == ["conv_2"]


def test_a_conversation_is_released(served):
    client = Client(served.path)
    assert client.release("greeter", "conv_held", "alice") == 1
    assert client.release("greeter", "conv_other") == 0
    assert served.daemon.asked == [
        ("release", "greeter", "alice", "conv_held"),
        ("release", "greeter", None, "conv_other"),
    ]


# Handing over


def test_a_hand_over_is_asked_for_with_everything_that_decides_it(served: Any) -> None:
    wanted = {"protocol": 1, "tables": 2, "version": "9", "pid": 7, "socket": "/s", "manager": ""}
    assert Client(served.path).hand_over(wanted) == {"version": "0.1.0", "pid": 42}
    assert served.daemon.asked[-1] == ("hand_over", HandOverRequest(**wanted))
    assert refused(lambda: Client(served.path).hand_over({"protocol": 1})).code == "BAD_REQUEST"


def test_who_asks_while_another_process_takes_over_is_told_to_try_again(served: Any) -> None:
    served.server.handing_over = True
    error = refused(Client(served.path).status)
    assert (error.status, error.code, error.remedy) == (503, "HANDING_OVER", "try again in a moment")


def test_a_successor_has_the_socket_without_a_moment_in_which_nobody_answers(served: Any, tmp_path: Path) -> None:
    successor = ControlServer(ScriptedDaemon(), [served.path])
    over = threading.Event()
    failures: list[Exception] = []

    def ask() -> None:
        while not over.is_set():
            try:
                Client(served.path).status()
            except UnreachableError as error:
                failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    served.call(successor.start(in_place=True))
    over.set()
    asking.join()
    assert failures == []
    served.call(served.server.close())  # it does not remove what is its successor's
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600
    assert Client(served.path).status()["pid"] == 42
    served.call(successor.close())
    assert not served.path.exists()
