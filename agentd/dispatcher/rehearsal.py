"""Shows what a plugin would do about a recorded event, and lets nothing come of it.

Always true: what the turn stages is not committed, what it would say at once is not said, of its calls of `ctx.api`
only those that read are made, and what it reads is what is
stored now, under its own puts. What a handler does without its context (a request of its own, a file) happens.
Not here: which events (whoever asks), lanes: it runs beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from agentd.core.events import Record, Send, Sent
from agentd.host.api import NoChanges, Port
from agentd.host.context import Reminder, TurnContext
from agentd.host.handlers import matching
from agentd.host.isolated import Hosted
from agentd.host.state import Puts
from agentd.host.turns import Failure

AGAIN = "rehearsal"
"""Sets the keys that are shown apart from those of any real turn."""


class Rehearsed(NamedTuple):
    """What one turn would do. now: what it would have said at once. failure: how it failed, or None."""

    record: Record
    handlers: Sequence[str]
    sends: Sequence[Send]
    now: Sequence[Send]
    puts: Puts
    reminders: Sequence[Reminder]
    outcomes: Sequence[tuple[str, bytes | None]]
    failure: Failure | None


class _Stage:
    """A plugin as a turn sees it, but for what would leave."""

    def __init__(self, plugin: Hosted) -> None:
        self._plugin = plugin
        self.said: list[Send] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plugin, name)

    async def send_now(self, send: Send) -> Sent:
        """Take it for said."""
        self.said.append(send)
        return Sent(client_msg_id=send.client_msg_id, id=f"{AGAIN}-{len(self.said)}", conversation=send.target, seq=0)

    def api_of(self, identity: str) -> Port | None:
        """Calls that change nothing."""
        port: Port | None = self._plugin.api_of(identity)
        return None if port is None else NoChanges(port)


async def rehearse(plugin: Hosted, record: Record) -> Rehearsed | None:
    """Run one turn; None if no handler wants the event."""
    handlers = matching(plugin, record.event)
    if handlers == ():
        return None
    stage: Any = _Stage(plugin)
    ctx: TurnContext[Any] = TurnContext(stage, record.event, record.conversation, 1, again=AGAIN)
    failure = await plugin.turns.run(record.event, handlers, ctx, lambda: None)
    names = [handler.name for handler in handlers or ()]
    return Rehearsed(
        record,
        names,
        ctx.sends or (),
        stage.said,
        ctx.puts or Puts(),
        ctx.reminders or (),
        ctx.outcomes or (),
        failure,
    )
