"""The verb that takes exported conversations in.

Always true: what is refused names the line, and nothing of the file is there then.
Not here: parsing words (words/), what the journal makes of the events (journal/sqlite/importing.py).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import click
import msgspec

from agentd.cli.printing import echo_json
from agentd.cli.progress import Progress
from agentd.cli.tables import counted
from agentd.config import Settings, find_configuration, load
from agentd.core.events import Event
from agentd.core.exported import numbered
from agentd.errors import ExportUnreadable, WireViolation
from agentd.journal.sqlite.importing import import_events
from agentd.wire.agentchat import AgentChat

_LINE_MAX_BYTES = 1 << 26  # twice what a platform's answer may hold: a message as it came, and as an event


def import_file(
    journal: Path,
    file: Path,
    identity: str | None,
    config: Path | None,
    environ: Mapping[str, str],
    *,
    as_json: bool,
) -> None:
    """Put the conversations of an export into the journal, and say what came of it. Raises AgentdError."""
    named = config or find_configuration(environ)
    configured = load(config, environ, with_keys=False) if named else Settings()
    fit = fitting(configured)
    with click.open_file(str(file), "rb") as lines:
        progress = Progress("importing")
        told = numbered(_watched(lines, file, progress))
        imported = import_events(
            journal,
            told,
            identity=identity,
            platform=AgentChat.name,
            fit=fit,
            now=time.time(),
            settings=configured.agentd.journal,
        )
        progress.over()
    if as_json:
        echo_json({"journal": str(journal), "file": str(file), **msgspec.structs.asdict(imported)})
        return
    events, conversations = counted(imported.events, "event"), counted(imported.conversations, "conversation")
    click.echo(f"imported {events} of {conversations} into {journal}", err=True)
    if imported.known:
        click.echo(f"passed over {counted(imported.known, 'event')}: the journal has them", err=True)


def fitting(settings: Settings) -> Callable[[Event], str | None]:
    """What says why an event cannot be one of these identities', or None."""
    platforms: dict[str, AgentChat] = {}

    def fit(event: Event) -> str | None:
        name = event.identity
        if settings.identity and name not in settings.identity:
            return f"there is no identity {name} in the configuration; add it there, or name one with --as"
        platform = platforms.setdefault(name, AgentChat(name, "", str))
        try:
            read = platform.revive(event.payload, epoch=event.epoch, late=event.late, source=event.source)
        except (msgspec.DecodeError, UnicodeDecodeError, WireViolation):
            return "its payload is no message of the platform; export it anew"
        if (read.conversation, read.seq, read.id) != (event.conversation, event.seq, event.id):
            return f"its payload is of another event ({read.conversation} #{read.seq}); export it anew"
        return None

    return fit


def _watched(lines: IO[bytes], file: Path, progress: Progress) -> Iterator[bytes]:
    size = 0 if str(file) == "-" else file.stat().st_size
    done = 0
    for place in itertools.count(1):
        line = lines.readline(_LINE_MAX_BYTES + 1)
        if not line:
            return
        if len(line) > _LINE_MAX_BYTES:
            raise ExportUnreadable(place, f"it is longer than {_LINE_MAX_BYTES:,} bytes")
        yield line
        done += len(line)
        progress(done, max(size, done))
