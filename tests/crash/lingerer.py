"""The bookkeeper's plugin, taking its time: some turns are over at once, others outlast a take-over.

How long a turn lingers follows from its text, and it lingers once before it does anything and once before it returns.
Whoever is told to be patient does nothing before a file says so.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from typing import Any

from agentd.demo.ledger import Config
from agentd.plugin import Context, Message, Plugin, Timer
from tests.crash import bookkeeper

PATIENT = "patient"
LONGEST_S = float(os.environ.get("LINGER_MAX_S", "2.0"))

plugin = Plugin("lingerer", config=Config)


def lingers_s(text: str) -> float:
    """Nothing for most, a moment for some, long for a few."""
    chance = zlib.crc32(text.encode()) % 1_000 / 1_000
    return 0.0 if chance < 0.6 else 0.2 * chance if chance < 0.85 else LONGEST_S * chance


@plugin.on(Message)
async def handle(message: Message, ctx: Context[Config]) -> None:
    linger_s = lingers_s(message.text or "") / 2
    bookkeeper.note(ctx, [message.id, os.getpid(), time.time()], ".begun")
    while PATIENT in (message.text or "") and not os.path.exists(ctx.config.file + ".go"):
        await asyncio.sleep(0.02)
    await asyncio.sleep(linger_s)
    ctx.progress({"pid": os.getpid()})
    await bookkeeper.handle(message, ctx)
    await asyncio.sleep(linger_s)


@plugin.on(Timer)
async def wake(timer: Timer, ctx: Context[Config]) -> None:
    data: Any = timer.data
    await asyncio.sleep(lingers_s(data[2]) / 2)
    await bookkeeper.wake(timer, ctx)
