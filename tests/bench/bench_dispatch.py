"""Events per second from `offer` through a handler that does nothing to its cursor's commit.

    python -m tests.bench.bench_dispatch [--events N] [--conversations C] [--burst B] [--traced]

The journal takes everything and keeps nothing, so that what is measured is the dispatcher. One line per kind of
handler: one that returns at once, one that gives up the loop once, one that replies. --traced: every event is followed
and its spans are made; a collector that takes everything stands in this process.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import uvloop

from agentd.config import Dispatch, PluginSettings, Tracing
from agentd.core.events import Message, Record
from agentd.dispatcher import Dispatcher, Marks
from agentd.host.lifecycle import Loaded
from agentd.journal.storage import Change
from agentd.plugin import Context, Plugin
from agentd.testing import MemoryJournal
from agentd.tracing import Traces


class Bottomless(MemoryJournal):
    """Commits are done when the loop comes round."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0
        self.changes = 0

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        self.commits += 1
        self.changes += len(changes)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.set_result, None)
        return future


async def returns(message: Message, ctx: Context) -> None:
    """Do nothing."""


async def yields(message: Message, ctx: Context) -> None:
    """Give up the loop once."""
    await asyncio.sleep(0)


async def replies(message: Message, ctx: Context) -> None:
    """Have an effect."""
    ctx.reply(message.text)


def follower() -> Traces:
    """Follows every event, all the way to the exporter."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from agentd.tracing.delivering import Delivery
    from agentd.tracing.following import Follower
    from agentd.tracing.spans import SCOPE, OtelSpans

    class Takes(SpanExporter):
        def export(self, spans: Sequence[object]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    settings = Tracing(queue_max=1_000_000)
    delivery = Delivery(Takes, "here", queue_max=settings.queue_max, every_s=1.0, own_scope=SCOPE)
    return Follower(OtelSpans(settings, delivery, {}), settings.open_max, lambda identity: "agentchat")


async def measure(handler: Callable[[Message, Context], Awaitable[None]], args: argparse.Namespace) -> float:
    plugin = Plugin("bench")
    plugin.on(Message)(handler)
    journal = Bottomless()
    loaded = Loaded("bench", plugin, PluginSettings(use="bench", concurrency=64), "", journal.state_get)
    await loaded.setup()
    records = [
        Record(
            position,
            position % args.conversations + 1,
            Message(
                identity="me",
                conversation=f"conv_{position % args.conversations}",
                seq=position,
                id=f"msg_{position}",
                sender="peer",
                text="hello",
                answer_to="@peer",
            ),
            0.0,
        )
        for position in range(1, args.events + 1)
    ]
    async with asyncio.TaskGroup() as tasks:
        dispatcher = Dispatcher(
            journal,
            {"bench": loaded},
            {"me": ["bench"]},
            Dispatch(lane_memory=10_000_000),
            revive=journal.revive,
            on_queued=lambda sends: None,
            on_backlog=lambda identity, is_so: None,
            marks=Marks(10_000_000, 0, 1 << 40, 0),
            traces=follower() if args.traced else None,
        )
        await dispatcher.start(tasks)
        started = time.perf_counter()
        for first in range(0, len(records), args.burst):
            dispatcher.offer(records[first : first + args.burst])
            await asyncio.sleep(0)
        await dispatcher.quiet()
        took_s = time.perf_counter() - started
        assert dispatcher.handled["me"] == args.events
        await dispatcher.stop(1.0)
    return args.events / took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--burst", type=int, default=64)
    parser.add_argument("--traced", action="store_true")
    args = parser.parse_args()
    for handler in (returns, yields, replies):
        rate = uvloop.run(measure(handler, args))
        print(f"{handler.__name__:8} {rate:>9,.0f} events/s  {1e6 / rate:5.1f} µs each")


if __name__ == "__main__":
    main()
