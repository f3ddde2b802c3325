"""What the README shows is what happens."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agentd.cli import cli
from agentd.config import load
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings
from agentd.wire.agentchat import types as wire

README = (Path(__file__).parent.parent / "README.md").read_text()

# Every block of code by the words that tell it from the others, with who sees to it that it is true. Those of the
# chapter on plugins run here as they are printed.
PLUGIN, PLUGIN_TEST, RUN_TEST = 'Plugin("greeter")', "Harness(plugin)", "-m pytest"
CONFIGURATION, RUN_IT = "[identity.alice]", "chmod 600 alice.key"
DEV, DEV_SHOWN = "agentd dev", "you> hello"

BLOCKS = {
    PLUGIN: "here",
    PLUGIN_TEST: "here",
    RUN_TEST: "here",
    CONFIGURATION: "here",
    RUN_IT: "here",
    "make run": "test_makefile.py, and test_every_make_target_that_is_named_exists",
    "agentd send @echo": "test_cli.py: the embedded hub and its echo",
    DEV: "here",
    DEV_SHOWN: "here",
    "systemctl": "control/test_systemd.py; installing as root is for people",
    "make soak": "test_every_make_target_that_is_named_exists",
    "tests/  ": "a picture of the folders: test_every_folder_of_the_picture_is_there",
}


def blocks() -> list[str]:
    return [str(text) for text in re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)]


def block(containing: str) -> str:
    found = [text for text in blocks() if containing in text]
    assert len(found) == 1, f"{len(found)} blocks hold {containing!r}"
    return found[0]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder of a reader who has saved what is shown."""
    (tmp_path / "greeter.py").write_text(block(PLUGIN))
    (tmp_path / "test_greeter.py").write_text(block(PLUGIN_TEST))
    (tmp_path / "agentd.toml").write_text(block(CONFIGURATION))
    (tmp_path / "alice.key").write_text("ac_live_0123456789abcdef0123456789")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def shell(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run these lines as the reader's shell would, to their end or the first that fails."""
    return subprocess.run(
        ["/bin/sh", "-e"],
        input="\n".join(lines),
        cwd=folder,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def clean_environ() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "PYTHON", "AGENTD", "ALICE"))
    }


def test_every_block_of_code_is_seen_to_by_some_test() -> None:
    for text in blocks():
        assert sum(words in text for words in BLOCKS) == 1, f"no test knows this block; add it to BLOCKS:\n{text}"
    for words in BLOCKS:
        block(words)


def test_the_first_plugins_test_passes_word_for_word(written: Path) -> None:
    install, run = block(RUN_TEST).splitlines()
    assert install == ".venv/bin/pip install pytest pytest-asyncio"  # which are here
    result = shell(written, run + " -p no:cacheprovider")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout
    (written / "greeter.py").write_text(
        block(PLUGIN).replace("+ 1", "+ 10")
    )  # of another length: what is compiled already is told by that
    assert "1 failed" in shell(written, run + " -p no:cacheprovider").stdout


def test_the_plugin_is_talked_to_in_the_terminal_as_shown(written: Path) -> None:
    shown = block(DEV_SHOWN).splitlines()
    (run,) = block(DEV).splitlines()
    typed = [line.removeprefix("you> ") for line in shown if line.startswith("you> ")]
    result = shell(written, f"{run} <<'END'", *typed, "END")
    assert result.returncode == 0, result.stderr
    answers = [line for line in result.stdout.splitlines() if line.startswith("agent")]
    assert answers == [line for line in shown if line.startswith("agent")]
    assert "killed, and started again over the same state" in result.stderr


def test_the_configuration_passes_the_check_word_for_word(written: Path) -> None:
    *lines, run = block(RUN_IT).splitlines()
    assert run == ".venv/bin/agentd run"
    result = shell(written, *lines)
    assert result.returncode == 0, result.stdout + result.stderr
    settings = load(written / "agentd.toml", {})
    assert settings.plugin["greeter"].use == str(written / "greeter.py")
    assert settings.identity["alice"].plugins == ("greeter",)
    (written / "alice.key").chmod(0o644)
    assert shell(written, *lines[1:]).returncode == 78


def test_each_way_to_name_a_key_that_is_shown_is_one(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = next(line for line in block(CONFIGURATION).splitlines() if line.startswith("key = "))
    file, ways = written / "agentd.toml", re.findall(r"\{ \w+ = .*?\}", shown)
    assert len(ways) == 4
    (written / "alice.key").chmod(0o600)
    (written / "pass").write_text("#!/bin/sh\ncat alice.key\n")
    (written / "pass").chmod(0o700)
    monkeypatch.setenv("PATH", str(written), prepend=os.pathsep)
    monkeypatch.chdir(written)
    environ = {"ALICE_KEY": "ac_live_0123456789abcdef0123456789", "CREDENTIALS_DIRECTORY": str(written)}
    for way in ways:
        file.write_text(block(CONFIGURATION).replace(shown, f"key = {way}"))
        key = load(file, environ).identity["alice"].key
        given = [name for name in key.__struct_fields__ if getattr(key, name) is not None]
        assert given == [way.split()[1]]


async def test_the_first_plugin_answers_through_a_daemon_that_runs_as_shown(written: Path) -> None:
    async with Hub(HubSettings(cold_rule=False)) as hub:
        (written / "alice.key").write_text(hub.create_agent("alice"))
        hub.create_agent("bob")
        file = written / "agentd.toml"
        # The one thing that is not as printed: the platform's address.
        file.write_text(file.read_text().replace("https://api.agentchat.me", hub.url))
        (written / "alice.key").chmod(0o600)
        daemon = await asyncio.create_subprocess_exec(
            *block(RUN_IT).splitlines()[-1].split(),
            cwd=written,
            env=clean_environ(),
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(30):
                while not hub.connections("alice"):
                    await asyncio.sleep(0.02)
                hub.post("bob", "alice", "hello there", "nothing to count", "hello again")
                while len(said := texts_of(hub, "alice", "bob")) < 2:
                    await asyncio.sleep(0.02)
        finally:
            daemon.terminate()
            assert await daemon.wait() == 0
        assert said == ["hello number 1", "hello number 2"]


def texts_of(hub: Hub, speaker: str, listener: str) -> list[str]:
    service = hub.service
    conversation = service.conversations.find(hub.conversation(speaker, listener))
    assert conversation is not None
    rows = service.mailbox.history(service.accounts.get(listener), conversation, after_seq=0, limit=100)
    found = [msgspec.json.decode(row, type=wire.MessageRow) for row in rows]
    return [row.content.text or "" for row in found if row.sender == speaker and row.content is not None]


def test_every_folder_of_the_picture_is_there() -> None:
    root = Path(__file__).parent.parent
    for line in block("tests/  ").splitlines():
        assert (root / line.split()[0]).is_dir(), line


def test_every_verb_of_the_command_is_in_the_table_and_no_other() -> None:
    assert sorted(re.findall(r"^\| `agentd ([\w-]+)` \|", README, re.MULTILINE)) == sorted(cli.commands)


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
