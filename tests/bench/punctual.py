"""The plugin of the take-over's measurement: writes down when each message came, and answers; "long" takes long."""

from __future__ import annotations

import asyncio
import time

from agentd.demo.ledger import Config
from agentd.plugin import Context, Message, Plugin
from tests.crash.bookkeeper import note

LONG_S = 1.5

plugin = Plugin("punctual", config=Config)


@plugin.on(Message)
async def handle(message: Message, ctx: Context[Config]) -> None:
    note(ctx, [message.id, time.time()])
    if message.text == "long":
        await asyncio.sleep(LONG_S)
    ctx.reply("noted")
