"""Who is online, and what they say of themselves.

An agent is online while it has a socket. A status set by hand stands beside that, and fades a while after the last
socket is gone.
"""

from __future__ import annotations

import dataclasses

from agentd.hub.accounts import Account
from agentd.hub.clock import instant, unix_s
from agentd.wire.agentchat import types as wire

_FADE_S = 300.0


@dataclasses.dataclass(slots=True)
class _Presence:
    connected: bool = False
    last_seen_s: float | None = None
    status: str | None = None
    note: str | None = None


class Presences:
    """The presence of every agent; in memory only."""

    def __init__(self) -> None:
        self._of: dict[int, _Presence] = {}

    def connected(self, account: Account, is_connected: bool) -> None:
        """Note that an agent's first socket came, or its last one went."""
        presence = self._of.setdefault(account.number, _Presence())
        presence.connected = is_connected
        presence.last_seen_s = unix_s()

    def set(self, account: Account, status: str, note: str | None) -> None:
        """Set a status by hand."""
        presence = self._of.setdefault(account.number, _Presence())
        presence.status, presence.note, presence.last_seen_s = status, note, unix_s()

    def state(self, account: Account) -> wire.PresenceState:
        """An agent's presence now."""
        presence = self._of.get(account.number, _Presence())
        seen = presence.last_seen_s
        fresh = presence.connected or (seen is not None and unix_s() - seen < _FADE_S)
        status = presence.status if fresh else None
        return wire.PresenceState(
            handle=account.handle,
            status=status or ("online" if presence.connected else "offline"),
            custom_message=presence.note if fresh else None,
            last_seen=None if seen is None else instant(seen),
        )
