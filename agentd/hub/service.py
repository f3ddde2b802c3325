"""The hub's parts put together, without a network: what routes and control work on.

Always true: all of it runs on one event loop, and no act is interrupted between its check and its effect.
Not here: HTTP (rest.py, server.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec

from agentd.hub.accounts import Account, Accounts, plain_handle
from agentd.hub.attachments import Attachments
from agentd.hub.conversations import Conversation, Conversations
from agentd.hub.database import Database
from agentd.hub.faults import Faults
from agentd.hub.idempotency import Idempotency
from agentd.hub.mailbox import Mailbox, Stored
from agentd.hub.presence import Presences
from agentd.hub.reading import Reading
from agentd.hub.relations import Relations
from agentd.hub.sending import Sending
from agentd.hub.settings import HubSettings
from agentd.hub.sockets import Sockets
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import CloseCode, FrameType


class Service:
    """One hub's state and its live connections. `counters`: everything that is counted, by name."""

    def __init__(self, settings: HubSettings) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        self.counters: Counter[str] = Counter()
        self.faults = Faults()
        self.accounts = Accounts(self.database, settings.otp_life_s)
        self.relations = Relations(self.database)
        self.conversations = Conversations(self.database, self.accounts)
        self.mailbox = Mailbox(self.database, self.accounts, self.conversations, settings.backlog_hard)
        self.sending = Sending(settings, self.accounts, self.relations, self.conversations, self.mailbox)
        self.presences = Presences()
        self.attachments = Attachments(self.database, settings.attachment_life_s)
        self.idempotency = Idempotency(self.database)
        self.sockets = Sockets(
            settings,
            self.accounts,
            self.relations,
            self.conversations,
            self.mailbox,
            self.faults,
            self.counters,
        )
        self.reading = Reading(self.conversations, self.mailbox, self.sockets)
        self.sockets.presence_changed = self._presence_changed
        self.sockets.client_said = self._client_said
        self.stopping = asyncio.Event()

    def close(self) -> None:
        """Write what is held back and close the database."""
        self.sockets.flush_acks()
        self.database.close()

    def deliver(self, stored: Stored) -> None:
        """Count a stored message and push it."""
        self.counters["messages.stored"] += 1
        self.sockets.push([stored])

    # --- acts that change an account and its connections ---

    def rekeyed(self, account: Account) -> None:
        """Close the sockets that the old key opened."""
        self._close_sockets(account, "API key rotated")

    def delete_account(self, account: Account) -> None:
        """Delete an agent; its handle stays taken."""
        self.accounts.change(account, status="deleted")
        self._close_sockets(account, "Account deleted")

    def set_status(self, account: Account, status: str) -> None:
        """Set "active", "restricted" or "suspended"; the last one closes the agent's sockets."""
        self.accounts.change(account, status=status)
        if status == "suspended":
            self._close_sockets(account, "Account suspended")

    def pause(self, account: Account, mode: str) -> None:
        """Set paused_by_owner: "none", "send" or "full". Leaving "full" flushes what was held back."""
        was_full = account.paused_by_owner == "full"
        self.accounts.change(account, paused_by_owner=mode)
        if was_full and mode != "full":
            self.sockets.drain_again(account)

    def set_presence(self, account: Account, status: str, note: str | None) -> None:
        """Set a presence by hand and tell those who keep this agent as a contact."""
        self.presences.set(account, status, note)
        self._tell_presence(account)

    def _close_sockets(self, account: Account, reason: str) -> None:
        for connection in self.sockets.of(account):
            connection.close(CloseCode.POLICY, reason)

    # --- what sockets report ---

    def _presence_changed(self, account: Account) -> None:
        self.presences.connected(account, bool(self.sockets.of(account)))
        self._tell_presence(account)

    def _tell_presence(self, account: Account) -> None:
        holders = self.relations.holders(account)
        if holders:
            state = self.presences.state(account)
            payload = {"handle": state.handle, "status": state.status, "custom_message": state.custom_message}
            self.sockets.tell(holders, FrameType.PRESENCE_UPDATE, payload)

    def _client_said(self, account: Account, frame: wire.ClientFrame) -> None:
        """Act on a client's frame, other than an ack. What cannot be understood is ignored, as on the platform."""
        try:
            match frame.type:
                case FrameType.MESSAGE_READ_ACK:
                    read = wire.decode_read_ack(frame.payload)
                    self.reading.read_through(account, read.conversation_id, read.through_seq)
                case FrameType.TYPING_START | FrameType.TYPING_STOP:
                    self._typing(account, frame.type, wire.decode_typing(frame.payload).conversation_id)
                case FrameType.PRESENCE_UPDATE:
                    wanted = msgspec.json.decode(frame.payload, type=wire.PresenceRequest)
                    self.set_presence(account, wanted.status, wanted.custom_message)
                case _:
                    self.counters["client_frames.ignored"] += 1
        except msgspec.DecodeError:
            self.counters["client_frames.malformed"] += 1

    def _typing(self, account: Account, type_: str, conversation_id: str) -> None:
        conversation = self.conversations.find(conversation_id)
        if conversation is not None and account.number in conversation.present():
            payload = {"conversation_id": conversation.id, "sender": account.handle}
            self.sockets.tell(conversation.others(account.number), type_, payload)

    # --- posting without rules, for control ---

    def target(self, sender: Account, to: str) -> Conversation:
        """Where control's posts go. to: a handle, or the id of a conversation that the sender is in."""
        found = self.conversations.find(to)
        if found is not None and sender.number in found.members:
            return found
        return self.conversations.open_direct(sender, self.accounts.get(plain_handle(to)))
