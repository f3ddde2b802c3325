"""bridge: a conversation of one identity, mirrored into one of another.

Always true: what a bridge mirrored carries a mark with every bridge it crossed; no bridge mirrors what it mirrored
itself, and none what has made `hops_max` hops. A mark that cannot be read counts as all of them. Within a conversation
the order is kept, and each message is mirrored once.
Not here: attachments, which the platform shows to those who were there only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from agentd.plugin import Context, Message, Plugin

MARK = "bridge"
"""The key of the mark in a message's metadata: {"hops": 1, "via": ["name"]}."""

NO_FILE = "[a file, which stays there]"
"""Stands where a file was attached."""

_Name = Annotated[str, msgspec.Meta(min_length=1)]


class Side(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One end. peer: "@handle" for the direct conversation with them, or the id of a group's conversation."""

    identity: _Name
    peer: Annotated[str, msgspec.Meta(min_length=2)]

    @property
    def is_direct(self) -> bool:
        """Whether it is a conversation of two."""
        return self.peer.startswith("@")

    @property
    def name(self) -> str:
        """The peer, handles in lower case as the platform has them."""
        return self.peer.lower() if self.is_direct else self.peer


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `[plugin.NAME.config]`. The README tells what each is for."""

    left: Side
    right: Side
    direction: Literal["both", "left-to-right", "right-to-left"] = "both"
    own: bool = False
    prefix: str = "{sender}: "
    hops_max: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1

    def __post_init__(self) -> None:
        same_identity = self.left.identity == self.right.identity
        if self.left.name == self.right.name and (same_identity or not self.left.is_direct):
            raise ValueError("left and right are the same conversation; name two")


class Mark(msgspec.Struct, frozen=True):
    """How far a message has come, over which bridges, and who said it before the last of them."""

    hops: Annotated[int, msgspec.Meta(ge=0)] = 0
    via: tuple[str, ...] = ()
    sender: str = ""


plugin = Plugin("bridge", config=Settings, watches=True)


def is_said_by_somebody(message: Message) -> bool:
    """Not the platform's own announcements."""
    return message.kind != "system" and message.context.sender_kind != "system"


@plugin.on(Message, own=True, where=is_said_by_somebody)
async def mirror(message: Message, ctx: Context[Settings]) -> None:
    """Say it on the other side, if it was said on one of ours."""
    settings = ctx.config
    peer = await _peer_of(message, ctx)
    mark = _mark_of(message)
    if mark is None or mark.hops >= settings.hops_max or ctx.name in mark.via or (message.own and not settings.own):
        return
    for start, end in _ways(settings):
        if (start.identity, start.name) == (message.identity, peer):
            _say(message, end, Mark(mark.hops + 1, (*mark.via, ctx.name), message.sender), ctx)


async def _peer_of(message: Message, ctx: Context[Settings]) -> str | None:
    """What a side calls the conversation: "@handle" or its id; None for one of which only own words are known."""
    if not message.direct:
        return message.conversation
    if message.own:  # does not tell to whom, but a conversation of two stays one of these two
        return await ctx.state.get("peer", str)
    peer = f"@{message.sender.removeprefix('@').lower()}"
    if ctx.config.own and await ctx.state.get("peer", str) != peer:
        ctx.state.put("peer", peer)
    return peer


def _mark_of(message: Message) -> Mark | None:
    """The mark, a blank one if there is none; None if it cannot be read."""
    try:
        return msgspec.convert(message.metadata.get(MARK, {}), Mark)
    except msgspec.ValidationError:
        return None


def _ways(settings: Settings) -> Iterator[tuple[Side, Side]]:
    if settings.direction != "right-to-left":
        yield settings.left, settings.right
    if settings.direction != "left-to-right":
        yield settings.right, settings.left


def _say(message: Message, side: Side, mark: Mark, ctx: Context[Settings]) -> None:
    text = message.text
    if message.attachment_id is not None:
        text = f"{text} {NO_FILE}" if text else NO_FILE
    if text is not None:
        # Replaced, not formatted: braces in a handle or in the words mean nothing.
        text = ctx.config.prefix.replace("{sender}", f"@{message.sender.removeprefix('@')}") + text
    if text is not None or message.data is not None:
        metadata = {MARK: msgspec.to_builtins(mark)}
        ctx.send(side.peer, text, data=message.data, metadata=metadata, identity=side.identity)
