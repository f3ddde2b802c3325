"""One library, one home: which parts of agentd may know which library.

Which parts may know each other is said in pyproject.toml and checked by `lint-imports`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentd

PACKAGE = Path(agentd.__file__).parent

HOMES = {
    "aiohttp": {"transport", "control", "hub", "demo"},
    "aiosqlite": {"journal.sqlite", "hub"},
    "sqlite3": {"journal.sqlite", "hub"},
    "websockets": {"transport", "hub", "demo"},
    "uvloop": {"daemon", "hub"},
    "click": {"cli"},
    "opentelemetry": {"tracing"},
    "requests": {"tracing"},
}


def imported(file: Path) -> Iterator[str]:
    """Every module named by an import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def module(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_known_only_where_it_lives(library: str) -> None:
    strangers = {
        module(file)
        for file in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == library for name in imported(file))
        and not any(f"{module(file)}.".startswith(f"{home}.") for home in HOMES[library])
    }
    assert strangers == set()


def test_a_daemon_that_does_not_trace_never_loads_opentelemetry() -> None:
    seen = "import agentd.daemon, agentd.cli, agentd.tracing, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "agentd" in loaded
    assert not loaded & {"opentelemetry", "requests", "google"}
