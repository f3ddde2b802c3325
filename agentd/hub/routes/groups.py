"""Groups: making them, who is in them, and the system messages that tell of it.

A system message is a message like any other: it takes a seq, and everybody in the group gets an envelope.
"""

from __future__ import annotations

import msgspec

from agentd.hub.accounts import Account
from agentd.hub.answers import Answer, ApiError, answer, invalid, not_found
from agentd.hub.clock import instant
from agentd.hub.conversations import Conversation, tombstone
from agentd.hub.mailbox import Draft
from agentd.hub.rest import Call, Route
from agentd.hub.service import Service
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode, FrameType, MessageType


def _create(service: Service, call: Call) -> Answer:
    request = call.read(wire.CreateGroupRequest)
    _check_texts(request.name, request.description)
    group = service.conversations.create_group(call.account, request)
    results = []
    for handle in request.member_handles or []:
        account = service.accounts.find(handle)
        if account is not None and _may_be_invited(service, account, call.account):
            results.append(_add(service, group, account, call.account))
    detail = _detail(service, group, call.account)
    return answer(wire.GroupCreated(group=detail, add_results=results), 201)


def _get(service: Service, call: Call) -> Answer:
    return answer(_detail(service, _group(service, call), call.account))


def _update(service: Service, call: Call) -> Answer:
    group = _group(service, call, as_admin=True)
    request = call.read(wire.UpdateGroupRequest)
    actor = call.account.handle
    name = group.name if isinstance(request.name, msgspec.UnsetType) else request.name
    description = group.description if isinstance(request.description, msgspec.UnsetType) else request.description
    avatar_url = group.avatar_url if isinstance(request.avatar_url, msgspec.UnsetType) else request.avatar_url
    _check_texts(name or "", description)
    before = (group.name, group.description, group.avatar_url)
    service.conversations.change_group(group, name=name, description=description, avatar_url=avatar_url)
    if name != before[0]:
        _announce(service, group, wire.GroupEvent(event="name_changed", new_name=name, actor_handle=actor))
    if description != before[1]:
        _announce(service, group, wire.GroupEvent(event="description_changed", actor_handle=actor))
    if avatar_url != before[2]:
        _announce(service, group, wire.GroupEvent(event="avatar_changed", actor_handle=actor))
    return answer(_detail(service, group, call.account))


def _delete(service: Service, call: Call) -> Answer:
    group = _group(service, call)
    if group.opened_by != call.account.number:
        raise ApiError(403, ErrorCode.FORBIDDEN, "Only the creator may delete a group")
    actor, deleted_at = call.account.handle, instant()
    _announce(service, group, wire.GroupEvent(event="group_deleted", actor_handle=actor))
    service.conversations.change_group(group, deleted_at=deleted_at, deleted_by=actor)
    service.sockets.tell(group.others(call.account.number), FrameType.GROUP_DELETED, tombstone(group))
    return answer({"deleted_at": deleted_at})


def _add_member(service: Service, call: Call) -> Answer:
    group = _group(service, call, as_admin=True)
    account = service.accounts.get(call.read(wire.HandleRequest).handle)
    if not _may_be_invited(service, account, call.account):
        raise ApiError(403, ErrorCode.FORBIDDEN, f"@{account.handle} takes invitations from contacts only")
    return answer(_add(service, group, account, call.account))


def _remove_member(service: Service, call: Call) -> Answer:
    group = _group(service, call, as_admin=True)
    account = _member(service, group, call)
    service.conversations.leave(group, account)
    _announce(
        service,
        group,
        wire.GroupEvent(event="member_removed", agent_handle=account.handle, actor_handle=call.account.handle),
    )
    return answer({"message": f"@{account.handle} was removed"})


def _promote(service: Service, call: Call) -> Answer:
    return _set_role(service, call, "admin", "admin_promoted")


def _demote(service: Service, call: Call) -> Answer:
    return _set_role(service, call, "member", "admin_demoted")


def _set_role(service: Service, call: Call, role: str, event: str) -> Answer:
    group = _group(service, call, as_admin=True)
    account = _member(service, group, call)
    if group.members[account.number].role != role:
        service.conversations.change_member(group, account.number, role=role)
        _announce(
            service,
            group,
            wire.GroupEvent(event=event, agent_handle=account.handle, actor_handle=call.account.handle),
        )
    return answer({"message": f"@{account.handle} is {role}"})


def _leave(service: Service, call: Call) -> Answer:
    group = _group(service, call)
    promoted = service.conversations.leave(group, call.account)
    _announce(service, group, wire.GroupEvent(event="member_left", agent_handle=call.account.handle))
    handle = None
    if promoted is not None:
        handle = service.accounts.by_number(promoted).handle
        _announce(service, group, wire.GroupEvent(event="admin_promoted", agent_handle=handle))
    return answer({"message": "You left the group", "promoted_handle": handle})


def _invites(service: Service, call: Call) -> Answer:
    invites = service.conversations.invites_of(call.account)
    return answer([service.conversations.invitation(invite) for invite in invites])


def _accept(service: Service, call: Call) -> Answer:
    invite = service.conversations.take_invite(call.account, call.path["id"])
    group = service.conversations.by_number(invite.conversation)
    if len(group.present()) >= wire.GROUP_MEMBERS_MAX:
        raise ApiError(400, ErrorCode.LIMIT_REACHED, "The group is full")
    service.conversations.join(group, call.account)
    _announce(service, group, wire.GroupEvent(event="member_joined", agent_handle=call.account.handle))
    return answer(_detail(service, group, call.account))


def _reject(service: Service, call: Call) -> Answer:
    service.conversations.take_invite(call.account, call.path["id"])
    return answer({"message": "Invitation rejected"})


# --- shared by the routes above ---


def _group(service: Service, call: Call, *, as_admin: bool = False) -> Conversation:
    group = service.conversations.group_of(call.account, call.path["id"])
    if as_admin and group.members[call.account.number].role != "admin":
        raise ApiError(403, ErrorCode.FORBIDDEN, "Only an admin may do this")
    return group


def _member(service: Service, group: Conversation, call: Call) -> Account:
    account = service.accounts.get(call.path["handle"])
    if account.number not in group.present():
        raise not_found(ErrorCode.AGENT_NOT_FOUND, f"@{account.handle} is not in the group")
    return account


def _add(service: Service, group: Conversation, account: Account, inviter: Account) -> wire.AddResult:
    if account.number in group.present():
        return wire.AddResult(handle=account.handle, outcome="already_member")
    invite, is_new = service.conversations.invite(group, account, inviter)
    if is_new:
        invitation = service.conversations.invitation(invite)
        service.sockets.tell([account.number], FrameType.GROUP_INVITE_RECEIVED, invitation)
    invite_id = service.conversations.invite_ids.make(invite.number)
    return wire.AddResult(handle=account.handle, outcome="invited", invite_id=invite_id)


def _may_be_invited(service: Service, account: Account, inviter: Account) -> bool:
    return account.group_invite_policy == "open" or service.relations.is_contact(account, inviter)


def _announce(service: Service, group: Conversation, event: wire.GroupEvent) -> None:
    """Store and push a system message. The contract does not say where in it the event sits; here: content.data."""
    data = msgspec.to_builtins(msgspec.structs.replace(event, schema_version=1))
    draft = Draft(content=wire.MessageContent(data=data), type=MessageType.SYSTEM)
    for stored in service.sending.store(group, service.accounts.platform, [draft]):
        service.deliver(stored)


def _detail(service: Service, group: Conversation, reader: Account) -> wire.Group:
    members = [
        wire.GroupMember(
            handle=service.accounts.by_number(number).handle,
            display_name=service.accounts.by_number(number).display_name,
            role=group.members[number].role,
            joined_at=group.members[number].joined_at,
        )
        for number in group.present()
    ]
    return wire.Group(
        id=group.id,
        name=group.name or "",
        description=group.description,
        avatar_url=group.avatar_url,
        created_by=service.accounts.by_number(group.opened_by).handle,
        settings=wire.GroupSettings(who_can_invite="admin"),
        member_count=len(members),
        created_at=group.created_at,
        last_message_at=group.last_message_at,
        members=members,
        your_role=group.members[reader.number].role,
    )


def _check_texts(name: str, description: str | None) -> None:
    if not 1 <= len(name) <= wire.GROUP_NAME_MAX_CHARS:
        raise invalid("A group's name is 1 to 100 characters")
    if description is not None and len(description) > wire.GROUP_DESCRIPTION_MAX_CHARS:
        raise invalid("A group's description is at most 500 characters")


ROUTES = [
    Route("POST", "/v1/groups", "create_group", _create),
    Route("GET", "/v1/groups/invites", "group_invites", _invites),
    Route("POST", "/v1/groups/invites/{id}/accept", "accept_invite", _accept),
    Route("DELETE", "/v1/groups/invites/{id}", "reject_invite", _reject),
    Route("GET", "/v1/groups/{id}", "group", _get),
    Route("PATCH", "/v1/groups/{id}", "update_group", _update),
    Route("DELETE", "/v1/groups/{id}", "delete_group", _delete),
    Route("POST", "/v1/groups/{id}/members", "add_member", _add_member),
    Route("DELETE", "/v1/groups/{id}/members/{handle}", "remove_member", _remove_member),
    Route("POST", "/v1/groups/{id}/members/{handle}/promote", "promote", _promote),
    Route("POST", "/v1/groups/{id}/members/{handle}/demote", "demote", _demote),
    Route("POST", "/v1/groups/{id}/leave", "leave_group", _leave),
]
