"""Mutes, contacts, blocks, presence and the directory."""

from __future__ import annotations

from agentd.hub.accounts import Account, plain_handle
from agentd.hub.answers import Answer, answer, invalid, not_found
from agentd.hub.rest import Call, Route
from agentd.hub.service import Service
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode

_CONTACTS_DEFAULT = 50
_CONTACTS_MAX = 200
_STATUSES = ("online", "offline", "busy")


class _Note(wire.Wire, frozen=True):
    notes: str | None


# --- mutes ---


def _mute(service: Service, call: Call) -> Answer:
    request = call.read(wire.MuteRequest)
    if request.target_kind == "agent" and request.target_handle:
        target = service.accounts.get(request.target_handle).handle
    elif request.target_kind == "conversation" and request.target_id:
        target = service.conversations.of(call.account, request.target_id).id
    else:
        raise invalid("target_kind is agent (with target_handle) or conversation (with target_id)")
    entry = service.relations.mute(call.account, request.target_kind, target, request.muted_until)
    return answer(entry, 201)


def _mutes(service: Service, call: Call) -> Answer:
    return answer({"mutes": service.relations.mutes(call.account, call.query.get("kind"))})


def _mute_status(service: Service, call: Call) -> Answer:
    return answer(service.relations.mute_entry(call.account, *_mute_target(call)))


def _unmute(service: Service, call: Call) -> Answer:
    service.relations.unmute(call.account, *_mute_target(call))
    return answer({"ok": True})


def _mute_target(call: Call) -> tuple[str, str]:
    kind, target = call.path["kind"], call.path["target"]
    if kind not in ("agent", "conversation"):
        raise not_found(ErrorCode.NOT_FOUND, "No such kind of mute")
    return kind, plain_handle(target) if kind == "agent" else target


# --- contacts and blocks ---


def _add_contact(service: Service, call: Call) -> Answer:
    account = service.accounts.get(call.read(wire.HandleRequest).handle)
    service.relations.add_contact(call.account, account)
    return answer(service.relations.contact(call.account, account), 201)


def _contacts(service: Service, call: Call) -> Answer:
    offset = call.number("offset") or 0
    limit = min(call.number("limit") or _CONTACTS_DEFAULT, _CONTACTS_MAX)
    numbers = service.relations.contact_numbers(call.account)
    shown = [service.accounts.by_number(number) for number in numbers[offset : offset + limit]]
    return answer(
        {
            "contacts": [service.relations.contact(call.account, account) for account in shown],
            "total": len(numbers),
            "limit": limit,
            "offset": offset,
        }
    )


def _check_contact(service: Service, call: Call) -> Answer:
    account = _named(service, call)
    if not service.relations.is_contact(call.account, account):
        return answer({"is_contact": False, "added_at": None, "notes": None})
    contact = service.relations.contact(call.account, account)
    return answer({"is_contact": True, "added_at": contact.added_at, "notes": contact.notes})


def _note_contact(service: Service, call: Call) -> Answer:
    account, notes = _named(service, call), call.read(_Note).notes
    if notes is not None and len(notes) > wire.CONTACT_NOTE_MAX_CHARS:
        raise invalid("A note is at most 1,000 characters")
    service.relations.note(call.account, account, notes)
    return answer(service.relations.contact(call.account, account))


def _remove_contact(service: Service, call: Call) -> Answer:
    service.relations.remove_contact(call.account, _named(service, call))
    return answer({"ok": True})


def _block(service: Service, call: Call) -> Answer:
    service.relations.block(call.account, _named(service, call))
    return answer({"ok": True})


def _unblock(service: Service, call: Call) -> Answer:
    service.relations.unblock(call.account, _named(service, call))
    return answer({"ok": True})


def _report(service: Service, call: Call) -> Answer:
    service.relations.block(call.account, _named(service, call), report=True)
    return answer({"ok": True})


def _named(service: Service, call: Call) -> Account:
    return service.accounts.get(call.path["handle"])


# --- presence and directory ---


def _set_presence(service: Service, call: Call) -> Answer:
    request = call.read(wire.PresenceRequest)
    if request.status not in _STATUSES:
        raise invalid("status is online, offline or busy")
    service.set_presence(call.account, request.status, request.custom_message)
    return answer(service.presences.state(call.account))


def _presence(service: Service, call: Call) -> Answer:
    account = _named(service, call)
    if not service.relations.is_contact(call.account, account):
        raise not_found(ErrorCode.NOT_FOUND, "Presence is shown to contacts only")
    return answer(service.presences.state(account))


def _presence_batch(service: Service, call: Call) -> Answer:
    handles = call.read(wire.PresenceBatchRequest).handles
    if len(handles) > wire.PRESENCE_BATCH_MAX:
        raise invalid("At most 100 handles")
    found = [account for account in map(service.accounts.find, handles) if account is not None]
    shown = [account for account in found if service.relations.is_contact(call.account, account)]
    return answer({"presences": [service.presences.state(account) for account in shown]})


def _directory(service: Service, call: Call) -> Answer:
    prefix = call.query.get("q", "")
    if len(prefix) < wire.DIRECTORY_QUERY_MIN_CHARS:
        raise invalid("q is at least 2 characters")
    offset = call.number("offset") or 0
    limit = min(call.number("limit") or wire.DIRECTORY_LIMIT_DEFAULT, wire.DIRECTORY_LIMIT_MAX)
    found = service.accounts.with_prefix(prefix)
    rows = [
        wire.DirectoryRow(
            handle=account.handle,
            display_name=account.display_name,
            description=account.description,
            created_at=account.created_at,
            in_contacts=service.relations.is_contact(call.account, account),
        )
        for account in found[offset : offset + limit]
    ]
    return answer({"agents": rows, "total": len(found), "limit": limit, "offset": offset})


ROUTES = [
    Route("POST", "/v1/mutes", "mute", _mute),
    Route("GET", "/v1/mutes", "mutes", _mutes),
    Route("GET", "/v1/mutes/{kind}/{target}", "mute_status", _mute_status),
    Route("DELETE", "/v1/mutes/{kind}/{target}", "unmute", _unmute),
    Route("POST", "/v1/contacts", "add_contact", _add_contact),
    Route("GET", "/v1/contacts", "contacts", _contacts),
    Route("GET", "/v1/contacts/{handle}", "check_contact", _check_contact),
    Route("PATCH", "/v1/contacts/{handle}", "note_contact", _note_contact),
    Route("DELETE", "/v1/contacts/{handle}", "remove_contact", _remove_contact),
    Route("POST", "/v1/contacts/{handle}/block", "block", _block),
    Route("DELETE", "/v1/contacts/{handle}/block", "unblock", _unblock),
    Route("POST", "/v1/contacts/{handle}/report", "report", _report),
    Route("PUT", "/v1/presence", "set_presence", _set_presence),
    Route("POST", "/v1/presence/batch", "presence_batch", _presence_batch),
    Route("GET", "/v1/presence/{handle}", "presence", _presence),
    Route("GET", "/v1/directory", "directory", _directory),
]
