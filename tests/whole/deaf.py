"""A plugin that wants nothing of what the gated one does."""

from __future__ import annotations

from agentd.demo.ledger import Config
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("deaf", config=Config)


@plugin.on(Message, text="^nothing like it$")
async def handle(message: Message, ctx: Context[Config]) -> None:
    ctx.reply("never")
