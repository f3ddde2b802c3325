"""A plugin whose turns wait for a file: "KIND GATE" begins, and goes on once the file GATE is there.

Every turn tells which process it ran in, and each begin and end of one is written down.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentd.demo.ledger import Config
from agentd.plugin import Context, GiveUp, Message, Plugin, Timer
from tests.crash.bookkeeper import note

plugin = Plugin("gated", config=Config)

_LOOK_S = 0.02


def gate(ctx: Context[Config], text: str | None) -> Path:
    return Path(ctx.config.file).with_name((text or "").split(" ")[1])


async def passed(ctx: Context[Config], text: str | None) -> None:
    note(ctx, [text, os.getpid()], ".begun")
    is_open: Callable[[], bool] = gate(ctx, text).exists
    while not is_open():
        await asyncio.sleep(_LOOK_S)


@plugin.on(Message, text="^(wait|now|fail|never|wake) ")
async def handle(message: Message, ctx: Context[Config]) -> None:
    text = message.text or ""
    count = await ctx.state.get("count", int, 0) + 1
    ctx.state.put("count", count)
    await passed(ctx, text)
    if text.startswith("fail ") and ctx.attempt == 1:
        raise ValueError("the first time")
    if text.startswith("never "):
        raise GiveUp("never")
    if text.startswith("now "):
        shared = await ctx.plugin_state.get("shared", int, 0)
        sent = await ctx.send_now(f"@{message.sender}", f"at once {text} {shared}")
        ctx.outcome("told", {"seq": sent.seq})
    if text.startswith("wake "):
        ctx.remind(0, data=text)
    ctx.reply(f"{count} {text} attempt {ctx.attempt} in {os.getpid()}")


@plugin.on(Message, text="^call ")
async def call(message: Message, ctx: Context[Config]) -> None:
    await passed(ctx, message.text)
    ctx.reply(f"called as {(await ctx.api.profile.get()).handle} in {os.getpid()}")


@plugin.on(Message, text="^thread ")
def handle_in_thread(message: Message, ctx: Context[Config]) -> None:
    note(ctx, [message.text, os.getpid()], ".begun")
    while not gate(ctx, message.text).exists():
        time.sleep(_LOOK_S)
    shared = ctx.wait(ctx.plugin_state.get("shared", int, 0))
    ctx.plugin_state.put("shared", shared + 1)
    ctx.reply(f"{shared} {message.text} in {os.getpid()}")


@plugin.on(Message, text="^batch ", batch=10, settle_s=0.2)
async def handle_batch(messages: tuple[Message, ...], ctx: Context[Config]) -> None:
    ctx.progress([message.text for message in messages])
    await passed(ctx, messages[0].text)
    ctx.reply(" + ".join(f"{message.text}" for message in messages) + f" in {os.getpid()}")


@plugin.on(Timer)
async def wake(timer: Timer, ctx: Context[Config]) -> None:
    text: Any = timer.data
    await passed(ctx, f"{text}-timer")
    woken = await ctx.state.get("woken", int, 0) + 1
    ctx.state.put("woken", woken)
    ctx.send("@peer", f"woken {woken} {text} in {os.getpid()}")
