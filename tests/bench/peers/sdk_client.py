"""The official SDK as a client under measurement. Runs in its own virtual environment, where no agentd is.

usage: python sdk_client.py JOB, a JSON object: url, keys (by handle; a client for each), handler (counting, timing or
replying), with_rest (give each client its REST client, and let it drain), report (the file that is written at the end).
Prints `live` when every client is connected and has drained; ends properly on SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from agentchatme import AsyncAgentChatClient, RealtimeClient


class Realtime(RealtimeClient):
    """The client as it is, and a word when its first drain is over."""

    drained = False

    async def drain_offline_envelopes(self) -> None:
        await super().drain_offline_envelopes()
        self.drained = True


class Session:
    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._handler = getattr(self, job["handler"])
        self._clients: list[tuple[Realtime, AsyncAgentChatClient | None]] = []
        self.handled = 0
        self.latencies_s: list[float] = []

    async def counting(self, handle: str, rest: AsyncAgentChatClient | None, frame: dict[str, Any]) -> None:
        self.handled += 1

    async def timing(self, handle: str, rest: AsyncAgentChatClient | None, frame: dict[str, Any]) -> None:
        self.handled += 1
        posted_ns = int(frame["payload"]["content"]["text"].partition(" ")[0])
        if posted_ns:
            self.latencies_s.append((time.monotonic_ns() - posted_ns) / 1e9)

    async def replying(self, handle: str, rest: AsyncAgentChatClient | None, frame: dict[str, Any]) -> None:
        message = frame["payload"]
        if message["sender"] == handle:  # what it said itself comes back when the SDK fills the gaps that this left
            return
        self.handled += 1
        assert rest is not None
        await rest.send_message(to=message["sender"], text=message["content"]["text"])

    async def connect(self) -> None:
        for handle, key in self._job["keys"].items():
            url = self._job["url"]
            rest = AsyncAgentChatClient(api_key=key, base_url=url) if self._job["with_rest"] else None
            client = Realtime(api_key=key, base_url=url.replace("http", "ws", 1), client=rest)
            client.on("message.new", partial(self._handler, handle, rest))
            self._clients.append((client, rest))
            await client.connect()
        while not all(client.is_connected and (client.drained or rest is None) for client, rest in self._clients):
            await asyncio.sleep(0.001)

    async def end(self) -> None:
        for client, rest in self._clients:
            await client.disconnect()
            if rest is not None:
                await rest.aclose()
        figures = {"handled": self.handled, "latencies_s": self.latencies_s}
        Path(self._job["report"]).write_text(json.dumps(figures))


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    session = Session(json.loads(sys.argv[1]))
    await session.connect()
    print("live", flush=True)
    await stop.wait()
    await session.end()


asyncio.run(main())
