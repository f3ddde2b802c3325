"""AgentChat as the daemon reads it: frames and bodies to vocabulary, and requests as values.

Always true: what cannot be read is told by path and type, never by content, and takes nothing else with it. The key
leaves here in one place only, the HELLO frame.
Not here: the shapes themselves (types.py), performing requests (transport/), deciding when (core/).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote

import msgspec

from agentd.core.events import (
    Content,
    Context,
    Event,
    GroupDeleted,
    GroupInvite,
    Message,
    Presence,
    RateLimitWarning,
    ReadReceipt,
    Send,
    Signal,
    Source,
    Typing,
)
from agentd.core.reconnect import CloseMeaning
from agentd.errors import Refused, Unavailable, WireViolation
from agentd.wire import nesting
from agentd.wire.agentchat import types as wire
from agentd.wire.platform import (
    Accepted,
    Frame,
    Hello,
    Later,
    Lookup,
    Malformed,
    Page,
    Rejected,
    Rejection,
    Request,
    Response,
    SendAnswer,
    Standing,
    Unknown,
    wait_asked_for,
)

T = TypeVar("T")

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What a decoder raises; the last where the far end nests deeper than it can follow."""

_NO_CONTEXT = Context()
_NO_METADATA: dict[str, object] = {}

_PAUSED_RETRY_S = 60.0
"""How long to leave an identity alone that its owner paused, or the platform restricted or suspended. Each of it ends
without a notice, and says nothing of what was to be sent."""

_RATE_WAIT_MAX_S = 60.0
"""The platform counts an agent's messages per second; a longer wait speaks of something else."""

_IDENTITY_WAITS = frozenset(
    {
        wire.ErrorCode.AGENT_PAUSED_BY_OWNER,
        wire.ErrorCode.RESTRICTED,
        wire.ErrorCode.SUSPENDED,
        wire.ErrorCode.AGENT_SUSPENDED,
    }
)
_TARGET_WAITS = frozenset(
    {wire.ErrorCode.RECIPIENT_BACKLOGGED, wire.ErrorCode.COLD_CAP_EXCEEDED, wire.ErrorCode.IDEMPOTENT_IN_PROGRESS}
)
_GONE = frozenset({404, 410})
"""Statuses by which a history says that the conversation is not ours to read: masked or left, deleted. From a proxy, or
where nothing stands behind it, they say nothing of it."""


class AgentChat:
    """One identity on AgentChat. Implements `agentd.wire.platform.Platform`.

    url: REST base without `/v1`. key: gives the API key when a connection needs it. handle: without `@`.
    """

    name = "agentchat"
    deduplicates_sends = True
    lookup: Lookup | None = None

    def __init__(self, identity: str, url: str, key: Callable[[], str], handle: str = "", *, version: str = "") -> None:
        self.identity = identity
        self.handle = handle
        self._url = url.rstrip("/")
        self._key = key
        self._version = version

    # -- account ----------------------------------------------------------------------------------------------------

    def account_request(self) -> Request:
        """Who the key belongs to; allowed even while suspended."""
        return Request(method="GET", path="/v1/agents/me")

    def read_account(self, response: Response) -> str:
        """The handle. Raises Refused, Unavailable, WireViolation."""
        _raise_for_status(response)
        try:
            return wire.decode_agent(response.body).handle.lstrip("@").lower()
        except _UNREADABLE as error:
            raise WireViolation(f"GET /v1/agents/me: {_without_content(error)}") from None

    # -- the socket -------------------------------------------------------------------------------------------------

    def link_url(self) -> str:
        """Address of the socket; the key is never part of it."""
        return "ws" + self._url.removeprefix("http") + wire.SOCKET_PATH

    def hello(self) -> bytes:
        """HELLO with the ack capability. Carries the key."""
        return wire.encoder.encode(
            wire.Hello(
                api_key=self._key(),
                capabilities=[wire.CAPABILITY_ACK],
                client=self.client_name,
                client_version=self._version,
            )
        )

    client_name = "agentd"

    def close_meaning(self, code: int | None, reason: str) -> CloseMeaning:
        """1008, 4401 and 4403 refuse the key: it is bad, rotated or suspended.

        1008 also ends a HELLO that came too late or not whole, which says nothing about the key: a loop that was
        blocked must not park a good identity.
        """
        if code in wire.AUTH_TERMINAL_CLOSE_CODES and not reason.startswith("HELLO"):
            return CloseMeaning.REFUSED
        return CloseMeaning.AGAIN

    def decode(self, frame: str | bytes) -> Frame:
        """What a frame says: an Event for `message.new`, a Signal, or what it is instead. Never raises."""
        try:
            found = _unnested(wire.decode_server_frame, frame)
            if found.type == "message.new":
                return self._message(bytes(found.payload), Source.LIVE)
            return self._other(found)
        except _UNREADABLE as error:
            return Malformed(_without_content(error))

    def ack(self, event: Event) -> bytes:
        """The frame that settles one message, however it came."""
        return wire.encoder.encode(wire.Ack(message_id=event.id))

    def revive(self, payload: bytes, *, epoch: int, late: bool, source: Source) -> Event:
        """The event that was journaled with this payload."""
        return self._message(payload, source, epoch=epoch, late=late)

    # -- reading ----------------------------------------------------------------------------------------------------

    def drain_request(self, after: str | None) -> Request:
        """A page of what is still stored for this identity, oldest first."""
        query = {"limit": str(wire.SYNC_LIMIT_MAX)}
        return Request(method="GET", path="/v1/messages/sync", query=query | ({"after": after} if after else {}))

    def read_drain(self, response: Response) -> Page:
        """The page up to its first malformed row. Raises Refused, Unavailable, WireViolation."""
        return self._page(response, Source.DRAIN)

    def drain_ack_request(self, cursor: str) -> Request:
        """Everything up to this row is on disk. Idempotent."""
        body = wire.encoder.encode(wire.SyncAckRequest(last_delivery_id=cursor))
        return Request(method="POST", path="/v1/messages/sync/ack", body=body)

    def history_request(self, conversation: str, after_seq: int, limit: int) -> Request:
        """Rows with seq > after_seq, rising, own ones included; settles nothing."""
        query = {"after_seq": str(after_seq), "limit": str(min(limit, wire.HISTORY_LIMIT_MAX))}
        return Request(method="GET", path=f"/v1/messages/{quote(conversation, safe='')}", query=query)

    def newest_request(self, conversation: str) -> Request:
        """The last row of a conversation."""
        return Request(method="GET", path=f"/v1/messages/{quote(conversation, safe='')}", query={"limit": "1"})

    def read_history(self, response: Response) -> Page:
        """Raises Refused where the conversation is not ours to read (any more), else as `read_drain`."""
        return self._page(response, Source.REFETCH)

    def conversations_request(self) -> Request:
        """The conversations of this identity in which something was said last."""
        return Request(method="GET", path="/v1/conversations", query={"limit": "100", "offset": "0"})

    def read_conversations(self, response: Response) -> list[Standing]:
        """What the server lists, without the rows that cannot be read. Raises Refused, Unavailable, WireViolation."""
        _raise_for_status(response)
        found: list[Standing] = []
        for raw in _rows(response):
            try:
                row = wire.decode_conversation_top(raw)
            except _UNREADABLE:
                continue  # only a hint is lost: the history of each conversation is compared as well
            found.append(Standing(row.id, row.oldest_unread_seq, row.newest_unread_seq))
        return found

    def mute_requests(self, conversation: str, sender: str) -> tuple[Request, ...]:
        """What is muted is stored for us, drained and counted as unread, but neither pushed nor told to its sender."""
        paths = (f"conversation/{quote(conversation, safe='')}", f"agent/{quote(sender, safe='')}")
        return tuple(Request(method="GET", path=f"/v1/mutes/{path}") for path in paths)

    def read_mute(self, response: Response) -> bool:
        """The entry, or 404."""
        if response.status != 404:
            _raise_for_status(response)
        return response.status != 404

    # -- sending ----------------------------------------------------------------------------------------------------

    def address(self, target: str) -> str:
        """The server takes a handle in any case, and has it in lower case. Ids are opaque."""
        return target.lower() if target.startswith("@") else target

    def send_request(self, send: Send) -> Request:
        """`POST /v1/messages`; the platform deduplicates by client_msg_id, so it may always be repeated."""
        content = send.content
        direct = send.target.startswith("@")
        body = wire.SendRequest(
            client_msg_id=send.client_msg_id,
            to=send.target if direct else None,
            conversation_id=None if direct else send.target,
            type=_kind(content),
            content=wire.MessageContent(text=content.text, data=content.data, attachment_id=content.attachment_id),
            metadata=content.metadata or None,
        )
        return Request(method="POST", path="/v1/messages", body=wire.encoder.encode(body))

    def read_send(self, response: Response, send: Send) -> SendAnswer:
        """What the answer means for this send. Raises WireViolation if a success carries no message."""
        backlog = wire.read_backlog_warning(response.headers.get(wire.Header.BACKLOG_WARNING))
        if 200 <= response.status < 300:
            try:
                row = wire.decode_message(response.body)
                event = self._message(response.body, Source.OWN)
            except _UNREADABLE as error:
                raise WireViolation(f"POST /v1/messages: {_without_content(error)}") from None
            return Accepted(
                event,
                replayed=response.headers.get(wire.Header.IDEMPOTENT_REPLAY, "").lower() == "true",
                backlog=backlog,
                skipped=tuple(row.skipped_recipients or ()),
            )
        return _refusal(response, backlog, direct=send.target.startswith("@"))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _message(self, payload: bytes, source: Source, *, epoch: int = 1, late: bool = False) -> Message:
        try:
            row = wire.decode_message(payload)
            deep = bool((row.content is not None and row.content.data) or row.metadata)
        except RecursionError:
            deep = True
        if deep and (shallow := nesting.cut(payload)) is not payload:
            payload, row = shallow, wire.decode_message(shallow)
        content, found = row.content, row.context
        context = _NO_CONTEXT if found is None else _context(found)
        own = row.sender == self.handle
        direct = context.direct if context.direct is not None else not _is_group(row.conversation_id)
        # A direct conversation is addressed by handle, since its id is refused; a group has only its id.
        answer_to = row.conversation_id if not direct else "" if own else f"@{row.sender}"
        return Message(
            identity=self.identity,
            conversation=row.conversation_id,
            seq=row.seq,
            id=row.id,
            sender=row.sender,
            created_at=row.created_at or "",
            own=own,
            source=source,
            epoch=epoch,
            late=late,
            delivery_id=row.delivery_id,
            payload=payload,
            kind=row.type or "text",
            text=content.text if content is not None else None,
            data=content.data if content is not None else None,
            attachment_id=content.attachment_id if content is not None else None,
            metadata=row.metadata or _NO_METADATA,
            context=context,
            direct=direct,
            mentioned=self.handle in context.mentions,
            answer_to=answer_to,
            client_msg_id=(row.client_msg_id or "") if own else "",
        )

    def _page(self, response: Response, source: Source) -> Page:
        _raise_for_status(response)
        rows = _rows(response)
        clean: list[Event] = []
        behind: list[Event] = []
        malformed: Malformed | None = None
        for raw in rows:
            try:
                event = self._message(bytes(raw), source)
            except _UNREADABLE as error:
                malformed = malformed or Malformed(_without_content(error))
            else:
                (behind if malformed else clean).append(event)
        cursor = next((event.delivery_id for event in reversed(clean) if event.delivery_id), None)
        return Page(clean, malformed, behind, cursor, len(rows))

    def _other(self, frame: wire.ServerFrame) -> Frame:
        kind, payload = frame.type, bytes(frame.payload)
        if kind == wire.FrameType.HELLO_OK:
            return Hello(acks=wire.CAPABILITY_ACK in (frame.capabilities or ()))
        if kind in wire.REJECTION_FRAMES:
            refused = wire.decode_rejection(payload) if payload else wire.RejectionPayload()
            return Rejected(refused.message or refused.reason or kind)
        return self._signal(kind, payload) or Unknown(kind)

    def _signal(self, kind: str, payload: bytes) -> Signal | None:
        me = self.identity
        match kind:
            case wire.FrameType.TYPING_START | wire.FrameType.TYPING_STOP:
                typing = wire.decode_typing(payload)
                active = kind == wire.FrameType.TYPING_START
                return Typing(
                    identity=me, conversation=typing.conversation_id, sender=typing.sender or "", active=active
                )
            case wire.FrameType.PRESENCE_UPDATE:
                seen = wire.decode_presence(payload)
                note = seen.custom_message or seen.custom_status
                return Presence(identity=me, handle=seen.handle, status=seen.status, note=note)
            case wire.FrameType.MESSAGE_READ:
                read = wire.decode_read(payload)
                return ReadReceipt(
                    identity=me,
                    conversation=read.conversation_id,
                    reader=read.reader or read.read_by or "",
                    through_seq=read.through_seq,
                    message_id=read.message_id,
                )
            case wire.FrameType.RATE_LIMIT_WARNING:
                rate = wire.decode_rate_limit(payload)
                reset_at = None if rate.reset_at is None else str(rate.reset_at)
                return RateLimitWarning(
                    identity=me,
                    endpoint=rate.endpoint,
                    limit=rate.limit,
                    remaining=rate.remaining,
                    reset_at=reset_at,
                )
            case wire.FrameType.GROUP_INVITE_RECEIVED:
                invite = wire.decode_invitation(payload)
                return GroupInvite(
                    identity=me,
                    invite_id=invite.id,
                    group_id=invite.group_id,
                    group_name=invite.group_name,
                    inviter=invite.inviter_handle,
                )
            case wire.FrameType.GROUP_DELETED:
                gone = wire.decode_deleted_group(payload)
                return GroupDeleted(
                    identity=me,
                    conversation=gone.group_id,
                    group_id=gone.group_id,
                    deleted_by=gone.deleted_by_handle or "",
                )
        return None


def _rows(response: Response) -> list[msgspec.Raw]:
    try:
        return _unnested(wire.decode_rows, response.body)
    except _UNREADABLE as error:
        raise WireViolation(f"not a list of rows: {_without_content(error)}") from None


def _unnested(decode: Callable[[bytes], T], json: str | bytes) -> T:
    """What holds messages one level down, decoded; what is nested too deeply in them is cut first if it must be."""
    given = json.encode() if isinstance(json, str) else json
    try:
        return decode(given)
    except RecursionError:
        return decode(nesting.cut(given, nesting.DEPTH_MAX + 1))


def _is_group(conversation: str) -> bool:
    return conversation.startswith(wire.GROUP_ID_PREFIX)


def _context(found: wire.MessageContext) -> Context:
    sender, place = found.sender, found.conversation
    kind = place.type if place is not None else None
    return Context(
        sender_name=sender.display_name if sender is not None else None,
        sender_kind=sender.kind if sender is not None else None,
        direct=None if kind is None else kind == "direct",
        group_name=place.group_name if place is not None else None,
        member_count=place.member_count if place is not None else None,
        mentions=tuple(found.mentions or ()),
    )


def _kind(content: Content) -> str | None:
    if content.kind is not None:
        return content.kind
    if content.attachment_id is not None:
        return wire.MessageType.FILE
    return wire.MessageType.STRUCTURED if content.text is None else None


def _refusal(response: Response, backlog: tuple[str, int] | None, *, direct: bool) -> SendAnswer:
    status = response.status
    error = wire.read_error(status, response.body)
    request_id = response.headers.get(wire.Header.REQUEST_ID)
    wait_s = asked_wait_s(response, error)
    backlog = backlog or _undelivered(error)

    def later(scope: str, at_least_s: float | None = None) -> Later:
        wait = wait_s if at_least_s is None else max(wait_s or 0.0, at_least_s)
        return Later(code=error.code, scope=scope, retry_after_s=wait, backlog=backlog, request_id=request_id)

    if error.code == wire.ErrorCode.AWAITING_REPLY:
        return later("reply")
    if error.code in _IDENTITY_WAITS:
        return later("identity", _PAUSED_RETRY_S)
    if error.code in _TARGET_WAITS:
        return later("target")
    if status == 429:
        # The answer does not say which limit was reached. A group has one that all who speak there share, and the cap
        # on first messages to strangers lasts for hours; the identity's own is over in seconds. If it was that one
        # after all, the next send to anybody else says so.
        of_identity = direct and (wait_s is None or wait_s <= _RATE_WAIT_MAX_S)
        return later("identity" if of_identity else "target")
    if status in wire.RETRIABLE_STATUSES or status >= 500:
        return later("target")
    return Rejection(
        status=status, code=error.code, message=error.message, request_id=request_id, credentials=status == 401
    )


def _undelivered(error: wire.ErrorBody) -> tuple[str, int] | None:
    """What a refusal for its backlog tells of the recipient."""
    handle, count = error.details.get("recipient_handle"), error.details.get("undelivered_count")
    return (handle, count) if isinstance(handle, str) and isinstance(count, int) else None


def asked_wait_s(response: Response, error: wire.ErrorBody) -> float | None:
    """How long the platform asks us to wait, in the header or else in the body; None where it does not."""
    if response.retry_after_s is not None:
        return response.retry_after_s
    told_ms = error.details.get("retry_after_ms")
    return wait_asked_for(told_ms / 1000) if isinstance(told_ms, (int, float)) else None


def _raise_for_status(response: Response) -> None:
    if response.status == 200:
        return
    error = wire.read_error(response.status, response.body)
    request_id = response.headers.get(wire.Header.REQUEST_ID)
    gone = response.status in _GONE or (response.status == 403 and error.code == wire.ErrorCode.FORBIDDEN)
    if gone and wire.is_the_platforms(response.body):
        raise Refused(response.status, error.code, error.message, error.details, request_id)
    raise Unavailable(f"{response.status} {error.code}", asked_wait_s(response, error), request_id)


def _without_content(error: Exception) -> str:
    """A decoding error's text without what was decoded: the library quotes values in a few of its messages."""
    text = str(error)
    return text if isinstance(error, msgspec.ValidationError) and "Invalid" not in text else type(error).__name__
