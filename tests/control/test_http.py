"""The HTTP surface: who may ask, what is answered, and what nobody gets out of it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd import config, logs
from agentd.control import http as http_server
from agentd.control.http import _HEADERS, HttpServer
from agentd.control.readings import Readings
from agentd.control.sessions import Sessions, take_token
from agentd.core.health import Limits
from agentd.errors import JournalError
from agentd.metrics import ALL
from tests.control.pages import Page, PageDaemon, identity, record

SECRET_PATHS = [
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/api/status"),
    ("GET", "/api/stream"),
    ("GET", "/api/dead/letter?number=3"),
    ("POST", "/api/invitations"),
    ("GET", "/api/explanation?position=1&identity=alice"),
    ("POST", "/api/dead/replay"),
    ("POST", "/api/dead/drop"),
    ("GET", "/api/conversations?identity=alice"),
    ("POST", "/api/pause"),
    ("POST", "/api/resume"),
    ("POST", "/api/outbox/retry"),
    ("POST", "/api/outbox/drop"),
    ("POST", "/api/release"),
    ("POST", "/api/say"),
    ("POST", "/session/end"),
    ("GET", "/nothing"),
]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Page]]:
    running: list[Page] = []

    def start(**http: Any) -> Page:
        running.append(Page(tmp_path, **http))
        return running[-1]

    yield start
    for page in running:
        page.close()


@pytest.fixture
def page(serve: Callable[..., Page]) -> Page:
    return serve()


# --- health


def test_healthz_answers_whoever_asks_and_tells_nothing_else(page: Page) -> None:
    page.daemon.broken()
    status, _, text = page.ask("GET", "/healthz", bare=True)
    assert (status, json.loads(text)) == (200, {"alive": True})


def test_readyz_is_200_while_mail_flows(page: Page) -> None:
    status, _, text = page.ask("GET", "/readyz")
    assert (status, json.loads(text)) == (200, {"ready": True, "reasons": []})


def test_readyz_is_503_with_every_reason_when_it_does_not(page: Page) -> None:
    page.daemon.broken()
    status, _, text = page.ask("GET", "/readyz")
    told = json.loads(text)
    assert status == 503
    assert not told["ready"]
    assert {(each["code"], each["identity"]) for each in told["reasons"]} == {
        ("disk_full", None),
        ("loop_blocked", None),
        ("shedding", None),
        ("key_refused", "alice"),
        ("deaf", "bob"),
        ("not_connected", "carol"),
    }
    for each in told["reasons"]:
        assert each["words"]
        assert each["since"].endswith("Z")


# --- metrics


def samples(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_metrics_tell_the_state_as_it_is_when_they_are_asked_for(page: Page) -> None:
    page.daemon.busy()
    page.daemon.identities[1] = identity("bob", "parked")
    status, headers, text = page.ask("GET", "/metrics")
    found = samples(text)
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert found['agentd_identity_state{identity="alice",state="live"}'] == 1
    assert found['agentd_identity_state{identity="bob",state="parked"}'] == 1
    assert found['agentd_identity_state{identity="bob",state="live"}'] == 0
    assert found['agentd_pending_events{identity="alice"}'] == 812
    assert found['agentd_lane_depth{plugin="greeter"}'] == 512
    assert found['agentd_lanes{plugin="greeter"}'] == 31
    assert found['agentd_lanes_held{plugin="greeter"}'] == 1
    assert found['agentd_outbox_sends{identity="alice",state="ready"}'] == 2
    assert found['agentd_breaker_standing{plugin="greeter",standing="closed"}'] == 1
    assert found["agentd_journal_bytes"] == 81_920
    assert found["agentd_ready"] == 0
    assert found['agentd_not_ready{reason="key_refused"}'] == 1


def test_what_the_kernel_knows_of_the_process_is_told_truly(page: Page) -> None:
    found = samples(page.ask("GET", "/metrics")[2])
    assert 0 < found["process_open_fds"] <= found["process_max_fds"]
    assert 1e6 < found["process_resident_memory_bytes"] < found["process_virtual_memory_bytes"]
    began = os.stat("/proc/self").st_ctime
    assert abs(found["process_start_time_seconds"] - began) < 60
    assert found["process_cpu_seconds_total"] > 0


# --- who may ask


@pytest.mark.parametrize(("method", "path"), SECRET_PATHS)
def test_without_a_token_nothing_is_told_or_done(page: Page, method: str, path: str) -> None:
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {page.token}"}):
        status, _, text = page.ask(method, path, bare=True, **header)
        assert (status, json.loads(text)["code"]) == (401, "NO_TOKEN")
    assert page.daemon.asked == []


def test_the_token_is_no_use_in_a_url(page: Page) -> None:
    assert page.ask("GET", f"/readyz?token={page.token}", bare=True)[0] == 401


def test_a_browser_is_let_in_by_an_invitation_once(page: Page) -> None:
    invitation = page.invitation()
    status, headers, _ = page.ask("POST", "/session", {"invitation": invitation}, bare=True)
    assert status == 200
    cookie, *marks = headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(marks)
    assert page.ask("GET", "/api/status", bare=True, Cookie=cookie)[0] == 200
    assert page.ask("POST", "/session", {"invitation": invitation}, bare=True)[0] == 403


def test_signing_out_ends_the_session_for_good(page: Page) -> None:
    cookie = page.cookie()
    status, _, _ = page.ask("POST", "/session/end", {}, bare=True, Cookie=cookie, Origin=page.url)
    assert status == 200
    assert page.ask("GET", "/api/status", bare=True, Cookie=cookie)[0] == 401


def test_a_session_may_not_invite_others(page: Page) -> None:
    status, _, text = page.ask("POST", "/api/invitations", {}, bare=True, Cookie=page.cookie(), Origin=page.url)
    assert (status, json.loads(text)["code"]) == (403, "NO_TOKEN")


def test_a_call_that_changes_something_must_come_from_the_page_itself(page: Page) -> None:
    page.daemon.busy()
    cookie = page.cookie()
    drop = {"number": 3}
    assert page.ask("POST", "/api/dead/drop", drop, bare=True, Cookie=cookie)[0] == 401
    for origin in ("http://127.0.0.1:1", "http://evil.example", "null", "http://["):
        assert page.ask("POST", "/api/dead/drop", drop, bare=True, Cookie=cookie, Origin=origin)[0] == 403
    assert page.daemon.asked == []
    assert page.ask("POST", "/api/dead/drop", drop, bare=True, Cookie=cookie, Origin=page.url)[0] == 200
    assert page.daemon.asked == [("dead_drop", 3)]


def test_a_form_of_another_page_is_not_understood(page: Page) -> None:
    body = b'{"number": 3}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert page.ask("POST", "/api/dead/drop", body, Content_Type=kind)[0] == 415


def test_a_name_that_was_pointed_here_is_refused(page: Page) -> None:
    for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1.evil.example", "", "["):
        status, _, text = page.ask("GET", "/healthz", Host=host)
        assert (status, json.loads(text)["code"]) == (421, "UNKNOWN_HOST"), host


def test_an_address_localhost_and_a_configured_name_are_known(serve: Callable[..., Page]) -> None:
    page = serve(hosts=("Agentd.LAN",))  # names know no case
    for host in ("127.0.0.1", f"localhost:{page.port}", "[::1]:1", "agentd.lan", "AGENTD.lan"):
        assert page.ask("GET", "/healthz", Host=host)[0] == 200


# --- bounds


def test_a_body_a_header_and_a_line_past_their_bounds_are_refused(serve: Callable[..., Page]) -> None:
    page = serve(body_max_bytes=1_000, header_max_bytes=2_000)
    status, _, text = page.ask("POST", "/api/dead/drop", b" " * 1_001)
    assert (status, json.loads(text)["code"]) == (413, "TOO_LARGE")
    assert page.ask("GET", "/healthz", X_Long="x" * 2_001)[0] == 400
    assert page.ask("GET", f"/healthz?{'x' * 2_001}")[0] in (400, 414)


def answered_in_the_end(page: Page) -> int:
    until = time.monotonic() + 30
    while True:
        try:
            return page.ask("GET", "/healthz")[0]
        except (ConnectionError, http.client.HTTPException):
            assert time.monotonic() < until, "there is never room"


def test_connections_past_the_bound_are_closed_and_leave_again_room(serve: Callable[..., Page]) -> None:
    page = serve(connections_max=3)
    idle = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(3)]
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        while True:  # until the three are taken in
            page.ask("GET", "/healthz")
    for each in idle:
        each.close()
    assert answered_in_the_end(page) == 200


def test_connections_that_say_nothing_cannot_keep_others_out(serve: Callable[..., Page]) -> None:
    page = serve(connections_max=3)
    idle = [socket.create_connection(("127.0.0.1", page.port), timeout=10) for _ in range(3)]
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        while True:  # until the three are taken in
            page.ask("GET", "/healthz")
    assert answered_in_the_end(page) == 200
    for each in idle:
        assert each.recv(1) == b"", "it was closed"
        each.close()


def test_bodies_that_never_come_cannot_keep_others_out(
    serve: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_BODY_WAIT_S", 1_000.0)
    page = serve(connections_max=3)
    head = f"POST /session HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nContent-Type: application/json\r\n"
    slow = [socket.create_connection(("127.0.0.1", page.port), timeout=10) for _ in range(3)]
    for each in slow:
        each.sendall(f"{head}Content-Length: 9\r\nExpect: 100-continue\r\n\r\n".encode())
        assert b" 100 " in each.recv(65_536), "it is being read"
    assert answered_in_the_end(page) == 200
    for each in slow:
        each.close()


def test_connections_on_which_nothing_is_asked_make_room_and_streams_do_not(serve: Callable[..., Page]) -> None:
    page = serve(connections_max=3)
    stream = page.connection()
    stream.request("GET", "/api/stream", headers={"Authorization": f"Bearer {page.token}"})
    events = stream.getresponse()
    assert events.status == 200
    idle = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(8)]
    idle[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
    assert answered_in_the_end(page) == 200
    assert events.readline().startswith(b"event: ")
    for each in idle:
        each.close()
    stream.close()


def said(page: Page, request: bytes) -> bytes:
    """Everything that is answered to these bytes."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_what_makes_no_sense_is_refused_and_fills_no_log(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    host = f"Host: 127.0.0.1:{page.port}\r\n".encode()
    json_of = b"POST /session HTTP/1.1\r\n" + host + b"Content-Type: application/json\r\n"
    for request in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + host + b"Host: evil.example\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + host + b"Cookie: \x01\r\n\r\n",
        json_of + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        json_of + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        json_of + b"Content-Length: 9\r\n\r\n{}",
    ):
        assert b" 400 " in (said(page, request) or b"HTTP/1.1 400 unheard")[:13], request
    assert caplog.records == []


def test_a_body_that_breaks_while_it_is_read_fills_no_log(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    head = f"POST /session HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
        connection.sendall(
            f"{head}Content-Encoding: gzip\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert b" 100 " in connection.recv(65_536), "it is being read"
        connection.sendall(b"{}")
        assert b" 400 " in connection.recv(65_536)
        while connection.recv(65_536):
            pass  # until it is over
    assert caplog.records == []


def test_streams_past_the_bound_are_refused(serve: Callable[..., Page]) -> None:
    page = serve(streams_max=1)
    connection = page.connection()
    connection.request("GET", "/api/stream", headers={"Authorization": f"Bearer {page.token}"})
    assert connection.getresponse().status == 200
    status, _, text = page.ask("GET", "/api/stream")
    assert (status, json.loads(text)["code"]) == (503, "TOO_MANY_PAGES")
    connection.close()


def test_the_oldest_session_makes_room(serve: Callable[..., Page]) -> None:
    page = serve(sessions_max=2)
    first, second, third = page.cookie(), page.cookie(), page.cookie()
    assert [page.ask("GET", "/api/status", bare=True, Cookie=each)[0] for each in (first, second, third)] == [
        401,
        200,
        200,
    ]


# --- every answer


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/nothing", "/static/page.js", "/static/../http.py"])
def test_every_answer_carries_the_strict_headers(page: Page, path: str) -> None:
    _, headers, _ = page.ask("GET", path)
    assert {name: headers.get(name) for name in _HEADERS} == _HEADERS
    assert "Server" not in headers


def test_the_page_loads_nothing_from_elsewhere_and_nothing_inline(page: Page) -> None:
    page.daemon.busy()
    html = page.ask("GET", "/")[2]
    assert html.count("<script") == 1
    assert '<script src="/static/page.js" defer></script>' in html
    for inline in ("<style", " style=", " onclick=", "javascript:", 'src="http', 'href="http'):
        assert inline not in html


def test_whatever_a_peer_wrote_is_text(page: Page) -> None:
    page.daemon.hostile()
    html = page.ask("GET", "/")[2]
    told = page.ask("GET", "/api/explanation?position=1&identity=alice")[2]
    records = stream(page, 10)[-1][1]["html"]
    for each in (html, json.loads(told)["html"], json.loads(told)["act"], records):
        assert "<img src=x" not in each
        assert "<script>" not in each
        assert "&lt;script&gt;document.title=" in each


def test_who_was_not_let_in_sees_how_to_get_there_and_no_data(page: Page) -> None:
    page.daemon.busy()
    status, _, html = page.ask("GET", "/", bare=True)
    assert status == 200
    assert "agentd dashboard" in html
    assert "alice" not in html


# --- what the page asks for


def stream(page: Page, count: int, **headers: str) -> list[tuple[str, dict[str, Any]]]:
    """The first so many messages that are no ticks."""
    connection = page.connection()
    connection.request("GET", "/api/stream", headers={"Authorization": f"Bearer {page.token}"})
    response = connection.getresponse()
    assert response.headers["Content-Type"].startswith("text/event-stream")
    found: list[tuple[str, dict[str, Any]]] = []
    while len(found) < count:
        name = response.readline().decode().removeprefix("event: ").strip()
        data = json.loads(response.readline().decode().removeprefix("data: "))
        assert response.readline() == b"\n"
        if name != "tick":
            found.append((name, data))
    connection.close()
    return found


def test_a_stream_begins_with_every_part_and_the_newest_records(page: Page) -> None:
    page.daemon.busy()
    *parts, (last, records) = stream(page, 12)
    assert {data["name"] for name, data in parts if name == "part"} == {
        "health",
        "glance",
        "identities",
        "identity-alice",
        "identity-a-rather-long-name-for-an-identity.example",
        "identity-carol",
        "plugins",
        "pauses",
        "outbox",
        "dead",
        "gaps",
    }
    assert (last, records["count"], records["skipped"]) == ("records", 4, 0)


def test_a_stream_whose_parts_cannot_be_read_has_one_head_and_breaks_off(
    page: Page, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(*_: object) -> list[dict[str, Any]]:
        raise JournalError("disk I/O error")

    monkeypatch.setattr(page.daemon, "dead", unreadable)
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
        head = f"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {page.token}\r\n\r\n"
        connection.sendall(head.encode())
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while some := connection.recv(65_536):
                told += some
    assert told.count(b"HTTP/1.1 ") <= 1
    assert not told.endswith(b"0\r\n\r\n")
    assert [each.getMessage() for each in caplog.records] == ["an answer broke off: disk I/O error"]


def test_a_part_is_sent_again_only_when_it_has_changed(page: Page) -> None:
    connection = page.connection()
    connection.request("GET", "/api/stream", headers={"Authorization": f"Bearer {page.token}"})
    response = connection.getresponse()
    names: list[str] = []
    while names.count("tick") < 6:
        name = response.readline().decode().removeprefix("event: ").strip()
        data = json.loads(response.readline().decode().removeprefix("data: "))
        response.readline()
        names.append(data.get("name", name))
        if names.count("tick") == 1 and name == "tick":
            page.daemon.letters = {3: {**page.daemon.letters.get(3, {}), **letter()}}
    connection.close()
    assert names.count("dead") == 2
    assert names.count("gaps") == names.count("outbox") == 1


def letter() -> dict[str, Any]:
    from tests.conftest import letter_row

    return letter_row()


def test_a_flood_costs_the_page_the_newest_few_and_a_count(page: Page) -> None:
    page.happen(record(1))
    flood = [record(position) for position in range(2, 5_002)]
    page.happen(*flood)
    seen = sent = skipped = 0
    connection = page.connection()
    connection.request("GET", "/api/stream", headers={"Authorization": f"Bearer {page.token}"})
    response = connection.getresponse()
    ticks = 0
    while sent + skipped < 9_001 - (5_001 - 20):
        name = response.readline().decode().removeprefix("event: ").strip()
        data = json.loads(response.readline().decode().removeprefix("data: "))
        response.readline()
        ticks += name == "tick"
        if name == "tick" and ticks == 1:
            page.happen(*[record(position) for position in range(5_002, 9_002)])
        if name == "records":
            seen += 1
            sent += data["count"]
            skipped += data["skipped"]
    connection.close()
    assert sent <= 40 * seen
    assert skipped > 3_000
    assert sent + skipped == 9_001 - (5_001 - 20), "nothing is counted twice"


def test_what_cannot_be_done_says_why_and_what_to_do(page: Page) -> None:
    status, _, text = page.ask("POST", "/api/say", {"text": "hello"})
    assert (status, json.loads(text)["code"]) == (404, "NOT_EMBEDDED")
    status, _, text = page.ask("POST", "/api/dead/drop", {"number": "x"})
    assert (status, json.loads(text)["code"]) == (400, "BAD_REQUEST")
    chosen = {"client_msg_id": "k", "identity": "nobody"}
    status, _, text = page.ask("POST", "/api/outbox/drop", chosen)
    assert (status, json.loads(text)["code"]) == (404, "UNKNOWN_IDENTITY")
    status, _, text = page.ask("GET", "/api/explanation?position=last&identity=alice")
    assert (status, json.loads(text)["code"]) == (400, "BAD_REQUEST")
    status, _, text = page.ask("GET", "/api/explanation?position=1&identity=nobody")
    assert (status, json.loads(text)["code"]) == (404, "UNKNOWN_IDENTITY")
    status, _, text = page.ask("POST", "/api/pause", {"conversation": "c", "identity": "alice", "for_s": -1})
    assert (status, json.loads(text)["code"]) == (400, "BAD_REQUEST")
    status, _, text = page.ask("GET", "/api/conversations?identity=nobody")
    assert (status, json.loads(text)["code"]) == (404, "UNKNOWN_IDENTITY")
    status, _, text = page.ask("POST", "/api/resume", {"conversation": "c", "identity": "nobody"})
    assert (status, json.loads(text)["code"]) == (404, "UNKNOWN_IDENTITY")
    assert page.daemon.asked == []
    status, _, text = page.ask("GET", "/nothing")
    assert (status, json.loads(text)["code"]) == (404, "UNKNOWN_CALL")


# --- the token


def test_the_token_stays_over_restarts_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    token = take_token(tmp_path)
    file = tmp_path / "http_token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert take_token(tmp_path) == token


def test_a_token_that_others_could_read_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = take_token(tmp_path)
    (tmp_path / "http_token").chmod(0o644)
    assert take_token(tmp_path) != token
    assert stat.S_IMODE((tmp_path / "http_token").stat().st_mode) == 0o600
    assert "made anew" in caplog.text


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff" * 40])
def test_a_file_that_holds_no_token_gets_one(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "http_token").touch(0o600)
    (tmp_path / "http_token").write_bytes(content)
    token = take_token(tmp_path)
    assert take_token(tmp_path) == token
    assert "holds no token: it is made anew" in caplog.text


def test_a_token_that_another_user_put_there_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = take_token(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert take_token(tmp_path) != token


def test_a_token_that_cannot_be_had_costs_the_page_and_no_mail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "http_token").mkdir()
    server = HttpServer(PageDaemon(), config.Agentd(state=str(tmp_path), http=config.Http(listen="127.0.0.1:0")))
    asyncio.run(started_and_closed(server))
    assert server.url is None
    assert "http_token cannot be had (Is a directory): no page and no metrics" in caplog.text


async def started_and_closed(server: HttpServer) -> None:
    await server.start()
    await server.close()


def test_a_browser_may_look_at_two_daemons_of_one_machine(serve: Callable[..., Page]) -> None:
    jar: dict[str, str] = {}
    pages = [serve(), serve()]
    for page in pages:  # for a browser all ports of an address have the same cookies
        name, _, value = page.cookie().partition("=")
        jar[name] = value
    sent = "; ".join(f"{name}={value}" for name, value in jar.items())
    assert [page.ask("GET", "/api/status", bare=True, Cookie=sent)[0] for page in pages] == [200, 200]


def test_the_token_is_in_no_log(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    invitation = page.invitation()
    page.ask("POST", "/session", {"invitation": invitation}, bare=True)
    page.ask("GET", "/metrics")
    assert page.token not in caplog.text
    assert invitation not in caplog.text
    assert logs.redacted(f"a library said {page.token}") == "a library said [redacted]"


def test_an_invitation_grows_old_and_so_does_a_session() -> None:
    sessions = Sessions("token", sessions_max=4, session_max_s=100.0)
    assert sessions.accept(sessions.invite(0.0), 121.0) is None
    cookie = sessions.accept(sessions.invite(0.0), 1.0)
    assert cookie is not None
    assert sessions.is_let_in(cookie, 100.9)
    assert not sessions.is_let_in(cookie, 101.0)


def test_an_address_that_is_taken_is_logged_and_mail_goes_on(
    serve: Callable[..., Page], caplog: pytest.LogCaptureFixture
) -> None:
    first = serve()
    second = serve(listen=f"127.0.0.1:{first.port}")
    assert second.server.url is None
    assert "cannot listen on" in caplog.text


async def test_the_gauges_of_one_answer_are_of_one_moment_also_where_two_scrape_at_a_time() -> None:
    daemon, moments = PageDaemon(), iter(range(1, 10))

    def status() -> dict[str, Any]:
        moment = next(moments)
        return {**daemon.status(), "undispatched": moment, "log_lines_dropped": moment}

    async def scraped(later: int) -> str:
        for _ in range(later):
            await asyncio.sleep(0)
        return await readings.page()

    between = list(ALL).index("agentd_undispatched") + 1  # each metric is a turn of the loop
    with Readings(status, Limits()) as readings:
        for page in await asyncio.gather(scraped(0), scraped(between)):
            told = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
            assert told["agentd_undispatched"] == told["agentd_log_lines_dropped"]
