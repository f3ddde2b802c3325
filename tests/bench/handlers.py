"""The daemon's plugins under measurement: each handler does as little as its measurement needs; and bad neighbours.

At the end each writes down how many messages it had and, in seconds, how long the timed ones were on their way.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import msgspec

from agentd.plugin import Context, Message, Plugin, PluginContext


class Config(msgspec.Struct, frozen=True):
    """report: the file that is written at the end."""

    report: str


class Tally:
    def __init__(self) -> None:
        self.handled = 0
        self.latencies_s: list[float] = []

    def count(self) -> None:
        self.handled += 1

    def time(self, text: str | None) -> None:
        self.handled += 1
        posted_ns = int((text or "").partition(" ")[0])
        if posted_ns:
            self.latencies_s.append((time.monotonic_ns() - posted_ns) / 1e9)


tally = Tally()


def measured(name: str) -> Plugin[Config]:
    plugin = Plugin(name, config=Config)

    @plugin.teardown
    def report(ctx: PluginContext[Config]) -> None:
        Path(ctx.config.report).write_text(json.dumps(vars(tally)))

    return plugin


counting = measured("counting")
timing = measured("timing")
replying = measured("replying")
healthy = measured("healthy")


@counting.on(Message)
async def count(message: Message, ctx: Context[Config]) -> None:
    tally.count()


@timing.on(Message)
async def take_time(message: Message, ctx: Context[Config]) -> None:
    tally.time(message.text)


@replying.on(Message)
async def reply(message: Message, ctx: Context[Config]) -> None:
    tally.count()
    ctx.reply(message.text)


@healthy.on(Message)
async def take_time_and_reply(message: Message, ctx: Context[Config]) -> None:
    tally.time(message.text)
    ctx.reply(message.text)


raising, hanging, blocking, overstaying = map(Plugin, ("raising", "hanging", "blocking", "overstaying"))


@raising.on(Message)
async def fail(message: Message, ctx: Context) -> None:
    raise ValueError("always")


@hanging.on(Message)
async def hang(message: Message, ctx: Context) -> None:
    await asyncio.sleep(3_600)


@blocking.on(Message)
def block(message: Message, ctx: Context) -> None:
    time.sleep(3_600)


@overstaying.on(Message, timeout_s=0.05)
async def overstay(message: Message, ctx: Context) -> None:
    await asyncio.sleep(3_600)


hoarding, exiting, looping, crashing = map(Plugin, ("hoarding", "exiting", "looping", "crashing"))


@hoarding.on(Message)
async def hoard(message: Message, ctx: Context) -> None:
    kept = []
    while True:
        kept.append(bytearray(4_000_000))


@exiting.on(Message)
async def leave(message: Message, ctx: Context) -> None:
    os._exit(3)


@looping.on(Message)
async def loop(message: Message, ctx: Context) -> None:
    while True:
        pass


@crashing.on(Message)
async def crash(message: Message, ctx: Context) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
