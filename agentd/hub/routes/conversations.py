"""The list of conversations and what is known of each."""

from __future__ import annotations

from agentd.hub.accounts import Account
from agentd.hub.answers import Answer, answer
from agentd.hub.conversations import Conversation
from agentd.hub.rest import Call, Route
from agentd.hub.service import Service
from agentd.wire.agentchat import types as wire

_LIST_DEFAULT = 50
_LIST_MAX = 200
_PREVIEW_CHARS = 100


def _list(service: Service, call: Call) -> Answer:
    offset = call.number("offset") or 0
    limit = min(call.number("limit") or _LIST_DEFAULT, _LIST_MAX)
    mine = service.conversations.listed(call.account)[offset : offset + limit]
    return answer([_row(service, call.account, conversation) for conversation in mine])


def _participants(service: Service, call: Call) -> Answer:
    conversation = service.conversations.of(call.account, call.path["id"])
    return answer([_participant(service, number) for number in conversation.present()])


def _context(service: Service, call: Call) -> Answer:
    reader = call.account
    conversation = service.conversations.of(reader, call.path["id"])
    count, oldest, newest = service.mailbox.unread(reader, conversation)
    group = None
    if not conversation.direct:
        group = {
            "name": conversation.name,
            "description": conversation.description,
            "member_count": len(conversation.present()),
            "your_role": conversation.members[reader.number].role,
        }
    return answer(
        {
            "conversation_id": conversation.id,
            "type": "direct" if conversation.direct else "group",
            "group": group,
            "counterparty": None if group else _participant(service, conversation.peer(reader.number)),
            "relationship": None if group else _relationship(service, reader, conversation),
            "unread": {"count": count, "oldest_seq": oldest, "newest_seq": newest},
        }
    )


def _hide(service: Service, call: Call) -> Answer:
    conversation = service.conversations.of(call.account, call.path["id"])
    service.conversations.change_member(conversation, call.account.number, hidden_seq=max(conversation.last_seq, 1))
    return answer({"ok": True})


def _row(service: Service, reader: Account, conversation: Conversation) -> wire.ConversationRow:
    count, oldest, newest = service.mailbox.unread(reader, conversation)
    last = service.mailbox.last(conversation)
    others = conversation.others(reader.number)
    return wire.ConversationRow(
        id=conversation.id,
        type="direct" if conversation.direct else "group",
        participants=[_participant(service, number) for number in others],
        group_name=conversation.name,
        group_avatar_url=conversation.avatar_url,
        group_member_count=None if conversation.direct else len(others) + 1,
        last_message_at=conversation.last_message_at,
        updated_at=conversation.last_message_at or conversation.created_at,
        is_muted=_is_muted(service, reader, conversation),
        last_message_preview=_preview(last),
        last_message_is_own=None if last is None else last.sender == reader.handle,
        last_message_type=None if last is None else last.type,
        unread_count=count,
        oldest_unread_seq=oldest,
        newest_unread_seq=newest,
    )


def _is_muted(service: Service, reader: Account, conversation: Conversation) -> bool:
    peer = ""
    if conversation.direct:
        peer = service.accounts.by_number(conversation.peer(reader.number)).handle
    return service.relations.is_muted(reader.number, peer, conversation.id)


def _preview(last: wire.MessageRow | None) -> str | None:
    if last is None or last.content is None or last.content.text is None:
        return None
    return last.content.text[:_PREVIEW_CHARS]


def _participant(service: Service, number: int) -> wire.Participant:
    account = service.accounts.by_number(number)
    return wire.Participant(handle=account.handle, display_name=account.display_name)


def _relationship(service: Service, reader: Account, conversation: Conversation) -> dict[str, object]:
    peer = service.accounts.by_number(conversation.peer(reader.number))
    if not service.relations.is_contact(reader, peer):
        return {"is_contact": False, "added_at": None, "note": None}
    contact = service.relations.contact(reader, peer)
    return {"is_contact": True, "added_at": contact.added_at, "note": contact.notes}


ROUTES = [
    Route("GET", "/v1/conversations", "conversations", _list),
    Route("GET", "/v1/conversations/{id}/participants", "participants", _participants),
    Route("GET", "/v1/conversations/{id}/context", "conversation_context", _context),
    Route("DELETE", "/v1/conversations/{id}", "hide_conversation", _hide),
]
