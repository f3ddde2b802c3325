"""Records on their way to those who wait for them.

Always true: nobody who reads slowly is waited for. A follower's queue that is full loses what comes on top, so whoever
must not miss anything reads the journal, and takes the queue for a bell.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from agentd.core.events import Record


class Followers:
    """Everybody who follows. queue_max: records that one of them may have unread."""

    def __init__(self, queue_max: int) -> None:
        self._queue_max = queue_max
        self._queues: set[asyncio.Queue[Record]] = set()

    def offer(self, records: Sequence[Record]) -> None:
        """These are on disk."""
        for queue in self._queues:
            for record in records:
                if not queue.full():
                    queue.put_nowait(record)

    @contextlib.contextmanager
    def following(self) -> Iterator[asyncio.Queue[Record]]:
        """What is recorded while this lasts."""
        queue: asyncio.Queue[Record] = asyncio.Queue(self._queue_max)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)
