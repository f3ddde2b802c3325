"""What the README shows is what happens."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agentd.cli import cli
from agentd.config import load
from agentd.supervisor import STATES

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(language: str, containing: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text]
    assert len(found) == 1, f"{len(found)} blocks of {language} hold {containing!r}"
    return str(found[0])


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that a reader would have saved."""
    (tmp_path / "greeter.py").write_text(block("python", 'Plugin("greeter")'))
    (tmp_path / "test_greeter.py").write_text(block("python", "Harness(plugin)"))
    (tmp_path / "agentd.toml").write_text(block("toml", "[identity.alice]"))
    (tmp_path / "alice.key").touch(0o600)
    (tmp_path / "alice.key").write_text("ac_live_0123456789abcdef0123456789")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "greeter", raising=False)
    return tmp_path


async def test_the_first_plugins_test_passes_word_for_word(written: Path) -> None:
    spec = importlib.util.spec_from_file_location("readme_test_greeter", written / "test_greeter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    await module.test_it_counts_and_a_crash_repeats_nothing()


def test_the_configuration_loads_without_a_problem(written: Path) -> None:
    settings = load(written / "agentd.toml", {})
    assert settings.plugin["greeter"].use == str(written / "greeter.py")
    assert settings.identity["alice"].plugins == ("greeter",)


def test_every_verb_of_the_command_is_in_the_table_and_no_other() -> None:
    assert sorted(re.findall(r"^\| `agentd (\w+)` \|", README, re.MULTILINE)) == sorted(cli.commands)


def test_every_state_is_explained() -> None:
    told = README[README.index("An identity is in one of these states") :].split("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", told)) == set(STATES)


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def commands(chapter: str) -> list[list[str]]:
    """What a reader of a chapter would type."""
    text = README[README.index(f"## {chapter}\n") :].split("\n## ")[0]
    lines = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_what_helps_when_something_went_wrong_can_be_typed_as_it_stands(served: Any) -> None:
    typed = commands("When something went wrong")
    assert {words[0] for words in typed} == {"dead", "release", "tail", "explain", "replay", "pause", "resume"}
    served.happen(None)  # the tail ends
    for words in typed:
        yes = ["--yes"] if "replay" in words and "--dry-run" not in words else []
        done = CliRunner().invoke(cli, [*words, *yes, "--state", str(served.path.parent)], prog_name="agentd")
        # This daemon ends a tail, and holds another conversation.
        assert done.exit_code == {"tail": 69, "release": 1}.get(words[0], 0), (words, done.output)
