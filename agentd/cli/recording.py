"""The verbs on what is recorded: export and explain.

Always true: an export's file is there whole or not at all, for its owner only. Progress is for terminals.
Not here: parsing words (words/), the format of the lines (core/exported.py), what the verbs mean (the daemon).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from agentd.cli.printing import echo_json
from agentd.cli.tables import counted, number
from agentd.control.client import Client, Export
from agentd.control.fates import MATCHES, filter_passed, told_fate, told_filter, told_outcome, told_pause
from agentd.logs import printable

_PROGRESS_S = 0.2
_CLEARED = "\r\x1b[K"
_FILTER_MARKS = {"passed": "+", "failed": "-", "raised": "!", "not asked": "-"}


def export(daemon: Client, identity: str | None, conversation: str | None, since: str | None, to: Path) -> None:
    """Write recorded events to a file or to stdout."""
    to_stdout = str(to) == "-"
    quiet = not sys.stderr.isatty() or (to_stdout and sys.stdout.isatty())
    count = 0
    told_at = time.monotonic()
    with daemon.export(identity, conversation, since) as exported, _written(to) as put:
        for line in exported:
            put(line)
            count += 1
            if not quiet and time.monotonic() - told_at >= _PROGRESS_S:
                told_at = time.monotonic()
                click.echo(f"{_CLEARED}{_progress(count, line, exported)}", nl=False, err=True)
    place = "" if to_stdout else f" to {to}"
    click.echo(f"{'' if quiet else _CLEARED}exported {counted(count, 'event')}{place}", err=True)
    if exported.unreadable:
        why = "their identities are not configured, or they cannot be read any more"
        click.echo(f"left out {number(exported.unreadable)}: {why}", err=True)


def _progress(count: int, line: bytes, exported: Export) -> str:
    position = json.loads(line)["position"]
    return f"{counted(count, 'event')}, {100 * position // max(1, exported.up_to)} %"


@contextlib.contextmanager
def _written(to: Path) -> Iterator[Callable[[bytes], object]]:
    """Takes lines for stdout, or for a file that takes its name when all is written. Raises click's errors."""
    if str(to) == "-":
        yield _show if sys.stdout.isatty() else sys.stdout.buffer.write
        sys.stdout.flush()
        return
    try:
        if to.exists() and not to.is_file():  # a pipe, a device: nothing takes the place of that
            with to.open("wb") as out:
                yield out.write
            return
        # What people said to each other is for the owner's eyes, and nobody else writes to a name that is made up.
        descriptor, name = tempfile.mkstemp(".part", f"{to.name}.", to.parent)
        unfinished = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as out:
                yield out.write
                out.flush()
                os.fsync(out.fileno())
            unfinished.replace(to)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise click.ClickException(f"{to} cannot be written ({error.strerror}); name another file with --to") from None


def _show(line: bytes) -> None:
    """On a terminal, which nothing in it can steer: the escapes are JSON's own."""
    click.echo(printable(line.decode().rstrip("\n")))


def explain(daemon: Client, event: str, identity: str | None, plugin: str | None, *, as_json: bool) -> None:
    """Show what the plugins make of an event."""
    answer = daemon.explain(event, identity, plugin)
    if as_json:
        echo_json(answer)
        return
    for index, found in enumerate(answer["events"]):
        if index:
            click.echo()
        _echo_event(found["event"])
        if not found["plugins"]:
            click.echo("no plugin is asked: none of them serves this identity")
        for lane in found["plugins"]:
            _echo_lane(lane)


def _echo_event(row: Mapping[str, Any]) -> None:
    notes = "".join(f", {note}" for note in ("own", "late") if row.get(note))
    conversation = printable(row["conversation"])
    place = f"identity {row['identity']}, {conversation} #{row['seq']}, position {row['position']}"
    click.echo(f"{printable(row['id'])} from {printable(row['sender'])}, {place}{notes}")
    said = printable(row["text"]) if row.get("text") else f"[{printable(row['type'])}]"
    click.echo(f"received {row['received_at']}: {said}")


def _echo_lane(lane: Mapping[str, Any]) -> None:
    letter = lane["fate"].get("letter")
    see = f"; see: agentd dead show {letter}" if letter is not None else ""
    click.echo(f"\nplugin {lane['plugin']}: {told_fate(lane)}{see}")
    if (pause := lane.get("pause")) is not None:
        click.echo(f"  {told_pause(pause)}")
    for outcome in lane.get("outcomes", ()):
        click.echo(f"  {outcome['at']} {told_outcome(outcome)}")
    if not lane["handlers"]:
        click.echo("  it has no handlers")
    for handler in lane["handlers"]:
        click.echo(f"  {handler['name']} ({handler['place']}): {MATCHES[handler['matches']]}")
        for each in handler["filters"]:
            click.echo(f"    {_FILTER_MARKS[filter_passed(each)]} {told_filter(each)}")
