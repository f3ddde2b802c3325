"""A plugin that only counts. In a conversation where nobody else speaks, the count before each message is its seq."""

from __future__ import annotations

from agentd.demo.ledger import Config
from agentd.plugin import Context, GiveUp, Message, Plugin

plugin = Plugin("counting", config=Config)


@plugin.on(Message)
async def count(message: Message, ctx: Context[Config]) -> None:
    before = await ctx.state.get("count", int, 0)
    if message.seq != before + 1:
        raise GiveUp(f"{before} were counted before seq {message.seq}")
    ctx.state.put("count", before + 1)
