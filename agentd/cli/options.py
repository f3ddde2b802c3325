"""Options that several verbs share.

Always true: only click is imported, since this is read for every verb and for `--help`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from agentd.cli import completing

F = TypeVar("F", bound=Callable[..., Any])


def config_option(command: F) -> F:
    """`--config FILE`."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Configuration file. Else AGENTD_CONFIG, ./agentd.toml, /etc/agentd/agentd.toml.",
    )(command)


def state_option(command: F) -> F:
    """`--state DIR`."""
    return click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="State folder. Else AGENTD_STATE, the configuration's, ./state.",
    )(command)


def json_option(command: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")(command)


def finds_daemon(command: F) -> F:
    """What it takes to find a running daemon."""
    return config_option(state_option(command))


def reads_daemon(command: F) -> F:
    """The same for a verb whose answer can be JSON."""
    return json_option(finds_daemon(command))


def as_option(told: str) -> Callable[[F], F]:
    """`--as NAME`. told: what the name is for."""
    return click.option("--as", "identity", metavar="NAME", shell_complete=completing.identities, help=told)


def name_argument(command: F) -> F:
    """`[NAME]` of an identity."""
    return click.argument("name", required=False, shell_complete=completing.identities)(command)


def limit_option(command: F) -> F:
    """`--limit N` of a list."""
    return click.option(
        "--limit",
        type=click.IntRange(1, 10_000),
        metavar="N",
        default=100,
        show_default=True,
        help="At most this many.",
    )(command)


def environ_with(state: Path | None) -> dict[str, str]:
    """The process's environment with the state folder of the command line, which wins."""
    return {**os.environ, **({"AGENTD_STATE": str(state)} if state else {})}
