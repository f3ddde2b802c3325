"""The `agentd` command: words on a command line become one call.

    streams.py  the standard streams, whatever the shell left of them
    group.py    what goes wrong as a message and an exit code
    options.py  options that verbs share
    times.py    times and spans as people write them
    words/      the verbs, by topic: starting, asking, recorded, undelivered, steering, keeping (the journal),
                installing

Exit codes: 0 fine, 1 failed, 2 usage, 69 no daemon to be reached, 78 configuration; 130 interrupted.

Always true: a verb imports what it needs when it runs, so that `--help` and the verbs that ask a running daemon start
at once. Answers go to stdout, everything about them to stderr. Colour is for terminals, and NO_COLOR turns it off.
Not here: what the verbs do (verbs.py, held.py, serving.py and the modules that they call), how tables look (tables.py).
"""

from __future__ import annotations

import os

import click

from agentd import __version__
from agentd.cli.group import Verbs
from agentd.cli.streams import prepare
from agentd.cli.words import asking, installing, keeping, recorded, starting, steering, undelivered

_EPILOG = (
    "Each has --help. Exit codes: 0 fine, 1 failed, 2 usage, 69 no daemon to be reached, 78 configuration, "
    "130 interrupted. The whole of it: man agentd."
)


@click.group(
    cls=Verbs, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="agentd")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A daemon between agent platforms and the code of your agents: nothing lost, in order, answered once."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False


for _verb in (
    starting.run,
    starting.check,
    asking.status,
    asking.reload,
    asking.upgrade,
    asking.dashboard,
    asking.send,
    asking.tail,
    asking.gaps,
    recorded.export,
    recorded.import_,
    recorded.explain,
    steering.pause,
    steering.resume,
    steering.replay,
    undelivered.outbox,
    undelivered.dead,
    undelivered.release,
    keeping.backup,
    keeping.restore,
    keeping.vacuum,
    keeping.retention,
    keeping.upgrade_check,
    installing.doctor,
    installing.service,
    installing.completion,
    starting.new,
    starting.dev,
    starting.hub,
    starting.demo,
):
    cli.add_command(_verb)


def main() -> None:
    """Entry point of the command."""
    prepare()
    cli.main(prog_name="agentd")
