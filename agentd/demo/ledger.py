"""The plugin of the proof: writes down every event that it handles, and answers each once.

The line is written when the handler starts, by one write to a file opened for appending: it outlives a SIGKILL of this
process at any instruction, as a mark on paper would, whether or not the turn is committed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agentd.plugin import Context, Message, Plugin


class Config(msgspec.Struct, frozen=True):
    """file: where handled events are written down, one JSON line each."""

    file: str


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One handling of one event."""

    identity: str
    conversation: str
    epoch: int
    seq: int
    id: str
    late: bool


plugin = Plugin("ledger", config=Config)


@plugin.on(Message)
def handle(message: Message, ctx: Context[Config]) -> None:
    """Write the event down and answer it."""
    entry = Entry(message.identity, message.conversation, message.epoch, message.seq, message.id, message.late)
    file = os.open(ctx.config.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, msgspec.json.encode(entry) + b"\n")
    finally:
        os.close(file)
    ctx.reply(f"noted {message.seq}")


def entries(file: Path) -> Iterator[Entry]:
    """What was written down so far, in the order of handling."""
    if not file.exists():
        return
    whole, _, _ = file.read_bytes().rpartition(b"\n")  # of a line that is being written, part may be seen
    for line in whole.splitlines():
        yield msgspec.json.decode(line, type=Entry)
