"""`agentd new`: what it writes runs, and what is there stays."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agentd import cli
from agentd.cli.new import module_of
from agentd.config import PluginSettings
from agentd.host.lifecycle import load


def new(*words: str) -> Result:
    return CliRunner().invoke(cli.cli, ["new", "plugin", *words], prog_name="agentd")


async def nothing(plugin: str, conversation: int, key: str) -> None:
    return None


def clean_pytest(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As its author would run it, who knows nothing of this project's own settings."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", *words],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_written_test_passes_as_it_is_and_fails_when_the_plugin_is_broken(tmp_path: Path) -> None:
    assert new("order-desk", "--in", str(tmp_path)).exit_code == 0
    folder = tmp_path / "order-desk"
    result = clean_pytest(folder, "-W", "error")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 passed" in result.stdout
    code = folder / "order_desk.py"
    code.write_text(code.read_text().replace("+ 1", "+ 2"))
    assert "3 failed" in clean_pytest(folder).stdout


def test_two_written_plugins_are_tested_together_or_from_afar(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert new(name, "--in", str(tmp_path)).exit_code == 0
    assert "3 passed" in clean_pytest(tmp_path, "two").stdout
    assert "6 passed" in clean_pytest(tmp_path, "-o", "asyncio_mode=auto").stdout


def test_the_written_files_are_formatted_typed_and_without_fault(tmp_path: Path) -> None:
    assert new("order-desk", "--in", str(tmp_path)).exit_code == 0
    folder = tmp_path / "order-desk"
    for check in (["format", "--check"], ["check", "--select", "B,E,F,I,RUF,UP"]):
        ruff = [sys.executable, "-m", "ruff", *check, "--isolated", "--no-cache", "."]
        done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    typed = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports=silent", "order_desk.py"]
    done = subprocess.run(typed, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


async def test_it_tells_what_to_do_next_and_that_is_right(tmp_path: Path) -> None:
    home = tmp_path / 'a "quoted" place'
    output = new("order-desk", "--in", str(home)).stdout
    files = [home / "order-desk" / name for name in ("order_desk.py", "test_order_desk.py", "pytest.ini")]
    assert output.splitlines()[:3] == [str(file) for file in files]
    shown = output[output.index("    [plugin.order-desk]") :]
    settings = tomllib.loads(shown)["plugin"]["order-desk"]
    loaded = load("order-desk", PluginSettings(**settings), Path("/"), nothing)
    assert loaded.config.greeting == "hello"
    await loaded.teardown()
    [talk] = re.findall(r"agentd dev (.+)", output)
    assert shlex.split(talk) == [str(files[0])]


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "desk").mkdir()
    result = new("desk", "--in", str(tmp_path))
    assert result.exit_code == 1
    assert "exists already; choose another name" in result.stderr
    assert list((tmp_path / "desk").iterdir()) == []
    (tmp_path / "file").touch()
    result = new("desk", "--in", str(tmp_path / "file" / "below"))
    assert result.exit_code == 1
    assert "cannot be made" in result.stderr


@pytest.mark.parametrize(
    "name",
    ["Desk", "1desk", "de sk", "../desk", "desk/x", "", "-x", "a--b", "class", "test_x", "json", "agentd", "a" * 51],
)
def test_a_name_that_would_not_work_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    result = new("--in", str(tmp_path), "--", name)
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_without_in_it_writes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new("desk").exit_code == 0
    assert (tmp_path / "desk" / "desk.py").exists()
    assert module_of("order-desk") == "order_desk"
