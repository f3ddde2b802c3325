"""What may be typed next, asked of a running daemon: names of identities and plugins, ids of conversations.

Always true: without a daemon that answers at once there is nothing to offer, and no word about it, since a shell shows
whatever is printed in the middle of the line that is being typed.
Not here: verbs and options, which click completes by itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import click

_PATIENCE_S = 1.0
_OFFERED_MAX = 100

_Offer = list[str]


def identities(ctx: click.Context, parameter: click.Parameter, begun: str) -> _Offer:
    """Names of identities."""
    return _beginning(begun, ctx, lambda daemon: (each["name"] for each in daemon.status()["identities"]))


def plugins(ctx: click.Context, parameter: click.Parameter, begun: str) -> _Offer:
    """Names of plugins."""
    return _beginning(begun, ctx, lambda daemon: (each["name"] for each in daemon.status()["plugins"]))


def conversations(ctx: click.Context, parameter: click.Parameter, begun: str) -> _Offer:
    """Ids of conversations, those of the identity that is named already, the newest first."""

    def ask(daemon: Any) -> Iterator[str]:
        found = daemon.conversations(ctx.params.get("identity"), prefix=begun, limit=_OFFERED_MAX)
        return (each["conversation"] for each in found)

    return _beginning(begun, ctx, ask)


def _beginning(begun: str, ctx: click.Context, ask: Callable[[Any], Iterator[str]]) -> _Offer:
    from agentd.cli.options import environ_with
    from agentd.control.address import find_socket
    from agentd.control.client import Client
    from agentd.errors import AgentdError

    try:
        path = find_socket(ctx.params.get("config"), environ_with(ctx.params.get("state")))
        names = ask(Client(path, patience_s=_PATIENCE_S))
        # A shell takes what is offered into the line as it is, and a platform chooses ids.
        return [name for name in names if name.startswith(begun) and shlex.quote(name) == name]
    except (AgentdError, OSError):
        return []
