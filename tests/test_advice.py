"""Whatever a message tells people to type can be typed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

import agentd
from tests.test_help import found

PACKAGE = Path(agentd.__file__).parent
_ADVISED = re.compile(r"`(agentd [^`]+)`|(?:see|with|run|start one with): (agentd [^;,()<]+)")


def advised() -> Iterator[tuple[str, str]]:
    """Every command that a string of the package names, with the place."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for quoted in _ADVISED.findall(node.value):
                    yield f"{file.relative_to(PACKAGE)}:{node.lineno}", "".join(quoted)


def wrong_with(command: str) -> str | None:
    """A verb or an option that does not exist, or None."""
    words, at = command.split()[1:], found(())
    while words and isinstance(at, click.Group) and words[0] in at.commands:
        at = at.commands[words.pop(0)]
    if isinstance(at, click.Group) and words and re.fullmatch("[a-z][a-z-]+", words[0]):
        return words[0]
    options = {"--help", "-h", *(name for each in at.params for name in each.opts)}
    return next((word for word in words if word.startswith("--") and word not in options), None)


def test_every_command_that_a_message_advises_exists() -> None:
    told = list(advised())
    assert len(told) > 20
    assert [(place, command, wrong) for place, command in told if (wrong := wrong_with(command))] == []
