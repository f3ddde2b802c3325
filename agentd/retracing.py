"""What an earlier process left in the outbox, for the traces that it belongs to.

Events that no plugin has handled are met again when their lanes come to them. A send on disk knows the id of what it
answers, but neither when that came nor when it was queued itself: both are read here, once, before anything leaves.

Always true: bounded, however much is open: the newest sends, of a few events, in the newest part of the log. Of what
lies beyond, the trace goes on from when its send was queued, or leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agentd.core.events import OPEN_STATES, Event, Record
from agentd.journal.storage import Journal, StoredRecord
from agentd.tracing.following import Follower
from agentd.tracing.naming import cause_of

_SENDS_MAX = 1_000  # of each identity
_EVENTS_MAX = 50  # over all; each is a search through what follows
_LOOK_BACK = 20_000  # records: some ten milliseconds a search


async def retrace(
    follower: Follower, journal: Journal, identities: Iterable[str], revive: Callable[[StoredRecord], Event]
) -> None:
    """Follow what is under way. revive: decodes what was stored."""
    last = await journal.last_position()
    found: dict[tuple[str, str], Record | None] = {}
    for identity in identities:
        for row in reversed(await journal.outbox_list(identity, OPEN_STATES, _SENDS_MAX)):
            place = identity, cause_of(row.send)
            if place[1] and place not in found and len(found) < _EVENTS_MAX:
                found[place] = await _record(journal, *place, last, revive)
            follower.resumed(row.send, row.queued_at, found.get(place))


async def _record(
    journal: Journal, identity: str, id_: str, last: int, revive: Callable[[StoredRecord], Event]
) -> Record | None:
    for position in await journal.positions_of(id_, max(0, last - _LOOK_BACK), last):
        for stored in await journal.read_log(identity, position - 1, 1):
            if stored.position == position:
                try:
                    return stored.record(revive(stored))
                except Exception:  # whoever needs it to be readable says so
                    return None
    return None
