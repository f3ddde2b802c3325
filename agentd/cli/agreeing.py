"""Asking a person before something is done that cannot be taken back.

Always true: nothing is done on a no, nor where nobody can be asked.
"""

from __future__ import annotations

import sys

import click

from agentd.errors import AgentdError


def agree(question: str, yes: bool) -> None:
    """Ask, unless the answer was given. Raises what ends the verb: for a no, for Ctrl-C, and where nobody is there."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is there to ask; add --yes")
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:  # which is how click says Ctrl-C, and the end of what is typed
        click.echo(err=True)
        raise KeyboardInterrupt from None
    if not agreed:
        raise AgentdError("nothing was done")
