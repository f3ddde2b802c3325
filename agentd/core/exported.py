"""The format of exported events: a JSON line for each, with all that it takes to deliver it again in a test.

    {"position", "identity", "conversation", "epoch", "seq", "id", "source", "own", "late", "received_at",
     "payload": the platform's object as it came, "event": {"type", "sender", "text", ...}}

`event` holds what `agentd.core.events.portable` tells beside the fields before it. So reading needs no platform.

Always true: reading a line back gives the same event, of the same type. `payload` is the text as it came, without the
space between its words. Within a format fields are only added, and a reader passes over those that it does not know.
Not here: where the lines come from and where they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NamedTuple

import msgspec

from agentd.core.events import FIRST_SEQ, LAST_SEQ, Event, Message, Record, Source, portable
from agentd.core.moments import iso, unix
from agentd.errors import ExportUnreadable

_TYPES: dict[str, type[Event]] = {"Event": Event, "Message": Message}


class Exported(NamedTuple):
    """An event as it was recorded. received_at: Unix seconds."""

    event: Event
    received_at: float


class _Line(msgspec.Struct, kw_only=True):
    position: int = 0
    identity: str
    conversation: str
    epoch: Annotated[int, msgspec.Meta(ge=1, le=LAST_SEQ)]
    seq: Annotated[int, msgspec.Meta(ge=FIRST_SEQ, le=LAST_SEQ)]
    id: str
    source: Source
    own: bool
    late: bool
    received_at: str
    payload: msgspec.Raw
    event: dict[str, Any]


_PLACED = ("identity", "conversation", "epoch", "seq", "id", "source", "own", "late")
_decoder = msgspec.json.Decoder(_Line)


def line(record: Record) -> bytes:
    """A record as one line, its end included."""
    event = record.event
    told = {name: value for name, value in portable(event).items() if name not in _PLACED}
    written = _Line(
        position=record.position,
        identity=event.identity,
        conversation=event.conversation,
        epoch=event.epoch,
        seq=event.seq,
        id=event.id,
        source=event.source,
        own=event.own,
        late=event.late,
        received_at=iso(record.received_at),
        # A platform may spread its objects over several lines.
        payload=msgspec.Raw(msgspec.json.format(event.payload, indent=-1)),
        event=told,
    )
    return msgspec.json.encode(written) + b"\n"


def read(lines: Iterable[str | bytes]) -> Iterator[Exported]:
    """The events of these lines, blank ones passed over. Raises ExportUnreadable, which names the line."""
    return (each for _, each in numbered(lines))


def numbered(lines: Iterable[str | bytes]) -> Iterator[tuple[int, Exported]]:
    """The same, each with the number of its line, from 1 on."""
    for number, text in enumerate(lines, start=1):
        if text.strip():
            try:
                yield number, _read(text)
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                raise ExportUnreadable(number, str(error)) from None


def _read(text: str | bytes) -> Exported:
    written = _decoder.decode(text)
    kind = _TYPES.get(str(written.event.get("type")))
    if kind is None:
        raise ValueError(f"an event of type {written.event.get('type')!r} is not known here")
    placed = {name: getattr(written, name) for name in _PLACED}
    event = msgspec.convert({**written.event, **placed}, kind)
    return Exported(msgspec.structs.replace(event, payload=bytes(written.payload)), unix(written.received_at))
