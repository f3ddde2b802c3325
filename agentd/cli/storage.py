"""What the verbs on the journal's file do: backup, restore, vacuum, retention, upgrade-check.

They work on the file itself, so that they need no daemon. Vacuum and retention are the running daemon's to do where
there is one; what would disturb it is refused.

Always true: with `as_json`, stdout holds JSON and nothing else. Nothing is replaced that was not agreed to.
Not here: the work on the file (journal).
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from agentd.cli.agreeing import agree
from agentd.cli.printing import count_column, echo_json, echo_table
from agentd.cli.progress import Progress
from agentd.cli.tables import Column, size
from agentd.config import SERVICE_STATE, Agentd, JournalSettings, Retention, find_configuration, find_state, load
from agentd.control.client import Client
from agentd.control.refusal import UnreachableError
from agentd.errors import JournalUnusable
from agentd.journal.retention import TABLES, below, bounds_of_age, excess, oldest_first, slices
from agentd.journal.retention import Retention as Keeper
from agentd.journal.sqlite import copies, open_journal, trimming
from agentd.journal.sqlite.trimming import Found

JOURNAL_NAME = "journal.db"

_TRACES = 20


def journal_of(config: Path | None, environ: Mapping[str, str]) -> Path:
    """The journal that these would use: of the state folder that is named, else where the service keeps it."""
    named = find_state(config, environ) / JOURNAL_NAME
    of_service = SERVICE_STATE / JOURNAL_NAME
    if environ.get("AGENTD_STATE") or named.exists() or not of_service.exists():
        return named
    return of_service


def configured(config: Path | None, environ: Mapping[str, str]) -> Agentd:
    """What the configuration says of the daemon, the defaults without one. Raises ConfigError."""
    if (config or find_configuration(environ)) is None:
        return Agentd()
    return load(config, environ, with_keys=False).agentd


def backup(journal: Path, file: Path, *, force: bool, wal_max_mb: int, as_json: bool) -> None:
    """Copy the journal, and say where to."""
    progress, began = Progress("copying"), time.monotonic()
    copied = copies.back_up(journal, file, force=force, wal_max_mb=wal_max_mb, progress=progress)
    progress.over()
    if as_json:
        echo_json({"journal": str(journal), "backup": str(file), "bytes": copied})
    else:
        click.echo(f"{file}: {size(copied)}, whole and on disk after {time.monotonic() - began:.1f} s", err=True)


def restore(journal: Path, file: Path, *, yes: bool, as_json: bool) -> None:
    """Put a backup in the journal's place, and say where the former is."""
    copies.standing(file)  # what cannot be done is said before anybody is asked
    if journal.exists():
        with copies.owned(journal):
            pass
    agree(f"replace {journal} by {file}?", yes)
    progress = Progress("copying")
    kept = copies.restore(file, journal, progress=progress)
    progress.over()
    if as_json:
        echo_json({"journal": str(journal), "kept": kept and str(kept)})
        return
    click.echo(f"{journal} is {file} now; start the daemon", err=True)
    if kept:
        click.echo(f"the former one is kept as {kept}", err=True)


def vacuum(journal: Path, daemon: Client, settings: JournalSettings, *, as_json: bool) -> None:
    """Shrink the file: the daemon does, between its commits. Without one also bring what is in it under today's key."""
    try:
        before, after = _shrunk_by(daemon)
    except UnreachableError:
        progress = Progress("writing values anew")
        # It says who has the file, should that be a daemon all the same.
        before, after = copies.vacuum(journal, settings, progress)
        progress.over()
    if as_json:
        echo_json({"journal": str(journal), "bytes_before": before, "bytes": after})
    else:
        click.echo(f"{journal}: {size(before)} before, {size(after)} now", err=True)


def _shrunk_by(daemon: Client) -> tuple[int, int]:
    progress, told = Progress("giving back"), {}
    for told in daemon.vacuum():
        if "of" in told:
            progress(told["given_back"], told["of"])
    progress.over()
    return told["bytes_before"], told["bytes"]


def upgrade_check(file: Path, *, rehearse: bool, as_json: bool) -> bool:
    """Say how the file stands to this program. False if it cannot be read."""
    found = copies.standing(file)
    took_s = _rehearsed(file) if rehearse and found.readable else None
    if as_json:
        steps = [{"version": version, "what": what} for version, what in found.steps]
        told: dict[str, Any] = {"file": str(file), "readable": found.readable, "version": found.version}
        echo_json({**told, "known": found.known, "steps": steps, "rehearsal_s": took_s})
        return found.readable
    if not found.readable:
        click.echo(
            f"{file} has tables of version {found.version}, and this agentd knows {found.known}: install the agentd "
            f"that wrote it, or restore the backup of before its upgrade ({file.name}.v*.backup)"
        )
    elif not found.steps:
        click.echo(f"{file} has tables of version {found.version}, as this agentd writes them: nothing to upgrade")
    else:
        click.echo(
            f"{file} has tables of version {found.version}; the next `agentd run` copies it beside and upgrades:"
        )
        for version, what in found.steps:
            click.echo(f"  to version {version}" + (f": {what}" if what else ""))
    if took_s is not None:
        click.echo(f"rehearsed on a copy: it can be opened after {took_s:.1f} s")
    return found.readable


def _rehearsed(file: Path) -> float:
    # Beside the file, since a folder for temporary files may be too small for a journal.
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=file.parent) as folder:
        return copies.rehearse(file, Path(folder))


def retention(journal: Path, daemon: Client, configured: Agentd, *, dry_run: bool, as_json: bool) -> None:
    """Show what would go, or let it go: the daemon does, by its own bounds; without one it is done here."""
    settings = below(configured.retention, configured.journal.max_mb)
    if not dry_run:
        try:
            rows = daemon.retain()
        except UnreachableError:
            rows = _let_go(journal, settings, configured.journal)
        click.echo(f"{rows} rows let go", err=True)
    found = {} if not dry_run else _found(journal, settings)
    traces = copies.trimmed(journal, _TRACES)
    with copies.reading(journal) as connection:
        used = trimming.room(connection).used_bytes
    if as_json:
        told = {what: row._asdict() for what, row in found.items()}
        past = [msgspec.to_builtins(trace) for trace in traces]
        echo_json({"used_bytes": used, "excess_bytes": excess(settings, used), "would_go": told, "went": past})
        return
    for reason, row in found.items():
        _echo_found(reason, row)
    over = f", {size(excess(settings, used))} above journal_max_mb" if excess(settings, used) else ""
    click.echo(f"{journal} uses {size(used)}{over}")
    if traces:
        _echo_traces(traces)


def _let_go(journal: Path, settings: Retention, of_journal: JournalSettings) -> int:
    async def once() -> int:
        opened = await open_journal(journal, of_journal)
        try:
            return await Keeper(opened, settings).once(time.time())
        finally:
            await opened.close()

    if not journal.exists():
        raise JournalUnusable(f"there is no journal at {journal}; name its folder with --state")
    return asyncio.run(once())


def _found(journal: Path, settings: Retention) -> dict[str, Found]:
    """What each bound would let go, by its reason."""
    with copies.reading(journal) as connection:
        return asyncio.run(_look(copies.Look(connection), settings))


async def _look(look: copies.Look, settings: Retention) -> dict[str, Found]:
    progress = Progress("looking")
    found: dict[str, Found] = {}
    for bound in bounds_of_age(settings, time.time()):
        total, end = Found(), (await look.parts(bound.what))[-1].upto
        async for slice_ in slices(look, bound, settings.forget_plugins):
            total = total.joined(slice_.found)
            progress(slice_.stretch.upto, end)
        found[f"{_NOUNS[bound.what]} {bound.reason}"] = total
    over = excess(settings, look.room().used_bytes)
    if over:
        gone = dict.fromkeys(TABLES, Found())
        async for slice_ in oldest_first(look, settings.forget_plugins):
            gone[slice_.stretch.what] = gone[slice_.stretch.what].joined(slice_.found)
            done = sum(total.bytes for total in gone.values())
            progress(done, over)
            if done >= over:
                break
        for what, total in gone.items():
            found[f"{_NOUNS[what]}, the oldest, since the journal is above {settings.journal_max_mb} MB"] = total
    progress.over()
    return found


_NOUNS = {"event": "events", "outcome": "outcomes of turns", "outbox": "settled sends"}


def _echo_found(reason: str, found: Found) -> None:
    if not found.rows:
        click.echo(f"{reason}: none may go")
        return
    span = f"from {_day(found.oldest)} to {_day(found.newest)}"
    click.echo(f"{reason}: {found.rows:,} may go, {size(found.bytes)}, {span}, {found.first} to {found.last}")


def _echo_traces(traces: list[trimming.Trimmed]) -> None:
    columns = (
        Column("WENT", lambda row: _day(row["at"])),
        Column("WHAT", lambda row: _NOUNS[row["what"]]),
        Column("FROM", lambda row: str(row["start"]), 2),
        Column("TO", lambda row: str(row["stop"] - 1), 2),
        count_column("ROWS", "rows", 0),
        Column("SIZE", lambda row: size(row["bytes"]), 1),
        Column("WHY", lambda row: str(row["reason"])),
    )
    click.echo()
    echo_table(columns, [msgspec.to_builtins(trace) for trace in traces])


def _day(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")
