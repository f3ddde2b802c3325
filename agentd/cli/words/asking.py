"""Verbs that ask a running daemon, or tell it something.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from agentd.cli import completing
from agentd.cli.group import EXIT_FAILED
from agentd.cli.options import as_option, environ_with, limit_option, name_argument, reads_daemon

_SEND_WAIT_S = 10.0


@click.command()
@name_argument
@reads_daemon
def status(name: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show the daemon and its identities, or the one called NAME."""
    from agentd.cli import verbs

    verbs.status(verbs.client(config, environ_with(state)), name, as_json=as_json)


@click.command()
@reads_daemon
def reload(config: Path | None, state: Path | None, as_json: bool) -> None:
    """Apply the configuration and plugins as they are now.

    The configuration is applied whole, or refused with every problem. What did not change does not notice.
    """
    from agentd.cli import verbs

    verbs.reload(verbs.client(config, environ_with(state)), as_json=as_json)


@click.command()
@reads_daemon
def upgrade(config: Path | None, state: Path | None, as_json: bool) -> None:
    """Let the version that is installed now take over.

    For a daemon that runs as a service. Mail flows on, and turns that have begun end in the process that began them.
    If the new version cannot take over, the running one says why, and goes on.
    """
    from agentd.cli import verbs

    verbs.upgrade(verbs.client(config, environ_with(state)), as_json=as_json)


@click.command()
@click.option("--open", "opened", is_flag=True, help="Start a browser with it.")
@reads_daemon
def dashboard(opened: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Print a link that opens the page, once."""
    from agentd.cli import invitation, verbs

    invitation.show(verbs.client(config, environ_with(state)), opened=opened, as_json=as_json)


@click.command()
@click.argument("target", shell_complete=completing.conversations)
@click.argument("text")
@as_option("The identity that speaks; not needed if there is only one.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 600),
    metavar="S",
    default=_SEND_WAIT_S,
    show_default=True,
    help="Seconds to wait for a reply.",
)
@click.option("--no-wait", is_flag=True, help="Return as soon as the message is on disk.")
@click.option("--key", metavar="ID", help="Its client_msg_id: the same key is never sent twice.")
@reads_daemon
@click.pass_context
def send(
    ctx: click.Context,
    target: str,
    text: str,
    identity: str | None,
    wait_s: float,
    no_wait: bool,
    key: str | None,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Say TEXT to TARGET and show the reply.

    TARGET is an @handle or a conversation id. The TEXT "-" stands for what comes on stdin.
    """
    from agentd.cli import verbs

    accepted = verbs.send(
        verbs.client(config, environ_with(state)),
        target,
        text,
        identity=identity,
        wait_s=0.0 if no_wait else wait_s,
        key=key,
        as_json=as_json,
    )
    ctx.exit(0 if accepted else EXIT_FAILED)


@click.command()
@name_argument
@click.option("--since", type=click.IntRange(min=0), metavar="POSITION", help="Start behind this journal position.")
@reads_daemon
def tail(name: str | None, since: int | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Follow the journal: events as they are committed.

    Of all identities or the one called NAME.
    """
    from agentd.cli import verbs

    verbs.tail(verbs.client(config, environ_with(state)), name, since, as_json=as_json)


@click.command()
@name_argument
@click.option("--all", "closed_too", is_flag=True, help="Closed ones too, with what became of them.")
@limit_option
@reads_daemon
def gaps(
    name: str | None, closed_too: bool, limit: int, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """List the gaps that are open, newest first."""
    from agentd.cli import verbs

    verbs.gaps(verbs.client(config, environ_with(state)), name, closed_too=closed_too, limit=limit, as_json=as_json)
