"""What AgentChat's frames and answers mean to the daemon; frames in the shapes that the contract lists."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core.events import (
    LAST_SEQ,
    Content,
    Event,
    GroupDeleted,
    GroupInvite,
    Message,
    Presence,
    RateLimitWarning,
    ReadReceipt,
    Send,
    Source,
    Typing,
)
from agentd.core.reconnect import CloseMeaning
from agentd.errors import Refused, Unavailable, WireViolation
from agentd.wire.agentchat import AgentChat
from agentd.wire.platform import Accepted, Hello, Later, Malformed, Rejected, Rejection, Response, Standing, Unknown

KEY = "ac_live_do-not-show-me"
ROW = {
    "id": "msg_1",
    "conversation_id": "conv_1",
    "sender": "bob",
    "client_msg_id": "k1",
    "seq": 3,
    "type": "text",
    "content": {"text": "hello", "data": None},
    "metadata": {"reply_to": "msg_0"},
    "context": {
        "sender": {"handle": "bob", "display_name": "Bob", "kind": "agent"},
        "conversation": {"type": "direct", "group_name": None, "member_count": None},
        "mentions": ["me"],
    },
    "created_at": "2026-11-01T10:00:00.000Z",
    "field_of_the_future": [1, 2, 3],
}


def platform() -> AgentChat:
    return AgentChat("mine", "http://127.0.0.1:1/", lambda: KEY, "me")


def frame(kind: str, payload: object) -> bytes:
    return msgspec.json.encode({"type": kind, "payload": payload})


def answer(status: int, body: object = None, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status=status, headers=named, body=msgspec.json.encode(body))


def message(row: dict[str, object]) -> Message:
    found = platform().decode(frame("message.new", row))
    assert isinstance(found, Message)
    return found


def test_a_live_message_becomes_a_message_with_trusted_and_untrusted_fields_apart() -> None:
    got = message(ROW)
    assert (got.identity, got.conversation, got.seq, got.id, got.sender) == ("mine", "conv_1", 3, "msg_1", "bob")
    assert (got.text, got.reply_to, got.direct, got.mentioned, got.own) == ("hello", "msg_0", True, True, False)
    assert got.context.sender_name == "Bob"
    assert got.source is Source.LIVE
    assert msgspec.json.decode(got.payload) == ROW, "the journal keeps what came"


def test_what_the_journal_kept_becomes_the_same_message_again() -> None:
    got = message(ROW)
    again = platform().revive(got.payload, epoch=1, late=False, source=Source.LIVE)
    assert again == got
    late = platform().revive(got.payload, epoch=2, late=True, source=Source.REFETCH)
    assert (late.epoch, late.late, late.source) == (2, True, Source.REFETCH)


def test_the_least_that_a_row_may_hold_is_enough() -> None:
    got = message({"id": "msg_1", "conversation_id": "grp_1", "seq": 0, "sender": "me", "content": None})
    assert (got.own, got.direct, got.kind, got.text, got.metadata) == (True, False, "text", None, {})


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        ("typing.start", {"conversation_id": "c", "sender": "bob"}, Typing),
        ("typing.stop", {"conversation_id": "c", "sender": "bob"}, Typing),
        ("presence.update", {"handle": "bob", "status": "busy", "custom_message": "x"}, Presence),
        ("presence.update", {"handle": "bob", "status": "away", "custom_status": "x"}, Presence),
        ("message.read", {"conversation_id": "c", "through_seq": 4, "reader": "bob"}, ReadReceipt),
        ("message.read", {"message_id": "msg_1", "read_by": "bob", "read_at": "t"}, ReadReceipt),
        ("rate_limit.warning", {}, RateLimitWarning),
        ("group.deleted", {"group_id": "grp_1", "deleted_by_handle": "bob", "deleted_at": "t"}, GroupDeleted),
        (
            "group.invite.received",
            {"id": "gri_1", "group_id": "g", "group_name": "G", "inviter_handle": "bob", "group_member_count": 2},
            GroupInvite,
        ),
    ],
)
def test_every_frame_of_the_contract_is_understood_in_each_of_its_shapes(
    kind: str, payload: object, expected: type
) -> None:
    assert isinstance(platform().decode(frame(kind, payload)), expected)


def test_hello_ok_says_whether_acks_are_kept() -> None:
    assert platform().decode(b'{"type":"hello.ok","capabilities":["ack"]}') == Hello(acks=True)
    assert platform().decode(b'{"type":"hello.ok"}') == Hello(acks=False)


def test_a_rejection_in_a_frame_is_told_with_its_words() -> None:
    assert platform().decode(frame("hello.error", {"reason": "no"})) == Rejected("no")


def test_an_unknown_frame_type_passes() -> None:
    assert platform().decode(frame("message.reacted", {"x": 1})) == Unknown("message.reacted")


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_no_frame_whatever_it_holds_raises(data: bytes | str) -> None:
    assert platform().decode(data) is not None


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(
            st.sampled_from(["id", "seq", "sender", "content", "conversation_id", "x"]), inner, max_size=5
        ),
        max_leaves=12,
    )
)
def test_a_malformed_message_is_told_without_its_content(payload: object) -> None:
    found = platform().decode(frame("message.new", payload))
    assert isinstance(found, Event | Malformed)


def test_the_text_of_a_malformed_message_is_not_repeated() -> None:
    found = platform().decode(frame("message.new", ROW | {"seq": "top secret words"}))
    assert isinstance(found, Malformed)
    assert "secret" not in found.what
    assert "seq" in found.what


@pytest.mark.parametrize("seq", [-1, LAST_SEQ + 1, 2**63, 2**70])
def test_a_seq_that_no_journal_can_hold_is_malformed_wherever_it_stands(seq: int) -> None:
    row = ROW | {"seq": seq}
    assert isinstance(platform().decode(frame("message.new", row)), Malformed)
    assert isinstance(platform().read_drain(answer(200, [row])).malformed, Malformed)
    with pytest.raises(WireViolation):
        platform().read_send(answer(201, row), send())
    assert platform().read_conversations(answer(200, [{"id": "conv_1", "newest_unread_seq": seq}])) == []


def test_one_conversation_that_cannot_be_read_takes_no_other_with_it() -> None:
    rows = [{"id": "conv_1", "participants": [{"handle": None}], "newest_unread_seq": 4}, {"id": 7}, {"id": "conv_3"}]
    assert platform().read_conversations(answer(200, rows)) == [Standing("conv_1", None, 4), Standing("conv_3")]
    with pytest.raises(WireViolation):
        platform().read_conversations(answer(200, {"conversations": []}))


def test_the_key_is_in_the_hello_frame_and_not_in_the_url() -> None:
    assert KEY.encode() in platform().hello()
    assert KEY not in platform().link_url()
    assert platform().link_url() == "ws://127.0.0.1:1/v1/ws"


def test_a_drain_page_ends_before_its_first_malformed_row() -> None:
    rows = [ROW | {"delivery_id": "d1"}, {"id": 7}, ROW | {"delivery_id": "d3"}]
    page = platform().read_drain(answer(200, rows))
    assert [event.delivery_id for event in page.events] == ["d1"]
    assert [event.delivery_id for event in page.behind] == ["d3"]
    assert (page.cursor, page.count) == ("d1", 3)
    assert isinstance(page.malformed, Malformed)


def test_a_history_that_is_not_ours_to_read_is_refused_and_a_failing_one_is_unavailable() -> None:
    for status, code in ((404, "CONVERSATION_NOT_FOUND"), (410, "GROUP_DELETED"), (403, "FORBIDDEN")):
        with pytest.raises(Refused):
            platform().read_history(answer(status, {"code": code, "message": ""}))
    for status, code in ((500, "INTERNAL_ERROR"), (403, "AGENT_SUSPENDED"), (400, "VALIDATION_ERROR")):
        with pytest.raises(Unavailable):
            platform().read_history(answer(status, {"code": code, "message": ""}))
    with pytest.raises(WireViolation):
        platform().read_history(answer(200, {"messages": []}))


@pytest.mark.parametrize("status", [403, 404, 410])
@pytest.mark.parametrize("body", [b"<html>Attention required</html>", b"", b"{}"])
def test_what_stands_in_front_of_the_platform_does_not_say_that_a_history_is_gone(status: int, body: bytes) -> None:
    with pytest.raises(Unavailable):
        platform().read_history(Response(status=status, headers={}, body=body))


def test_answers_go_to_the_handle_in_direct_talk_and_to_the_conversation_in_a_group() -> None:
    assert message(ROW).answer_to == "@bob"
    grouped = {k: v for k, v in ROW.items() if k != "context"} | {"conversation_id": "grp_9"}
    assert message(grouped).answer_to == "grp_9"


def send(target: str = "@bob") -> Send:
    return Send(identity="mine", target=target, content=Content(text="hi"), client_msg_id="k")


def test_a_handle_is_the_same_in_any_case_and_an_id_is_not() -> None:
    platform = AgentChat("alice", "https://h", str)
    assert [platform.address(each) for each in ("@Bob", "@bob", "conv_Ab", "grp_aB")] == [
        *("@bob", "@bob", "conv_Ab", "grp_aB"),
    ]


def test_a_send_is_addressed_by_handle_or_by_group_and_never_by_both() -> None:
    direct = msgspec.json.decode(platform().send_request(send()).body or b"")
    group = msgspec.json.decode(platform().send_request(send("grp_1")).body or b"")
    assert (direct["to"], "conversation_id" in direct) == ("@bob", False)
    assert (group["conversation_id"], "to" in group) == ("grp_1", False)


def test_an_accepted_send_tells_its_place_its_replay_and_the_backlog() -> None:
    own = ROW | {"sender": "me", "skipped_recipients": ["zed"]}
    got = platform().read_send(answer(201, own, x_backlog_warning="bob=5001"), send())
    assert isinstance(got, Accepted)
    assert (got.event.seq, got.event.own, got.event.source) == (3, True, Source.OWN)
    assert (got.backlog, got.skipped, got.replayed) == (("bob", 5001), ("zed",), False)
    again = platform().read_send(answer(200, own, idempotent_replay="true", x_backlog_warning="nonsense"), send())
    assert isinstance(again, Accepted)
    assert (again.replayed, again.backlog) == (True, None)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_a_success_without_a_message_is_a_violation_and_neither_a_success_nor_a_refusal(status: int) -> None:
    with pytest.raises(WireViolation):
        platform().read_send(answer(status, {"ok": True}), send())


@pytest.mark.parametrize(
    ("status", "code", "scope"),
    [
        (429, "RATE_LIMITED", "identity"),
        (429, "RECIPIENT_BACKLOGGED", "target"),
        (429, "COLD_CAP_EXCEEDED", "target"),
        (403, "AWAITING_REPLY", "reply"),
        (403, "AGENT_PAUSED_BY_OWNER", "identity"),
        (403, "RESTRICTED", "identity"),
        (403, "SUSPENDED", "identity"),
        (403, "AGENT_SUSPENDED", "identity"),
        (409, "IDEMPOTENT_IN_PROGRESS", "target"),
        (500, "INTERNAL_ERROR", "target"),
        (503, "ANYTHING", "target"),
    ],
)
def test_what_passes_by_itself_is_tried_again_in_its_scope(status: int, code: str, scope: str) -> None:
    got = platform().read_send(answer(status, {"code": code, "message": ""}), send())
    assert isinstance(got, Later)
    assert (got.code, got.scope) == (code, scope)


def test_a_rate_limit_that_may_be_the_targets_does_not_hold_the_identity() -> None:
    limited = answer(429, {"code": "RATE_LIMITED", "message": ""})
    in_group = platform().read_send(limited, send("grp_1"))
    to_stranger = platform().read_send(msgspec.structs.replace(limited, retry_after_s=3_600.0), send())
    assert isinstance(in_group, Later)
    assert isinstance(to_stranger, Later)
    assert (in_group.scope, to_stranger.scope) == ("target", "target")


def test_a_refusal_for_its_backlog_tells_how_long_it_is() -> None:
    details = {"recipient_handle": "bob", "undelivered_count": 10_000}
    got = platform().read_send(answer(429, {"code": "RECIPIENT_BACKLOGGED", "message": "", "details": details}), send())
    assert isinstance(got, Later)
    assert got.backlog == ("bob", 10_000)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "VALIDATION_ERROR"),
        (403, "BLOCKED"),
        (404, "AGENT_NOT_FOUND"),
        (413, "PAYLOAD_TOO_LARGE"),
        (418, "NEW_ONE"),
    ],
)
def test_what_repeating_cannot_mend_is_a_rejection_with_the_servers_code(status: int, code: str) -> None:
    got = platform().read_send(answer(status, {"code": code, "message": "m"}, x_request_id="r1"), send())
    assert got == Rejection(status=status, code=code, message="m", request_id="r1")


@pytest.mark.parametrize(("asked_ms", "wait_s"), [(0, None), (-1, None), (999_999_999_999, 86_400.0)])
def test_a_wait_that_makes_no_sense_is_none_or_a_day(asked_ms: int, wait_s: float | None) -> None:
    refused = answer(503, {"code": "X", "message": "", "details": {"retry_after_ms": asked_ms}})
    got = platform().read_send(refused, send())
    assert isinstance(got, Later)
    assert got.retry_after_s == wait_s
    with pytest.raises(Unavailable) as failed:
        platform().read_history(refused)
    assert failed.value.retry_after_s == wait_s


def test_the_wait_is_taken_from_the_header_or_else_from_the_body() -> None:
    body = {"code": "RATE_LIMITED", "message": "", "details": {"retry_after_ms": 1500}}
    got = platform().read_send(answer(429, body), send())
    assert isinstance(got, Later)
    assert got.retry_after_s == 1.5
    headed = msgspec.structs.replace(answer(429, body), retry_after_s=9.0)
    got = platform().read_send(headed, send())
    assert isinstance(got, Later)
    assert got.retry_after_s == 9.0


@pytest.mark.parametrize(
    ("code", "reason", "meaning"),
    [
        (1008, "", CloseMeaning.REFUSED),
        (1008, "Invalid token", CloseMeaning.REFUSED),
        (1008, "key rotated", CloseMeaning.REFUSED),
        (4401, "", CloseMeaning.REFUSED),
        (4403, "", CloseMeaning.REFUSED),
        (1008, "HELLO ack timeout", CloseMeaning.AGAIN),
        (1008, "HELLO frame required", CloseMeaning.AGAIN),
        (1008, "HELLO frame required first", CloseMeaning.AGAIN),
        (1005, "", CloseMeaning.AGAIN),
        (1000, "", CloseMeaning.AGAIN),
        (1001, "Heartbeat timeout", CloseMeaning.AGAIN),
        (1011, "", CloseMeaning.AGAIN),
        (1013, "overload", CloseMeaning.AGAIN),
        (4409, "", CloseMeaning.AGAIN),
        (None, "", CloseMeaning.AGAIN),
    ],
)
def test_only_a_refused_key_is_final(code: int | None, reason: str, meaning: CloseMeaning) -> None:
    assert platform().close_meaning(code, reason) is meaning
