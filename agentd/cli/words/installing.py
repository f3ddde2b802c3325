"""Verbs on this machine: service, doctor, completion.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from agentd.cli.group import EXIT_FAILED, Verbs
from agentd.cli.options import environ_with, json_option, reads_daemon

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=Verbs)
def service() -> None:
    """Run agentd under systemd: install, status, uninstall."""


def _which_options(command: F) -> F:
    for option in (
        click.option("--root", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Below DIR only."),
        click.option("--hub", is_flag=True, help="The development hub instead of the daemon."),
        click.option("--user", is_flag=True, help="A service of this user, without root."),
    ):
        command = option(command)
    return command


@service.command()
@_which_options
@click.option("--dry-run", is_flag=True, help="Only show what would be written.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def install(user: bool, hub: bool, root: Path | None, dry_run: bool, yes: bool) -> None:
    """Show the unit for this agentd, ask, and write it.

    With --root everything stays below that folder, and the running systemd is not told.
    """
    from agentd.cli import service as services

    services.install(services.chosen(user, hub, root, os.environ), dry_run=dry_run, yes=yes)


@service.command("status")
@_which_options
@json_option
@click.pass_context
def service_status(ctx: click.Context, user: bool, hub: bool, root: Path | None, as_json: bool) -> None:
    """Say whether the service is installed, is up to date, and runs."""
    from agentd.cli import service as services

    runs = services.status(services.chosen(user, hub, root, os.environ), as_json=as_json)
    ctx.exit(0 if runs else EXIT_FAILED)


@service.command()
@_which_options
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def uninstall(user: bool, hub: bool, root: Path | None, dry_run: bool, yes: bool) -> None:
    """Stop the service and remove its unit.

    Configuration, keys and state stay.
    """
    from agentd.cli import service as services

    services.uninstall(services.chosen(user, hub, root, os.environ), dry_run=dry_run, yes=yes)


@click.command()
@reads_daemon
@click.pass_context
def doctor(ctx: click.Context, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Look for what will hurt, and say what to do about it.

    Checks the configuration, keys, this machine and the way to each platform. It may run beside a daemon, and
    acknowledges nothing. Exits with 1 if anything failed.
    """
    from agentd.cli import doctor as checks

    ctx.exit(0 if checks.doctor(config, environ_with(state), as_json=as_json) else EXIT_FAILED)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a SHELL complete this command.

    Verbs and options, and from a running daemon identities, plugins and conversations. For bash, in ~/.bashrc:
    eval "$(agentd completion bash)"; the same in ~/.zshrc for zsh; for fish, into
    ~/.config/fish/completions/agentd.fish.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click knows these three"
    click.echo(kind(ctx.find_root().command, {}, "agentd", "_AGENTD_COMPLETE").source())
