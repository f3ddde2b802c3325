"""The hub in a process of its own, and the handle on it: two ends of one pipe, a question a line, an answer a line.

Every message's text begins with the monotonic ns at which it was posted, or with 0 where nobody shall look at the
clock. The clock is one for all processes of a machine.

Always true: an answer comes when what was asked has happened; if it never does, the process fails.
Not here: what is asked when (the measurements).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import uvloop

from agentd.hub.mailbox import Draft, Stored
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings
from agentd.wire.agentchat import types as wire
from tests.bench.processes import Failed, Program

CONVERSATIONS = 10

_SETTINGS = HubSettings(cold_rule=False, sends_per_s=0, group_sends_per_s=0, backlog_soft=0, backlog_hard=0)
_PADDING = "x" * 44  # makes frames of 450 bytes or so
_TURN = 25  # messages of one conversation before the next one's
_PATIENCE_S = 120.0
_LAST_ANSWER_S = 5.0
_LOOK_S = 0.005


class FarEnd(Program):
    """Our handle on the hub's process. Times are monotonic seconds."""

    def __init__(self, folder: Path, core: int | None) -> None:
        super().__init__([sys.executable, "-m", __name__], core, folder / "hub.log", piped=True)

    def __enter__(self) -> Self:
        self.url: str = self._answer()
        return self

    def agents(self, handles: Sequence[str]) -> dict[str, str]:
        """Make agents. Returns their keys by handle."""
        return self._ask("agents", handles)

    def push(self, to: str, count: int) -> tuple[float, float, float]:
        """Push as fast as the client reads.

        Returns when the first was written, when all were acknowledged, and the CPU seconds that it took the hub.
        """
        return self._ask("push", to, count)

    def store(self, to: str, count: int) -> None:
        """Post to somebody who is not there."""
        self._ask("store", to, count)

    def drained(self, to: str) -> tuple[float, float]:
        """Wait for somebody to connect, and until nothing is undelivered. Returns when either happened."""
        return self._ask("drained", to)

    def offer(self, to: str, per_s: int, count: int) -> None:
        """Post at a steady rate."""
        self._ask("offer", to, per_s, count)

    def acknowledged(self, to: str) -> float:
        """Wait until nothing is undelivered. Returns when."""
        return self._ask("acknowledged", to)

    def answers_s(self, count: int) -> list[float]:
        """Wait until so many timed messages are answered, or no answer comes any more.

        Returns the seconds from post to acceptance of each message that was answered, to its first answer.
        """
        return self._ask("answers_s", count)

    def _ask(self, *question: Any) -> Any:
        self.stdin.write(json.dumps(question).encode() + b"\n")
        self.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self.stdout.readline()
        if not line:
            self.require_running()
            raise Failed("the far end went silent")
        return json.loads(line)


class Station:
    """What the process does with its hub: one method per question of the handle."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._peers = [f"peer-{number}" for number in range(1, CONVERSATIONS + 1)]
        self._answered_ns: dict[int, int] = {}
        self._deliver = hub.service.deliver
        hub.service.deliver = self._accepted
        self.agents(self._peers)

    def agents(self, handles: Sequence[str]) -> dict[str, str]:
        return {handle: self._hub.create_agent(handle) for handle in handles}

    async def push(self, to: str, count: int) -> tuple[float, float, float]:
        # Stored ahead: the hub's own work must not be what limits the client.
        stored = self._stored(to, count)
        sockets = self._hub.service.sockets
        began_s, cpu_s = time.monotonic(), time.process_time()
        for start in range(0, count, _TURN * CONVERSATIONS):
            sockets.push(stored[start : start + _TURN * CONVERSATIONS])
            await sockets.until_writable(stored[start].recipients)
            await asyncio.sleep(0)
        return began_s, await self.acknowledged(to), time.process_time() - cpu_s

    def store(self, to: str, count: int) -> None:
        self._stored(to, count)

    async def drained(self, to: str) -> tuple[float, float]:
        async with asyncio.timeout(_PATIENCE_S):
            while not self._hub.connections(to):
                await asyncio.sleep(_LOOK_S)
        return time.monotonic(), await self.acknowledged(to)

    async def offer(self, to: str, per_s: int, count: int) -> None:
        began_s = time.monotonic()
        for number in range(count):
            while (ahead_s := number / per_s - (time.monotonic() - began_s)) > 0:
                await asyncio.sleep(ahead_s)
            self._hub.post(self._peers[number % CONVERSATIONS], to, f"{time.monotonic_ns()} {_PADDING}")

    async def acknowledged(self, to: str) -> float:
        async with asyncio.timeout(_PATIENCE_S):
            while self._hub.undelivered(to):
                await asyncio.sleep(_LOOK_S)
        return time.monotonic()

    async def answers_s(self, count: int) -> list[float]:
        newest_ns = time.monotonic_ns()
        while len(self._answered_ns) < count and time.monotonic_ns() - newest_ns < _LAST_ANSWER_S * 1e9:
            await asyncio.sleep(_LOOK_S)
            newest_ns = max(newest_ns, *self._answered_ns.values(), 0)
        answered_ns, self._answered_ns = self._answered_ns, {}
        return [(accepted_ns - posted_ns) / 1e9 for posted_ns, accepted_ns in answered_ns.items()]

    def _stored(self, to: str, count: int) -> list[Stored]:
        service = self._hub.service
        senders = [service.accounts.get(peer) for peer in self._peers]
        stored: list[Stored] = []
        while len(stored) < count:
            sender = senders[len(stored) // _TURN % CONVERSATIONS]
            drafts = [Draft(wire.MessageContent(text=f"0 {_PADDING}"))] * min(_TURN, count - len(stored))
            stored += service.sending.store(service.target(sender, to), sender, drafts)
        return stored

    def _accepted(self, stored: Stored) -> None:
        """A client has sent something: an answer, whose text is that of the message."""
        content = wire.decode_message(stored.payload).content
        assert content is not None and content.text is not None
        posted_ns = int(content.text.partition(" ")[0])
        if posted_ns:
            self._answered_ns.setdefault(posted_ns, time.monotonic_ns())
        self._deliver(stored)


async def _serve() -> None:
    questions = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    async with Hub(_SETTINGS) as hub:
        station = Station(hub)
        print(json.dumps(hub.url), flush=True)
        async for line in questions:
            name, *arguments = json.loads(line)
            answer = getattr(station, name)(*arguments)
            print(json.dumps(await answer if inspect.isawaitable(answer) else answer), flush=True)


if __name__ == "__main__":
    uvloop.run(_serve())
