"""What the command says about itself: help that fits a terminal, and completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from agentd.cli import cli

WIDTH = 80


def commands(command: click.Command = cli, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, *path, name)


def found(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def help_of(path: tuple[str, ...]) -> str:
    """As a terminal of the usual width shows it."""
    result = CliRunner().invoke(cli, [*path, "--help"], prog_name="agentd", terminal_width=WIDTH)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("path", list(commands()), ids=lambda path: " ".join(path) or "agentd")
def test_help_fits_a_terminal_and_says_what_everything_is_for(path: tuple[str, ...]) -> None:
    text = help_of(path)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert not re.search(r"--[\w-]*-$", text, re.MULTILINE), "an option is broken over two lines"
    assert "..." not in text.replace("[ARGS]...", "").replace("KEY...", "").replace("NUMBER...", ""), "cut short"
    assert "INTEGER" not in text, "a unit or a name says more than a type"
    command = found(path)
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts[0]} says nothing"
        else:
            name = parameter.make_metavar(click.Context(command)).strip("[].{}")
            assert name.split("|")[0] in text.split("Options:")[0]


def test_the_first_line_of_a_verb_is_a_sentence_that_fits_the_list_of_verbs() -> None:
    for path in commands():
        first = (found(path).help or "").splitlines()[0]
        assert first.endswith("."), path
        assert "`" not in first, path


# completion


def complete(shell_words: str, folder: Path) -> list[str]:
    """What bash offers at the end of this line, by the script that the command prints."""
    words = shell_words.split(" ")
    (folder / "agentd").write_text(f'#!/bin/sh\nexec {sys.executable} -m agentd "$@"\n')
    (folder / "agentd").chmod(0o755)
    script = f"""
eval "$(agentd completion bash)"
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
_agentd_completion agentd
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD")}
    done = subprocess.run(
        ["bash", "-c", script],
        env={**environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("agentd rele", ["release"]),
        ("agentd outbox r", ["retry"]),
        ("agentd status --j", ["--json"]),
        ("agentd status --state STATE a", ["alice"]),
        ("agentd send --state STATE --as ", ["alice", "bob"]),
        ("agentd release --state STATE ec", ["echo"]),
        ("agentd release --state STATE echo conv_", ["conv_2", "conv_1"]),
        ("agentd export --state STATE --conversation g", ["grp_7"]),
        ("agentd status --state STATE/nowhere ", []),
    ],
)
def test_bash_completes_verbs_options_and_the_names_that_a_daemon_knows(
    served: Any, tmp_path: Path, line: str, offered: list[str]
) -> None:
    served.daemon.plugins = [{"name": "echo"}, {"name": "greeter"}]
    assert complete(line.replace("STATE", str(served.path.parent)), tmp_path) == offered


def test_an_id_that_a_shell_would_take_for_more_than_a_word_is_not_offered(served: Any, tmp_path: Path) -> None:
    served.daemon.known = ["conv_1;reboot", "conv_$(reboot)", "conv_ 2", "conv_\n3", "conv_4"]
    assert complete(f"agentd pause --state {served.path.parent} conv", tmp_path) == ["conv_4"]


def test_conversations_are_those_of_the_identity_that_is_named(served: Any, tmp_path: Path) -> None:
    complete(f"agentd export --state {served.path.parent} --as alice --conversation c", tmp_path)
    assert ("conversations", "alice", "c", 100) in served.daemon.asked


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_this_command(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell], prog_name="agentd")
    assert result.exit_code == 0
    assert "_AGENTD_COMPLETE" in result.stdout
