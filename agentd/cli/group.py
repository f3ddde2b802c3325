"""How the command turns what goes wrong into a message and an exit code.

Always true: only click and the errors themselves are imported, since this is read for every verb and for `--help`.
"""

from __future__ import annotations

from typing import Any

import click

from agentd.control.refusal import UnreachableError
from agentd.errors import AgentdError, ConfigError

EXIT_FAILED = 1
EXIT_UNREACHABLE = 69  # EX_UNAVAILABLE of sysexits.h
EXIT_CONFIG = 78  # EX_CONFIG; a supervisor need not try again
EXIT_INTERRUPTED = 130


class Verbs(click.Group):
    """Turns the errors of agentd into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; exit with the code that its error has."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            from agentd.logs import printable

            for problem in error.problems:
                click.echo(printable(problem), err=True)
            ctx.exit(EXIT_CONFIG)
        except UnreachableError as error:
            _fail(ctx, error, EXIT_UNREACHABLE)
        except AgentdError as error:
            _fail(ctx, error, EXIT_FAILED)
        except PermissionError as error:
            if error.filename is None:
                raise
            _fail(ctx, f"{error.filename} belongs to another user; use sudo, or name other files", EXIT_FAILED)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are met, not by the alphabet."""
        return list(self.commands)


def _fail(ctx: click.Context, error: AgentdError | str, code: int) -> None:
    from agentd.logs import printable

    click.echo(f"agentd: {printable(str(error))}", err=True)  # a platform's words may be in it
    ctx.exit(code)
