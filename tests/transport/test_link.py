"""One link against a far end that behaves and misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
import ssl
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from agentd.config import Link as LinkSettings
from agentd.errors import CredentialsRefused, Refused, Unavailable
from agentd.transport import connection
from agentd.transport.connection import CLOSE_GRACE_S, PONG_OVERDUE
from agentd.transport.link import Closed, Link, dial

from .far_end import HELLO_OK, KEY, Far, Platform, StartFarEnd, closing, control, text

SETTINGS = LinkSettings(hello_timeout_s=2.0, connect_timeout_s=2.0)


class Inbox:
    """What a link handed on. `filled` waits until that many frames are there."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.bursts = 0
        self._arrived = asyncio.Event()

    def on_frame(self, data: bytes) -> None:
        self.frames.append(data)
        self._arrived.set()

    def on_burst(self) -> None:
        self.bursts += 1

    async def filled(self, count: int) -> list[bytes]:
        async with asyncio.timeout(5):
            while len(self.frames) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.frames


@asynccontextmanager
async def dialled(
    port: int,
    inbox: Inbox | None = None,
    settings: LinkSettings = SETTINGS,
    *,
    url: str = "ws://127.0.0.1:{}/v1/ws",
    on_frame: Callable[[bytes], None] | None = None,
) -> AsyncIterator[Link]:
    inbox = inbox or Inbox()
    platform = Platform(url.format(port))
    async with dial(platform, settings, on_frame=on_frame or inbox.on_frame, on_burst=inbox.on_burst) as link:
        yield link


async def ended(link: Link) -> Closed:
    async with asyncio.timeout(5):
        return await link.closed()


async def failure(port: int, settings: LinkSettings = SETTINGS, url: str = "ws://127.0.0.1:{}/v1/ws") -> Exception:
    with pytest.raises((Unavailable, Refused)) as caught:
        async with dialled(port, settings=settings, url=url):
            pass
    return caught.value


# The hello


async def test_the_key_travels_in_the_hello_frame_only(far_end: StartFarEnd) -> None:
    seen: asyncio.Future[tuple[str, bytes]] = asyncio.get_running_loop().create_future()

    async def script(far: Far) -> None:
        request = await far.upgrade()
        hello = await far.frame()
        seen.set_result((f"{request.path} {request.headers}", bytes(hello.data)))
        far.write(text(HELLO_OK))
        await far.answer_pings()

    async with dialled(await far_end(script)):
        upgrade, hello = await seen
    assert KEY not in upgrade
    assert json.loads(hello) == {"type": "hello", "api_key": KEY}


async def test_neither_compression_nor_cookies_are_offered(far_end: StartFarEnd) -> None:
    names: list[str] = []

    async def script(far: Far) -> None:
        names.extend((await far.upgrade()).headers)
        await far.frame()
        far.write(text(HELLO_OK))
        await far.answer_pings()

    async with dialled(await far_end(script)):
        pass
    lowered = {name.lower() for name in names}
    assert "sec-websocket-key" in lowered
    assert not lowered & {"sec-websocket-extensions", "cookie", "authorization"}


@pytest.mark.parametrize(("capabilities", "acks"), [('["ack"]', True), ("[]", False)])
async def test_the_link_knows_whether_the_far_end_waits_for_acks(
    far_end: StartFarEnd, capabilities: str, acks: bool
) -> None:
    async def script(far: Far) -> None:
        await far.upgrade()
        await far.frame()
        far.write(text('{"type":"hello.ok","capabilities":' + capabilities + "}"))
        await far.answer_pings()

    async with dialled(await far_end(script)) as link:
        assert link.acks is acks


async def test_frames_before_the_answer_are_ignored_and_frames_right_behind_it_are_not(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.upgrade(text('{"type":"presence.update"}'))
        await far.frame()
        far.write(text("not JSON"), text('{"type":"early"}'), text(HELLO_OK), text("first"), text("second"))
        await far.answer_pings()

    inbox = Inbox()
    async with dialled(await far_end(script), inbox):
        assert inbox.frames == []  # not before the body runs: callbacks may need the link
        assert await inbox.filled(2) == [b"first", b"second"]
        assert inbox.bursts == 1


async def test_an_answer_in_the_same_write_as_the_upgrade_counts(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.upgrade(text(HELLO_OK), text("first"))
        await far.answer_pings()

    inbox = Inbox()
    async with dialled(await far_end(script), inbox):
        assert await inbox.filled(1) == [b"first"]


async def test_no_answer_to_the_hello_is_unavailable_after_the_timeout(far_end: StartFarEnd) -> None:
    last: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    async def script(far: Far) -> None:
        await far.upgrade()
        await far.frame()
        last.set_result(await far.frame())

    error = await failure(await far_end(script), LinkSettings(hello_timeout_s=0.05))
    assert isinstance(error, Unavailable)
    assert bytes((await last).data) == (1008).to_bytes(2, "big") + b"HELLO ack timeout"


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (1008, "Invalid token", CredentialsRefused),
        (4401, "", CredentialsRefused),
        (4403, "", CredentialsRefused),
        (1008, "HELLO frame required", Unavailable),
        (1000, "", Unavailable),
        (1001, "Server shutting down", Unavailable),
        (1011, "", Unavailable),
        (1013, "overload", Unavailable),
        (4409, "", Unavailable),
    ],
)
async def test_a_close_during_the_hello_refuses_the_key_or_does_not(
    far_end: StartFarEnd, code: int, reason: str, kind: type[Exception]
) -> None:
    async def script(far: Far) -> None:
        await far.upgrade()
        await far.frame()
        far.write(closing(code, reason))
        await far.frame()

    error = await failure(await far_end(script))
    assert type(error) is kind
    if isinstance(error, CredentialsRefused):
        assert error.status == code


async def test_a_cut_during_the_hello_is_unavailable(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.upgrade()
        await far.frame()
        far.reset()

    assert type(await failure(await far_end(script))) is Unavailable


async def test_a_rejection_in_a_frame_refuses_the_key_without_quoting_it(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.upgrade()
        await far.frame()
        far.write(text(json.dumps({"type": "auth.rejected", "reason": f"no such key: {KEY}"})))
        await far.answer_pings()

    error = await failure(await far_end(script))
    assert type(error) is CredentialsRefused
    assert str(error).endswith("no such key: …")


@pytest.mark.parametrize("status", [401, 403])
async def test_an_upgrade_refused_with_401_or_403_says_nothing_of_a_key_that_it_does_not_carry(
    far_end: StartFarEnd, status: int
) -> None:
    async def script(far: Far) -> None:
        await far.request()
        far.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())

    error = await failure(await far_end(script))
    assert type(error) is Unavailable
    assert f"{status} to the upgrade" in str(error)


async def test_an_upgrade_refused_is_unavailable_with_the_wait_asked_for(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.request()
        far.write(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n")

    error = await failure(await far_end(script))
    assert isinstance(error, Unavailable)
    assert error.retry_after_s == 7.0


async def test_a_redirect_is_not_followed_since_the_key_would_go_with_it(far_end: StartFarEnd) -> None:
    elsewhere_dialled = asyncio.Event()

    async def elsewhere(_: Far) -> None:
        elsewhere_dialled.set()

    port = await far_end(elsewhere)

    async def script(far: Far) -> None:
        await far.request()
        far.write(f"HTTP/1.1 302 Go\r\nLocation: ws://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n".encode())

    assert type(await failure(await far_end(script))) is Unavailable
    assert not elsewhere_dialled.is_set()


# The address


async def test_a_port_that_nobody_listens_on_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert type(await failure(free.getsockname()[1])) is Unavailable


async def test_a_server_that_never_answers_the_upgrade_is_unavailable(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.request()
        await far.reader.read()

    error = await failure(await far_end(script), LinkSettings(connect_timeout_s=0.05))
    assert type(error) is Unavailable


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ws://api.example.com/v1/ws", "PLAIN_TEXT"),
        ("ws://10.0.0.1/v1/ws", "PLAIN_TEXT"),
        ("wss://user:word@api.example.com/v1/ws", "CREDENTIALS_IN_URL"),
        ("ftp://localhost/", "BAD_URL"),
        ("wss:///v1/ws", "BAD_URL"),
        ("ws://localhost:port/", "BAD_URL"),
        ("ws://127.0.0.1/#fragment", "BAD_URL"),
    ],
)
async def test_a_url_that_a_key_must_not_be_given_to_is_refused_before_dialling(url: str, code: str) -> None:
    inbox = Inbox()
    with pytest.raises(Refused) as caught:
        async with dial(Platform(url), SETTINGS, on_frame=inbox.on_frame, on_burst=inbox.on_burst):
            pass
    assert caught.value.code == code
    assert "word" not in str(caught.value)


async def test_a_proxy_of_the_environment_is_not_used_for_this_machine(
    far_end: StartFarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def script(far: Far) -> None:
        await far.welcome()
        await far.answer_pings()

    async with dialled(await far_end(script)) as link:
        assert link.acks


async def test_a_certificate_that_nobody_vouches_for_ends_the_dial_before_the_hello(
    far_end: StartFarEnd, self_signed_server: ssl.SSLContext
) -> None:
    async def script(far: Far) -> None:
        await far.welcome()
        await far.answer_pings()

    port = await far_end(script, tls=self_signed_server)
    error = await failure(port, url="wss://localhost:{}/v1/ws")
    assert type(error) is Unavailable
    assert "certificate" in str(error)


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_of_an_authority_named_in_the_environment_is_accepted(
    far_end: StartFarEnd, self_signed_server: ssl.SSLContext
) -> None:
    async def script(far: Far) -> None:
        await far.welcome(text("first"))
        await far.answer_pings()

    inbox = Inbox()
    async with dialled(await far_end(script, tls=self_signed_server), inbox, url="wss://localhost:{}/v1/ws") as link:
        assert await inbox.filled(1) == [b"first"]
        link.close()
        assert (await ended(link)).clean


# Frames


async def test_ten_thousand_frames_in_one_go_arrive_in_order_in_few_bursts(far_end: StartFarEnd) -> None:
    sent = [f'{{"n":{n},"pad":"{"x" * 400}"}}'.encode() for n in range(10_000)]

    async def script(far: Far) -> None:
        await far.welcome(*[text(data) for data in sent])
        await far.answer_pings()

    inbox = Inbox()
    async with dialled(await far_end(script), inbox):
        assert await inbox.filled(10_000) == sent
    assert inbox.bursts < 500


async def test_fragments_are_joined_around_a_ping_in_their_middle(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome(
            text("one", fin=False),
            control(Opcode.PING, b"?"),
            control(Opcode.CONT, b"", fin=False),
            control(Opcode.CONT, b" two", fin=False),
            control(Opcode.CONT, b" three"),
            text("next"),
        )
        await far.answer_pings()

    inbox = Inbox()
    async with dialled(await far_end(script), inbox):
        assert await inbox.filled(2) == [b"one two three", b"next"]


async def test_binary_messages_are_counted_and_dropped(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome(
            control(Opcode.BINARY, b"\x00"),
            control(Opcode.BINARY, b"\x00", fin=False),
            control(Opcode.CONT, b"\x01"),
            text("next"),
        )
        await far.answer_pings()

    inbox = Inbox()
    async with dialled(await far_end(script), inbox) as link:
        assert await inbox.filled(1) == [b"next"]
        assert link.binary_dropped == 2


@pytest.mark.parametrize(
    "too_much",
    [text("x" * 1_001), text("x" * 600, fin=False) + control(Opcode.CONT, b"x" * 600)],
    ids=["one frame", "sum of fragments"],
)
async def test_a_message_past_the_bound_ends_the_link(far_end: StartFarEnd, too_much: bytes) -> None:
    told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def script(far: Far) -> None:
        await far.welcome(text("x" * 1_000), too_much)
        told.set_result(bytes((await far.frame()).data[:2]))

    inbox = Inbox()
    settings = LinkSettings(frame_max_bytes=1_000)
    async with dialled(await far_end(script), inbox, settings) as link:
        end = await ended(link)
    assert (end.code, end.clean) == (None, False)
    assert await told == (1009).to_bytes(2, "big")
    assert inbox.frames == [b"x" * 1_000]


async def test_what_a_callback_raises_ends_the_link_and_reaches_whoever_waits(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome()
        far.write(text("first"), text("second"))
        await far.answer_pings()

    taken: list[bytes] = []
    written: list[bool] = []

    def on_frame(data: bytes) -> None:
        taken.append(data)
        asyncio.get_running_loop().call_soon(lambda: written.append(link.send_burst([b"ack"])))
        raise AssertionError("an invariant does not hold")

    async with dialled(await far_end(script), on_frame=on_frame) as link:
        with pytest.raises(AssertionError, match="invariant"):
            await ended(link)
    assert taken == [b"first"]
    assert written == [False]


async def test_a_burst_of_sends_arrives_whole_and_in_order(far_end: StartFarEnd) -> None:
    sent = [f'{{"type":"ack","message_id":"msg_{n}"}}'.encode() for n in range(500)]
    got: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()

    async def script(far: Far) -> None:
        await far.welcome()
        frames = [await far.frame() for _ in sent]
        assert {(frame.opcode, frame.fin) for frame in frames} == {(Opcode.TEXT, True)}
        got.set_result([bytes(frame.data) for frame in frames])
        await far.answer_pings()

    async with dialled(await far_end(script)) as link:
        assert link.send_burst(sent)
        assert link.send_burst([])
        assert await got == sent


async def test_nothing_is_written_after_the_end(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome()
        await far.answer_pings()

    async with dialled(await far_end(script)) as link:
        link.close()
        assert not link.send_burst([b"late"])
        await ended(link)
        assert not link.send_burst([b"later"])


async def test_a_far_end_that_does_not_read_makes_sends_decline_and_is_still_found_out(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome()
        far.writer.transport.pause_reading()
        await asyncio.Event().wait()

    settings = LinkSettings(ping_interval_s=0.1, ping_timeout_s=0.1)
    async with dialled(await far_end(script), settings=settings) as link:
        frame = b"x" * 65_536
        written = 0
        while link.send_burst([frame]):
            written += 1
            assert written < 10_000
        assert (await ended(link)).code is None


# Pulse


async def test_a_far_end_that_fell_silent_ends_the_link_within_interval_and_timeout(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome()
        await asyncio.Event().wait()

    settings = LinkSettings(ping_interval_s=0.1, ping_timeout_s=0.2)
    async with dialled(await far_end(script), settings=settings) as link:
        began = time.monotonic()
        end = await ended(link)
    assert 0.29 < time.monotonic() - began < 1.0
    assert (end.code, end.clean) == (None, False)
    assert "no pong" in end.reason


async def test_answered_pings_keep_the_link_and_are_told(far_end: StartFarEnd) -> None:
    answered = asyncio.Event()

    async def script(far: Far) -> None:
        await far.welcome()
        for _ in range(5):
            ping = await far.frame()
            assert ping.opcode is Opcode.PING
            far.write(control(Opcode.PONG, bytes(ping.data)))
        answered.set()
        await far.answer_pings()

    settings = LinkSettings(ping_interval_s=0.05, ping_timeout_s=1.0)
    inbox = Inbox()
    async with dialled(await far_end(script), inbox, settings) as link:
        began = link.last_pong
        await answered.wait()
        assert inbox.bursts == 0  # a read without a message is no burst
        assert link.last_pong >= began + 0.15
        assert link.last_inbound >= link.last_pong
        link.close()
        assert (await ended(link)).clean


async def test_pongs_that_answer_no_ping_of_ours_do_not_count(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome(control(Opcode.PONG, b"unasked"))
        while True:
            await far.frame()
            far.write(control(Opcode.PONG, b"wrong"))

    settings = LinkSettings(ping_interval_s=0.05, ping_timeout_s=0.05)
    async with dialled(await far_end(script), settings=settings) as link:
        began = link.last_pong
        assert "no pong" in (await ended(link)).reason
        assert link.last_pong == began


async def test_data_in_place_of_a_pong_buys_time_but_not_for_ever(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome()
        while True:
            far.write(text("still here"))
            await asyncio.sleep(0.02)

    settings = LinkSettings(ping_interval_s=0.05, ping_timeout_s=0.2)
    async with dialled(await far_end(script), settings=settings) as link:
        began = time.monotonic()
        assert "no pong" in (await ended(link)).reason
    assert 0.05 + PONG_OVERDUE * 0.2 - 0.01 < time.monotonic() - began < 2.0


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_blocked_loop_reads_the_waiting_pong_before_it_judges(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def block() -> None:
        settings = LinkSettings(ping_interval_s=0.1, ping_timeout_s=0.3)
        async with threaded_far_end(on_ping=text("block")) as far:

            def on_frame(_: bytes) -> None:
                far.may_pong.set()
                time.sleep(0.5)

            async with dialled(far.port, settings=settings, on_frame=on_frame) as link:
                began = link.last_pong
                await asyncio.to_thread(far.may_pong.wait, 5)
                link.close()
                assert (await ended(link)).clean
                assert link.last_pong > began

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(block())


async def test_a_ping_is_answered_by_the_read_that_brings_it_however_slow_its_callback() -> None:
    async with threaded_far_end(after_hello=text("slow") + control(Opcode.PING, b"alive?")) as far:
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def on_frame(_: bytes) -> None:
            answered.set_result(far.ponged.wait(5))

        async with dialled(far.port, on_frame=on_frame) as link:
            assert await answered
            link.close()
            await ended(link)


class ThreadedFarEnd:
    """A far end with a thread of its own, which goes on while this loop is blocked."""

    def __init__(self, after_hello: bytes, on_ping: bytes) -> None:
        self.may_pong = threading.Event()
        self.ponged = threading.Event()
        self._after_hello = after_hello
        self._on_ping = on_ping
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._listener.settimeout(5)
        near, _ = self._listener.accept()
        protocol = ServerProtocol()
        with near, self._listener:
            near.settimeout(5)
            while data := near.recv(65_536):
                protocol.receive_data(data)
                for event in protocol.events_received():
                    if isinstance(event, Request):
                        protocol.send_response(protocol.accept(event))
                        continue
                    assert isinstance(event, Frame)
                    if event.opcode is Opcode.TEXT:
                        near.sendall(text(HELLO_OK))
                        near.sendall(self._after_hello)
                    elif event.opcode is Opcode.PING:
                        near.sendall(self._on_ping)
                        self.may_pong.wait(5)
                    elif event.opcode is Opcode.PONG:
                        self.ponged.set()
                for out in protocol.data_to_send():
                    near.sendall(out)
                    if not out:
                        return

    def join(self) -> None:
        self._thread.join()


@asynccontextmanager
async def threaded_far_end(*, after_hello: bytes = b"", on_ping: bytes = b"") -> AsyncIterator[ThreadedFarEnd]:
    far = ThreadedFarEnd(after_hello, on_ping)
    yield far
    await asyncio.to_thread(far.join)


# The end


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1000, ""),
        (1001, "Heartbeat timeout"),
        (1008, "key rotated"),
        (1011, ""),
        (1013, "overload"),
        (4401, ""),
        (4403, ""),
        (4409, "elsewhere"),
    ],
)
async def test_a_close_frame_tells_its_code_and_reason(far_end: StartFarEnd, code: int, reason: str) -> None:
    async def script(far: Far) -> None:
        await far.welcome(text("last"), closing(code, reason))
        assert bytes((await far.frame()).data[:2]) == code.to_bytes(2, "big")

    inbox = Inbox()
    async with dialled(await far_end(script), inbox) as link:
        assert await ended(link) == Closed(code, reason, clean=True)
    assert inbox.frames == [b"last"]


async def test_a_close_frame_without_a_code_is_1005(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome(control(Opcode.CLOSE))
        await far.frame()

    async with dialled(await far_end(script)) as link:
        assert await ended(link) == Closed(1005, "", clean=True)


@pytest.mark.parametrize("how", ["reset", "mid-frame", "between frames"])
async def test_a_cut_has_no_code_and_keeps_what_came_before_it(far_end: StartFarEnd, how: str) -> None:
    proceed = asyncio.Event()

    async def script(far: Far) -> None:
        await far.welcome(text("whole"))
        await proceed.wait()
        if how == "mid-frame":
            far.write(text("cut in two")[:5])
        if how == "reset":
            far.reset()

    inbox = Inbox()
    async with dialled(await far_end(script), inbox) as link:
        await inbox.filled(1)
        proceed.set()
        end = await ended(link)
    assert (end.code, end.clean) == (None, False)
    assert end.reason
    assert inbox.frames == [b"whole"]


async def test_closing_says_so_to_the_far_end_and_hands_on_nothing_more(far_end: StartFarEnd) -> None:
    told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def script(far: Far) -> None:
        await far.welcome(text("in time"))
        frame = await far.frame()
        told.set_result(bytes(frame.data))
        far.write(text("too late"), control(Opcode.CLOSE, bytes(frame.data)))

    inbox = Inbox()
    async with dialled(await far_end(script), inbox) as link:
        await inbox.filled(1)
        link.close(1001, "bye")
        assert await ended(link) == Closed(1001, "bye", clean=True)
    assert await told == (1001).to_bytes(2, "big") + b"bye"
    assert inbox.frames == [b"in time"]


async def test_leaving_the_body_closes_even_when_it_is_cancelled(far_end: StartFarEnd) -> None:
    told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    up = asyncio.Event()

    async def script(far: Far) -> None:
        await far.welcome()
        frame = await far.frame()
        told.set_result(bytes(frame.data[:2]))
        far.write(control(Opcode.CLOSE, bytes(frame.data)))

    port = await far_end(script)

    async def hold() -> None:
        async with dialled(port):
            up.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        holding = tasks.create_task(hold())
        await up.wait()
        holding.cancel()
    assert await told == (1000).to_bytes(2, "big")


async def test_cancelling_the_goodbye_cuts_the_connection_at_once(far_end: StartFarEnd) -> None:
    saying_goodbye, cut = asyncio.Event(), asyncio.Event()

    async def script(far: Far) -> None:
        await far.welcome()
        await far.frame()
        saying_goodbye.set()
        with contextlib.suppress(EOFError, ConnectionError):
            await far.frame()
        cut.set()

    port = await far_end(script)

    async def visit() -> None:
        async with dialled(port):
            pass

    async with asyncio.TaskGroup() as tasks:
        visiting = tasks.create_task(visit())
        await saying_goodbye.wait()
        visiting.cancel()
    async with asyncio.timeout(CLOSE_GRACE_S / 2):
        await cut.wait()


async def test_an_ended_link_leaves_nothing_behind(far_end: StartFarEnd) -> None:
    async def script(far: Far) -> None:
        await far.welcome()
        await far.answer_pings()

    async with dialled(await far_end(script)) as link:
        remains = weakref.ref(link._connection)
    del link
    gc.collect()
    assert remains() is None


@pytest.mark.parametrize("who", ["near", "far"])
async def test_a_close_that_is_never_completed_is_cut_after_the_grace(
    far_end: StartFarEnd, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr(connection, "CLOSE_GRACE_S", 0.05)

    async def script(far: Far) -> None:
        await far.welcome(*([closing(1001)] if who == "far" else []))
        await asyncio.Event().wait()

    async with dialled(await far_end(script)) as link:
        if who == "near":
            link.close(1001)
        end = await ended(link)
    assert end.code == (1001 if who == "far" else None)


async def test_the_key_is_in_no_log_error_or_repr_even_when_the_far_end_repeats_it(
    far_end: StartFarEnd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def script(far: Far) -> None:
        await far.welcome()
        far.write(closing(1008, f"Invalid token {KEY}"))
        await far.answer_pings()

    async with dialled(await far_end(script)) as link:
        end = await ended(link)
    assert end.reason == "Invalid token …"
    assert KEY not in caplog.text + repr(link) + repr(vars(link))

    async def refuse(far: Far) -> None:
        await far.upgrade()
        await far.frame()
        far.write(closing(1008, f"Invalid token {KEY}"))
        await far.answer_pings()

    error: BaseException | None = await failure(await far_end(refuse))
    while error is not None:
        assert KEY not in repr(error) + str(error)
        error = error.__cause__ or error.__context__
    assert KEY not in caplog.text


async def test_it_gets_on_with_the_websockets_server() -> None:
    acked: list[str | bytes] = []

    async def handle(near: ServerConnection) -> None:
        await near.recv()
        await near.send(HELLO_OK.decode())
        for n in range(1_000):
            await near.send(f"message {n}")
        async for frame in near:
            acked.append(frame)
            if len(acked) == 1_000:
                await near.close(1001, "Server shutting down")

    inbox = Inbox()
    async with serve(handle, "127.0.0.1", 0, ping_interval=0.05) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with dialled(port, inbox) as link:
            link.send_burst(await inbox.filled(1_000))
            assert await ended(link) == Closed(1001, "Server shutting down", clean=True)
    assert acked == [f"message {n}" for n in range(1_000)]
