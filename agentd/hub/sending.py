"""Whether a message may be sent, and what the sender is told.

Always true: a refused send stores nothing and takes no seq. A repeated client_msg_id is answered with the first
message, whatever else the repeat says.
Not here: storing (mailbox.py) and pushing (sockets.py).
"""

from __future__ import annotations

import msgspec

from agentd.hub.accounts import Account, Accounts
from agentd.hub.answers import Answer, ApiError, invalid, rate_limited
from agentd.hub.clock import instant, unix_s
from agentd.hub.conversations import Conversation, Conversations
from agentd.hub.limits import RateLimit
from agentd.hub.mailbox import Draft, Mailbox, Stored, with_status
from agentd.hub.relations import Relations
from agentd.hub.settings import HubSettings
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode, Header, MessageType

_DAY_S = 86_400.0
_SENDABLE = (MessageType.TEXT, MessageType.STRUCTURED, MessageType.FILE)


class Sending:
    """The rules of `POST /v1/messages`."""

    def __init__(
        self,
        settings: HubSettings,
        accounts: Accounts,
        relations: Relations,
        conversations: Conversations,
        mailbox: Mailbox,
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._relations = relations
        self._conversations = conversations
        self._mailbox = mailbox
        self._agent_rate = RateLimit(settings.sends_per_s)
        self._group_rate = RateLimit(settings.group_sends_per_s)

    def send(self, sender: Account, body: bytes) -> tuple[Answer, Stored | None]:
        """Carry out one send. Returns the answer and, unless it is a repeat, the message to push.

        Raises ApiError for every refusal.
        """
        self._check_sender(sender)
        request = _read(body, self._settings.message_max_bytes)
        repeated = self._mailbox.repeated(sender, request.client_msg_id)
        if repeated is not None:
            replay = {str(Header.IDEMPOTENT_REPLAY): "true"}
            return Answer(with_status(repeated, "stored"), 200, replay), None
        if request.to is not None:
            return self._send_direct(sender, request, request.to)
        return self._send_to_group(sender, request, request.conversation_id or "")

    def _send_direct(self, sender: Account, request: wire.SendRequest, to: str) -> tuple[Answer, Stored]:
        recipient = self._accounts.get(to)
        if recipient is sender:
            raise invalid("An agent cannot write to itself")
        conversation = self._conversations.between(sender, recipient)
        self._check_welcome(sender, recipient, conversation)
        undelivered = self._check_backlog(recipient)
        conversation = conversation or self._conversations.open_direct(sender, recipient)
        stored = self.store(conversation, sender, [_draft(request)])[0]
        headers = {}
        if self._settings.backlog_soft and undelivered + 1 >= self._settings.backlog_soft:
            headers[str(Header.BACKLOG_WARNING)] = f"{recipient.handle}={undelivered + 1}"
        return Answer(with_status(stored.payload, "stored"), 201, headers), stored

    def _send_to_group(self, sender: Account, request: wire.SendRequest, id_: str) -> tuple[Answer, Stored]:
        conversation = self._conversations.of(sender, id_)
        if conversation.direct:
            raise invalid("Address a direct message with `to`, not with a conversation id")
        wait_s = self._group_rate.take(conversation.id, unix_s())
        if wait_s:
            raise rate_limited(wait_s, "messages in this group")
        stored = self.store(conversation, sender, [_draft(request)])[0]
        body = with_status(stored.payload, "stored")
        if stored.skipped:
            handles = [self._accounts.by_number(number).handle for number in stored.skipped]
            body = body[:-1] + b',"skipped_recipients":' + msgspec.json.encode(handles) + b"}"
        return Answer(body, 201), stored

    def store(self, conversation: Conversation, sender: Account, drafts: list[Draft]) -> list[Stored]:
        """Store messages without asking whether they may be sent, as control does in bulk."""
        stored = self._mailbox.post(conversation, sender, drafts)
        if not conversation.established and sender.number != conversation.opened_by:
            self._conversations.establish(conversation)
        return stored

    def _check_sender(self, sender: Account) -> None:
        if sender.paused_by_owner != "none":
            raise ApiError(403, ErrorCode.AGENT_PAUSED_BY_OWNER, "The owner has paused this agent")
        wait_s = self._agent_rate.take(sender.handle, unix_s())
        if wait_s:
            raise rate_limited(wait_s, "messages")

    def _check_welcome(self, sender: Account, recipient: Account, conversation: Conversation | None) -> None:
        if self._relations.blocks(recipient, sender) or self._relations.blocks(sender, recipient):
            raise ApiError(403, ErrorCode.BLOCKED, f"@{recipient.handle} cannot be written to")
        if (conversation is not None and conversation.established) or recipient.is_system:
            return
        if conversation is not None and conversation.last_seq and conversation.opened_by != sender.number:
            return  # this is the reply that the other side waits for
        if self._relations.is_contact(recipient, sender):
            return
        if recipient.inbox_mode == "contacts_only":
            raise ApiError(403, ErrorCode.INBOX_RESTRICTED, f"@{recipient.handle} reads contacts only")
        if sender.status == "restricted":
            raise ApiError(403, ErrorCode.RESTRICTED, "A restricted agent cannot write to strangers")
        if self._settings.cold_rule:
            self._check_cold(sender, recipient, conversation)

    def _check_cold(self, sender: Account, recipient: Account, conversation: Conversation | None) -> None:
        if conversation is not None and conversation.last_seq:
            waiting = {
                "recipient_handle": recipient.handle,
                "waiting_since": instant(conversation.opened_at_s),
            }
            raise ApiError(403, ErrorCode.AWAITING_REPLY, f"@{recipient.handle} has not replied yet", waiting)
        most = self._settings.cold_threads_per_day
        if most and self._conversations.cold_threads(sender, unix_s() - _DAY_S) >= most:
            raise ApiError(429, ErrorCode.RATE_LIMITED, "Too many unanswered first messages", None, 3600.0)

    def _check_backlog(self, recipient: Account) -> int:
        undelivered = self._mailbox.undelivered(recipient.number)
        if self._settings.backlog_hard and undelivered >= self._settings.backlog_hard:
            raise ApiError(
                429,
                ErrorCode.RECIPIENT_BACKLOGGED,
                f"@{recipient.handle} has too many undelivered messages",
                {"recipient_handle": recipient.handle, "undelivered_count": undelivered},
            )
        return undelivered


def _read(body: bytes, message_max_bytes: int) -> wire.SendRequest:
    try:
        request = wire.decode_send(body)
    except msgspec.DecodeError as error:
        raise invalid(str(error)) from None
    if (request.to is None) == (request.conversation_id is None):
        raise invalid("Exactly one of `to` and `conversation_id` must be set")
    if not 1 <= len(request.client_msg_id) <= wire.CLIENT_MSG_ID_MAX_CHARS:
        raise invalid("client_msg_id is 1 to 128 characters")
    if (request.type or MessageType.TEXT) not in _SENDABLE:
        raise invalid("type is text, structured or file")
    content = request.content
    if content.text is None and content.data is None and content.attachment_id is None:
        raise invalid("content needs text, data or attachment_id")
    if len(body) > message_max_bytes:
        size = len(msgspec.json.encode((content, request.metadata or {})))
        if size > message_max_bytes:
            raise ApiError(413, ErrorCode.PAYLOAD_TOO_LARGE, f"Content and metadata exceed {message_max_bytes} bytes")
    return request


def _draft(request: wire.SendRequest) -> Draft:
    return Draft(
        content=request.content,
        type=request.type or MessageType.TEXT,
        client_msg_id=request.client_msg_id,
        metadata=request.metadata or {},
    )
