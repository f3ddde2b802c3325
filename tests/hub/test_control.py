"""Control over a hub: in Python, and over HTTP on the same machine."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agentd.hub.answers import ApiError
from agentd.hub.faults import Action
from agentd.hub.server import Hub, serve
from agentd.hub.settings import HubSettings
from agentd.wire.agentchat import types as wire


async def test_an_agent_made_over_http_can_sign_in(world: Any) -> None:
    made = await world.with_key("").post("/hub/v1/agents", {"handle": "alice"})
    assert (await world.with_key(made["api_key"]).get("/v1/agents/me"))["handle"] == "alice"
    again = await world.with_key("").call("POST", "/hub/v1/agents", {"handle": "alice"})
    assert again.json["code"] == "HANDLE_TAKEN"


@pytest.mark.parametrize("page", [{"Origin": "http://evil.example"}, {"Host": "evil.example:8787"}])
async def test_a_web_page_may_not_control_the_hub(world: Any, page: dict[str, str]) -> None:
    reply = await world.with_key("").call("POST", "/hub/v1/agents", {"handle": "alice"}, page)
    assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("agents", {}),
        ("agents", {"handle": "x"}),
        ("faults", {"rules": [{"point": "push", "action": "status"}]}),
        ("faults", {"plan": {"push_dorp": 1}}),
        ("messages", {"sender": "nobody", "to": "alice", "texts": ["x"]}),
        ("close", {"action": "drop"}),
        ("reset", {"conversation": "conv_x"}),
        ("pause", {"handle": "nobody", "value": "full"}),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong(world: Any, path: str, body: dict[str, Any]) -> None:
    reply = await world.with_key("").call("POST", f"/hub/v1/{path}", body)
    assert reply.status in (400, 404)
    assert reply.json["message"]


async def test_bulk_posts_are_stored_pushed_and_in_the_ledger(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    socket = await alice.socket()
    texts = [str(number) for number in range(600)]
    posts = {"sender": "bob", "to": "alice", "texts": texts, "client_msg_ids": [f"id-{text}" for text in texts]}
    answer = await alice.post("/hub/v1/messages", posts)
    assert (answer["stored"], answer["first_seq"], answer["last_seq"]) == (600, 1, 600)
    assert await socket.seqs(600) == list(range(1, 601))
    again = await alice.post("/hub/v1/messages", posts)
    assert again["stored"] == 0
    page = await alice.get("/hub/v1/ledger?limit=400")
    rest = await alice.get(f"/hub/v1/ledger?after={page['next']}&conversation={answer['conversation']}")
    rows = page["rows"] + rest["rows"]
    assert [row["client_msg_id"] for row in rows] == posts["client_msg_ids"]
    assert [row["seq"] for row in rows] == list(range(1, 601))
    assert {row["sender"] for row in rows} == {"bob"}
    assert rest["next"] is None


async def test_faults_over_http_are_carried_out_and_counted(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    socket = await alice.socket()
    await alice.post("/hub/v1/faults", {"rules": [{"point": "push", "action": "drop", "seqs": [2, 3]}]})
    await alice.post(
        "/hub/v1/faults", {"keep": True, "rules": [{"point": "push", "action": "duplicate", "seqs": [3, 4]}]}
    )
    world.hub.post("bob", "alice", "1", "2", "3")
    assert await socket.seqs(3) == [1, 3, 3]
    counters = await alice.get("/hub/v1/counters")
    assert counters["faults.push.drop"] == counters["faults.push.duplicate"] == 1
    assert counters["frames.message.new"] == counters["frames.pushed"] == 3
    await alice.post("/hub/v1/faults", {"plan": {"push_drop": 1.0}})
    world.hub.post("bob", "alice", "4")
    await alice.post("/hub/v1/faults", {})
    world.hub.post("bob", "alice", "5")
    assert await socket.seqs(1) == [5]


async def test_waiting_for_frames_ends_when_the_nth_is_pushed(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    await alice.socket()
    waiting = asyncio.ensure_future(alice.get("/hub/v1/frames/wait?n=3"))
    world.hub.post("bob", "alice", "1", "2")
    assert await alice.get("/hub/v1/frames") == {"frames": 2}
    assert not waiting.done()
    world.hub.post("bob", "alice", "3")
    assert await waiting == {"frames": 3}
    assert await alice.get("/hub/v1/frames/wait?n=1") == {"frames": 3}


async def test_sockets_can_be_closed_over_http(world: Any) -> None:
    alice = world.peer("alice")
    socket, other = await alice.socket(), await world.peer("bob").socket()
    assert await alice.post("/hub/v1/close", {"handle": "alice", "code": 4409}) == {"sockets": 1}
    assert (await socket.closed())[0] == 4409
    assert await alice.post("/hub/v1/close", {"action": "cut"}) == {"sockets": 1}
    assert (await other.closed())[0] == 1006


async def test_a_reset_over_http_numbers_from_one_again(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    stored = world.hub.post("bob", "alice", "1", "2")
    assert await alice.post("/hub/v1/reset", {"conversation": stored[0].conversation}) == {"gone": 2}
    assert world.hub.post("bob", "alice", "new")[0].seq == 1


async def test_a_restart_keeps_the_port_and_what_is_stored(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    world.hub.post("bob", "alice", "kept")
    socket, url = await alice.socket(), world.hub.url
    await alice.post("/hub/v1/restart", {"down_s": 0.05})
    assert (await socket.closed())[0] == 1001
    refused = 0
    async with asyncio.timeout(5):
        while True:
            try:
                again = await alice.socket()
                break
            except (OSError, InvalidStatus, ConnectionClosed):
                refused += 1
                await asyncio.sleep(0.005)
    assert refused > 0
    assert world.hub.url == url
    assert (await again.message())["content"]["text"] == "kept"


async def test_pausing_and_moderating_over_http(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    await alice.post("/hub/v1/pause", {"handle": "alice", "value": "send"})
    assert (await alice.send("bob", "x")).json["code"] == "AGENT_PAUSED_BY_OWNER"
    await alice.post("/hub/v1/status", {"handle": "alice", "value": "suspended"})
    assert (await alice.get("/v1/agents/me"))["status"] == "suspended"


async def test_rotating_and_making_groups_over_http(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    rotated = await alice.post("/hub/v1/rotate", {"handle": "alice"})
    alice = world.with_key(rotated["api_key"])
    group = await alice.post("/hub/v1/groups", {"creator": "alice", "name": "G", "members": ["bob"]})
    assert (await alice.get(f"/v1/groups/{group['conversation']}"))["member_count"] == 2


async def test_what_does_not_befall_a_socket_is_refused(world: Any) -> None:
    with pytest.raises(ApiError, match="does not befall"):
        world.hub.afflict(Action.MALFORMED_ROW)


async def test_a_hub_on_a_file_finds_everything_again(tmp_path: Any) -> None:
    settings = HubSettings(database=str(tmp_path / "hub.db"))
    async with Hub(settings) as hub:
        hub.create_agent("alice")
        hub.create_agent("bob")
        before = hub.post("bob", "alice", "kept")
    async with Hub(settings) as hub:
        assert [row.id for row in hub.ledger()] == [before[0].id]
        assert hub.undelivered("alice") == 1
        seen = msgspec.json.encode(hub.service.accounts.get("alice").own_view())
        assert msgspec.json.decode(seen, type=wire.Agent).handle == "alice"


async def test_after_a_restart_an_account_is_on_the_wire_what_it_was_before(tmp_path: Any) -> None:
    settings = HubSettings(database=str(tmp_path / "hub.db"))
    seen = []
    for _ in range(2):
        async with Hub(settings) as hub:
            key = hub.rotate_key("alice") if hub.has_agent("alice") else hub.create_agent("alice")
            request = urllib.request.Request(f"{hub.url}/v1/agents/me", headers={"Authorization": f"Bearer {key}"})
            answer = await asyncio.to_thread(lambda request=request: urllib.request.urlopen(request).read())
            me = json.loads(answer)
            seen.append({name: (type(value), value) for name, value in me.items() if name != "updated_at"})
    assert seen[0] == seen[1]


async def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    async with Hub() as hub:
        port = int(hub.url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="in use"):
            await Hub(HubSettings(port=port)).start()


async def test_serve_says_its_address_and_runs_until_cancelled() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(serve(HubSettings(), ready.set_result))
    url = await asyncio.wait_for(ready, 5)
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    await writer.wait_closed()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(OSError):
        await asyncio.open_connection(host, int(port))
