"""Notices that somebody else speaks as one of our identities, and keeps handlers out of that conversation meanwhile.

A person who steps in from another client does not want an agent beside them. Their words reach us as our own: fetched
to fill the hole that they make, or echoed. What agentd sent itself has its key in the outbox.

Always true: the pause ends when the identity has said nothing by hand for as long as its configuration says, counted
from when it was said, so that old history pauses nothing. A pause that somebody asked for is not shortened.
Not here: what a pause does (the dispatcher).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from agentd import config
from agentd.core.events import Message, Record, Source
from agentd.journal.storage import OutboxRow, Paused

log = logging.getLogger("agentd.takeover")

_OURS = ("agentd-", "cli-")  # how our keys begin: a journal put back from a backup lacks what was sent since

REASON = "somebody else speaks as this identity"


class Outbox(Protocol):
    """The part of the journal that knows what agentd sent."""

    async def outbox_find(self, client_msg_id: str, identity: str) -> OutboxRow | None:
        """The send under this key."""
        ...


class Takeover:
    """That of one daemon. `records` after each commit, `run` until cancelled.

    conduct: of every identity, as it is then. pause: stops a conversation. paused: the pause of a conversation by its
    number, or None.
    """

    def __init__(
        self,
        outbox: Outbox,
        conduct: Mapping[str, config.Conduct],
        pause: Callable[[Paused], object],
        paused: Callable[[int], Paused | None],
        now: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._conduct = conduct
        self._pause = pause
        self._paused = paused
        self._now = now
        self._heard: dict[int, Record] = {}
        self._bell = asyncio.Event()

    def records(self, records: Sequence[Record]) -> None:
        """These are on disk. Of each conversation the newest word that may be somebody else's is looked at."""
        for record in records:
            event = record.event
            if not event.own or event.source is Source.OWN or not isinstance(event, Message):
                continue
            if not event.client_msg_id.startswith(_OURS):  # here, so that ours does not cover another one before it
                self._heard[record.conversation] = record
                self._bell.set()

    async def run(self) -> None:
        """Look at what was heard."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            while self._heard:
                number, record = self._heard.popitem()
                await self._look(number, record)

    async def _look(self, number: int, record: Record) -> None:
        message = record.event
        assert isinstance(message, Message)
        conduct = self._conduct.get(message.identity)
        if conduct is None:  # it has gone meanwhile
            return
        idle_s, now = conduct.takeover_idle_s, self._now()
        until = _unix(message.created_at, record.received_at) + idle_s
        if until <= now:
            return
        if message.client_msg_id and await self._outbox.outbox_find(message.client_msg_id, message.identity):
            return
        standing = self._paused(number)
        if standing is not None and (standing.until is None or standing.until >= until):
            return
        fields = {"identity": message.identity, "conversation": message.conversation}
        log.info("%s: handlers stay out of it for %.0f s", REASON, until - now, extra=fields)
        self._pause(Paused(number=number, at=now, until=until, reason=REASON, watchers=False, **fields))


def _unix(created_at: str, otherwise: float) -> float:
    try:
        # The platform's clock may be ahead of ours, which must not make a pause longer.
        return min(datetime.fromisoformat(created_at).timestamp(), otherwise)
    except ValueError:
        return otherwise
