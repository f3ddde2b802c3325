"""A plugin whose turns go in steps, each told to `ctx.progress`, and that goes on when a file says so.

It notes what it knew at the start of each turn, and what it replies tells the steps of the turn that ended.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from agentd.demo.ledger import Config, Entry
from agentd.plugin import Context, Message, Plugin
from tests.crash.bookkeeper import note

STEPS = 3

plugin = Plugin("stepper", config=Config)


@plugin.on(Message)
async def walk(message: Message, ctx: Context[Config]) -> None:
    note(ctx, Entry(message.identity, message.conversation, message.epoch, message.seq, message.id, message.late))
    known = ctx.last_progress
    note(ctx, known, ".known")
    done = []
    for step in range((known or {"step": 0})["step"] + 1, STEPS + 1):
        done.append(step)
        ctx.progress({"step": step})
        while not Path(f"{ctx.config.file}.past-{step}").exists():
            await asyncio.sleep(0.01)
    ctx.reply(f"steps {done}")
