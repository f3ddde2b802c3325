"""What a process of its own costs a plugin: the same calls in this process and in a worker, side by side."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import uvloop

from agentd.config import PluginSettings
from agentd.core.events import Message
from agentd.host.context import TurnContext
from agentd.host.isolated import Hosted, Isolated, load_hosted
from tests.bench.clients import Agentd, Client
from tests.bench.measuring import Figure, Place, Sample, Sizes
from tests.bench.processes import Failed

_SOURCE = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("bench")


@plugin.on(Message, text="reply")
async def reply(message: Message, ctx: Context) -> None:
    ctx.reply(message.text)


@plugin.on(Message, text="count")
async def count(message: Message, ctx: Context) -> None:
    ctx.state.put("count", await ctx.state.get("count", int, 0) + 1)
"""
_WAYS: tuple[Literal["none", "process"], ...] = ("none", "process")
_TITLES = {
    "none.reply": "in this process, a reply",
    "process.reply": "in a worker, a reply",
    "none.count": "in this process, one value read and put",
    "process.count": "in a worker, one value read and put",
}


class Isolation:
    """Calls one after the other, each with its message and its context, as the dispatcher makes them."""

    note = "From a matched message to its staged effects. Payloads of 400 bytes; the state answers at once."
    figures: Sequence[Figure] = (
        *(
            Figure(f"isolation.{way}.{percentile}", f"{title}, {percentile}", "us", "less")
            for way, title in _TITLES.items()
            for percentile in ("p50", "p99")
        ),
        Figure("isolation.rss", "memory of a worker", "KiB", "less"),
        Figure("isolation.start", "from nothing to set up", "ms", "less"),
    )

    def __init__(self, sizes: Sizes) -> None:
        self._calls = sizes.isolated_calls
        self.title = f"isolation: {self._calls:,} calls of a plugin"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        return uvloop.run(self._measured()) if kind is Agentd else {}

    async def _measured(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="agentd-bench-") as folder:
            (Path(folder) / "bench.py").write_text(_SOURCE)
            for way in _WAYS:
                began_s = time.perf_counter()
                settings = PluginSettings(use="./bench.py", isolate=way)
                plugin = await load_hosted("bench", settings, Path(folder), _nothing_stored)
                await plugin.setup()
                start_ms = (time.perf_counter() - began_s) * 1e3
                for text in ("reply", "count"):
                    took_us = sorted([await _call(plugin, text, number) for number in range(self._calls)])
                    figures[f"isolation.{way}.{text}.p50"] = statistics.median(took_us)
                    figures[f"isolation.{way}.{text}.p99"] = took_us[int(len(took_us) * 0.99)]
                if isinstance(plugin, Isolated):
                    figures |= {"isolation.start": start_ms, "isolation.rss": _rss_kib(plugin)}
                await plugin.teardown()
        return figures


async def _call(plugin: Hosted, text: str, number: int) -> float:
    message = Message(
        identity="me",
        conversation="conv_1",
        seq=number + 1,
        id=f"msg_{number}",
        sender="peer",
        text=text,
        payload=b"x" * 400,
        answer_to="@peer",
    )
    handlers = plugin.handlers.match(message)
    began_ns = time.perf_counter_ns()
    ctx: TurnContext[Any] = TurnContext(plugin, message, 1, 1)
    failure = await plugin.turns.run(message, handlers, ctx, lambda: None)
    took_us = (time.perf_counter_ns() - began_ns) / 1e3
    if failure is not None or not (ctx.sends or ctx.puts):
        raise Failed(f"a call failed: {failure}")
    return took_us


async def _nothing_stored(plugin: str, conversation: int, key: str) -> bytes | None:
    return None


def _rss_kib(plugin: Isolated) -> float:
    status = Path(f"/proc/{plugin.standing()['pid']}/status").read_text()
    return float(status.split("VmRSS:")[1].split()[0])
