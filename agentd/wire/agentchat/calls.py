"""AgentChat's calls for plugins, as values: how each is asked, and what its answer means.

The groups and their methods are those of `agentd.apis.AgentChatApi`, with the same arguments; `search` alone gives one
page here. Requests that change something get their `Idempotency-Key` from `call`.

Always true: what goes into a path is encoded whole. An answer is read by its shape; a refusal keeps the platform's
status, code, message and details.
Not here: performing (transport/), keys and repeats (host/api.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from agentd import apis
from agentd.core.events import Message
from agentd.errors import Refused, Unavailable, WireViolation
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.platform import AgentChat, asked_wait_s
from agentd.wire.platform import Call, InProgress, Request, Response, Say, Transfer

T = TypeVar("T")
S = TypeVar("S")

_IN_PROGRESS_S = 1.0
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Presences(wire.Wire, frozen=True):
    """Both shapes that are known of the answer to a batch."""

    presences: tuple[apis.PresenceState, ...] = ()
    results: dict[str, dict[str, Any] | None] | None = None


class _ContactPage(wire.Wire, frozen=True):
    contacts: tuple[apis.Contact, ...] = ()


class _DirectoryPage(wire.Wire, frozen=True):
    agents: tuple[apis.DirectoryRow, ...] = ()


class _Mutes(wire.Wire, frozen=True):
    mutes: tuple[apis.MuteEntry, ...] = ()


class _Left(wire.Wire, frozen=True):
    promoted_handle: str | None = None


class AgentChatCalls:
    """The calls of one identity. Implements `agentd.wire.platform.Calls`."""

    platform = "agentchat"

    def __init__(self, platform: AgentChat) -> None:
        self.profile = Profile(platform)
        self.agents = Agents()
        self.presence = Presence()
        self.contacts = Contacts()
        self.conversations = Conversations(platform)
        self.messages = Messages()
        self.groups = Groups()
        self.mutes = Mutes()
        self.directory = Directory()
        self.attachments = Attachments()

    def call(self, name: str, arguments: Mapping[str, Any], key: str | None) -> Call[Any] | Say:
        """See wire.platform.Calls."""
        group, _, method = name.partition(".")
        described: Call[Any] | Say = getattr(getattr(self, group), method)(**arguments)
        if key is None or isinstance(described, Say) or not isinstance(described.ask, Request):
            return described
        keyed = msgspec.structs.replace(described.ask, headers={str(wire.Header.IDEMPOTENCY_KEY): key})
        return msgspec.structs.replace(described, ask=keyed)


class Profile:
    """See agentd.apis, as for all that follow."""

    def __init__(self, platform: AgentChat) -> None:
        self._platform = platform

    def get(self) -> Call[apis.Agent]:
        """As there."""
        return _get("/v1/agents/me", apis.Agent)

    def update(
        self,
        *,
        display_name: apis.Text = msgspec.UNSET,
        description: apis.Text = msgspec.UNSET,
        inbox_mode: str | None = None,
        group_invite_policy: str | None = None,
    ) -> Call[apis.Agent]:
        """As there."""
        settings: wire.AgentSettings | msgspec.UnsetType = msgspec.UNSET
        if inbox_mode is not None or group_invite_policy is not None:
            settings = apis.AgentSettings(inbox_mode=inbox_mode, group_invite_policy=group_invite_policy)
        body = wire.UpdateAgentRequest(display_name=display_name, description=description, settings=settings)
        return _change("PATCH", _path("/v1/agents/{}", self._platform.handle), body, _shaped(apis.Agent))


class Agents:
    """Other accounts."""

    def get(self, handle: str) -> Call[apis.Agent]:
        """As there."""
        return _get(_path("/v1/agents/{}", _handle(handle)), apis.Agent)


class Presence:
    """Who is there."""

    def get(self, handle: str) -> Call[apis.PresenceState]:
        """As there."""
        return _get(_path("/v1/presence/{}", _handle(handle)), apis.PresenceState)

    def batch(self, handles: tuple[str, ...]) -> Call[tuple[apis.PresenceState, ...]]:
        """As there."""
        body = wire.PresenceBatchRequest(handles=[_handle(each) for each in handles])
        return _change("POST", "/v1/presence/batch", body, _presences)

    def set(self, status: str, note: str | None = None) -> Call[None]:
        """As there."""
        return _change("PUT", "/v1/presence", wire.PresenceRequest(status=status, custom_message=note), _done)


class Contacts:
    """Whom this identity knows."""

    def list(self, limit: int = 50, offset: int = 0) -> Call[tuple[apis.Contact, ...]]:
        """As there."""
        return _get("/v1/contacts", _ContactPage, _page(limit, offset), _contacts)

    def get(self, handle: str) -> Call[apis.ContactStanding]:
        """As there."""
        return _get(_path("/v1/contacts/{}", _handle(handle)), apis.ContactStanding)

    def add(self, handle: str) -> Call[None]:
        """As there."""
        return _change("POST", "/v1/contacts", wire.HandleRequest(handle=_handle(handle)), _done)

    def note(self, handle: str, notes: str | None) -> Call[None]:
        """As there."""
        return _change("PATCH", _path("/v1/contacts/{}", _handle(handle)), {"notes": notes}, _done)

    def remove(self, handle: str) -> Call[None]:
        """As there."""
        return _change("DELETE", _path("/v1/contacts/{}", _handle(handle)), None, _done)

    def block(self, handle: str) -> Call[None]:
        """As there."""
        return _change("POST", _path("/v1/contacts/{}/block", _handle(handle)), None, _done)

    def unblock(self, handle: str) -> Call[None]:
        """As there."""
        return _change("DELETE", _path("/v1/contacts/{}/block", _handle(handle)), None, _done)

    def report(self, handle: str, reason: str | None = None) -> Call[None]:
        """As there."""
        body = {} if reason is None else {"reason": reason}
        return _change("POST", _path("/v1/contacts/{}/report", _handle(handle)), body, _done)


class Conversations:
    """This identity's conversations."""

    def __init__(self, platform: AgentChat) -> None:
        self._platform = platform

    def list(self, limit: int = 50, offset: int = 0) -> Call[tuple[apis.ConversationRow, ...]]:
        """As there."""
        return _get("/v1/conversations", tuple[apis.ConversationRow, ...], _page(limit, offset))

    def participants(self, conversation: str) -> Call[tuple[apis.Participant, ...]]:
        """As there."""
        path = _path("/v1/conversations/{}/participants", conversation)
        return _get(path, tuple[apis.Participant, ...])

    def context(self, conversation: str) -> Call[apis.ConversationContext]:
        """As there."""
        return _get(_path("/v1/conversations/{}/context", conversation), apis.ConversationContext)

    def history(
        self, conversation: str, *, after_seq: int | None = None, before_seq: int | None = None, limit: int = 50
    ) -> Call[tuple[Message, ...]]:
        """As there."""
        if after_seq is not None and before_seq is not None:
            raise ValueError("give after_seq or before_seq")
        place = {"after_seq": after_seq, "before_seq": before_seq}
        query = {name: str(seq) for name, seq in place.items() if seq is not None}
        asked = Request(
            method="GET",
            path=_path("/v1/messages/{}", conversation),
            query={**query, "limit": str(min(limit, wire.HISTORY_LIMIT_MAX))},
        )
        return Call(asked, partial(_history, self._platform))

    def hide(self, conversation: str) -> Call[None]:
        """As there."""
        return _change("DELETE", _path("/v1/conversations/{}", conversation), None, _done)

    def typing(self, conversation: str, active: bool = True) -> Say:
        """As there."""
        kind = wire.FrameType.TYPING_START if active else wire.FrameType.TYPING_STOP
        payload = wire.TypingPayload(conversation_id=conversation)
        return Say(wire.encoder.encode({"type": kind, "payload": payload}))

    def read_through(self, conversation: str, seq: int) -> Say:
        """As there."""
        payload = wire.ReadAckPayload(conversation_id=conversation, through_seq=seq)
        return Say(wire.encoder.encode(wire.ReadAck(payload=payload)))


class Messages:
    """Single messages."""

    def mark_read(self, message_id: str) -> Call[None]:
        """As there."""
        return _change("POST", _path("/v1/messages/{}/read", message_id), None, _done)

    def hide(self, message_id: str) -> Call[None]:
        """As there."""
        return _change("DELETE", _path("/v1/messages/{}", message_id), None, _done)


class Groups:
    """Groups, and invitations to them."""

    def create(
        self, name: str, *, description: str | None = None, members: tuple[str, ...] = ()
    ) -> Call[apis.GroupCreated]:
        """As there."""
        handles = [_handle(each) for each in members]
        body = wire.CreateGroupRequest(name=name, description=description, member_handles=handles or None)
        return _change("POST", "/v1/groups", body, _shaped(apis.GroupCreated))

    def get(self, group: str) -> Call[apis.Group]:
        """As there."""
        return _get(_path("/v1/groups/{}", group), apis.Group)

    def update(
        self, group: str, *, name: str | msgspec.UnsetType = msgspec.UNSET, description: apis.Text = msgspec.UNSET
    ) -> Call[apis.Group]:
        """As there."""
        body = wire.UpdateGroupRequest(name=name, description=description)
        return _change("PATCH", _path("/v1/groups/{}", group), body, _shaped(apis.Group))

    def delete(self, group: str) -> Call[None]:
        """As there."""
        return _change("DELETE", _path("/v1/groups/{}", group), None, _done)

    def add(self, group: str, handle: str) -> Call[apis.AddResult]:
        """As there."""
        body = wire.HandleRequest(handle=_handle(handle))
        return _change("POST", _path("/v1/groups/{}/members", group), body, _shaped(apis.AddResult))

    def remove(self, group: str, handle: str) -> Call[None]:
        """As there."""
        return _change("DELETE", _path("/v1/groups/{}/members/{}", group, _handle(handle)), None, _done)

    def promote(self, group: str, handle: str) -> Call[None]:
        """As there."""
        return _change("POST", _path("/v1/groups/{}/members/{}/promote", group, _handle(handle)), None, _done)

    def demote(self, group: str, handle: str) -> Call[None]:
        """As there."""
        return _change("POST", _path("/v1/groups/{}/members/{}/demote", group, _handle(handle)), None, _done)

    def leave(self, group: str) -> Call[str | None]:
        """As there."""
        return _change("POST", _path("/v1/groups/{}/leave", group), None, _promoted)

    def invites(self) -> Call[tuple[apis.GroupInvitation, ...]]:
        """As there."""
        return _get("/v1/groups/invites", tuple[apis.GroupInvitation, ...])

    def accept(self, invite_id: str) -> Call[apis.Group]:
        """As there."""
        return _change("POST", _path("/v1/groups/invites/{}/accept", invite_id), None, _shaped(apis.Group))

    def decline(self, invite_id: str) -> Call[None]:
        """As there."""
        return _change("DELETE", _path("/v1/groups/invites/{}", invite_id), None, _done)


class Mutes:
    """What the platform does not push."""

    def list(self, kind: str | None = None) -> Call[tuple[apis.MuteEntry, ...]]:
        """As there."""
        return _get("/v1/mutes", _Mutes, {} if kind is None else {"kind": kind}, _mutes)

    def agent(self, handle: str, until: datetime | None = None) -> Call[apis.MuteEntry]:
        """As there."""
        return self._mute({"target_kind": "agent", "target_handle": _handle(handle)}, until)

    def conversation(self, conversation: str, until: datetime | None = None) -> Call[apis.MuteEntry]:
        """As there."""
        return self._mute({"target_kind": "conversation", "target_id": conversation}, until)

    def unmute_agent(self, handle: str) -> Call[None]:
        """As there."""
        return _change("DELETE", _path("/v1/mutes/agent/{}", _handle(handle)), None, _done)

    def unmute_conversation(self, conversation: str) -> Call[None]:
        """As there."""
        return _change("DELETE", _path("/v1/mutes/conversation/{}", conversation), None, _done)

    def _mute(self, target: dict[str, Any], until: datetime | None) -> Call[apis.MuteEntry]:
        if until is not None and until.tzinfo is None:
            raise ValueError("until has no time zone; write for example datetime.now(UTC) + timedelta(hours=1)")
        body = {**target, "muted_until": until}
        return _change("POST", "/v1/mutes", body, _shaped(apis.MuteEntry))


class Directory:
    """Everybody on the platform."""

    def search(
        self, prefix: str, offset: int = 0, limit: int = wire.DIRECTORY_LIMIT_MAX
    ) -> Call[tuple[apis.DirectoryRow, ...]]:
        """A page of the answer."""
        return _get("/v1/directory", _DirectoryPage, {"q": _handle(prefix), **_page(limit, offset)}, _agents)


class Attachments:
    """Files."""

    def upload(
        self,
        content: bytes,
        filename: str,
        content_type: str,
        *,
        to: str | None = None,
        conversation: str | None = None,
    ) -> Call[str]:
        """As there. The two steps are one call: the address is good for minutes."""
        if (to is None) == (conversation is None):
            raise ValueError("give to or conversation")
        if len(content) > wire.ATTACHMENT_MAX_BYTES:
            raise ValueError(f"a file of {len(content):,} bytes; AgentChat takes {wire.ATTACHMENT_MAX_BYTES:,}")
        body = wire.UploadRequest(
            filename=filename,
            content_type=content_type,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            to=None if to is None else _handle(to),
            conversation_id=conversation,
        )
        return _change("POST", "/v1/uploads", body, partial(_to_store, content, content_type))

    def fetch(self, attachment_id: str) -> Call[bytes]:
        """As there."""
        return Call(Request(method="GET", path=_path("/v1/attachments/{}", attachment_id)), _to_fetch)


# --- asking ---------------------------------------------------------------------------------------------------------


def _path(pattern: str, *parts: str) -> str:
    """A path with these parts in it, each encoded whole."""
    if not all(parts):
        raise ValueError(f"{pattern}: a name or an id is empty")
    return pattern.format(*(quote(part, safe="") for part in parts))


def _handle(handle: str) -> str:
    return handle.removeprefix("@").lower()


def _page(limit: int, offset: int) -> dict[str, str]:
    return {"limit": str(limit), "offset": str(offset)}


def _get(
    path: str, shape: Any, query: Mapping[str, str] | None = None, then: Callable[[Any], Any] | None = None
) -> Call[Any]:
    return Call(Request(method="GET", path=path, query=query or {}), _Shaped(shape, then))


def _change(method: str, path: str, body: Any, read: Callable[[Response], T | Call[T]]) -> Call[T]:
    return Call(Request(method=method, path=path, body=None if body is None else wire.encoder.encode(body)), read)


# --- reading --------------------------------------------------------------------------------------------------------


class _Shaped(msgspec.Struct, Generic[S], frozen=True):
    """Reads an answer of this shape, and what is wanted of it."""

    shape: Any
    then: Callable[[Any], S] | None = None

    def __call__(self, response: Response) -> S:
        _raise_for_status(response)
        try:
            found: S = msgspec.json.decode(response.body, type=self.shape)
        except _UNREADABLE as error:
            raise WireViolation(f"an answer of another shape: {_without_content(error)}") from None
        return found if self.then is None else self.then(found)


def _shaped(shape: type[S]) -> Callable[[Response], S]:
    return _Shaped(shape)


def _done(response: Response) -> None:
    _raise_for_status(response)


def _contacts(page: _ContactPage) -> tuple[apis.Contact, ...]:
    return page.contacts


def _agents(page: _DirectoryPage) -> tuple[apis.DirectoryRow, ...]:
    return page.agents


def _mutes(found: _Mutes) -> tuple[apis.MuteEntry, ...]:
    return found.mutes


def _presences(response: Response) -> tuple[apis.PresenceState, ...]:
    found = _Shaped[_Presences](_Presences)(response)
    if found.presences:
        return found.presences
    rows = [{"handle": handle, **state} for handle, state in (found.results or {}).items() if state is not None]
    try:
        return msgspec.convert(rows, tuple[apis.PresenceState, ...])
    except msgspec.ValidationError as error:
        raise WireViolation(f"an answer of another shape: {_without_content(error)}") from None


def _promoted(response: Response) -> str | None:
    return _Shaped[_Left](_Left)(response).promoted_handle


def _history(platform: AgentChat, response: Response) -> tuple[Message, ...]:
    _raise_for_status(response)
    page = platform.read_history(response)
    return tuple(event for event in (*page.events, *page.behind) if isinstance(event, Message))


def _to_store(content: bytes, content_type: str, response: Response) -> Call[str]:
    upload = _Shaped[wire.Upload](wire.Upload)(response)
    put = Transfer(method="PUT", url=upload.upload_url, body=content, content_type=content_type)
    return Call(put, partial(_stored, upload.attachment_id))


def _stored(attachment_id: str, response: Response) -> str:
    _raise_for_storage(response)
    return attachment_id


def _to_fetch(response: Response) -> Call[bytes]:
    where = response.headers.get("location")
    if response.status in (301, 302, 303, 307, 308) and where:
        return Call(Transfer(method="GET", url=where), _fetched)
    _raise_for_status(response)
    raise WireViolation(f"GET /v1/attachments: {response.status} that names no address")


def _fetched(response: Response) -> bytes:
    _raise_for_storage(response)
    return response.body


def _raise_for_status(response: Response) -> None:
    status = response.status
    if 200 <= status < 300:
        return
    error = wire.read_error(status, response.body)
    request_id = response.headers.get(wire.Header.REQUEST_ID)
    if error.code == wire.ErrorCode.IDEMPOTENT_IN_PROGRESS:
        wait_s = asked_wait_s(response, error) or _IN_PROGRESS_S
        raise InProgress("the first attempt at this call has not ended", wait_s, request_id)
    if status in wire.RETRIABLE_STATUSES or status >= 500:
        raise Unavailable(f"{status} {error.code}: {error.message}", asked_wait_s(response, error), request_id)
    message = error.message
    if error.code == wire.ErrorCode.IDEMPOTENCY_KEY_CONFLICT:
        message = (
            "an earlier attempt at this turn made another call in this place; a handler must make the same changing "
            f"calls of ctx.api in the same order at every attempt ({message})"
        )
    raise Refused(status, error.code, message, error.details, request_id)


def _raise_for_storage(response: Response) -> None:
    """Storage is not the platform: its errors have no shape."""
    if 200 <= response.status < 300:
        return
    if response.status in wire.RETRIABLE_STATUSES or response.status >= 500:
        raise Unavailable(f"the platform's storage answers {response.status}", response.retry_after_s)
    raise Refused(response.status, "STORAGE_REFUSED", "the platform's storage does not take or give this file")


def _without_content(error: Exception) -> str:
    text = str(error)
    return text if isinstance(error, msgspec.ValidationError) and "Invalid" not in text else type(error).__name__
