"""A plugin's durable values as its turns see them: staged over committed-but-not-yet-readable over the journal.

Always true: a turn sees its own puts, and every put of a turn that has committed, whether or not the disk has it yet.
A value is encoded when it is put, so nothing changes it on its way to disk. A put that would make a plugin's state
larger than it may be fails in the author's line; a delete never does.
Not here: the commit (the dispatcher), tables (journal/).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

PLUGIN_WIDE = 0
"""The conversation number under which a plugin keeps what belongs to no conversation."""

Place = tuple[int, str]
"""(conversation number, key)"""


class Puts(dict[Place, "bytes | None"]):
    """JSON by place; None removes. size: bytes of the keys and values that are to be kept."""

    def __init__(self, puts: Iterable[tuple[Place, bytes | None]] = ()) -> None:
        super().__init__()
        self.size = 0
        for place, value in puts:
            self[place] = value

    def __setitem__(self, place: Place, value: bytes | None) -> None:
        self.size += _size(place, value) - _size(place, self.get(place))
        super().__setitem__(place, value)


Read = Callable[[str, int, str], Awaitable["bytes | None"]]
"""The journal's `state_get`: plugin, conversation number, key."""


class PluginState:
    """What one plugin has stored, the puts of commits under way included.

    value_max_bytes: of one value as JSON. max_bytes: of all keys and values. stored_bytes: what the journal has on
    disk; whoever has the journal says so.
    """

    def __init__(
        self, plugin: str, read: Read, value_max_bytes: int = 1_048_576, max_bytes: int = 1_073_741_824
    ) -> None:
        self.value_max_bytes = value_max_bytes
        self.max_bytes = max_bytes
        self.stored_bytes: Callable[[], int] = _nothing
        self._plugin = plugin
        self._read = read
        self._under_way: dict[Place, Puts] = {}
        self._under_way_bytes = 0
        self._refused_at: int | None = None

    async def read(self, place: Place) -> bytes | None:
        """The newest committed value, or None."""
        puts = self._under_way.get(place)
        if puts is not None:
            return puts[place]
        return await self._read(self._plugin, *place)

    def committing(self, puts: Puts) -> None:
        """These were handed to the journal."""
        self._under_way_bytes += puts.size
        for place in puts:
            self._under_way[place] = puts

    def committed(self, puts: Puts) -> None:
        """These are on disk, where the next read finds them."""
        self._under_way_bytes -= puts.size
        for place in puts:
            if self._under_way.get(place) is puts:
                del self._under_way[place]

    def admit(self, staged: Puts, place: Place, value: bytes) -> None:
        """Raise ValueError if this put, beside what its turn has staged, would be more than the plugin may keep.

        What it replaces counts until it is replaced, since only the disk knows how large that is.
        """
        stored = self.stored_bytes()
        beside = staged.size - _size(place, staged.get(place))
        if stored + self._under_way_bytes + beside + _size(place, value) > self.max_bytes:
            self.refused()
            raise ValueError(
                f"{place[1]}: {self._plugin} keeps {stored:,} bytes already, and state_max_mb in "
                f"[plugin.{self._plugin}] allows {self.max_bytes:,}; delete what is not needed, or raise it"
            )

    @property
    def taken_bytes(self) -> int:
        """What is on disk, and on its way there."""
        return self.stored_bytes() + self._under_way_bytes

    def refused(self) -> None:
        """There was no room for a put, here or in the worker of an isolated plugin."""
        self._refused_at = self.stored_bytes()

    @property
    def full(self) -> bool:
        """A put was refused for want of room, and nothing has been removed since."""
        return self._refused_at is not None and self.stored_bytes() >= self._refused_at


class Scope:
    """The `State` that a turn hands to its handlers: one conversation's values, or the plugin's own.

    stage: gives the turn's puts, or raises if the turn has ended.
    """

    def __init__(self, state: PluginState, conversation: int, stage: Callable[[], Puts]) -> None:
        self._state = state
        self._conversation = conversation
        self._stage = stage

    async def get(self, key: str, shape: type[Any], default: Any = None) -> Any:
        """See agentd.plugin.State."""
        place = (self._conversation, key)
        staged = self._stage()
        value = staged[place] if place in staged else await self._state.read(place)
        return default if value is None else msgspec.json.decode(value, type=shape)

    def put(self, key: str, value: object) -> None:
        """See agentd.plugin.State."""
        encoded = msgspec.json.encode(value)
        if len(encoded) > self._state.value_max_bytes:
            raise ValueError(
                f"{key}: {len(encoded):,} bytes are more than the {self._state.value_max_bytes:,} of "
                "state_value_max_bytes; keep it in several keys, or somewhere else"
            )
        staged, place = self._stage(), (self._conversation, _key(key))
        self._state.admit(staged, place, encoded)
        staged[place] = encoded

    def delete(self, key: str) -> None:
        """See agentd.plugin.State."""
        self._stage()[(self._conversation, _key(key))] = None


def _size(place: Place, value: bytes | None) -> int:
    return 0 if value is None else len(place[1].encode()) + len(value)


def _nothing() -> int:
    return 0


def _key(key: str) -> str:
    # A key that the disk cannot hold must fail here, where the author sees it, not in a commit shared with others.
    if not isinstance(key, str):
        raise TypeError(f"a state key is text, not {type(key).__name__}")
    key.encode()
    return key
