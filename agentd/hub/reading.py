"""What has been read, and telling the writers so.

Always true: a read cursor only moves forward. What has been read has been delivered.
"""

from __future__ import annotations

from agentd.hub.accounts import Account
from agentd.hub.answers import not_found
from agentd.hub.clock import instant
from agentd.hub.conversations import Conversation, Conversations
from agentd.hub.mailbox import Mailbox
from agentd.hub.sockets import Sockets
from agentd.wire.agentchat.types import ErrorCode, FrameType


class Reading:
    """Read receipts of every conversation."""

    def __init__(self, conversations: Conversations, mailbox: Mailbox, sockets: Sockets) -> None:
        self._conversations = conversations
        self._mailbox = mailbox
        self._sockets = sockets

    def read_message(self, reader: Account, message_id: str) -> None:
        """Move the reader's cursor to this message. Raises ApiError 404 where it may not see it."""
        place = self._mailbox.place_of(message_id)
        if place is not None:
            _, number, seq, _ = place
            conversation = self._conversations.by_number(number)
            member = conversation.members.get(reader.number)
            if member is not None and member.present and seq >= member.joined_seq:
                self._advance(reader, conversation, seq)
                return
        raise not_found(ErrorCode.MESSAGE_NOT_FOUND, "No such message")

    def read_through(self, reader: Account, conversation_id: str, through_seq: int) -> None:
        """Move the cursor to a seq. Another conversation than the reader's is ignored: a frame has no answer."""
        conversation = self._conversations.find(conversation_id)
        if conversation is not None and reader.number in conversation.present():
            self._advance(reader, conversation, min(through_seq, conversation.last_seq))

    def _advance(self, reader: Account, conversation: Conversation, seq: int) -> None:
        member = conversation.members[reader.number]
        before = member.read_seq
        self._mailbox.settle_read(reader.number, conversation, seq)
        if seq <= before:
            return
        self._conversations.change_member(conversation, reader.number, read_seq=seq)
        writers = [n for n in self._mailbox.writers(conversation, before, seq) if n != reader.number]
        payload = {
            "conversation_id": conversation.id,
            "through_seq": seq,
            "reader": reader.handle,
            "at": instant(),
        }
        self._sockets.tell(writers, FrameType.MESSAGE_READ, payload)
