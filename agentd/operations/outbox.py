"""Sends that wait, were refused or expired: shown, sent after all, or dropped.

Always true: no row is deleted.
Not here: what a send may become, and when (sender).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from agentd.control.refusal import ControlError
from agentd.core.events import SETTLED_STATES
from agentd.errors import Unavailable
from agentd.journal.storage import OutboxRow
from agentd.operations.parts import Parts
from agentd.operations.rows import outbox_row
from agentd.sender import Sender


class Outbox:
    """See control.api.Daemon."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._journal = parts.journal
        # Each decision is made on a send as it is on disk: two at once would both be carried out.
        self._deciding = asyncio.Lock()

    async def listed(self, identity: str | None, states: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """See control.api.Daemon."""
        names = self._parts.names(identity)
        rows = [row for name in names for row in await self._journal.outbox_list(name, states, limit)]
        rows.sort(key=lambda row: row.queued_at, reverse=True)
        return [self._row(row) for row in rows[:limit]]

    async def show(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        """See control.api.Daemon."""
        return self._row(await self._find(identity, client_msg_id))

    async def retry(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        """See control.api.Daemon."""
        async with self._deciding:
            row = await self._find(identity, client_msg_id)
            commit = self._sender(row.send.identity).retry(row)
            if commit is None:
                remedy = "nothing is left to do" if row.send.state == "sent" else "it goes on by itself"
                raise ControlError(409, "NOTHING_TO_RETRY", f"{client_msg_id} is {row.send.state}", remedy)
            await commit
        return await self.show(row.send.identity, client_msg_id)

    async def drop(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        """See control.api.Daemon."""
        async with self._deciding:
            row = await self._find(identity, client_msg_id)
            commit = self._sender(row.send.identity).drop(row)
            if commit is None:
                settled = row.send.state in SETTLED_STATES
                told = row.send.state if settled else "on its way at this moment"
                remedy = "nothing is left to drop" if settled else "look again in a moment"
                raise ControlError(409, "NOTHING_TO_DROP", f"{client_msg_id} is {told}", remedy)
            await commit
        return await self.show(row.send.identity, client_msg_id)

    async def _find(self, identity: str | None, client_msg_id: str) -> OutboxRow:
        await self._journal.commit()  # what is known in memory is on disk then
        names = self._parts.names(identity)
        found = [row for name in names if (row := await self._journal.outbox_find(client_msg_id, name)) is not None]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ControlError(404, "UNKNOWN_SEND", f"no send has the key {client_msg_id!r}", "see: agentd outbox ls")
        holders = ", ".join(row.send.identity for row in found)
        raise ControlError(
            400, "WHICH_IDENTITY", f"several identities have a send {client_msg_id!r}", f"name: {holders}"
        )

    def _sender(self, identity: str) -> Sender:
        sender = self._parts.supervisors[identity].sender
        if sender is None:
            raise Unavailable(f"identity {identity} is only starting")
        return sender

    def _row(self, row: OutboxRow) -> dict[str, Any]:
        sender = self._parts.supervisors[row.send.identity].sender
        return {
            **outbox_row(row),
            "needs_decision": sender is not None and sender.needs_decision(row.send),
            "peer_backlog": None if sender is None else sender.peer_backlog(row.send.target),
        }
