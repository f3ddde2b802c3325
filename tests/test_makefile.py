"""The Makefile: what a new user meets first."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words: str, folder: Path = ROOT, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON")}
    return subprocess.run(
        [str(shutil.which("make")), "--no-print-directory", *words],
        cwd=folder,
        env={**environ, **({"PATH": path} if path else {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy in which nothing has been set up."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def tools(folder: Path, **programs: str) -> str:
    """A PATH with a shell's tools and these programs (name to script) only."""
    folder.mkdir()
    for name in ("sh", "rm", "awk", "touch"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_alone_it_lists_every_target() -> None:
    result = make()
    assert result.returncode == 0
    listed = [line.split()[1] for line in result.stdout.splitlines()]
    assert listed == ["help", "run", "test", "demo", "bench", "docs", "soak", "peers", "clean"]


def test_without_a_python_it_says_so_and_leaves_nothing_behind(checkout: Path, tmp_path: Path) -> None:
    result = make("run", folder=checkout, path=tools(tmp_path / "bin", python3="exit 1"))
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed and was not found" in result.stderr
    assert not (checkout / ".venv").exists()


def test_without_venv_it_names_the_package_that_is_missing(checkout: Path, tmp_path: Path) -> None:
    without_venv = 'case "$2" in *ensurepip*) exit 1;; esac'
    result = make("run", folder=checkout, path=tools(tmp_path / "bin", python3=without_venv))
    assert "apt install python3-venv" in result.stderr
    assert not (checkout / ".venv").exists()


def test_an_environment_that_could_not_be_made_is_removed(checkout: Path, tmp_path: Path) -> None:
    breaks_off = f'if [ "$2" = venv ]; then {shutil.which("mkdir")} -p .venv/bin; exit 1; fi'
    result = make("run", folder=checkout, path=tools(tmp_path / "bin", python3=breaks_off))
    assert result.returncode != 0
    assert not (checkout / ".venv").exists()


def test_what_is_installed_is_not_installed_again(checkout: Path) -> None:
    for stamp in (".venv/bin/python", ".venv/bin/agentd", ".venv/.installed"):
        (checkout / stamp).parent.mkdir(parents=True, exist_ok=True)
        (checkout / stamp).write_text("#!/bin/sh\necho running $*\n")
        (checkout / stamp).chmod(0o755)
    assert make("run", "ARGS=--config x", folder=checkout).stdout == "running run --config x\n"
    newer = (checkout / ".venv/.installed").stat().st_mtime + 10
    os.utime(checkout / "pyproject.toml", (newer, newer))
    assert "installing agentd into .venv" in make("run", folder=checkout).stdout


def test_the_gate_runs_the_tests_and_nothing_more() -> None:
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_cleaning_keeps_the_mail(checkout: Path) -> None:
    for folder in ("state", ".venv", "build"):
        (checkout / folder).mkdir()
    assert make("clean", folder=checkout).returncode == 0
    assert sorted(path.name for path in checkout.iterdir()) == ["Makefile", "pyproject.toml", "state"]
