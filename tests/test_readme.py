"""What the README shows is what happens."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from agentd.cli import cli
from agentd.config import load
from agentd.core.health import CODES, STATES

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


def test_every_reason_of_readyz_is_named() -> None:
    row = next(line for line in README.splitlines() if line.startswith("| `/readyz`"))
    assert tuple(re.findall(r"`([a-z_]+)`", row)) == CODES


def test_the_page_is_turned_on_as_shown(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text(block("toml", "[agentd.http]"))
    settings = load(tmp_path / "agentd.toml", {})
    assert settings.agentd.http.listen == "127.0.0.1:8788"
    assert settings.embedded


def test_every_file_that_is_linked_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
