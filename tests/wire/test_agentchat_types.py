"""AgentChat's shapes: what each source shows is read, what is written is what clients expect."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.wire.agentchat import types as wire

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "conversation_id": "conv_1",
    "sender": "bob",
    "client_msg_id": "c1",
    "seq": 7,
    "type": "text",
    "content": {"text": "hello"},
    "metadata": {"reply_to": "msg_0"},
    "context": {
        "sender": {"handle": "bob", "display_name": None, "kind": "agent"},
        "conversation": {"type": "group", "group_name": "Ants", "member_count": 3},
        "mentions": ["alice"],
    },
    "status": "stored",
    "created_at": "2026-11-21T00:00:00Z",
    "delivered_at": None,
    "read_at": None,
    "delivery_id": "del_1",
}
REQUIRED = {"id", "conversation_id", "sender", "seq"}


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


# --- frames ---


def test_a_frame_keeps_its_payload_as_the_bytes_that_arrived() -> None:
    payload = b'{ "id" : "msg_1",  "new": [1, 2] }'
    frame = wire.decode_server_frame(b'{"type":"message.new","id":9,"payload":' + payload + b',"x":1}')
    assert frame.type == wire.FrameType.MESSAGE_NEW
    assert bytes(frame.payload) == payload


@pytest.mark.parametrize("capabilities", [["ack"], ["ack", "later"], [], None])
def test_hello_ok_tells_its_capabilities_at_the_top_level(capabilities: list[str] | None) -> None:
    frame = wire.decode_server_frame(encoded({"type": "hello.ok", "capabilities": capabilities}))
    assert (frame.type, frame.capabilities) == ("hello.ok", capabilities)
    assert wire.decode_server_frame(b'{"type":"hello.ok"}').capabilities is None


@pytest.mark.parametrize("bad", [b"", b"7", b"[]", b"{}", b'{"type":7}', b'{"type":null}', b'{"type":"x"', b"\xff"])
def test_what_is_no_frame_raises_decode_error(bad: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        wire.decode_server_frame(bad)


def test_client_frames_are_written_as_the_official_client_writes_them() -> None:
    hello = wire.Hello(api_key="k", capabilities=["ack"], client="agentd", client_version="1")
    assert json.loads(wire.encoder.encode(hello)) == {
        "type": "hello",
        "api_key": "k",
        "capabilities": ["ack"],
        "client": "agentd",
        "client_version": "1",
    }
    assert json.loads(wire.encoder.encode(wire.Ack(message_id="m"))) == {"type": "ack", "message_id": "m"}
    read = wire.ReadAck(payload=wire.ReadAckPayload(conversation_id="c", through_seq=4))
    assert json.loads(wire.encoder.encode(read)) == {
        "type": "message.read_ack",
        "payload": {"conversation_id": "c", "through_seq": 4},
    }


def test_the_server_reads_what_the_client_writes() -> None:
    hello = wire.decode_client_frame(wire.encoder.encode(wire.Hello(api_key="k", capabilities=["ack"])))
    assert (hello.type, hello.api_key, hello.capabilities) == (wire.FrameType.HELLO, "k", ["ack"])
    ack = wire.decode_client_frame(wire.encoder.encode(wire.Ack(message_id="m")))
    assert (ack.type, ack.message_id) == (wire.FrameType.ACK, "m")


@pytest.mark.parametrize(
    ("payload", "field", "value"),
    [
        ({"conversation_id": "c", "through_seq": 3, "reader": "bob", "at": "t"}, "through_seq", 3),
        ({"conversation_id": "c", "through_seq": 3, "reader": "bob"}, "reader", "bob"),
        ({"message_id": "m", "read_by": "bob", "read_at": "t"}, "message_id", "m"),
    ],
)
def test_both_shapes_of_message_read_are_read(payload: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(wire.decode_read(encoded(payload)), field) == value


@pytest.mark.parametrize(
    ("payload", "note"),
    [
        ({"handle": "bob", "status": "busy", "custom_message": "a"}, ("a", None)),
        ({"handle": "bob", "status": "away", "custom_status": "b", "last_active_at": "t"}, (None, "b")),
        ({"handle": "bob", "status": "online", "custom_message": None}, (None, None)),
    ],
)
def test_both_shapes_of_presence_are_read(payload: dict[str, Any], note: tuple[str | None, str | None]) -> None:
    presence = wire.decode_presence(encoded(payload))
    assert (presence.status, presence.custom_message, presence.custom_status) == (payload["status"], *note)


@pytest.mark.parametrize("payload", [{}, {"limit": 60, "reset_at": "t"}, {"reset_at": 12}, {"remaining": None, "x": 1}])
def test_a_rate_limit_warning_may_leave_everything_out(payload: dict[str, Any]) -> None:
    assert wire.decode_rate_limit(encoded(payload)).limit == payload.get("limit")


def test_invitations_and_deletions_are_read_with_and_without_their_optional_fields() -> None:
    least = {"id": "gri_1", "group_id": "grp_1", "group_name": "Ants", "inviter_handle": "bob"}
    assert wire.decode_invitation(encoded(least)).group_member_count is None
    assert wire.decode_invitation(encoded(least | {"group_member_count": 4, "x": 1})).group_member_count == 4
    assert wire.decode_deleted_group(b'{"group_id":"grp_1"}').deleted_by_handle is None


# --- messages ---


def test_a_full_message_is_read_field_by_field() -> None:
    row = wire.decode_message(encoded(MESSAGE))
    assert msgspec.to_builtins(row) == {
        key: value for key, value in MESSAGE.items() if value is not None and key != "context"
    } | {
        "context": {
            "sender": {"handle": "bob", "kind": "agent"},
            "conversation": {"type": "group", "group_name": "Ants", "member_count": 3},
            "mentions": ["alice"],
        }
    }


@given(absent=st.sets(st.sampled_from(sorted(MESSAGE.keys() - REQUIRED))), as_null=st.booleans())
def test_what_is_not_required_may_be_absent_or_null(absent: set[str], as_null: bool) -> None:
    row = {key: value for key, value in MESSAGE.items() if key not in absent}
    if as_null:
        row |= dict.fromkeys(absent)
    read = wire.decode_message(encoded(row | {"from_the_future": {"a": [1]}}))
    assert read.seq == 7
    for name in absent:
        assert getattr(read, name) is None


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.text() | st.integers(), st.lists, max_leaves=3)))
def test_unknown_fields_pass_in_every_nested_object(extra: dict[str, Any]) -> None:
    unknown = {f"x_{key}": value for key, value in extra.items()}
    row = MESSAGE | unknown
    row["content"] = MESSAGE["content"] | unknown
    row["context"] = {
        key: value | unknown if isinstance(value, dict) else value for key, value in MESSAGE["context"].items()
    } | unknown
    assert wire.decode_message(encoded(row)) == wire.decode_message(encoded(MESSAGE))


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_a_message_without_its_place_or_sender_is_malformed(missing: str) -> None:
    row = {key: value for key, value in MESSAGE.items() if key != missing}
    for bad in (row, row | {missing: None}, row | {missing: []}):
        with pytest.raises(msgspec.ValidationError):
            wire.decode_message(encoded(bad))


@pytest.mark.parametrize(
    "change", [{"seq": -1}, {"seq": 1.5}, {"seq": "1"}, {"content": "text"}, {"content": {"text": 1}}, {"metadata": []}]
)
def test_a_message_of_wrong_types_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        wire.decode_message(encoded(MESSAGE | change))


def test_one_malformed_row_leaves_the_rows_beside_it_readable() -> None:
    rows = wire.decode_rows(encoded([MESSAGE, {"id": 7}, MESSAGE]))
    assert wire.decode_message(rows[0]) == wire.decode_message(rows[2])
    with pytest.raises(msgspec.ValidationError):
        wire.decode_message(rows[1])


def test_a_send_leaves_out_what_is_not_set() -> None:
    content = wire.MessageContent(text="hi")
    send = wire.SendRequest(client_msg_id="1", content=content, to="bob")
    assert json.loads(wire.encoder.encode(send)) == {"client_msg_id": "1", "content": {"text": "hi"}, "to": "bob"}


def test_an_answer_that_acks_nothing_says_zero() -> None:
    assert wire.encoder.encode(wire.SyncAcked()) == b'{"acked":0}'


@pytest.mark.parametrize(
    "row", [{"id": "c"}, {"id": "c", "unread_count": None}, {"id": "c", "unread_count": 3, "newest_unread_seq": 9}]
)
def test_a_conversation_row_may_come_from_either_generation(row: dict[str, Any]) -> None:
    read = wire.decode_conversation_top(encoded(row))
    assert read.newest_unread_seq == row.get("newest_unread_seq")


# --- errors and headers ---


@pytest.mark.parametrize(
    ("status", "body", "code", "message", "details"),
    [
        (404, b'{"code":"X","message":"m","details":{"a":1}}', "X", "m", {"a": 1}),
        (404, b'{"error":{"code":"X","message":"m"}}', "X", "m", {}),
        (429, b'{"code":"RATE_LIMITED","retry_after_ms":500}', "RATE_LIMITED", "", {"retry_after_ms": 500}),
        (403, b'{"code":"SUSPENDED","message":"m","details":null,"reason":"r"}', "SUSPENDED", "m", {}),
        (403, b'{"code":7,"message":[],"details":[]}', "FORBIDDEN", "", {}),
        (400, b"[]", "VALIDATION_ERROR", "", {}),
        (401, b"", "UNAUTHORIZED", "", {}),
        (404, b"{}", "AGENT_NOT_FOUND", "", {}),
        (410, b"null", "GROUP_DELETED", "", {}),
        (429, b'{"error":"slow down"}', "RATE_LIMITED", "", {}),
        (502, b"<html>Bad Gateway</html>", "INTERNAL_ERROR", "", {}),
        (500, b"\xff\xfe", "INTERNAL_ERROR", "", {}),
    ],
)
def test_an_error_of_any_shape_is_read(
    status: int, body: bytes, code: str, message: str, details: dict[str, Any]
) -> None:
    assert wire.read_error(status, body) == wire.ErrorBody(code=code, message=message, details=details)


@given(st.integers(400, 599), st.binary())
def test_no_error_body_breaks_the_reader(status: int, body: bytes) -> None:
    assert wire.read_error(status, body).code


@pytest.mark.parametrize(
    ("value", "warning"),
    [
        ("bob=5001", ("bob", 5001)),
        ("odd=name=12", ("odd=name", 12)),
        (" bob = 7 ", ("bob", 7)),
        ("bob", None),
        ("bob=", None),
        ("=5", None),
        ("bob=-5", None),
        ("bob=many", None),
        ("bob=٣", None),
        ("", None),
        (None, None),
    ],
)
def test_a_backlog_warning_is_read_or_ignored(value: str | None, warning: tuple[str, int] | None) -> None:
    assert wire.read_backlog_warning(value) == warning


def test_header_names_are_lowercase_as_responses_hold_them() -> None:
    assert all(header == header.lower() for header in wire.Header)
