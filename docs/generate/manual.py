"""agentd(8): the command's words as a man page, in the macros that every man knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click

from agentd import __version__
from agentd.cli import cli

_EXITS = (
    ("0", "fine"),
    ("1", "failed; the last line on stderr says what to do"),
    ("2", "the words on the command line"),
    ("69", "no daemon to be reached"),
    ("78", "the configuration; every problem is on stderr"),
    ("130", "interrupted"),
)
_ENVIRONMENT = (
    ("AGENTD_CONFIG", "The configuration file, where --config does not name one."),
    ("AGENTD_STATE", "The state folder, where --state does not name one; it wins over the configuration's."),
    ("NO_COLOR", "No colour, whatever the terminal can do."),
)
_FILES = (
    ("./agentd.toml, /etc/agentd/agentd.toml", "The configuration, the first that is there."),
    ("./state, /var/lib/agentd", "The state: the journal and the control socket; the latter folder is the service's."),
)
_SHARED = ("as_json", "config", "state")
_FIRST = """\
Without a configuration, \\fBagentd run\\fR brings its own development server and two identities on it.
\\fBagentd send @echo hello\\fR in a second terminal is answered by the one that echoes.
With a configuration it holds the connection of each identity to its platform, writes every event to its journal before
it acknowledges it, hands events to plugins in order, and sends their answers once.
Most other verbs ask the daemon that runs, or work on its journal while it does not."""


def manual() -> str:
    """The page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield '.\\" Written by `make docs` from the command itself; change agentd/cli/words/ instead.'
    yield f'.TH AGENTD 8 "" "agentd {__version__}" "System administration"'
    yield ".nh"
    yield ".ad l"
    yield ".SH NAME"
    yield f"agentd \\- {_plain(_lowered(cli.help or ''))}"
    yield ".SH SYNOPSIS"
    yield ".B agentd"
    yield "\\fIVERB\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]"
    yield ".SH DESCRIPTION"
    yield from _FIRST.splitlines()
    yield ".SH VERBS"
    for path, command in _leaves(cli):
        yield from _verb(path, command)
    yield ".SH OPTIONS OF MANY VERBS"
    yield "A verb has those that are named at its end."
    yield from _options(_shared(), click.Context(cli))
    yield ".SH EXIT STATUS"
    yield from _listed(_EXITS)
    yield ".SH ENVIRONMENT"
    yield from _listed(_ENVIRONMENT)
    yield ".SH FILES"
    yield from _listed(_FILES)
    yield ".SH SEE ALSO"
    yield ".BR systemctl (1),"
    yield ".BR journalctl (1)"


def _leaves(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _leaves(command, *path, name)
        else:
            yield (*path, name), command


def _verb(path: tuple[str, ...], command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=" ".join(("agentd", *path)))
    arguments = [each.make_metavar(context) for each in command.params if isinstance(each, click.Argument)]
    yield f".SS agentd {_plain(' '.join((*path, *arguments)))}"
    for index, paragraph in enumerate(_paragraphs(command.help or "")):
        if index:
            yield ".PP"
        yield _plain(paragraph)
    options = [each for each in command.params if isinstance(each, click.Option)]
    yield from _options([each for each in options if each.name not in _SHARED], context)
    if shared := [each.opts[0] for each in options if each.name in _SHARED]:
        yield ".PP"
        yield _plain(f"Also {', '.join(shared)}.")


def _shared() -> list[click.Option]:
    """The options that most verbs have, as the first verb with all of them has them."""
    for _, command in _leaves(cli):
        found = [each for each in command.params if isinstance(each, click.Option) and each.name in _SHARED]
        if len(found) == len(_SHARED):
            return found
    raise AssertionError("no verb has all of them")


def _options(options: Iterable[click.Option], context: click.Context) -> Iterator[str]:
    for option in options:
        record = option.get_help_record(context)
        assert record is not None, "no option is hidden"
        names, told = record
        yield ".TP"
        yield f"\\fB{_plain(names)}\\fR"
        yield _plain(re.sub(r"\s+", " ", told))


def _lowered(sentence: str) -> str:
    return (sentence[:1].lower() + sentence[1:]).rstrip(".")


def _paragraphs(text: str) -> list[str]:
    return [" ".join(each.split()) for each in text.split("\n\n")]


def _listed(rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for name, told in rows:
        yield ".TP"
        yield f"\\fB{_plain(name)}\\fR"
        yield _plain(told)


def _plain(text: str) -> str:
    """Text as roff shows it word for word."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    return re.sub(r"^([.'])", r"\\&\1", escaped)
