"""The plugin of the crash tests: does everything that a handler can do, and numbers it.

A message's text ends with what it wants beside a reply: "plain", "later" (a timer that speaks), "now" (`send_now`) or
"expiring" (a reply that is marked on disk before it leaves).
"""

from __future__ import annotations

import os

import msgspec

from agentd.demo.ledger import Config, Entry
from agentd.plugin import Context, Message, Plugin, Timer

WAKE_AFTER_S = 0.05

plugin = Plugin("bookkeeper", config=Config)


def note(ctx: Context[Config], line: object, suffix: str = "") -> None:
    """One write to a file opened for appending outlives a SIGKILL at any instruction."""
    file = os.open(ctx.config.file + suffix, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, msgspec.json.encode(line) + b"\n")
    finally:
        os.close(file)


@plugin.on(Message)
async def handle(message: Message, ctx: Context[Config]) -> None:
    note(ctx, Entry(message.identity, message.conversation, message.epoch, message.seq, message.id, message.late))
    text = message.text or ""
    wish = text.rpartition(" ")[2]
    count = await ctx.state.get("count", int, 0) + 1
    ctx.state.put("count", count)
    if wish == "now":
        sent = await ctx.send_now(f"@{message.sender}", f"at once {text}", metadata={"reply_to": message.id})
        note(ctx, [message.id, sent.id, sent.seq], ".now")
    ctx.reply(f"number {count} {text}", expires_s=3_600.0 if wish == "expiring" else None)
    if wish == "later":
        ctx.remind(WAKE_AFTER_S, data=[message.sender, message.id, text])


@plugin.on(Timer)
async def wake(timer: Timer, ctx: Context[Config]) -> None:
    sender, message_id, text = timer.data
    wakes = await ctx.state.get("wakes", int, 0) + 1
    ctx.state.put("wakes", wakes)
    ctx.send(f"@{sender}", f"wake-up {wakes} {text}", metadata={"reply_to": message_id})
