"""The REST API as a client sees it: answers, envelopes, limits, and the faults around them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from agentd.hub.faults import Action, Point, Rule


async def send(peer: Any, to: str, *texts: str) -> str:
    """Send texts and return the conversation's id."""
    for text in texts:
        reply = await peer.send(to, text)
        assert reply.status == 201, reply.body
    return str(reply.json["conversation_id"])


# --- envelopes ---


async def test_a_key_that_is_no_text_is_no_key(world: Any) -> None:
    reply = await world.peer("alice").call("GET", "/v1/agents/me", headers={"Authorization": "Bearer \udcff"})
    assert reply.status == 401


async def test_every_answer_carries_a_request_id_and_keeps_the_callers(world: Any) -> None:
    alice = world.peer("alice")
    assert (await alice.call("GET", "/v1/agents/me")).headers["x-request-id"]
    for path in ("/v1/agents/me", "/nowhere", "/v1/ws"):
        reply = await alice.call("GET", path, headers={"x-request-id": "mine"})
        assert reply.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nowhere", 404, "NOT_FOUND"),
        ("PUT", "/v1/messages", 404, "NOT_FOUND"),
        ("GET", "/v1/agents/nobody", 404, "AGENT_NOT_FOUND"),
        ("GET", "/v1/messages/conv_x", 404, "CONVERSATION_NOT_FOUND"),
        ("POST", "/v1/messages/msg_x/read", 404, "MESSAGE_NOT_FOUND"),
        ("GET", "/v1/messages/sync?limit=0", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/messages/sync?limit=many", 400, "VALIDATION_ERROR"),
        ("POST", "/v1/messages/sync/ack", 400, "VALIDATION_ERROR"),
        ("POST", "/v1/messages", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/ws", 400, "VALIDATION_ERROR"),
        ("GET", "/v1/mutes/agent/nobody", 404, "NOT_FOUND"),
        ("GET", "/v1/groups/grp_x", 404, "CONVERSATION_NOT_FOUND"),
    ],
)
async def test_every_refusal_is_the_flat_envelope(world: Any, method: str, path: str, status: int, code: str) -> None:
    reply = await world.peer("alice").call(method, path)
    assert (reply.status, reply.json["code"]) == (status, code)
    assert reply.json["message"]
    assert reply.headers["content-type"].startswith("application/json")


async def test_a_call_without_a_key_or_with_a_dead_one_is_401(world: Any) -> None:
    for key in ("", "ac_live_nothing"):
        reply = await world.with_key(key).call("GET", "/v1/messages/sync")
        assert (reply.status, reply.json["code"]) == (401, "UNAUTHORIZED")


async def test_a_suspended_agent_may_only_look_at_itself(world: Any) -> None:
    alice = world.peer("alice")
    world.hub.set_status("alice", "suspended")
    assert (await alice.get("/v1/agents/me"))["status"] == "suspended"
    reply = await alice.call("GET", "/v1/messages/sync")
    assert (reply.status, reply.json["code"]) == (403, "AGENT_SUSPENDED")


async def test_a_body_beyond_every_limit_is_413(start: Any) -> None:
    world = await start(body_max_bytes=10_000)
    reply = await world.peer("alice").send("bob", "x" * 20_000)
    assert (reply.status, reply.json["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_health_and_root_need_no_key(world: Any) -> None:
    nobody = world.with_key("")
    assert await nobody.get("/v1/health") == {"status": "ok"}
    assert (await nobody.get("/"))["status"] == "ok"


# --- sending ---


async def test_a_send_is_answered_201_with_the_stored_message(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    reply = await alice.send("@Bob", "hello", "id-1", metadata={"reply_to": "m"})
    message = reply.json
    assert reply.status == 201
    assert (message["seq"], message["status"], message["client_msg_id"]) == (1, "stored", "id-1")
    assert message["metadata"] == {"reply_to": "m"}


async def test_a_repeated_client_msg_id_answers_the_first_message_and_pushes_nothing(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    socket = await bob.socket()
    first = await alice.send("bob", "hello", "same")
    again = await alice.send("bob", "different", "same")
    assert again.status == 200
    assert again.headers["Idempotent-Replay"] == "true"
    assert again.json == first.json
    await alice.send("bob", "next")
    assert [m["content"]["text"] for m in await socket.messages(2)] == ["hello", "next"]
    assert (await bob.send("alice", "mine", "same")).status == 201  # the id belongs to its sender


@pytest.mark.parametrize(
    "change",
    [
        {"conversation_id": "grp_x"},
        {"to": None},
        {"to": "alice"},
        {"client_msg_id": ""},
        {"client_msg_id": "x" * 129},
        {"content": {}},
        {"content": "a bare string"},
        {"content": {"text": 7}},
        {"type": "system"},
    ],
)
async def test_a_send_that_breaks_the_contract_is_400_and_takes_no_seq(world: Any, change: dict[str, Any]) -> None:
    alice, _ = world.peers("alice", "bob")
    body = {"to": "bob", "client_msg_id": "1", "content": {"text": "x"}} | change
    reply = await alice.call("POST", "/v1/messages", {k: v for k, v in body.items() if v is not None})
    assert (reply.status, reply.json["code"]) == (400, "VALIDATION_ERROR")
    assert (await alice.send("bob", "fine")).json["seq"] == 1


async def test_a_direct_conversation_is_not_addressed_by_its_id(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    conversation = await send(alice, "bob", "hello")
    body = {"conversation_id": conversation, "client_msg_id": "1", "content": {"text": "x"}}
    assert (await bob.call("POST", "/v1/messages", body)).status == 400


async def test_content_and_metadata_may_have_32768_bytes_together(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    assert (await alice.send("bob", "x" * 32_700)).status == 400  # the text is also the id here: too long for one
    assert (await alice.send("bob", "x" * 32_700, "1")).status == 201
    reply = await alice.send("bob", "x" * 32_700, "2", metadata={"k": "y" * 100})
    assert (reply.status, reply.json["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_stranger_gets_one_message_until_it_replies(start: Any) -> None:
    world = await start(cold_rule=True)
    alice, bob = world.peers("alice", "bob")
    await send(alice, "bob", "hello")
    reply = await alice.send("bob", "again")
    assert (reply.status, reply.json["code"]) == (403, "AWAITING_REPLY")
    assert reply.json["details"]["recipient_handle"] == "bob"
    await send(bob, "alice", "yes?")
    await send(alice, "bob", "again")
    await send(bob, "alice", "one", "two")


async def test_open_cold_threads_are_capped_and_a_reply_frees_one(start: Any) -> None:
    world = await start(cold_rule=True, cold_threads_per_day=2)
    alice, bob, *_ = world.peers("alice", "bob", "carl", "dora")
    await send(alice, "bob", "hello")
    await alice.send("carl", "hello", "2")
    reply = await alice.send("dora", "hello", "3")
    assert (reply.status, reply.json["code"]) == (429, "RATE_LIMITED")
    await send(bob, "alice", "yes?")
    assert (await alice.send("dora", "hello", "3")).status == 201


async def test_a_backlog_is_warned_of_and_then_refused_without_a_seq(start: Any) -> None:
    world = await start(backlog_soft=2, backlog_hard=3)
    alice, bob = world.peers("alice", "bob")
    replies = [await alice.send("bob", str(number)) for number in range(4)]
    assert [reply.status for reply in replies] == [201, 201, 201, 429]
    assert [reply.headers.get("X-Backlog-Warning") for reply in replies] == [None, "bob=2", "bob=3", None]
    assert replies[3].json["code"] == "RECIPIENT_BACKLOGGED"
    assert replies[3].json["details"] == {"recipient_handle": "bob", "undelivered_count": 3}
    rows = await bob.get("/v1/messages/sync")
    await bob.post("/v1/messages/sync/ack", {"last_delivery_id": rows[0]["delivery_id"]})
    assert (await alice.send("bob", "later")).json["seq"] == 4


async def test_too_many_sends_a_second_are_429_with_retry_after(start: Any) -> None:
    world = await start(sends_per_s=2)
    alice, _ = world.peers("alice", "bob")
    replies = [await alice.send("bob", str(number)) for number in range(3)]
    assert [reply.status for reply in replies] == [201, 201, 429]
    assert replies[2].headers["Retry-After"] == "1"
    assert 0 < replies[2].json["details"]["retry_after_ms"] <= 500


async def test_a_group_has_a_rate_of_its_own_over_all_senders(start: Any) -> None:
    world = await start(group_sends_per_s=2)
    alice, bob = world.peers("alice", "bob")
    group = world.hub.create_group("alice", "Group", ["bob"])
    statuses = []
    for peer, id_ in ((alice, "1"), (bob, "2"), (alice, "3")):
        body = {"conversation_id": group, "client_msg_id": id_, "content": {"text": "x"}}
        statuses.append((await peer.call("POST", "/v1/messages", body)).status)
    assert statuses == [201, 201, 429]


async def test_a_block_refuses_both_ways_and_a_paused_sender_is_refused(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    await send(alice, "bob", "hello")
    await bob.post("/v1/contacts/alice/block")
    for sender, to in ((alice, "bob"), (bob, "alice")):
        reply = await sender.send(to, "blocked?")
        assert (reply.status, reply.json["code"]) == (403, "BLOCKED")
    await bob.call("DELETE", "/v1/contacts/alice/block")
    world.hub.pause("alice", "send")
    reply = await alice.send("bob", "paused?")
    assert (reply.status, reply.json["code"]) == (403, "AGENT_PAUSED_BY_OWNER")
    world.hub.pause("alice", "none")
    await send(alice, "bob", "free")


async def test_contacts_only_refuses_strangers_and_takes_contacts(world: Any) -> None:
    alice, bob, carl = world.peers("alice", "bob", "carl")
    settings = {"settings": {"inbox_mode": "contacts_only"}}
    assert (await bob.call("PATCH", "/v1/agents/bob", settings)).json["settings"]["inbox_mode"] == "contacts_only"
    await bob.post("/v1/contacts", {"handle": "carl"})
    reply = await alice.send("bob", "hello")
    assert (reply.status, reply.json["code"]) == (403, "INBOX_RESTRICTED")
    await send(carl, "bob", "hello")


# --- reading ---


async def test_sync_shows_only_what_is_stored_and_commits_by_cursor(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    await send(bob, "alice", "1", "2", "3")
    await send(alice, "bob", "own")
    rows = await alice.get("/v1/messages/sync?limit=2")
    assert [row["seq"] for row in rows] == [1, 2]
    cursor = rows[-1]["delivery_id"]
    assert [row["seq"] for row in await alice.get(f"/v1/messages/sync?after={cursor}")] == [3]
    assert await alice.get("/v1/messages/sync?after=del_unknown") == []
    assert await alice.post("/v1/messages/sync/ack", {"last_delivery_id": cursor}) == {"acked": 2}
    assert await alice.post("/v1/messages/sync/ack", {"last_delivery_id": cursor}) == {"acked": 0}
    assert [row["seq"] for row in await alice.get("/v1/messages/sync")] == [3]


async def test_history_pages_both_ways_with_own_sends_and_clamped_limits(world: Any) -> None:
    alice, _bob = world.peers("alice", "bob")
    world.hub.post("bob", "alice", *(str(number) for number in range(1, 251)))
    world.hub.post("alice", "bob", "own")
    conversation = world.hub.conversation("alice", "bob")

    async def seqs(query: str) -> list[int]:
        return [row["seq"] for row in await alice.get(f"/v1/messages/{conversation}{query}")]

    assert await seqs("") == list(range(251, 201, -1))
    assert await seqs("?after_seq=248") == [249, 250, 251]
    assert await seqs("?after_seq=0&limit=1000") == list(range(1, 201))
    assert await seqs("?before_seq=4") == [3, 2, 1]
    assert await seqs("?after_seq=251") == []
    assert await seqs("?limit=0") == [251]
    target = (await alice.get(f"/v1/messages/{conversation}?after_seq=9&limit=1"))[0]["id"]
    assert await seqs(f"?around_message_id={target}&limit=3") == [10, 9, 8]
    both = await alice.call("GET", f"/v1/messages/{conversation}?after_seq=1&before_seq=9")
    assert both.status == 400
    assert len(await alice.get("/v1/messages/sync")) == 200  # reading history acks nothing
    assert (await world.peer("eve").call("GET", f"/v1/messages/{conversation}")).status == 404


async def test_history_tells_how_far_each_message_has_come(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    conversation = await send(alice, "bob", "1", "2", "3")
    rows = await bob.get("/v1/messages/sync")
    await bob.post("/v1/messages/sync/ack", {"last_delivery_id": rows[1]["delivery_id"]})
    await bob.post(f"/v1/messages/{rows[0]['id']}/read")
    history = await alice.get(f"/v1/messages/{conversation}?after_seq=0")
    assert [row["status"] for row in history] == ["read", "delivered", "stored"]


async def test_a_hidden_message_is_missing_for_its_hider_only(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    conversation = await send(alice, "bob", "1", "2", "3")
    history = await bob.get(f"/v1/messages/{conversation}?after_seq=0")
    assert (await bob.call("DELETE", f"/v1/messages/{history[1]['id']}")).status == 200
    assert [row["seq"] for row in await bob.get(f"/v1/messages/{conversation}?after_seq=0")] == [1, 3]
    assert len(await alice.get(f"/v1/messages/{conversation}")) == 3


async def test_reading_tells_the_writer_once_and_never_backwards(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    socket = await alice.socket()
    conversation = await send(alice, "bob", "1", "2")
    rows = await bob.get("/v1/messages/sync")
    for row in (rows[1], rows[0], rows[1]):
        assert await bob.post(f"/v1/messages/{row['id']}/read") == {"ok": True}
    frame = await socket.frame()
    assert frame["type"] == "message.read"
    assert frame["payload"] | {"at": ""} == {
        "conversation_id": conversation,
        "through_seq": 2,
        "reader": "bob",
        "at": "",
    }
    reading = await bob.socket()
    await send(alice, "bob", "3")
    await reading.message()
    await reading.say(type="message.read_ack", payload={"conversation_id": conversation, "through_seq": 3})
    assert (await socket.frame())["payload"]["through_seq"] == 3
    assert world.hub.undelivered("bob") == 0


async def test_typing_reaches_the_other_side(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    conversation = world.hub.conversation("alice", "bob")
    here, there = await alice.socket(), await bob.socket()
    await here.say(type="typing.start", payload={"conversation_id": conversation})
    assert await there.frame() == {
        "type": "typing.start",
        "payload": {"conversation_id": conversation, "sender": "alice"},
    }


async def test_the_list_of_conversations_counts_what_is_unread(world: Any) -> None:
    alice, bob, carl = world.peers("alice", "bob", "carl")
    first = await send(bob, "alice", "1", "2")
    await send(alice, "bob", "own")
    second = await send(carl, "alice", "hi")
    newest, oldest = await alice.get("/v1/conversations")
    assert [newest["id"], oldest["id"]] == [second, first]
    assert (oldest["unread_count"], oldest["oldest_unread_seq"], oldest["newest_unread_seq"]) == (2, 1, 2)
    assert (oldest["last_message_preview"], oldest["last_message_is_own"]) == ("own", True)
    assert oldest["participants"] == [{"handle": "bob"}]
    assert [row["id"] for row in await alice.get("/v1/conversations?limit=1&offset=1")] == [first]
    context = await alice.get(f"/v1/conversations/{first}/context")
    assert (context["counterparty"]["handle"], context["unread"]["count"]) == ("bob", 2)
    people = await alice.get(f"/v1/conversations/{first}/participants")
    assert {row["handle"] for row in people} == {"alice", "bob"}


async def test_a_hidden_conversation_comes_back_with_the_next_message(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    conversation = await send(bob, "alice", "1")
    await alice.call("DELETE", f"/v1/conversations/{conversation}")
    assert await alice.get("/v1/conversations") == []
    await send(bob, "alice", "2")
    assert len(await alice.get("/v1/conversations")) == 1


# --- groups, mutes, presence ---


async def test_a_new_member_sees_the_group_from_its_joining_on(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    group = (await alice.post("/v1/groups", {"name": "Group"}))["group"]["id"]
    body = {"conversation_id": group, "content": {"text": "before"}}
    await alice.post("/v1/messages", body | {"client_msg_id": "1"})
    added = await alice.post(f"/v1/groups/{group}/members", {"handle": "bob"})
    assert (await bob.call("GET", f"/v1/messages/{group}")).status == 404
    await bob.post(f"/v1/groups/invites/{added['invite_id']}/accept")
    await alice.post("/v1/messages", body | {"client_msg_id": "2"})
    history = await bob.get(f"/v1/messages/{group}?after_seq=0")
    assert [(row["seq"], row["type"]) for row in history] == [(2, "system"), (3, "text")]
    assert history[0]["content"]["data"] == {"event": "member_joined", "schema_version": 1, "agent_handle": "bob"}
    assert history[0]["context"]["sender"]["kind"] == "system"
    assert [row["seq"] for row in await bob.get("/v1/messages/sync")] == [2, 3]


async def test_members_come_and_go_and_each_change_takes_a_seq(world: Any) -> None:
    alice, bob, carl = world.peers("alice", "bob", "carl")
    group = world.hub.create_group("alice", "Group", ["bob", "carl"])
    assert (await bob.call("PATCH", f"/v1/groups/{group}", {"name": "Mine"})).status == 403
    await alice.call("PATCH", f"/v1/groups/{group}", {"name": "Ours"})
    await alice.post(f"/v1/groups/{group}/members/bob/promote")
    await bob.call("DELETE", f"/v1/groups/{group}/members/carl")
    assert (await bob.post(f"/v1/groups/{group}/leave"))["promoted_handle"] is None
    events = [row["content"]["data"]["event"] for row in await alice.get(f"/v1/messages/{group}?after_seq=0")]
    assert events == ["name_changed", "admin_promoted", "member_removed", "member_left"]
    assert [row["handle"] for row in (await alice.get(f"/v1/groups/{group}"))["members"]] == ["alice"]
    assert (await carl.call("GET", f"/v1/messages/{group}")).status == 404


async def test_the_last_admin_who_leaves_is_succeeded(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    group = world.hub.create_group("alice", "Group", ["bob"])
    assert (await alice.post(f"/v1/groups/{group}/leave"))["promoted_handle"] == "bob"
    assert (await bob.get(f"/v1/groups/{group}"))["your_role"] == "admin"


async def test_a_deleted_group_is_410_for_its_members_and_404_for_others(world: Any) -> None:
    alice, bob, eve = world.peers("alice", "bob", "eve")
    group = world.hub.create_group("alice", "Group", ["bob"])
    assert (await bob.call("DELETE", f"/v1/groups/{group}")).status == 403
    await alice.call("DELETE", f"/v1/groups/{group}")
    reply = await bob.call("GET", f"/v1/messages/{group}")
    assert (reply.status, reply.json["code"]) == (410, "GROUP_DELETED")
    assert reply.json["details"]["deleted_by_handle"] == "alice"
    assert (await eve.call("GET", f"/v1/messages/{group}")).status == 404


async def test_a_group_send_names_the_members_it_skipped(start: Any) -> None:
    world = await start(backlog_hard=1)
    alice, _ = world.peers("alice", "bob")
    group = world.hub.create_group("alice", "Group", ["bob"])
    body = {"conversation_id": group, "content": {"text": "x"}}
    assert "skipped_recipients" not in await alice.post("/v1/messages", body | {"client_msg_id": "1"})
    assert (await alice.post("/v1/messages", body | {"client_msg_id": "2"}))["skipped_recipients"] == ["bob"]


@pytest.mark.parametrize("kind", ["agent", "conversation"])
async def test_a_mute_holds_back_pushes_but_not_envelopes(world: Any, kind: str) -> None:
    alice, bob, carl = world.peers("alice", "bob", "carl")
    conversation = world.hub.conversation("alice", "bob")
    body = {"target_kind": kind, "target_handle": "bob", "target_id": conversation}
    await alice.post("/v1/mutes", body)
    socket = await alice.socket()
    await send(bob, "alice", "muted")
    await send(carl, "alice", "heard")
    assert (await socket.message())["content"]["text"] == "heard"
    assert [row["content"]["text"] for row in await alice.get("/v1/messages/sync")] == ["muted", "heard"]
    target = {"agent": "bob", "conversation": conversation}[kind]
    assert (await alice.call("DELETE", f"/v1/mutes/{kind}/{target}")).json == {"ok": True}
    assert (await alice.call("DELETE", f"/v1/mutes/{kind}/{target}")).status == 404
    await bob.send("alice", "again", "2")
    assert (await socket.message())["content"]["text"] == "again"


async def test_a_mute_ends_by_itself(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    over = {"target_kind": "agent", "target_handle": "bob", "muted_until": "2020-01-01T00:00:00Z"}
    await alice.post("/v1/mutes", over)
    assert await alice.get("/v1/mutes") == {"mutes": []}
    socket = await alice.socket()
    await send(bob, "alice", "heard")
    assert (await socket.message())["content"]["text"] == "heard"


async def test_presence_is_for_contacts_and_follows_the_sockets(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    assert (await alice.call("GET", "/v1/presence/bob")).status == 404
    await alice.post("/v1/contacts", {"handle": "bob"})
    watching = await alice.socket()
    there = await bob.socket()
    assert (await watching.frame())["payload"] == {"handle": "bob", "status": "online", "custom_message": None}
    await there.connection.close()
    assert (await watching.frame())["payload"]["status"] == "offline"
    await bob.call("PUT", "/v1/presence", {"status": "busy", "custom_message": "thinking"})
    batch = await alice.post("/v1/presence/batch", {"handles": ["bob", "nobody"]})
    assert [(row["handle"], row["status"]) for row in batch["presences"]] == [("bob", "busy")]


async def test_the_platforms_own_agent_is_protected(world: Any) -> None:
    reply = await world.peer("alice").call("POST", "/v1/contacts/chatfather/block")
    assert (reply.status, reply.json["code"]) == (409, "SYSTEM_AGENT_PROTECTED")


async def test_a_second_report_is_409(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    await alice.post("/v1/contacts/bob/report")
    assert (await alice.call("POST", "/v1/contacts/bob/report")).json["code"] == "ALREADY_REPORTED"


# --- faults ---


def rest(action: Action, route: str, **more: Any) -> Rule:
    return Rule(point=Point.REST, action=action, route=route, **more)


async def test_a_route_can_answer_any_status_for_a_while(world: Any) -> None:
    alice = world.peer("alice")
    world.hub.faults.add(rest(Action.STATUS, "sync", status=500, times=2))
    replies = [await alice.call("GET", "/v1/messages/sync") for _ in range(3)]
    assert [reply.status for reply in replies] == [500, 500, 200]
    assert replies[0].json["code"] == "INTERNAL_ERROR"
    world.hub.faults.add(rest(Action.STATUS, "sync", status=429, retry_after_s=3.0))
    assert (await alice.call("GET", "/v1/messages/sync")).headers["Retry-After"] == "3"


async def test_a_disconnect_before_stores_nothing_and_one_after_has_stored(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    world.hub.faults.add(rest(Action.DISCONNECT, "send", identity="alice"))
    with pytest.raises(aiohttp.ClientError):
        await alice.send("bob", "one")
    assert world.hub.ledger() == []
    world.hub.faults.add(rest(Action.DISCONNECT_AFTER, "send"))
    with pytest.raises(aiohttp.ClientError):
        await alice.send("bob", "one")
    assert [row.client_msg_id for row in world.hub.ledger()] == ["one"]
    assert (await alice.send("bob", "one")).status == 200


async def test_a_call_can_hang_until_the_client_gives_up(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    world.hub.faults.add(rest(Action.HANG, "history"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await alice.call("GET", "/v1/messages/conv_x")
    assert (await alice.call("GET", "/v1/messages/conv_x")).status == 404


async def test_a_page_can_hold_a_malformed_row(world: Any) -> None:
    alice, bob = world.peers("alice", "bob")
    await send(bob, "alice", "1", "2", "3")
    world.hub.faults.add(rest(Action.MALFORMED_ROW, "sync", row=1))
    first, broken, last = await alice.get("/v1/messages/sync")
    assert (first["seq"], last["seq"]) == (1, 3)
    assert "seq" not in broken


async def test_an_answer_can_be_no_json_or_late(world: Any) -> None:
    alice = world.peer("alice")
    world.hub.faults.add(rest(Action.NOT_JSON, "me"), rest(Action.DELAY, "me", delay_s=0.01))
    with pytest.raises(json.JSONDecodeError):
        _ = (await alice.call("GET", "/v1/agents/me")).json
    assert (await alice.get("/v1/agents/me"))["handle"] == "alice"
    assert world.hub.counters()["faults.rest.delay"] == 1
