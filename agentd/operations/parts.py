"""The parts of a running daemon, as its operations know them.

Not here: building them, starting and stopping them (daemon).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from agentd import config
from agentd.core.events import Event, Record
from agentd.dispatcher import Dispatcher
from agentd.errors import ValueDamaged, WireViolation
from agentd.generations import Generations
from agentd.host.isolated import Hosted
from agentd.host.stalls import StallWatch
from agentd.journal.retention import Retention
from agentd.journal.storage import Journal, StoredRecord
from agentd.operations.vitals import Vitals
from agentd.supervisor import Supervisor


class Tracer(Protocol):
    """The part of what traces that is asked."""

    def status(self) -> dict[str, Any]:
        """For people."""
        ...


class Parts(NamedTuple):
    """What there is to ask.

    current: the settings as they are now. supervisors: by name. revive: decodes what was stored; raises KeyError for an
    identity that is gone, msgspec.DecodeError, WireViolation, and ValueDamaged. hub_url: of the embedded hub, or None.
    began: monotonic seconds. stopping: set once the daemon stops; `stop` sets it. tracer: tells how traces get on, or
    None.
    """

    current: Callable[[], config.Settings]
    journal: Journal
    retention: Retention
    supervisors: Mapping[str, Supervisor]
    generations: Generations
    dispatcher: Dispatcher
    stalls: StallWatch
    vitals: Vitals
    revive: Callable[[StoredRecord], Event]
    hub_url: str | None
    began: float
    stopping: asyncio.Event
    tracer: Tracer | None = None

    @property
    def settings(self) -> config.Settings:
        """The settings that run."""
        return self.current()

    @property
    def plugins(self) -> Mapping[str, Hosted]:
        """Those in service."""
        return self.generations.plugins

    def names(self, identity: str | None) -> list[str]:
        """This identity, or all of them."""
        return [identity] if identity is not None else list(self.supervisors)

    def served_by(self, plugin: str) -> list[str]:
        """The identities that list this plugin."""
        return [name for name, identity in self.settings.identity.items() if plugin in identity.plugins]

    def record(self, stored: StoredRecord) -> Record | None:
        """A record with its event; None if the event cannot be read any more, or its identity is gone."""
        try:
            return stored.record(self.revive(stored))
        except (KeyError, msgspec.DecodeError, ValueDamaged, WireViolation):
            return None

    def stop(self) -> None:
        """Begin to stop."""
        self.stopping.set()
