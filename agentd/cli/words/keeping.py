"""Verbs on the journal's file: backup, restore, vacuum, retention, upgrade-check.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from agentd.cli.group import EXIT_FAILED
from agentd.cli.options import environ_with, reads_daemon

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("file", type=_FILE)
@click.option("--force", is_flag=True, help="Replace a FILE that is there.")
@reads_daemon
def backup(file: Path, force: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Copy the journal into FILE, also of a running daemon."""
    from agentd.cli import storage

    storage.backup(storage.journal_of(config, environ_with(state)), file, force=force, as_json=as_json)


@click.command()
@click.argument("file", type=_FILE)
@click.option("--yes", is_flag=True, help="Do not ask.")
@reads_daemon
def restore(file: Path, yes: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Put the backup in FILE in the journal's place.

    The daemon must be stopped, and the present journal is kept beside. What came since the backup was made is fetched
    again as far as the platform has it; what was answered is not answered twice, as the answers have the same keys.
    """
    from agentd.cli import storage

    storage.restore(storage.journal_of(config, environ_with(state)), file, yes=yes, as_json=as_json)


@click.command()
@reads_daemon
def vacuum(config: Path | None, state: Path | None, as_json: bool) -> None:
    """Give unused room of the journal back to the disk.

    What is not encrypted as [agentd.journal.encryption] says is written anew. The daemon must be stopped.
    """
    from agentd.cli import storage

    environ = environ_with(state)
    storage.vacuum(storage.journal_of(config, environ), storage.configured(config, environ).journal, as_json=as_json)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would go, and what went before.")
@reads_daemon
def retention(dry_run: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Let go of what [agentd.retention] says is old enough.

    A running daemon does so by itself; without one it is done here. Only what every plugin has handled goes.
    """
    from agentd.cli import storage

    environ = environ_with(state)
    configured = storage.configured(config, environ)
    storage.retention(storage.journal_of(config, environ), configured, dry_run=dry_run, as_json=as_json)


@click.command("upgrade-check")
@click.argument("file", type=_FILE, required=False)
@click.option("--rehearse", is_flag=True, help="Upgrade a copy, which is removed again, to see that it can be done.")
@reads_daemon
@click.pass_context
def upgrade_check(
    ctx: click.Context,
    file: Path | None,
    rehearse: bool,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Tell whether this agentd can read the journal.

    Or the one in FILE, which may be a backup; and what an upgrade would do.
    """
    from agentd.cli import storage

    path = file or storage.journal_of(config, environ_with(state))
    ctx.exit(0 if storage.upgrade_check(path, rehearse=rehearse, as_json=as_json) else EXIT_FAILED)
