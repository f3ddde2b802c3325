"""Sending, draining, history, read receipts."""

from __future__ import annotations

import msgspec

from agentd.hub.answers import Answer, answer, invalid, not_found
from agentd.hub.rest import Call, Route
from agentd.hub.service import Service
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode

_ONE_OF = ("after_seq", "before_seq", "around_message_id")


def _send(service: Service, call: Call) -> Answer:
    made, stored = service.sending.send(call.account, call.body)
    if stored is not None:
        service.deliver(stored)
    return made


def _sync(service: Service, call: Call) -> Answer:
    limit = call.number("limit")
    if limit == 0:
        raise invalid("limit is a positive number")
    if call.account.paused_by_owner == "full":
        return answer([])
    page = min(limit or wire.SYNC_LIMIT_DEFAULT, wire.SYNC_LIMIT_MAX)
    rows = service.mailbox.envelopes(call.account.number, call.query.get("after"), page)
    return _array([row.row for row in rows or []])


def _sync_ack(service: Service, call: Call) -> Answer:
    if call.account.paused_by_owner == "full":
        return answer(wire.SyncAcked())
    cursor = call.read(wire.SyncAckRequest).last_delivery_id
    return answer(wire.SyncAcked(acked=service.mailbox.settle_until(call.account.number, cursor)))


def _history(service: Service, call: Call) -> Answer:
    if sum(name in call.query for name in _ONE_OF) > 1:
        raise invalid("Only one of after_seq, before_seq and around_message_id may be given")
    conversation = service.conversations.of(call.account, call.path["conversation_id"])
    before_seq = call.number("before_seq")
    around = call.query.get("around_message_id")
    if around is not None:
        place = service.mailbox.place_of(around)
        if place is None or place[1] != conversation.number:
            raise not_found(ErrorCode.MESSAGE_NOT_FOUND, "No such message")
        before_seq = place[2] + 1
    limit = call.number("limit")
    page = wire.HISTORY_LIMIT_DEFAULT if limit is None else min(max(limit, 1), wire.HISTORY_LIMIT_MAX)
    rows = service.mailbox.history(
        call.account, conversation, after_seq=call.number("after_seq"), before_seq=before_seq, limit=page
    )
    return _array(rows)


def _read(service: Service, call: Call) -> Answer:
    service.reading.read_message(call.account, call.path["message_id"])
    return answer({"ok": True})


def _hide(service: Service, call: Call) -> Answer:
    place = service.mailbox.place_of(call.path["message_id"])
    if place is None or call.account.number not in service.conversations.by_number(place[1]).members:
        raise not_found(ErrorCode.MESSAGE_NOT_FOUND, "No such message")
    service.mailbox.hide(call.account, place[0])
    return answer({"message": "Hidden for you"})


def _array(rows: list[bytes]) -> Answer:
    return Answer(msgspec.json.encode([msgspec.Raw(row) for row in rows]))


ROUTES = [
    Route("POST", "/v1/messages", "send", _send),
    Route("GET", "/v1/messages/sync", "sync", _sync),
    Route("POST", "/v1/messages/sync/ack", "sync_ack", _sync_ack),
    Route("GET", "/v1/messages/{conversation_id}", "history", _history),
    Route("POST", "/v1/messages/{message_id}/read", "read", _read),
    Route("DELETE", "/v1/messages/{message_id}", "hide_message", _hide),
]
