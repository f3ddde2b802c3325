"""Verbs on what is recorded: taking it along, and telling what the plugins made of it.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from agentd.cli.options import environ_with, finds_daemon, reads_daemon
from agentd.cli.times import given_moment


@click.command()
@click.option("--as", "identity", metavar="NAME", help="Of this identity only.")
@click.option("--conversation", metavar="ID", help="Of this conversation only.")
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


@click.command()
@click.argument("event")
@click.option("--as", "identity", metavar="NAME", help="Of this identity only.")
@click.option("--plugin", metavar="NAME", help="This plugin only.")
@reads_daemon
def explain(
    event: str, identity: str | None, plugin: str | None, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """Say which handlers match an EVENT, and what became of it.

    EVENT is the platform's id of a message, or a position in the journal.
    """
    from agentd.cli import recording, verbs

    recording.explain(verbs.client(config, environ_with(state)), event, identity, plugin, as_json=as_json)
