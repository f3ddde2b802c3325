"""Messages and their envelopes: the one place where seqs are given out.

A message is stored once, as the JSON that every reader gets; what differs per reader (status, delivery id) is written
behind it when a row goes out. An envelope is a row of `pending` while it is `stored`, and no row once it is delivered.

Always true: a conversation's seqs are consecutive from 1, and a refused message takes none. A client_msg_id of one
sender names one message for ever. Positions rise over all conversations and are never used twice.
Acks are written in groups (`flush`); every question about envelopes writes them first.
Not here: whether a message may be sent (sending.py), and pushing it (sockets.py).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from agentd.hub.accounts import Account, Accounts
from agentd.hub.clock import instant
from agentd.hub.conversations import Conversation, Conversations
from agentd.hub.database import Database
from agentd.hub.ids import Ids
from agentd.wire.agentchat import types as wire

_MENTION = re.compile(r"(?<![\w@])@([a-z][a-z0-9-]{1,28}[a-z0-9])(?![\w-])", re.IGNORECASE)
_ACKS_HELD_MAX = 4_096


class Draft(msgspec.Struct, frozen=True, gc=False):
    """What somebody wants to say. client_msg_id: "" makes one."""

    content: wire.MessageContent
    type: str = "text"
    client_msg_id: str = ""
    metadata: dict[str, Any] = {}


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message that has its seq. payload: its JSON, without status and delivery id.

    recipients: agents (by number) for whom an envelope was made. skipped: those who had too many already.
    """

    position: int
    conversation: str
    seq: int
    id: str
    sender: str
    client_msg_id: str
    payload: bytes
    recipients: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A message that waits for one recipient. row: its JSON with status and delivery id."""

    delivery_id: str
    conversation: str
    message_id: str
    seq: int
    row: bytes


class LedgerRow(msgspec.Struct, frozen=True):
    """A stored message, for comparing ledgers. reply_to: the id that its metadata names, "" for none.

    former: its conversation's numbering was reset since.
    """

    position: int
    conversation: str
    seq: int
    id: str
    sender: str
    client_msg_id: str
    created_at: str
    reply_to: str
    former: bool


class Mailbox:
    """Every message of the hub, over one database."""

    def __init__(self, database: Database, accounts: Accounts, conversations: Conversations, backlog_hard: int) -> None:
        self._database = database
        self._accounts = accounts
        self._conversations = conversations
        self._backlog_hard = backlog_hard
        self._message_ids = Ids("msg_", database.tag)
        self._undelivered: dict[int, int] = dict(
            database.rows("SELECT recipient, count(*) FROM pending GROUP BY recipient")
        )
        self._acked: list[tuple[int, int]] = []
        self._next_position = 1 + max(
            database.row("SELECT coalesce(max(position), 0) FROM message")[0],
            database.row("SELECT coalesce(max(position), 0) FROM former_message")[0],
        )

    # --- writing ---

    def post(self, conversation: Conversation, sender: Account, drafts: Sequence[Draft]) -> list[Stored]:
        """Store messages of one sender in one conversation, in this order, with an envelope for everybody else.

        In a group, members who hold `backlog_hard` undelivered ones get no envelope. All or nothing.
        """
        now = instant()
        others = conversation.others(sender.number)
        context = self._context(conversation, sender)
        stored = [
            self._compose(conversation, sender, draft, at, now, others, context) for at, draft in enumerate(drafts)
        ]
        with self._database.transaction():
            self._database.write_each(
                "INSERT INTO message (position, conversation, seq, sender, client_msg_id, created_at, payload)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (m.position, conversation.number, m.seq, sender.number, m.client_msg_id, now, m.payload)
                    for m in stored
                ],
            )
            self._database.write_each(
                "INSERT INTO pending (recipient, position) VALUES (?, ?)",
                [(recipient, m.position) for m in stored for recipient in m.recipients],
            )
        self._next_position += len(stored)
        conversation.last_seq += len(stored)
        conversation.last_message_at = now
        for recipient in others:
            made = sum(recipient in m.recipients for m in stored)
            self._undelivered[recipient] = self._undelivered.get(recipient, 0) + made
        return stored

    def settle(self, recipient: int, message_id: str) -> bool:
        """Mark one envelope delivered, with the next flush. Returns whether flushing is due now."""
        position = self._message_ids.number_of(message_id)
        if position is not None:
            self._acked.append((recipient, position))
        return len(self._acked) >= _ACKS_HELD_MAX

    def flush(self) -> None:
        """Write the acks that were taken since the last flush."""
        acked, self._acked = self._acked, []
        by_recipient: dict[int, list[tuple[int, int]]] = {}
        for ack in acked:
            by_recipient.setdefault(ack[0], []).append(ack)
        if not by_recipient:
            return
        with self._database.transaction():
            for recipient, acks in by_recipient.items():
                self._delivered(
                    recipient,
                    self._database.write_each("DELETE FROM pending WHERE recipient = ? AND position = ?", acks),
                )

    def settle_until(self, recipient: int, delivery_id: str) -> int:
        """Mark every envelope at or before this one delivered. Returns how many there were; 0 if it is unknown."""
        self.flush()
        position = self._delivery_ids(recipient).number_of(delivery_id)
        if position is None or position >= self._next_position:
            return 0
        return self._delivered(
            recipient,
            self._database.write("DELETE FROM pending WHERE recipient = ? AND position <= ?", (recipient, position)),
        )

    def settle_read(self, recipient: int, conversation: Conversation, through_seq: int) -> None:
        """Mark envelopes of one conversation delivered: what has been read has arrived."""
        self.flush()
        self._delivered(
            recipient,
            self._database.write(
                "DELETE FROM pending WHERE recipient = ? AND position IN"
                " (SELECT position FROM message WHERE conversation = ? AND seq <= ?)",
                (recipient, conversation.number, through_seq),
            ),
        )

    def hide(self, account: Account, position: int) -> None:
        """Hide one message from one reader."""
        self._database.write(
            "INSERT OR IGNORE INTO hidden_message (agent, position) VALUES (?, ?)", (account.number, position)
        )

    def reset(self, conversation: Conversation) -> int:
        """Forget a conversation's history and number it from 1 again. Returns how many messages are gone.

        Their envelopes go too. The ledger keeps them, marked as former.
        """
        self.flush()
        values = (conversation.number,)
        gone = "(SELECT position FROM message WHERE conversation = ?)"
        with self._database.transaction():
            self._database.write(f"DELETE FROM pending WHERE position IN {gone}", values)  # noqa: S608 -- constant
            self._database.write(
                "INSERT INTO former_message SELECT position, conversation, seq, sender, client_msg_id, created_at,"
                " payload FROM message WHERE conversation = ?",
                values,
            )
            count = self._database.write("DELETE FROM message WHERE conversation = ?", values)
        self._undelivered = dict(self._database.rows("SELECT recipient, count(*) FROM pending GROUP BY recipient"))
        conversation.last_seq = 0
        return count

    # --- reading ---

    def undelivered(self, recipient: int) -> int:
        """How many envelopes of this agent are `stored`."""
        self.flush()
        return self._undelivered.get(recipient, 0)

    def repeated(self, sender: Account, client_msg_id: str) -> bytes | None:
        """The message that this sender has stored under this id, as JSON, or None."""
        row = self._database.row(
            "SELECT payload FROM message WHERE sender = ? AND client_msg_id = ?"
            " UNION ALL SELECT payload FROM former_message WHERE sender = ? AND client_msg_id = ?",
            (sender.number, client_msg_id) * 2,
        )
        return None if row is None else row[0]

    def position_of(self, message_id: str) -> int | None:
        """The position of a message that is stored, else None."""
        position = self._message_ids.number_of(message_id)
        if position is None or position >= self._next_position:
            return None
        return position

    def place_of(self, message_id: str) -> tuple[int, int, int, int] | None:
        """(position, conversation, seq, sender), as numbers, of a message that is stored, else None."""
        row = self._database.row(
            "SELECT position, conversation, seq, sender FROM message WHERE position = ?",
            (self.position_of(message_id),),
        )
        return None if row is None else (row[0], row[1], row[2], row[3])

    def envelopes(self, recipient: int, after: str | None, limit: int) -> list[Envelope] | None:
        """An agent's stored envelopes, oldest first, behind a delivery id; None where that id is unknown."""
        self.flush()
        ids = self._delivery_ids(recipient)
        start = 0 if after is None else ids.number_of(after)
        if start is None or start >= self._next_position:
            return None
        found = self._database.rows(
            "SELECT position, conversation, seq, payload FROM pending JOIN message USING (position)"
            " WHERE recipient = ? AND position > ? ORDER BY position LIMIT ?",
            (recipient, start, limit),
        )
        return [
            Envelope(
                ids.make(position),
                self._conversations.by_number(conversation).id,
                self._message_ids.make(position),
                seq,
                with_status(payload, "stored", ids.make(position)),
            )
            for position, conversation, seq, payload in found
        ]

    def history(
        self,
        reader: Account,
        conversation: Conversation,
        *,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int,
    ) -> list[bytes]:
        """A conversation as one member may see it: rows as JSON, own sends included, hidden ones not.

        Seqs rise behind `after_seq`; otherwise they fall, from just below `before_seq` or from the end.
        """
        self.flush()
        member = conversation.members[reader.number]
        peer = conversation.peer(reader.number) if conversation.direct else 0
        low = max(member.joined_seq, 0 if after_seq is None else after_seq + 1)
        high = conversation.last_seq if before_seq is None else before_seq - 1
        order = "DESC" if after_seq is None else "ASC"
        found = self._database.rows(
            "SELECT m.seq, m.sender, m.payload, p.position FROM message AS m"  # noqa: S608 -- `order` is ours
            " LEFT JOIN pending AS p ON p.position = m.position"
            " AND p.recipient = CASE WHEN m.sender = ?1 THEN ?2 ELSE ?1 END"
            " WHERE m.conversation = ?3 AND m.seq BETWEEN ?4 AND ?5 AND NOT EXISTS"
            " (SELECT 1 FROM hidden_message AS h WHERE h.agent = ?1 AND h.position = m.position)"
            f" ORDER BY m.seq {order} LIMIT ?6",
            (reader.number, peer, conversation.number, low, high, limit),
        )
        rows = []
        for seq, sender, payload, pending in found:
            watched = conversation.members.get(peer) if sender == reader.number else member
            rows.append(with_status(payload, _status(seq, pending is not None, watched)))
        return rows

    def unread(self, reader: Account, conversation: Conversation) -> tuple[int, int | None, int | None]:
        """(count, oldest seq, newest seq) of what others wrote and this member has not read."""
        member = conversation.members[reader.number]
        row = self._database.row(
            "SELECT count(*), min(seq), max(seq) FROM message WHERE conversation = ? AND seq > ? AND sender <> ?",
            (conversation.number, max(member.read_seq, member.joined_seq - 1), reader.number),
        )
        return row[0], row[1], row[2]

    def last(self, conversation: Conversation) -> wire.MessageRow | None:
        """The newest message of a conversation, or None while it is empty."""
        row = self._database.row(
            "SELECT payload FROM message WHERE conversation = ? AND seq = ?",
            (conversation.number, conversation.last_seq),
        )
        return None if row is None else wire.decode_message(row[0])

    def writers(self, conversation: Conversation, above_seq: int, through_seq: int) -> list[int]:
        """Who wrote the messages of a range of seqs, as numbers."""
        rows = self._database.rows(
            "SELECT DISTINCT sender FROM message WHERE conversation = ? AND seq > ? AND seq <= ?",
            (conversation.number, above_seq, through_seq),
        )
        return [row[0] for row in rows]

    def ledger(self, conversation: Conversation | None, after: int, limit: int) -> list[LedgerRow]:
        """Every message ever stored, behind a position, in the order of storing."""
        number = None if conversation is None else conversation.number
        answered = "coalesce(json_extract(CAST(payload AS TEXT), '$.metadata.reply_to'), '')"
        columns = f"position, conversation, seq, sender, client_msg_id, created_at, {answered}"
        behind = "WHERE position > ?1 AND (?2 IS NULL OR conversation = ?2)"
        rows = self._database.rows(
            f"SELECT {columns}, 0 FROM message {behind} UNION ALL"  # noqa: S608 -- constants, no outside text
            f" SELECT {columns}, 1 FROM former_message {behind} ORDER BY position LIMIT ?3",
            (after, number, limit),
        )
        return [
            LedgerRow(
                position,
                self._conversations.by_number(conversation_number).id,
                seq,
                self._message_ids.make(position),
                self._accounts.by_number(sender).handle,
                client_msg_id,
                created_at,
                str(reply_to),
                bool(former),
            )
            for position, conversation_number, seq, sender, client_msg_id, created_at, reply_to, former in rows
        ]

    # --- inside ---

    def _compose(
        self,
        conversation: Conversation,
        sender: Account,
        draft: Draft,
        at: int,
        now: str,
        others: list[int],
        context: wire.MessageContext,
    ) -> Stored:
        position = self._next_position + at
        full = [] if conversation.direct else [n for n in others if self._is_full(n, at)]
        recipients = others if not full else [n for n in others if n not in full]
        row = wire.MessageRow(
            id=self._message_ids.make(position),
            conversation_id=conversation.id,
            sender=sender.handle,
            client_msg_id=draft.client_msg_id or f"hub-{secrets.token_hex(12)}",
            seq=conversation.last_seq + 1 + at,
            type=draft.type,
            content=draft.content,
            metadata=draft.metadata,
            context=self._with_mentions(context, conversation, draft.content.text),
            created_at=now,
        )
        return Stored(
            position,
            row.conversation_id,
            row.seq,
            row.id,
            row.sender,
            row.client_msg_id or "",
            wire.encoder.encode(row),
            tuple(recipients),
            tuple(full),
        )

    def _is_full(self, recipient: int, more: int) -> bool:
        # Counting without the unwritten acks first spares a write per message; it only errs upwards.
        if not self._backlog_hard or self._undelivered.get(recipient, 0) + more < self._backlog_hard:
            return False
        return self.undelivered(recipient) + more >= self._backlog_hard

    def _context(self, conversation: Conversation, sender: Account) -> wire.MessageContext:
        return wire.MessageContext(
            sender=wire.ContextSender(
                handle=sender.handle,
                display_name=sender.display_name,
                kind="system" if sender.is_system else "agent",
            ),
            conversation=wire.ContextConversation(
                type="direct" if conversation.direct else "group",
                group_name=conversation.name,
                member_count=None if conversation.direct else len(conversation.present()),
            ),
            mentions=[],
        )

    def _with_mentions(
        self, context: wire.MessageContext, conversation: Conversation, text: str | None
    ) -> wire.MessageContext:
        if not text or "@" not in text:
            return context
        named = dict.fromkeys(handle.lower() for handle in _MENTION.findall(text))
        here = {self._accounts.by_number(number).handle for number in conversation.present()}
        return msgspec.structs.replace(context, mentions=[handle for handle in named if handle in here])

    def _delivery_ids(self, recipient: int) -> Ids:
        return Ids("del_", f"{recipient:08x}{self._database.tag}")

    def _delivered(self, recipient: int, count: int) -> int:
        self._undelivered[recipient] = self._undelivered.get(recipient, 0) - count
        return count


def with_status(payload: bytes, status: str, delivery_id: str | None = None) -> bytes:
    """A stored payload with what its reader is told besides."""
    more = f',"status":"{status}"'
    if delivery_id is not None:
        more += f',"delivery_id":"{delivery_id}"'
    return payload[:-1] + more.encode() + b"}"


def _status(seq: int, is_pending: bool, watched: Any) -> str:
    if is_pending:
        return "stored"
    return "read" if watched is not None and seq <= watched.read_seq else "delivered"
