"""Verbs on what is recorded: taking it along and in, and telling what the plugins made of it.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from agentd.cli import completing
from agentd.cli.options import as_option, environ_with, finds_daemon, reads_daemon
from agentd.cli.times import given_moment


@click.command()
@as_option("Of this identity only.")
@click.option(
    "--conversation", metavar="ID", shell_complete=completing.conversations, help="Of this conversation only."
)
@click.option(
    "--since", metavar="TIME", callback=given_moment, help="Received from then on: a date and time in UTC, or 2h."
)
@click.option(
    "--to",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    default="-",
    help="Where to; stdout, if not given.",
)
@finds_daemon
def export(
    identity: str | None,
    conversation: str | None,
    since: str | None,
    to: Path,
    config: Path | None,
    state: Path | None,
) -> None:
    """Write recorded events as JSON lines, oldest first.

    A plugin's test can replay them: see agentd.testing, Harness.replay.
    """
    from agentd.cli import recording, verbs

    recording.export(verbs.client(config, environ_with(state)), identity, conversation, since, to)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True))
@as_option("Whose the conversations become; else whose they were.")
@reads_daemon
def import_(file: Path, identity: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Take exported conversations into the journal.

    FILE is what `agentd export` wrote; "-" stands for stdin. The daemon must be stopped. Only conversations that the
    journal does not know are added, all of the file or nothing; doing it twice does no harm. Plugins do not handle
    what is imported, and can be told to with `agentd replay`. What comes next in these conversations is handled as
    ever.
    """
    from agentd.cli import importing
    from agentd.cli.storage import journal_of

    environ = environ_with(state)
    importing.import_file(journal_of(config, environ), file, identity, config, environ, as_json=as_json)


@click.command()
@click.argument("event")
@as_option("Of this identity only.")
@click.option("--plugin", metavar="NAME", shell_complete=completing.plugins, help="This plugin only.")
@reads_daemon
def explain(
    event: str, identity: str | None, plugin: str | None, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """Say which handlers match an EVENT, and what became of it.

    EVENT is the platform's id of a message, or a position in the journal.
    """
    from agentd.cli import recording, verbs

    recording.explain(verbs.client(config, environ_with(state)), event, identity, plugin, as_json=as_json)
