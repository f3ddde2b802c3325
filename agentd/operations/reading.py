"""What is recorded: the log as it grows, whole stretches of it for tests, and the gaps in it.

Always true: read from the journal page by page, so that neither a long log nor a slow reader costs memory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import orjson

from agentd.core import exported
from agentd.journal.storage import StoredRecord
from agentd.operations.following import Followers
from agentd.operations.naming import find_conversation
from agentd.operations.parts import Parts
from agentd.operations.rows import gap_row, record_row

_PAGE = 200

_ReadBehind = Callable[[int], Awaitable[list[StoredRecord]]]


class Reading:
    """See control.api.Daemon."""

    def __init__(self, parts: Parts, followers: Followers) -> None:
        self._parts = parts
        self._journal = parts.journal
        self._followers = followers

    async def conversations(self, identity: str | None, prefix: str, limit: int) -> list[dict[str, Any]]:
        """See control.api.Daemon."""
        found = [
            each
            for name in self._parts.names(identity)
            for each in await self._journal.conversations(name)
            if each.conversation.startswith(prefix)
        ]
        newest = sorted(found, key=lambda each: each.position, reverse=True)[:limit]
        return [{"identity": each.identity, "conversation": each.conversation} for each in newest]

    async def gaps(self, identity: str | None, open_only: bool, limit: int) -> list[dict[str, Any]]:
        """See control.api.Daemon."""
        found = [
            (gap.found_at, gap_row(name, conversation, gap))
            for name in self._parts.names(identity)
            for conversation, gap in await self._journal.gaps(name, open_only=open_only, limit=limit)
        ]
        found.sort(key=lambda each: each[0], reverse=True)
        return [row for _, row in found[:limit]]

    async def tail(self, identity: str | None, since: int | None) -> AsyncGenerator[dict[str, Any], None]:
        """See control.api.Daemon."""
        position = since if since is not None else await self._journal.last_position()
        with self._followers.following() as bell:
            while not self._parts.stopping.is_set():
                newest = await self._journal.last_position()
                stored = await self._journal.read_log(identity, position, _PAGE)
                for row in stored:
                    position = row.position
                    if (record := self._parts.record(row)) is not None:
                        yield record_row(record)
                if len(stored) < _PAGE:
                    # What others said is looked through once, and not at each record until a quiet identity speaks.
                    position = max(position, newest)
                    await bell.get()
                    while not bell.empty():
                        bell.get_nowait()

    async def export(
        self, identity: str | None, conversation: str | None, since: float | None
    ) -> AsyncGenerator[bytes, None]:
        """See control.api.Daemon."""
        read = await self._reader(identity, conversation)
        return self._exported(read, since or 0.0, await self._journal.last_position())

    async def _exported(self, read: _ReadBehind, since: float, up_to: int) -> AsyncGenerator[bytes, None]:
        yield orjson.dumps({"up_to": up_to}) + b"\n"
        position = told = unreadable = 0
        while page := [row for row in await read(position) if row.position <= up_to]:
            position = page[-1].position
            wanted = [row for row in page if row.received_at >= since]
            records = [record for row in wanted if (record := self._parts.record(row)) is not None]
            told += len(records)
            unreadable += len(wanted) - len(records)
            yield b"".join(map(exported.line, records))
        yield orjson.dumps({"exported": told, "unreadable": unreadable}) + b"\n"

    async def _reader(self, identity: str | None, conversation: str | None) -> _ReadBehind:
        """What reads a page behind a position: of everything, of an identity, or of one conversation."""
        if conversation is None:
            return lambda after: self._journal.read_log(identity, after, _PAGE)
        number = (await find_conversation(self._parts, self._parts.names(identity), conversation)).number
        return lambda after: self._journal.read_lane(number, after, _PAGE)
