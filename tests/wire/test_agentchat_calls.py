"""How AgentChat's calls for plugins are asked, and what the answers mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from agentd import apis
from agentd.errors import Refused, Unavailable, WireViolation
from agentd.wire.agentchat import AgentChat
from agentd.wire.agentchat.calls import AgentChatCalls
from agentd.wire.platform import Call, InProgress, Request, Response, Say, Transfer

CALLS = AgentChatCalls(AgentChat("me", "https://chat.example", lambda: "unused", "alice"))


def call(name: str, key: str | None = None, /, **arguments: Any) -> Call[Any]:
    described = CALLS.call(name, arguments, key)
    assert isinstance(described, Call)
    return described


def asked(name: str, /, **arguments: Any) -> tuple[str, str, Any]:
    ask = call(name, **arguments).ask
    assert isinstance(ask, Request)
    return ask.method, ask.path, json.loads(ask.body) if ask.body is not None else dict(ask.query)


def answer(body: Any = b"", status: int = 200, headers: dict[str, str] | None = None, **more: Any) -> Response:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status=status, headers=headers or {}, body=encoded, **more)


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("profile.get", {}, ("GET", "/v1/agents/me", {})),
        ("profile.update", {"description": None}, ("PATCH", "/v1/agents/alice", {"description": None})),
        ("profile.update", {"inbox_mode": "open"}, ("PATCH", "/v1/agents/alice", {"settings": {"inbox_mode": "open"}})),
        ("agents.get", {"handle": "@Bob"}, ("GET", "/v1/agents/bob", {})),
        ("presence.get", {"handle": "bob"}, ("GET", "/v1/presence/bob", {})),
        ("presence.batch", {"handles": ("@a", "b")}, ("POST", "/v1/presence/batch", {"handles": ["a", "b"]})),
        ("presence.set", {"status": "busy"}, ("PUT", "/v1/presence", {"status": "busy"})),
        ("contacts.list", {"limit": 5}, ("GET", "/v1/contacts", {"limit": "5", "offset": "0"})),
        ("contacts.get", {"handle": "bob"}, ("GET", "/v1/contacts/bob", {})),
        ("contacts.add", {"handle": "@bob"}, ("POST", "/v1/contacts", {"handle": "bob"})),
        ("contacts.note", {"handle": "bob", "notes": None}, ("PATCH", "/v1/contacts/bob", {"notes": None})),
        ("contacts.remove", {"handle": "bob"}, ("DELETE", "/v1/contacts/bob", {})),
        ("contacts.block", {"handle": "bob"}, ("POST", "/v1/contacts/bob/block", {})),
        ("contacts.unblock", {"handle": "bob"}, ("DELETE", "/v1/contacts/bob/block", {})),
        ("contacts.report", {"handle": "bob"}, ("POST", "/v1/contacts/bob/report", {})),
        ("contacts.report", {"handle": "b", "reason": "r"}, ("POST", "/v1/contacts/b/report", {"reason": "r"})),
        ("conversations.list", {}, ("GET", "/v1/conversations", {"limit": "50", "offset": "0"})),
        ("conversations.participants", {"conversation": "a/b"}, ("GET", "/v1/conversations/a%2Fb/participants", {})),
        ("conversations.context", {"conversation": "c"}, ("GET", "/v1/conversations/c/context", {})),
        ("conversations.hide", {"conversation": "c"}, ("DELETE", "/v1/conversations/c", {})),
        ("conversations.history", {"conversation": "c"}, ("GET", "/v1/messages/c", {"limit": "50"})),
        (
            "conversations.history",
            {"conversation": "c", "after_seq": 0, "limit": 900},
            ("GET", "/v1/messages/c", {"after_seq": "0", "limit": "200"}),
        ),
        ("messages.mark_read", {"message_id": "m"}, ("POST", "/v1/messages/m/read", {})),
        ("messages.hide", {"message_id": "m"}, ("DELETE", "/v1/messages/m", {})),
        ("groups.create", {"name": "G"}, ("POST", "/v1/groups", {"name": "G"})),
        (
            "groups.create",
            {"name": "G", "members": ("@b",)},
            ("POST", "/v1/groups", {"name": "G", "member_handles": ["b"]}),
        ),
        ("groups.get", {"group": "g"}, ("GET", "/v1/groups/g", {})),
        ("groups.update", {"group": "g", "name": "N"}, ("PATCH", "/v1/groups/g", {"name": "N"})),
        ("groups.delete", {"group": "g"}, ("DELETE", "/v1/groups/g", {})),
        ("groups.add", {"group": "g", "handle": "b"}, ("POST", "/v1/groups/g/members", {"handle": "b"})),
        ("groups.remove", {"group": "g", "handle": "b"}, ("DELETE", "/v1/groups/g/members/b", {})),
        ("groups.promote", {"group": "g", "handle": "b"}, ("POST", "/v1/groups/g/members/b/promote", {})),
        ("groups.demote", {"group": "g", "handle": "b"}, ("POST", "/v1/groups/g/members/b/demote", {})),
        ("groups.leave", {"group": "g"}, ("POST", "/v1/groups/g/leave", {})),
        ("groups.invites", {}, ("GET", "/v1/groups/invites", {})),
        ("groups.accept", {"invite_id": "i"}, ("POST", "/v1/groups/invites/i/accept", {})),
        ("groups.decline", {"invite_id": "i"}, ("DELETE", "/v1/groups/invites/i", {})),
        ("mutes.list", {"kind": "agent"}, ("GET", "/v1/mutes", {"kind": "agent"})),
        (
            "mutes.agent",
            {"handle": "b"},
            ("POST", "/v1/mutes", {"target_kind": "agent", "target_handle": "b", "muted_until": None}),
        ),
        (
            "mutes.conversation",
            {"conversation": "c", "until": datetime(2026, 1, 2, tzinfo=UTC)},
            (
                "POST",
                "/v1/mutes",
                {"target_kind": "conversation", "target_id": "c", "muted_until": "2026-01-02T00:00:00Z"},
            ),
        ),
        ("mutes.unmute_agent", {"handle": "b"}, ("DELETE", "/v1/mutes/agent/b", {})),
        ("mutes.unmute_conversation", {"conversation": "c"}, ("DELETE", "/v1/mutes/conversation/c", {})),
        ("directory.search", {"prefix": "bo"}, ("GET", "/v1/directory", {"q": "bo", "limit": "50", "offset": "0"})),
    ],
)
def test_each_call_is_asked_as_the_platform_wants_it(name: str, arguments: dict[str, Any], wanted: Any) -> None:
    assert asked(name, **arguments) == wanted


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("agents.get", {"handle": "@"}),
        ("groups.get", {"group": ""}),
        ("conversations.history", {"conversation": "c", "after_seq": 1, "before_seq": 2}),
        ("mutes.agent", {"handle": "b", "until": datetime(2026, 1, 2)}),
        ("attachments.upload", {"content": b"x", "filename": "x", "content_type": "text/plain"}),
        (
            "attachments.upload",
            {"content": bytes(26_214_401), "filename": "x", "content_type": "text/plain", "to": "b"},
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_leaves(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        call(name, **arguments)


def test_a_key_travels_as_a_header_with_the_request_it_was_made_for() -> None:
    ask = call("contacts.add", "agentd-0-a1", handle="bob").ask
    assert isinstance(ask, Request)
    assert ask.headers == {"idempotency-key": "agentd-0-a1"}
    assert ask.repeatable


def test_typing_and_reading_are_frames() -> None:
    said = [
        CALLS.call("conversations.typing", {"conversation": "c"}, None),
        CALLS.call("conversations.typing", {"conversation": "c", "active": False}, None),
        CALLS.call("conversations.read_through", {"conversation": "c", "seq": 7}, None),
    ]
    frames = [json.loads(each.frame) for each in said if isinstance(each, Say)]
    assert frames == [
        {"type": "typing.start", "payload": {"conversation_id": "c"}},
        {"type": "typing.stop", "payload": {"conversation_id": "c"}},
        {"type": "message.read_ack", "payload": {"conversation_id": "c", "through_seq": 7}},
    ]


def test_lists_are_found_in_whatever_wraps_them() -> None:
    bob = apis.Contact(handle="bob", notes="n")
    assert call("contacts.list").read(answer({"contacts": [{"handle": "bob", "notes": "n"}], "total": 1})) == (bob,)
    row = apis.DirectoryRow(handle="bob")
    assert call("directory.search", prefix="bo").read(answer({"agents": [{"handle": "bob"}]})) == (row,)
    entry = apis.MuteEntry(target_kind="agent", target_id="bob")
    found = call("mutes.list").read(answer({"mutes": [{"target_kind": "agent", "target_id": "bob"}]}))
    assert found == (entry,)


def test_presences_are_read_in_both_shapes_that_are_known() -> None:
    wanted = (apis.PresenceState(handle="bob", status="busy"),)
    ask = call("presence.batch", handles=("bob",))
    assert ask.read(answer({"presences": [{"handle": "bob", "status": "busy"}]})) == wanted
    assert ask.read(answer({"results": {"bob": {"status": "busy"}, "eve": None}})) == wanted
    with pytest.raises(WireViolation):
        ask.read(answer({"results": {"bob": {"status": 7}}}))


def test_what_answers_with_nothing_of_use_is_none_whatever_the_body_is() -> None:
    for body in (b"", b'{"ok":true}', b"<html>"):
        assert call("contacts.add", handle="bob").read(answer(body, 201)) is None


def test_history_is_messages_own_ones_too_and_an_unreadable_row_takes_no_other_with_it() -> None:
    def row(seq: int, sender: str) -> dict[str, Any]:
        said = {"text": "hi"}
        return {"id": f"m{seq}", "conversation_id": "c", "seq": seq, "sender": sender, "content": said}

    rows = [row(1, "bob"), {"id": 7}, row(3, "alice")]
    found = call("conversations.history", conversation="c").read(answer(rows))
    assert [(message.seq, message.sender, message.own) for message in found] == [(1, "bob", False), (3, "alice", True)]


def test_a_refusal_keeps_all_that_the_platform_says() -> None:
    body = {"code": "GROUP_DELETED", "message": "gone", "details": {"group_id": "g"}}
    with pytest.raises(Refused) as refused:
        call("groups.get", group="g").read(answer(body, 410, {"x-request-id": "req_1"}))
    error = refused.value
    assert (error.status, error.code, error.message, error.details, error.request_id) == (
        *(410, "GROUP_DELETED", "gone"),
        *({"group_id": "g"}, "req_1"),
    )


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_by_itself_is_unavailable_for_as_long_as_was_asked(status: int) -> None:
    with pytest.raises(Unavailable) as told:
        call("groups.get", group="g").read(
            answer({"code": "RATE_LIMITED", "details": {"retry_after_ms": 1_500}}, status)
        )
    assert told.value.retry_after_s == 1.5
    with pytest.raises(Unavailable) as header:
        call("groups.get", group="g").read(answer(b"", status, retry_after_s=7.0))
    assert header.value.retry_after_s == 7.0


def test_a_call_whose_first_attempt_still_runs_is_asked_for_again() -> None:
    with pytest.raises(InProgress) as running:
        call("groups.create", name="G").read(answer({"code": "IDEMPOTENT_IN_PROGRESS", "message": ""}, 409))
    assert running.value.retry_after_s == 1.0


def test_another_call_under_a_used_key_is_told_to_the_author() -> None:
    with pytest.raises(Refused, match=r"same changing calls of ctx\.api in the same order") as refused:
        call("groups.create", name="G").read(answer({"code": "IDEMPOTENCY_KEY_CONFLICT", "message": "used"}, 422))
    assert (refused.value.status, refused.value.code) == (422, "IDEMPOTENCY_KEY_CONFLICT")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"handle":7}', b"<html>", b"\xff"])
def test_a_success_of_another_shape_is_a_violation_that_quotes_nothing(body: bytes) -> None:
    with pytest.raises(WireViolation) as violated:
        call("profile.get").read(answer(body))
    assert "html" not in str(violated.value)


def test_a_file_goes_where_the_platform_says_and_its_id_comes_back() -> None:
    first = call("attachments.upload", content=b"hi", filename="a.txt", content_type="text/plain", to="@bob")
    assert isinstance(first.ask, Request)
    assert msgspec.json.decode(first.ask.body or b"") == {
        "filename": "a.txt",
        "content_type": "text/plain",
        "size": 2,
        "to": "bob",
        "sha256": "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4",
    }
    put = first.read(answer({"attachment_id": "att_1", "upload_url": "https://store.example/x?s=1"}, 201))
    assert put.ask == Transfer(method="PUT", url="https://store.example/x?s=1", body=b"hi", content_type="text/plain")
    assert put.read(answer(b"")) == "att_1"
    with pytest.raises(Refused, match="STORAGE_REFUSED"):
        put.read(answer(b"<xml>", 403))
    with pytest.raises(Unavailable):
        put.read(answer(b"", 503))


def test_a_file_is_fetched_from_where_the_platform_says() -> None:
    first = call("attachments.fetch", attachment_id="att_1")
    there = first.read(answer(b"", 302, {"location": "https://store.example/y"}))
    assert there.ask == Transfer(method="GET", url="https://store.example/y")
    assert there.read(answer(b"bytes")) == b"bytes"
    with pytest.raises(Refused, match="404 NOT_FOUND"):
        first.read(answer({"code": "NOT_FOUND", "message": ""}, 404))
    with pytest.raises(WireViolation):
        first.read(answer(b"bytes"))
