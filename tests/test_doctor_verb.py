"""`agentd doctor`: lines for people, JSON and an exit code for scripts."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner, Result

from agentd import cli


def agentd_command(*words: str | Path) -> Result:
    clean = {name: None for name in os.environ if name.startswith(("AGENTD_", "NO_COLOR"))}
    return CliRunner(env=clean).invoke(cli.cli, [*map(str, words)], prog_name="agentd")


def test_a_machine_that_is_fine_is_told_so(tmp_path: Path) -> None:
    result = agentd_command("doctor", "--state", tmp_path)
    assert result.exit_code == 0, result.output
    assert "ok    version: agentd" in result.stdout


def test_what_is_broken_is_told_with_its_remedy_and_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text(
        '[identity.alice]\nurl = "https://api.agentchat.me"\nkey = { file = "alice.key" }\n'
    )
    (tmp_path / "alice.key").write_text("ac_live_0123456789abcdef")
    (tmp_path / "alice.key").chmod(0o644)
    result = agentd_command("doctor", "--config", tmp_path / "agentd.toml", "--state", tmp_path)
    assert result.exit_code == 1
    assert "chmod 600" in result.stdout
    assert "fail  configuration" in result.stdout
    assert f"-> run: chmod 600 {tmp_path}/alice.key\n" in result.stdout
    assert "0123456789abcdef" not in result.output
    machine = json.loads(
        agentd_command("doctor", "--json", "--config", tmp_path / "agentd.toml", "--state", tmp_path).stdout
    )
    assert machine["ok"] is False
    assert machine["failed"] == 1
    assert {"state", "check", "about", "told", "remedy"} == set(machine["findings"][0])
