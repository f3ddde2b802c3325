"""Calls that are carried out once: what an Idempotency-Key was answered with.

Always true: a key belongs to one agent and to one method, path and body. An answer that was no failure of the hub is
kept for a day and given again; while the first call runs, a second one is told to come back.
Not here: messages, which have their client_msg_id (mailbox.py).
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from agentd.hub.accounts import Account
from agentd.hub.answers import Answer, ApiError
from agentd.hub.clock import unix_s
from agentd.hub.database import Database
from agentd.wire.agentchat.types import ErrorCode, Header

_KEY = re.compile(r"[A-Za-z0-9_-]{8,128}")
_KEPT_S = 86_400.0
_KEPT_MAX_BYTES = 65_536
_RUNS_MAX_S = 60.0


class Ticket(NamedTuple):
    """A call under way. asked: its method, path and body, as a digest. began_at: seconds of the loop's clock."""

    agent: int
    key: str
    asked: bytes
    began_at: float


class Idempotency:
    """The keys of every agent."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._running: dict[tuple[int, str], Ticket] = {}

    def begin(self, caller: Account, key: str, asked: bytes, now: float) -> Ticket | Answer:
        """Let a call run, or give the answer that it had. now: seconds of the loop's clock. Raises ApiError."""
        if not _KEY.fullmatch(key):
            raise ApiError(400, ErrorCode.IDEMPOTENCY_KEY_INVALID, "8 to 128 characters of [A-Za-z0-9_-]")
        ticket = Ticket(caller.number, key, hashlib.sha256(asked).digest(), now)
        self._database.write("DELETE FROM answered WHERE answered_at < ?", (unix_s() - _KEPT_S,))
        row = self._database.row(
            "SELECT fingerprint, status, body FROM answered WHERE agent = ? AND key = ?", (caller.number, key)
        )
        running = self._running.get((caller.number, key))
        if running is not None and now - running.began_at > _RUNS_MAX_S:
            running = None
        known = row[0] if row is not None else running.asked if running is not None else ticket.asked
        if known != ticket.asked:
            raise ApiError(422, ErrorCode.IDEMPOTENCY_KEY_CONFLICT, "This key was used for another call")
        if row is not None:
            return Answer(row[2], row[1], {str(Header.IDEMPOTENT_REPLAY): "true"})
        if running is not None:
            raise ApiError(409, ErrorCode.IDEMPOTENT_IN_PROGRESS, "The first call under this key still runs")
        self._running[caller.number, key] = ticket
        return ticket

    def keep(self, ticket: Ticket, made: Answer) -> None:
        """The call was answered so."""
        if made.status < 500 and len(made.body) <= _KEPT_MAX_BYTES:
            self._database.write(
                "INSERT OR REPLACE INTO answered (agent, key, fingerprint, status, body, answered_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (ticket.agent, ticket.key, ticket.asked, made.status, made.body, unix_s()),
            )

    def end(self, ticket: Ticket) -> None:
        """The call runs no more, however it went."""
        if self._running.get((ticket.agent, ticket.key)) is ticket:
            del self._running[ticket.agent, ticket.key]
