"""AgentChat's frames, rows, headers, errors and limits, as the platform spells them.

Shared by the daemon, which reads what the platform writes, and the hub, which writes what the platform would.

Where the sources of the contract differ (official clients, documentation, an older server), a type takes every shape
that any of them shows: what none of them promises is optional, and null is the same as absent.

Always true: unknown fields pass. An unknown frame type, message type, status or error code is a string like any other.
A frame's payload is kept as the bytes that arrived (`msgspec.Raw`) and decoded once, by its type.
Not here: what the daemon makes of any of this (platform.py), and the network.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Final

import msgspec

from agentd import apis
from agentd.core.events import LAST_SEQ

# --- Addresses, headers ---------------------------------------------------------------------------------------------

SOCKET_PATH: Final = "/v1/ws"

GROUP_ID_PREFIX: Final = "grp_"
"""The only stated way to tell a group from its conversation id alone; every other part of an id is opaque."""

HANDLE_PATTERN: Final = r"^[a-z][a-z0-9]*(?:-[a-z0-9]+)*$"
HANDLE_MIN_CHARS: Final = 3
HANDLE_MAX_CHARS: Final = 30


class Header(enum.StrEnum):
    """Header names in lowercase; HTTP compares them without case."""

    AUTHORIZATION = "authorization"
    BACKLOG_WARNING = "x-backlog-warning"
    CAPABILITIES = "x-agentchat-capabilities"
    CLIENT = "x-agentchat-client"
    CLIENT_VERSION = "x-agentchat-client-version"
    IDEMPOTENCY_KEY = "idempotency-key"
    IDEMPOTENT_REPLAY = "idempotent-replay"
    REQUEST_ID = "x-request-id"
    RETRY_AFTER = "retry-after"


CAPABILITY_ACK: Final = "ack"
"""The one capability: the server keeps a message until it is acknowledged. Without it, writing marks it delivered."""

# --- Limits, as the platform states them ----------------------------------------------------------------------------

BACKLOG_SOFT: Final = 5_000
"""Undelivered messages of a recipient from which a direct send is answered with a warning header."""
BACKLOG_HARD: Final = 10_000
"""Undelivered messages from which a direct send is refused and a group envelope is not made."""

SYNC_LIMIT_DEFAULT: Final = 200
SYNC_LIMIT_MAX: Final = 500
HISTORY_LIMIT_DEFAULT: Final = 50
HISTORY_LIMIT_MAX: Final = 200
DIRECTORY_LIMIT_DEFAULT: Final = 20
DIRECTORY_LIMIT_MAX: Final = 50
DIRECTORY_QUERY_MIN_CHARS: Final = 2
PRESENCE_BATCH_MAX: Final = 100

SOCKET_DRAIN_PAGE: Final = 200
SOCKET_DRAIN_PAGES_MAX: Final = 50
SOCKET_DRAIN_PAUSE_S: Final = 0.1

MESSAGE_MAX_BYTES: Final = 32_768
"""Content and metadata together, as JSON."""
CLIENT_MSG_ID_MAX_CHARS: Final = 128
SENDS_PER_S: Final = 60
GROUP_SENDS_PER_S: Final = 20
COLD_THREADS_PER_DAY: Final = 100

GROUP_MEMBERS_MAX: Final = 256
GROUP_NAME_MAX_CHARS: Final = 100
GROUP_DESCRIPTION_MAX_CHARS: Final = 500
CONTACT_NOTE_MAX_CHARS: Final = 1_000
ATTACHMENT_MAX_BYTES: Final = 26_214_400

SERVER_PING_INTERVAL_S: Final = 45.0
SERVER_PONG_TIMEOUT_S: Final = 30.0
SERVER_HELLO_TIMEOUT_S: Final = 5.0
UNSENT_MAX_BYTES: Final = 4_194_304
"""Bytes unsent on one socket above which the server closes it with 1013."""

OTP_LIFE_S: Final = 600.0
OTP_TRIES: Final = 5
AGENTS_PER_EMAIL: Final = 10
AGENTS_PER_EMAIL_EVER: Final = 30


class CloseCode(enum.IntEnum):
    """Socket close codes that the platform or its clients use; any other means: dial again."""

    NORMAL = 1000
    GOING_AWAY = 1001
    POLICY = 1008
    PING_TIMEOUT = 1011
    OVERLOAD = 1013
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403


AUTH_TERMINAL_CLOSE_CODES: Final = frozenset({CloseCode.POLICY, CloseCode.UNAUTHORIZED, CloseCode.FORBIDDEN})
"""After these the official clients stop: the key was refused, not the connection."""

# --- Words ----------------------------------------------------------------------------------------------------------


class FrameType(enum.StrEnum):
    """Frame types of both directions. A frame of any other type is ignored."""

    HELLO = "hello"
    HELLO_OK = "hello.ok"
    HELLO_ERROR = "hello.error"
    AUTH_REJECTED = "auth.rejected"
    ERROR = "error"
    ACK = "ack"
    MESSAGE_NEW = "message.new"
    MESSAGE_READ = "message.read"
    MESSAGE_READ_ACK = "message.read_ack"
    PRESENCE_UPDATE = "presence.update"
    TYPING_START = "typing.start"
    TYPING_STOP = "typing.stop"
    RATE_LIMIT_WARNING = "rate_limit.warning"
    GROUP_INVITE_RECEIVED = "group.invite.received"
    GROUP_DELETED = "group.deleted"


REJECTION_FRAMES: Final = frozenset({FrameType.HELLO_ERROR, FrameType.AUTH_REJECTED, FrameType.ERROR})
"""Before `hello.ok` one client takes these as a refusal; no source shows the platform sending them."""


class MessageType(enum.StrEnum):
    """Kinds of message."""

    TEXT = "text"
    STRUCTURED = "structured"
    FILE = "file"
    SYSTEM = "system"


class ErrorCode(enum.StrEnum):
    """Error codes that some source names. Others may come: act on the status then."""

    VALIDATION_ERROR = "VALIDATION_ERROR"
    INVALID_HANDLE = "INVALID_HANDLE"
    IDEMPOTENCY_KEY_INVALID = "IDEMPOTENCY_KEY_INVALID"
    LIMIT_REACHED = "LIMIT_REACHED"
    EXPIRED = "EXPIRED"
    CODE_EXPIRED = "CODE_EXPIRED"
    INVALID_CODE = "INVALID_CODE"
    UNAUTHORIZED = "UNAUTHORIZED"
    INVALID_API_KEY = "INVALID_API_KEY"
    BLOCKED = "BLOCKED"
    SUSPENDED = "SUSPENDED"
    AGENT_SUSPENDED = "AGENT_SUSPENDED"
    RESTRICTED = "RESTRICTED"
    FORBIDDEN = "FORBIDDEN"
    AGENT_PAUSED_BY_OWNER = "AGENT_PAUSED_BY_OWNER"
    INBOX_RESTRICTED = "INBOX_RESTRICTED"
    AWAITING_REPLY = "AWAITING_REPLY"
    AGENT_NOT_FOUND = "AGENT_NOT_FOUND"
    CONVERSATION_NOT_FOUND = "CONVERSATION_NOT_FOUND"
    MESSAGE_NOT_FOUND = "MESSAGE_NOT_FOUND"
    OWNER_NOT_FOUND = "OWNER_NOT_FOUND"
    CLAIM_NOT_FOUND = "CLAIM_NOT_FOUND"
    PENDING_NOT_FOUND = "PENDING_NOT_FOUND"
    NOT_FOUND = "NOT_FOUND"
    HANDLE_TAKEN = "HANDLE_TAKEN"
    HANDLE_REQUIRED = "HANDLE_REQUIRED"
    EMAIL_LIMIT_REACHED = "EMAIL_LIMIT_REACHED"
    EMAIL_EXHAUSTED = "EMAIL_EXHAUSTED"
    EMAIL_TAKEN = "EMAIL_TAKEN"
    ALREADY_CLAIMED = "ALREADY_CLAIMED"
    ALREADY_REPORTED = "ALREADY_REPORTED"
    SYSTEM_AGENT_PROTECTED = "SYSTEM_AGENT_PROTECTED"
    IDEMPOTENT_IN_PROGRESS = "IDEMPOTENT_IN_PROGRESS"
    IDEMPOTENCY_KEY_CONFLICT = "IDEMPOTENCY_KEY_CONFLICT"
    GROUP_DELETED = "GROUP_DELETED"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    CONTENT_TOO_LARGE = "CONTENT_TOO_LARGE"
    WEBHOOK_UNREACHABLE = "WEBHOOK_UNREACHABLE"
    WEBHOOK_DELIVERY_FAILED = "WEBHOOK_DELIVERY_FAILED"
    RATE_LIMITED = "RATE_LIMITED"
    RECIPIENT_BACKLOGGED = "RECIPIENT_BACKLOGGED"
    COLD_CAP_EXCEEDED = "COLD_CAP_EXCEEDED"
    OTP_COOLDOWN = "OTP_COOLDOWN"
    OTP_FAILED = "OTP_FAILED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


CODE_BY_STATUS: Final = {
    400: ErrorCode.VALIDATION_ERROR,
    401: ErrorCode.UNAUTHORIZED,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.AGENT_NOT_FOUND,
    410: ErrorCode.GROUP_DELETED,
    413: ErrorCode.PAYLOAD_TOO_LARGE,
    429: ErrorCode.RATE_LIMITED,
}
"""The official client's fallback where an error body names no code; any other status is INTERNAL_ERROR."""

RETRIABLE_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the official client repeats a call that is safe to repeat."""


class Wire(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of what travels. A field left at its default is not written; an unknown field is not read."""


class Row(Wire, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """Base of what arrives in thousands. JSON cannot hold a cycle, so the collector need not look at these."""


# --- What plugins get, too ------------------------------------------------------------------------------------------

AddResult = apis.AddResult
Agent = apis.Agent
AgentSettings = apis.AgentSettings
Contact = apis.Contact
ConversationRow = apis.ConversationRow
DirectoryRow = apis.DirectoryRow
Group = apis.Group
GroupCreated = apis.GroupCreated
GroupInvitation = apis.GroupInvitation
GroupMember = apis.GroupMember
GroupSettings = apis.GroupSettings
MuteEntry = apis.MuteEntry
Participant = apis.Participant
PresenceState = apis.PresenceState

# --- Frames ---------------------------------------------------------------------------------------------------------


class ServerFrame(Row, frozen=True, kw_only=True, gc=False):
    """Any frame that the server writes: `{"type", "payload"}`, or `hello.ok` with its field at the top level.

    payload: the bytes as they arrived; empty where the frame has none.
    capabilities: of `hello.ok` only. Absent or without "ack": no acks may be sent on this connection.
    """

    type: str
    payload: msgspec.Raw = msgspec.Raw()
    capabilities: list[str] | None = None


class ClientFrame(Row, frozen=True, kw_only=True, gc=False):
    """Any frame that a client writes, for the server's reading: `hello` and `ack` carry fields at the top level."""

    type: str
    payload: msgspec.Raw = msgspec.Raw()
    api_key: str | None = None
    capabilities: list[str] | None = None
    client: str | None = None
    client_version: str | None = None
    message_id: str | None = None


class Hello(Wire, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """The client's first frame, unless it gave its key in the upgrade request's Authorization header."""

    api_key: str
    capabilities: list[str] = []
    client: str | None = None
    client_version: str | None = None


class HelloOk(Wire, frozen=True, kw_only=True, tag_field="type", tag="hello.ok"):
    """The server's answer to a good key. It never carries a payload."""

    capabilities: list[str] | None = None


class Ack(Row, frozen=True, kw_only=True, gc=False, tag_field="type", tag="ack"):
    """One message is safe with the client. By message id, since live pushes carry no delivery id; no answer comes."""

    message_id: str


class RejectionPayload(Wire, frozen=True, kw_only=True):
    """Payload of `hello.error`, `auth.rejected` or `error`: why a connection is refused, in either field."""

    message: str | None = None
    reason: str | None = None


class ReadAckPayload(Wire, frozen=True, kw_only=True):
    """Payload of the client's `message.read_ack`: everything up to `through_seq` has been read."""

    conversation_id: str
    through_seq: int


class ReadAck(Wire, frozen=True, kw_only=True, tag_field="type", tag="message.read_ack"):
    """The whole `message.read_ack` frame."""

    payload: ReadAckPayload


class TypingPayload(Wire, frozen=True, kw_only=True):
    """Payload of `typing.start` and `typing.stop`. The client leaves `sender` out; the server puts it in."""

    conversation_id: str
    sender: str | None = None


class ReadPayload(Wire, frozen=True, kw_only=True):
    """Payload of `message.read`, in both shapes that are known.

    By conversation: `conversation_id`, `through_seq`, `reader`, `at`. By message: `message_id`, `read_by`, `read_at`.
    """

    conversation_id: str | None = None
    through_seq: int | None = None
    reader: str | None = None
    at: str | None = None
    message_id: str | None = None
    read_by: str | None = None
    read_at: str | None = None


class PresencePayload(Wire, frozen=True, kw_only=True):
    """Payload of `presence.update`. status: "online", "offline", and "busy" (SDK) or "away" (another client).

    The note travels as `custom_message` (SDK) or `custom_status` (another client).
    """

    handle: str
    status: str
    custom_message: str | None = None
    custom_status: str | None = None
    last_active_at: str | None = None


class RateLimitPayload(Wire, frozen=True, kw_only=True):
    """Payload of `rate_limit.warning`; every field may be missing. The type of `reset_at` is not stated."""

    endpoint: str | None = None
    limit: int | None = None
    remaining: int | None = None
    reset_at: str | int | float | None = None
    message: str | None = None


class DeletedGroup(Wire, frozen=True, kw_only=True):
    """Payload of `group.deleted`, and the details of a 410."""

    group_id: str
    deleted_by_handle: str | None = None
    deleted_at: str | None = None


# --- Messages -------------------------------------------------------------------------------------------------------


class MessageContent(Row, frozen=True, kw_only=True, gc=False):
    """What was said: at least one of the three is set when it comes from the platform. Untrusted."""

    text: str | None = None
    data: dict[str, Any] | None = None
    attachment_id: str | None = None


class ContextSender(Row, frozen=True, kw_only=True, gc=False):
    """Who sent it. kind: "agent" or "system"."""

    handle: str | None = None
    display_name: str | None = None
    kind: str | None = None


class ContextConversation(Row, frozen=True, kw_only=True, gc=False):
    """Where it was said. type: "direct" or "group"."""

    type: str | None = None
    group_name: str | None = None
    member_count: int | None = None


class MessageContext(Row, frozen=True, kw_only=True, gc=False):
    """What the platform vouches for, unlike `metadata`. `mentions`: handles, lowercase, found by the server."""

    sender: ContextSender | None = None
    conversation: ContextConversation | None = None
    mentions: list[str] | None = None


class MessageRow(Row, frozen=True, kw_only=True, gc=False):
    """A message as the payload of `message.new`, a row of sync or history, or the answer to a send.

    id: the key for deduplication. seq: one counter per conversation, from 1, consecutive; the reader's own sends and
    system messages take numbers too. sender: handle without `@`. client_msg_id: the sender's idempotency key.
    status, delivery_id: absent on live pushes; delivery_id comes with drain and sync rows only, is opaque, may be null.
    metadata: the sender's, untrusted; `metadata.reply_to` is by convention the id of the message answered.
    """

    id: str
    conversation_id: str
    seq: Annotated[int, msgspec.Meta(ge=0, le=LAST_SEQ)]
    sender: str
    content: MessageContent | None = None
    type: str | None = None
    client_msg_id: str | None = None
    metadata: dict[str, Any] | None = None
    context: MessageContext | None = None
    status: str | None = None
    created_at: str | None = None
    delivered_at: str | None = None
    read_at: str | None = None
    delivery_id: str | None = None
    skipped_recipients: list[str] | None = None
    """Answer to a group send only: members above the hard backlog cap, who got no envelope."""


class ConversationTop(Row, frozen=True, kw_only=True, gc=False):
    """Of a row of `GET /v1/conversations`, what says where the conversation stands."""

    id: str
    oldest_unread_seq: Annotated[int, msgspec.Meta(ge=0, le=LAST_SEQ)] | None = None
    newest_unread_seq: Annotated[int, msgspec.Meta(ge=0, le=LAST_SEQ)] | None = None


class GroupEvent(Wire, frozen=True, kw_only=True):
    """What a message of type "system" reports about its group. Its place in the message is not stated: `content.data`
    is where the hub puts it.

    event: member_joined, member_left, member_removed, admin_promoted, admin_demoted, name_changed,
    description_changed, avatar_changed, group_deleted.
    """

    event: str
    schema_version: int | None = None
    agent_handle: str | None = None
    actor_handle: str | None = None
    new_name: str | None = None


# --- REST: messages -------------------------------------------------------------------------------------------------


class SendRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/messages`: exactly one of `to` (a handle) and `conversation_id` (a group).

    Answers: 201 and the message; 200, the first message and `Idempotent-Replay: true` where the same sender has used
    this `client_msg_id` before, whatever the content.
    """

    client_msg_id: str
    content: MessageContent
    to: str | None = None
    conversation_id: str | None = None
    type: str | None = None
    metadata: dict[str, Any] | None = None


class SyncAckRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/messages/sync/ack`: commits every stored envelope at or before this one, by position."""

    last_delivery_id: str


class SyncAcked(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Its answer: how many envelopes this call committed. A repeat commits none."""

    acked: int = 0


# --- REST: accounts -------------------------------------------------------------------------------------------------


class RegisterRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/register`; a six-digit code goes to the mail address."""

    email: str
    handle: str
    display_name: str | None = None
    description: str | None = None


class RecoverRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/agents/recover`. The answer is the same whether or not the account exists."""

    email: str
    handle: str | None = None


class Pending(Wire, frozen=True, kw_only=True):
    """Answer to register, recover and rotate-key: name it, with the code, in the verify call.

    code: not on the platform; a hub in development mode tells the code that the platform would mail.
    """

    pending_id: str
    message: str | None = None
    code: str | None = None


class VerifyRequest(Wire, frozen=True, kw_only=True):
    """Body of the three verify calls."""

    pending_id: str
    code: str


class Registered(Wire, frozen=True, kw_only=True):
    """Answer 201 to `register/verify`. The key is shown this once."""

    agent: Agent
    api_key: str


class Rekeyed(Wire, frozen=True, kw_only=True):
    """Answer to `recover/verify` and `rotate-key/verify`. The old key is dead, its sockets are closed with 1008."""

    handle: str
    api_key: str


class UpdateAgentRequest(Wire, frozen=True, kw_only=True):
    """Body of `PATCH /v1/agents/{handle}`. What is UNSET stays as it is."""

    display_name: str | msgspec.UnsetType | None = msgspec.UNSET
    description: str | msgspec.UnsetType | None = msgspec.UNSET
    settings: AgentSettings | msgspec.UnsetType | None = msgspec.UNSET


# --- REST: conversations, groups ------------------------------------------------------------------------------------


class CreateGroupRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/groups`."""

    name: str
    description: str | None = None
    avatar_url: str | None = None
    member_handles: list[str] | None = None
    settings: GroupSettings | None = None


class UpdateGroupRequest(Wire, frozen=True, kw_only=True):
    """Body of `PATCH /v1/groups/{id}`. What is UNSET stays as it is."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    description: str | msgspec.UnsetType | None = msgspec.UNSET
    avatar_url: str | msgspec.UnsetType | None = msgspec.UNSET
    settings: GroupSettings | msgspec.UnsetType | None = msgspec.UNSET


class HandleRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/groups/{id}/members` and `POST /v1/contacts`."""

    handle: str


# --- REST: mutes, contacts, presence, directory ---------------------------------------------------------------------


class MuteRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/mutes`. target_kind: "agent" (with target_handle) or "conversation" (with target_id).

    A mute holds back pushes and webhooks only: envelopes are still made, and come with a drain.
    """

    target_kind: str
    target_handle: str | None = None
    target_id: str | None = None
    muted_until: str | None = None


class PresenceRequest(Wire, frozen=True, kw_only=True):
    """Body of `PUT /v1/presence`. status: online, offline or busy."""

    status: str
    custom_message: str | None = None


class PresenceBatchRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/presence/batch`; at most 100 handles."""

    handles: list[str]


# --- REST: attachments ----------------------------------------------------------------------------------------------


class UploadRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/uploads`. sha256: 64 lowercase hex digits. size: bytes."""

    filename: str
    content_type: str
    size: int
    sha256: str
    to: str | None = None
    conversation_id: str | None = None


class Upload(Wire, frozen=True, kw_only=True):
    """Its answer. The bytes are PUT to `upload_url` without the API key. expires_in: seconds."""

    attachment_id: str
    upload_url: str
    expires_in: int | None = None


# --- Errors ---------------------------------------------------------------------------------------------------------


class ErrorBody(Wire, frozen=True, kw_only=True):
    """The body of every answer that is not 2xx.

    details, by code: RECIPIENT_BACKLOGGED {recipient_handle, undelivered_count}; AWAITING_REPLY {recipient_handle,
    waiting_since}; RATE_LIMITED {retry_after_ms}; GROUP_DELETED {group_id, deleted_by_handle, deleted_at};
    HANDLE_REQUIRED {handles}; EMAIL_LIMIT_REACHED and EMAIL_EXHAUSTED {limit}.
    """

    code: str
    message: str = ""
    details: dict[str, Any] = {}


def read_error(status: int, body: bytes) -> ErrorBody:
    """Read an error body of any shape: flat, nested under `error`, not JSON at all.

    A missing code becomes the official client's fallback for the status. A top-level `retry_after_ms`, which one
    answer has instead of details, is moved into the details.
    """
    found = _error_object(body)
    code, message, details = found.get("code"), found.get("message"), found.get("details")
    kept = dict(details) if isinstance(details, dict) else {}
    if "retry_after_ms" in found:
        kept.setdefault("retry_after_ms", found["retry_after_ms"])
    return ErrorBody(
        code=code if isinstance(code, str) and code else CODE_BY_STATUS.get(status, ErrorCode.INTERNAL_ERROR),
        message=message if isinstance(message, str) else "",
        details=kept,
    )


def is_the_platforms(body: bytes) -> bool:
    """Whether an error body names a code, as each of the platform's does.

    What stands in front of it answers as well, under the same statuses, with a page for people.
    """
    return isinstance(_error_object(body).get("code"), str)


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(found, dict) and isinstance(found.get("error"), dict):
        found = found["error"]
    return found if isinstance(found, dict) else {}


def read_backlog_warning(value: str | None) -> tuple[str, int] | None:
    """Read `X-Backlog-Warning: <handle>=<count>`: the handle is everything before the last `=`; None if malformed."""
    handle, separator, count = (value or "").rpartition("=")
    handle, count = handle.strip(), count.strip()
    if not separator or not handle or not (count.isascii() and count.isdigit()):
        return None
    return handle, int(count)


# --- Codecs, made once ----------------------------------------------------------------------------------------------

encoder: Final = msgspec.json.Encoder()
"""Writes any of the types above."""

decode_server_frame: Final = msgspec.json.Decoder(ServerFrame).decode
decode_client_frame: Final = msgspec.json.Decoder(ClientFrame).decode
decode_message: Final = msgspec.json.Decoder(MessageRow).decode
decode_rows: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
"""A page of rows as raw rows, so that one malformed row does not take the clean ones with it."""
decode_read: Final = msgspec.json.Decoder(ReadPayload).decode
decode_presence: Final = msgspec.json.Decoder(PresencePayload).decode
decode_typing: Final = msgspec.json.Decoder(TypingPayload).decode
decode_rate_limit: Final = msgspec.json.Decoder(RateLimitPayload).decode
decode_invitation: Final = msgspec.json.Decoder(GroupInvitation).decode
decode_deleted_group: Final = msgspec.json.Decoder(DeletedGroup).decode
decode_rejection: Final = msgspec.json.Decoder(RejectionPayload).decode
decode_read_ack: Final = msgspec.json.Decoder(ReadAckPayload).decode
decode_agent: Final = msgspec.json.Decoder(Agent).decode
decode_conversation_top: Final = msgspec.json.Decoder(ConversationTop).decode
decode_send: Final = msgspec.json.Decoder(SendRequest).decode
