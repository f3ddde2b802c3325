"""The socket: handshake, pushes, drain, acks, liveness, and every way to end."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
import time
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agentd.hub.faults import Action, FaultPlan, Point, Rule


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"]["text"] for message in messages]


# --- handshake ---


async def test_hello_with_a_good_key_is_answered_and_the_capability_echoed(world: Any) -> None:
    socket = await world.peer("alice").socket()
    assert socket.hello == {"type": "hello.ok", "capabilities": ["ack"]}


async def test_a_key_in_the_upgrade_header_needs_no_hello_frame(world: Any) -> None:
    alice = world.peer("alice")
    headers = {"Authorization": f"Bearer {alice.key}", "x-agentchat-capabilities": "ack"}
    socket = await alice.dial(additional_headers=headers)
    assert await socket.frame() == {"type": "hello.ok", "capabilities": ["ack"]}


async def test_a_bad_key_in_the_upgrade_header_is_refused_with_401(world: Any) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(world.hub.ws_url + "/v1/ws", additional_headers={"Authorization": "Bearer nothing"}):
            pass
    assert refusal.value.response.status_code == 401
    assert json.loads(refusal.value.response.body)["code"] == "UNAUTHORIZED"


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ('{"type":"hello","api_key":"wrong"}', "Invalid token"),
        ('{"type":"hello"}', "Invalid token"),
        ('{"type":"ack","message_id":"m"}', "HELLO frame required first"),
        ("no json", "HELLO frame required first"),
        (b"\x00\x01", "HELLO frame required first"),
    ],
)
async def test_a_bad_first_frame_is_refused_with_1008(world: Any, first: str | bytes, reason: str) -> None:
    socket = await world.peer("alice").dial()
    await socket.connection.send(first)
    assert await socket.closed() == (1008, reason)


async def test_a_client_that_says_nothing_is_closed_with_1008(start: Any) -> None:
    world = await start(hello_timeout_s=0.05)
    socket = await world.peer("alice").dial()
    assert await socket.closed() == (1008, "HELLO frame required")


async def test_a_suspended_agent_is_refused(world: Any) -> None:
    alice = world.peer("alice")
    world.hub.set_status("alice", "suspended")
    socket = await alice.dial()
    await socket.say(type="hello", api_key=alice.key)
    assert await socket.closed() == (1008, "Account suspended")


# --- pushes and acks ---


async def test_a_live_push_carries_neither_status_nor_delivery_id(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    socket = await alice.socket()
    await bob.send("alice", "hello")
    message = await socket.message()
    assert message["seq"] == 1
    assert message["sender"] == "bob"
    assert message["context"]["conversation"]["type"] == "direct"
    assert not {"status", "delivery_id"} & message.keys()


async def test_every_socket_of_the_recipient_gets_the_push_and_the_sender_gets_none(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    first, second, own = await alice.socket(), await alice.socket(), await bob.socket()
    await bob.send("alice", "hello")
    assert texts([await first.message(), await second.message()]) == ["hello", "hello"]
    await alice.send("bob", "answer")
    assert texts([await own.message()]) == ["answer"]  # and nothing came before it


async def test_an_echoing_hub_pushes_own_sends_too(start: Any) -> None:
    world = await start(echo_own_sends=True)
    alice, _ = world.peers("alice", "bob")
    socket = await alice.socket()
    await alice.send("bob", "hello")
    assert (await socket.message())["sender"] == "alice"
    assert world.hub.undelivered("alice") == 0


async def test_an_ack_settles_the_envelope_and_without_one_it_stays(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    socket = await alice.socket()
    for text in ("one", "two"):
        await bob.send("alice", text)
    one, _ = await socket.messages(2)
    await socket.ack(one)
    await socket.settled()
    assert world.hub.undelivered("alice") == 1
    assert texts(await alice.get("/v1/messages/sync")) == ["two"]


async def test_acks_written_late_are_written_without_anybody_asking(start: Any) -> None:
    world = await start(ack_linger_s=0.01)
    alice, bob = world.peers("alice", "bob")
    socket = await alice.socket()
    await bob.send("alice", "one")
    await socket.ack(await socket.message())
    rows = world.hub.service.database
    async with asyncio.timeout(5):
        while rows.row("SELECT count(*) FROM pending")[0]:
            await asyncio.sleep(0.005)


async def test_without_the_capability_a_written_message_counts_as_delivered(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    socket = await alice.socket(capabilities=())
    assert socket.hello == {"type": "hello.ok"}
    await bob.send("alice", "hello")
    await socket.message()
    assert world.hub.undelivered("alice") == 0


async def test_a_legacy_hub_grants_no_acks(start: Any) -> None:
    world = await start(ack_capability=False)
    socket = await world.peer("alice").socket()
    assert socket.hello == {"type": "hello.ok"}


async def test_somebody_elses_ack_changes_nothing(world: Any) -> None:
    _alice, bob, eve = world.peers("alice", "bob", "eve")
    stored = (await bob.send("alice", "hello")).json
    socket = await eve.socket()
    await socket.ack(stored, {"id": "msg_nothing"})
    await socket.settled()
    assert world.hub.undelivered("alice") == 1


async def test_frames_that_mean_nothing_are_ignored_and_counted(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    socket = await alice.socket()
    await socket.connection.send("no json")
    await socket.connection.send(b"binary")
    await socket.say(type="message.send", payload={"x": 1})
    await socket.say(type="message.read_ack", payload={"through_seq": "many"})
    await socket.say(type="typing.start", payload={"conversation_id": "conv_other"})
    await bob.send("alice", "still here")
    assert texts([await socket.message()]) == ["still here"]
    assert world.hub.counters()["client_frames.malformed"] == 2
    assert world.hub.counters()["client_frames.ignored"] == 1


# --- drain ---


async def test_what_is_stored_is_drained_after_hello_with_status_and_delivery_id(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    await bob.send("alice", "one")
    await bob.send("alice", "two")
    socket = await alice.socket()
    drained = await socket.messages(2)
    assert texts(drained) == ["one", "two"]
    assert all(m["status"] == "stored" and m["delivery_id"].startswith("del_") for m in drained)


async def test_the_drain_goes_page_by_page_and_live_messages_may_overtake_it(start: Any) -> None:
    world = await start(drain_page=2, drain_pause_s=0.2)
    alice, bob = world.peers("alice", "bob")
    world.hub.post("bob", "alice", *(str(number) for number in range(1, 5)))
    socket = await alice.socket()
    first = await socket.seqs(2)
    await bob.send("alice", "live")
    assert first + await socket.seqs(4) == [1, 2, 5, 3, 4, 5]


async def test_the_drain_ends_at_the_platforms_maximum(start: Any) -> None:
    world = await start(drain_page=2, drain_pages_max=2, drain_pause_s=0.0)
    alice, bob = world.peers("alice", "bob")
    world.hub.post("bob", "alice", *(str(number) for number in range(1, 10)))
    socket = await alice.socket()
    assert await socket.seqs(4) == [1, 2, 3, 4]
    await bob.send("alice", "live")
    assert await socket.seqs(1) == [10]


async def test_an_acked_message_is_not_drained_again_and_an_unacked_one_is(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    world.hub.post("bob", "alice", "one", "two")
    socket = await alice.socket()
    one, _ = await socket.messages(2)
    await socket.ack(one)
    await socket.settled()
    again = await alice.socket()
    assert texts([await again.message()]) == ["two"]


async def test_a_paused_agent_gets_nothing_until_it_is_resumed(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    socket = await alice.socket()
    world.hub.pause("alice", "full")
    await bob.send("alice", "held back")
    assert await alice.get("/v1/messages/sync") == []
    world.hub.pause("alice", "none")
    await socket.settled()
    await bob.send("alice", "next")
    assert texts(await socket.messages(2)) == ["held back", "next"]


# --- liveness and ends ---


async def test_the_hub_pings_and_closes_with_1001_when_no_pong_comes(start: Any) -> None:
    world = await start(ping_interval_s=0.05, pong_timeout_s=0.05)
    alice = world.peer("alice")
    live = await alice.socket()
    reader, writer = await raw_socket(alice)
    async with asyncio.timeout(5):
        received = await reader.read()
    assert b"\x89\x00" in received  # a ping
    assert b"Heartbeat timeout" in received
    assert live.connection.close_code is None  # this one answers pings by itself
    writer.close()
    await writer.wait_closed()


async def test_a_reader_that_lags_too_far_is_closed_with_1013(start: Any) -> None:
    world = await start(unsent_max_bytes=100_000)
    alice, _ = world.peers("alice", "bob")
    _reader, writer = await raw_socket(alice, receive_bytes=4_096)
    writer.transport.pause_reading()
    text = "x" * 20_000
    async with asyncio.timeout(5):
        while world.hub.connections("alice"):
            world.hub.post("bob", "alice", text)
            await asyncio.sleep(0)
    writer.transport.abort()
    assert world.hub.undelivered("alice") > 0


async def test_a_rotated_key_closes_the_sockets_with_1008_and_is_dead_at_once(world: Any) -> None:
    alice = world.peer("alice")
    socket = await alice.socket()
    new = world.hub.rotate_key("alice")
    assert await socket.closed() == (1008, "API key rotated")
    assert (await alice.call("GET", "/v1/agents/me")).status == 401
    assert (await world.with_key(new).get("/v1/agents/me"))["handle"] == "alice"


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1013, 4401, 4403, 4409])
async def test_any_close_code_can_be_given(world: Any, code: int) -> None:
    socket = await world.peer("alice").socket()
    assert world.hub.afflict(Action.CLOSE, "alice", code=code) == 1
    assert (await socket.closed())[0] == code


async def test_a_clients_close_is_answered(world: Any) -> None:
    socket = await world.peer("alice").socket()
    async with asyncio.timeout(5):
        await socket.connection.close(1000, "bye")
        while world.hub.connections():
            await asyncio.sleep(0)
    assert socket.connection.close_code == 1000


async def test_a_stopping_hub_closes_with_1001(start: Any) -> None:
    world = await start(close_timeout_s=30.0)
    socket = await world.peer("alice").socket()
    async with asyncio.timeout(5):  # a client that answers the close frame is not waited for any longer
        await world.hub.restart()
    assert await socket.closed() == (1001, "Server shutting down")


# --- faults ---


def rule(point: Point, action: Action, **more: Any) -> Rule:
    return Rule(point=point, action=action, **more)


async def test_a_dropped_push_leaves_a_hole_that_history_and_sync_fill(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    socket = await alice.socket()
    world.hub.faults.add(rule(Point.PUSH, Action.DROP, seqs=(2, 4), times=None))
    stored = world.hub.post("bob", "alice", "one", "two", "three", "four")
    assert await socket.seqs(2) == [1, 4]
    history = await alice.get(f"/v1/messages/{stored[0].conversation}?after_seq=1")
    assert [row["seq"] for row in history] == [2, 3, 4]
    assert len(await alice.get("/v1/messages/sync")) == 4
    assert world.hub.counters()["faults.push.drop"] == 2


async def test_a_duplicated_push_comes_twice(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    socket = await alice.socket()
    world.hub.faults.add(rule(Point.PUSH, Action.DUPLICATE))
    world.hub.post("bob", "alice", "one", "two")
    assert await socket.seqs(3) == [1, 1, 2]


async def test_a_reordered_push_comes_after_the_next_and_the_last_one_still_comes(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    socket = await alice.socket()
    world.hub.faults.add(rule(Point.PUSH, Action.REORDER, seqs=(1, 2)), rule(Point.PUSH, Action.REORDER, seqs=(3, 4)))
    world.hub.post("bob", "alice", "one", "two", "three")
    assert await socket.seqs(3) == [2, 1, 3]


async def test_a_delayed_push_comes_later(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    socket = await alice.socket()
    world.hub.faults.add(rule(Point.PUSH, Action.DELAY, delay_s=0.05))
    world.hub.post("bob", "alice", "one", "two")
    assert await socket.seqs(2) == [2, 1]


async def test_a_cut_ends_the_connection_without_a_close_frame(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    socket = await alice.socket()
    world.hub.faults.add(rule(Point.PUSH, Action.CUT, seqs=(3, 4)))
    world.hub.post("bob", "alice", "one", "two", "three")
    assert await socket.closed() == (1006, "")


async def test_a_cut_mid_frame_sends_half_a_frame(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    reader, writer = await raw_socket(alice)
    world.hub.faults.add(rule(Point.PUSH, Action.CUT_MID_FRAME, seqs=(2, 3)))
    one, two = world.hub.post("bob", "alice", "one", "two")
    async with asyncio.timeout(5):
        received = await reader.read()
    assert one.payload in received
    assert two.payload not in received
    assert two.payload[:100] in received
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("action", [Action.CLOSE, Action.RESTART])
async def test_a_push_can_end_the_connection_instead(world: Any, action: Action) -> None:
    alice, _ = world.peers("alice", "bob")
    socket = await alice.socket()
    world.hub.faults.add(rule(Point.PUSH, action, code=1001))
    world.hub.post("bob", "alice", "one")
    assert (await socket.closed())[0] == 1001
    async with asyncio.timeout(5):
        while True:
            try:
                again = await alice.socket()
                break
            except (OSError, InvalidStatus, ConnectionClosed):
                await asyncio.sleep(0.01)
    assert await again.seqs(1) == [1]


async def test_a_drained_row_can_be_lost_too(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    world.hub.post("bob", "alice", "one", "two", "three")
    world.hub.faults.add(rule(Point.DRAIN, Action.DROP, nth=2))
    socket = await alice.socket()
    assert await socket.seqs(2) == [1, 3]


async def test_a_deaf_connection_lives_and_gets_nothing(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    world.hub.faults.add(rule(Point.ACCEPT, Action.DEAF, identity="alice"))
    deaf, hearing = await alice.socket(), await alice.socket()
    await bob.send("alice", "hello")
    await hearing.message()
    await deaf.settled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await deaf.connection.recv()


async def test_a_half_open_connection_answers_nothing_and_stays_open(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    socket = await alice.socket()
    world.hub.afflict(Action.HALF_OPEN, "alice")
    await bob.send("alice", "hello")
    pong = await socket.connection.ping()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await pong
    assert socket.connection.close_code is None
    assert world.hub.connections("alice") == 1
    socket.connection.transport.abort()


async def test_a_hub_that_answers_no_ping_still_pushes(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    world.hub.faults.add(rule(Point.ACCEPT, Action.NO_PONG))
    socket = await alice.socket()
    pong = await socket.connection.ping()
    await bob.send("alice", "hello")
    await socket.message()
    await socket.say(type="typing.start", payload={"conversation_id": "conv_none"})
    assert not pong.done()


async def test_a_hub_that_reads_nothing_takes_no_acks_but_pushes(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    socket = await alice.socket()
    world.hub.afflict(Action.SLOW_READER, "alice")
    await bob.send("alice", "one")
    await socket.ack(await socket.message())
    await bob.send("alice", "two")
    await socket.message()
    assert world.hub.undelivered("alice") == 2
    socket.connection.transport.abort()


async def test_a_hub_that_stops_reading_under_load_does_not_start_again(world: Any) -> None:
    alice = world.peer("alice")
    _, writer = await raw_socket(alice)
    # The stall begins while the HTTP library holds back the socket by itself, and would let go of it later.
    world.hub.service.sockets.client_said = lambda *_: world.hub.afflict(Action.SLOW_READER, "alice")
    ack, typing = masked(b'{"type":"ack","message_id":"msg_none"}'), masked(b'{"type":"typing.start"}')
    count = 40_000
    writer.write(ack * count + typing + ack * count)
    async with asyncio.timeout(10):
        while world.hub.counters().get("faults.socket.slow_reader", 0) == 0:
            await asyncio.sleep(0)
        for _ in range(20):
            await alice.get("/v1/health")
    assert count <= world.hub.counters()["acks"] < 2 * count
    writer.transport.abort()


async def test_hello_can_be_left_unanswered(world: Any) -> None:
    alice = world.peer("alice")
    world.hub.faults.add(rule(Point.ACCEPT, Action.HANG))
    socket = await alice.dial()
    await socket.say(type="hello", api_key=alice.key)
    await socket.settled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await socket.connection.recv()


async def test_a_good_key_can_be_closed_on_with_any_code(world: Any) -> None:
    alice = world.peer("alice")
    world.hub.faults.add(rule(Point.ACCEPT, Action.CLOSE, code=4403))
    socket = await alice.dial()
    await socket.say(type="hello", api_key=alice.key)
    assert (await socket.closed())[0] == 4403


async def test_an_upgrade_can_be_refused_with_any_status(world: Any) -> None:
    world.hub.faults.add(rule(Point.UPGRADE, Action.STATUS, status=503, retry_after_s=1.5))
    with pytest.raises(InvalidStatus) as refusal:
        await world.peer("alice").dial()
    assert refusal.value.response.status_code == 503
    assert refusal.value.response.headers["retry-after"] == "2"


async def test_chance_from_a_seed_loses_the_same_pushes_each_time(start: Any) -> None:
    lost = []
    for _ in range(2):
        world = await start()
        alice, _ = world.peers("alice", "bob")
        socket = await alice.socket()
        world.hub.faults.replace(FaultPlan(seed=7, push_drop=0.5))
        world.hub.post("bob", "alice", *(str(number) for number in range(50)))
        world.hub.faults.replace()
        world.hub.post("bob", "alice", "end")
        seqs = []
        while not seqs or seqs[-1] != 51:
            seqs += await socket.seqs(1)
        lost.append(set(range(1, 52)) - set(seqs))
    assert lost[0] == lost[1]
    assert len(lost[0]) > 10


# --- speed ---


async def test_ten_thousand_messages_a_second_are_stored_and_pushed(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    reader, writer = await raw_socket(alice)
    count, started = 5_000, time.process_time()
    posting = asyncio.ensure_future(world.hub.post_many("bob", "alice", ["a text of some length"] * count))
    async with asyncio.timeout(20):
        while not posting.done():
            await reader.read(1 << 20)
    assert [m.seq for m in posting.result()] == list(range(1, count + 1))
    assert time.process_time() - started < count / 10_000
    writer.close()
    await writer.wait_closed()


async def raw_socket(peer: Any, receive_bytes: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection after hello.ok by a client that does nothing by itself: no pong, no close, maybe no reading."""
    host, port = peer.hub.url.removeprefix("http://").split(":")
    plain = sockets.socket()
    if receive_bytes is not None:
        plain.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, receive_bytes)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1 << 22)
    writer.write(
        b"GET /v1/ws HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        b"X-AgentChat-Capabilities: ack\r\nAuthorization: Bearer " + peer.key.encode() + b"\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b'"hello.ok","capabilities":["ack"]}')
    return reader, writer


def masked(payload: bytes) -> bytes:
    """A client's text frame of fewer than 126 bytes, masked with zeros."""
    return bytes((0x81, 0x80 | len(payload), 0, 0, 0, 0)) + payload
