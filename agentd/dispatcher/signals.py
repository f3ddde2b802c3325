"""Turns about signals: best effort, the newest of a kind, never repeated.

Always true: a signal that waits is replaced by a newer one about the same. At most `signals_max` wait per plugin; what
comes on top of them is dropped and counted.
Not here: timers, which are durable (wakeups).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from agentd.core.events import Signal
from agentd.dispatcher.backlog import Served, SignalKey
from agentd.dispatcher.engine import Engine, Waits
from agentd.dispatcher.fates import log_failure
from agentd.host.context import TurnContext
from agentd.host.handlers import matching
from agentd.host.isolated import Hosted
from agentd.host.turns import Failure

log = logging.getLogger("agentd.dispatcher")


class Signals:
    """Those of one dispatcher. dropped: of those that came too fast."""

    def __init__(self, engine: Engine, signals_max: int) -> None:
        self._engine = engine
        self._signals_max = signals_max
        self.dropped = 0

    def show(self, signal: Signal, plugins: Iterable[Served]) -> None:
        """Show a signal to the plugins that want it."""
        for served in plugins:
            if not _wants(served.plugin, signal):
                continue
            key = _key(signal)
            if key not in served.signals:
                if len(served.signals) >= self._signals_max:
                    self.dropped += 1
                    continue
                self._engine.push(served, key, None, signal.identity)
            served.signals[key] = signal

    async def run(self, served: Served, key: SignalKey, waits: Waits) -> None:
        """One turn."""
        engine = self._engine
        signal = served.signals.pop(key, None)
        if signal is not None:
            ctx: TurnContext[Any] = TurnContext(served.plugin, signal, None, 1)
            engine.under_way.add(ctx)
            try:
                failure = await served.plugin.turns.run(signal, matching(served.plugin, signal), ctx, waits)
            finally:
                engine.under_way.discard(ctx)
            if await engine.left_to_successor(ctx, failure):
                return
            self.ended(ctx, failure)
        engine.done(served, key)

    def ended(self, ctx: TurnContext[Any], failure: Failure | None) -> None:
        """What follows from how a turn ended."""
        engine = self._engine
        if failure is not None:
            log_failure("handler failed on a signal", ctx, failure)
        elif ctx.sends and not engine.room.fits(ctx.sends):
            log.warning("the outbox is full: a signal was not answered", extra={"identity": ctx.identity})
        elif changes := engine.effects(ctx):
            engine.commits.commit(*changes).add_done_callback(lambda commit: engine.effects_on_disk(ctx, commit))


def _wants(plugin: Hosted, signal: Signal) -> bool:
    try:
        return bool(plugin.handlers.match(signal))
    except Exception:
        log.exception("a filter failed on a signal", extra={"plugin": plugin.name})
        return False


def _key(signal: Signal) -> SignalKey:
    """Signals of one key replace each other. Who and what they are about tells them apart; what changed does not."""
    about = ("sender", "handle", "reader", "endpoint", "invite_id", "group_id", "epoch", "start")
    parts = (getattr(signal, name, None) for name in about)
    return (type(signal), signal.identity, signal.conversation, *parts)
