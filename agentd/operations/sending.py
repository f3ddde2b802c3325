"""Saying something, and waiting for what becomes of it: for people, and for handlers inside their turn.

Always true: a key that is in the outbox already is not queued again; whoever waits for it hears of the first. What has
been put there leaves, whether or not anybody still waits for it.
Not here: carrying it to the platform (sender).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from agentd.control.refusal import ControlError
from agentd.core.events import SETTLED_STATES, Content, Message, Record, Send, Sent
from agentd.errors import NotSent
from agentd.journal.storage import Carried, Journal, OutboxRow, Queued
from agentd.operations.following import Followers
from agentd.supervisor import Supervisor


class Sending:
    """What is put into the outbox from outside a turn's commit.

    queued: a commit put these into the outbox. room: how many more an identity's outbox takes. speaker: who speaks
    where nobody is named, or None.
    """

    def __init__(
        self,
        journal: Journal,
        supervisors: Mapping[str, Supervisor],
        followers: Followers,
        *,
        queued: Callable[[Sequence[Send]], None],
        room: Callable[[str], int],
        speaker: str | None,
    ) -> None:
        self._journal = journal
        self._supervisors = supervisors
        self._followers = followers
        self._queued = queued
        self._room = room
        self._speaker = speaker
        self._loop = asyncio.get_running_loop()
        self._awaited: dict[tuple[str, str], set[asyncio.Future[None]]] = {}
        """By identity and key: several may wait for one send."""
        self._putting: dict[tuple[str, str], asyncio.Future[None]] = {}
        """Commits under way that put a send into the outbox."""

    def settled(self, carried: Carried) -> None:
        """A send has come to its end."""
        for waiting in self._awaited.get((carried.identity, carried.client_msg_id), ()):
            if not waiting.done():
                waiting.set_result(None)

    async def send(
        self, identity: str | None, target: str, content: Content, wait_s: float, client_msg_id: str | None
    ) -> dict[str, Any]:
        """See control.api.Daemon."""
        name = identity or self._only_identity()
        key = client_msg_id or f"cli-{uuid.uuid4().hex}"
        send = Send(identity=name, target=target, content=content, client_msg_id=key, cause="control socket")
        deadline = self._loop.time() + wait_s
        with self._followers.following() as records:
            row = await self._until_settled(send, wait_s, self._refuse_if_full)
            answer: dict[str, Any] = {
                "client_msg_id": key,
                "state": row.send.state,
                "seq": row.result_seq,
                "conversation": row.conversation,
                "error": row.error or None,
                "reply": None,
            }
            if row.send.state == "sent" and wait_s:
                answer["reply"] = await self._reply(records, name, row.conversation, row.result_seq or 0, deadline)
            return answer

    async def send_now(self, send: Send) -> Sent:
        """A handler waits for what becomes of a send. Raises NotSent."""
        # As with the sends of a turn, the outbox may be exceeded by this one.
        row = await self._until_settled(send, None, lambda identity: None)
        if row.result_id is None or row.result_seq is None or row.conversation is None:
            raise NotSent(row.send.state, row.error)
        return Sent(
            client_msg_id=send.client_msg_id, id=row.result_id, conversation=row.conversation, seq=row.result_seq
        )

    def _only_identity(self) -> str:
        if self._speaker is not None:
            return self._speaker
        if len(self._supervisors) == 1:
            return next(iter(self._supervisors))
        raise ControlError(
            400,
            "WHICH_IDENTITY",
            "there are several identities" if self._supervisors else "there is no identity",
            f"name one with --as: {', '.join(self._supervisors)}" if self._supervisors else "configure one",
        )

    def _refuse_if_full(self, identity: str) -> None:
        if self._room(identity) <= 0:
            raise ControlError(
                503, "OUTBOX_FULL", f"the outbox of {identity} is full", "see what it holds: agentd outbox ls"
            )

    async def _until_settled(self, send: Send, wait_s: float | None, admit: Callable[[str], None]) -> OutboxRow:
        """Put a send into the outbox unless its key is there, and wait for its end for so long. Returns its row.

        admit: called with the identity before anything is put there; what it raises is raised.
        """
        key, name = send.client_msg_id, send.identity
        settled: asyncio.Future[None] = self._loop.create_future()
        waiting = self._awaited.setdefault((name, key), set())
        waiting.add(settled)
        try:
            known = await self._journal.outbox_find(key, name)
            if known is None:
                admit(name)
                await self._put(send)
            if known is None or known.send.state not in SETTLED_STATES:
                await asyncio.wait((settled,), timeout=wait_s)
        finally:
            waiting.discard(settled)
            if not waiting:
                self._awaited.pop((name, key), None)
        row = await self._journal.outbox_find(key, name)
        assert row is not None
        return row

    async def _put(self, send: Send) -> None:
        """Put a send into the outbox, once however many ask for it at a time."""
        place = send.identity, send.client_msg_id
        if (commit := self._putting.get(place)) is None:
            commit = self._putting[place] = self._journal.commit(Queued(send, time.time()))
            commit.add_done_callback(partial(self._put_ended, send))
        # Whoever is cancelled here, as at a deadline, takes nothing back: what is on disk must leave.
        await asyncio.wait((commit,))
        commit.result()

    def _put_ended(self, send: Send, commit: asyncio.Future[None]) -> None:
        del self._putting[send.identity, send.client_msg_id]
        if not commit.cancelled() and commit.exception() is None:
            self._queued((send,))

    async def _reply(
        self, records: asyncio.Queue[Record], identity: str, conversation: str | None, after_seq: int, deadline: float
    ) -> dict[str, Any] | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while True:
                    event = (await records.get()).event
                    ours = event.identity == identity and event.conversation == conversation
                    if ours and not event.own and event.seq > after_seq and isinstance(event, Message):
                        return {"text": event.text, "sender": event.sender, "seq": event.seq}
        return None
