"""The plugins that come with agentd: installed, found by name, and standing on what every plugin may import."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.config import PluginSettings
from agentd.host.discovery import installed
from agentd.host.lifecycle import load
from tests.test_imports import imported

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(folder.name for folder in (ROOT / "plugins").iterdir() if (folder / "README.md").exists())


async def nothing(plugin: str, conversation: int, key: str) -> None:
    """No state."""


def sources(name: str) -> Iterator[Path]:
    yield from (ROOT / "plugins" / name).rglob("*.py")


def test_each_is_installed_under_its_own_name_and_packed_into_the_wheel() -> None:
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in SHIPPED:
        assert installed()[name] == f"agentd_{name}:plugin"
        assert f"plugins/{name}/agentd_{name}" in packed["packages"]


@pytest.mark.parametrize("name", SHIPPED)
def test_it_imports_of_agentd_what_every_plugin_may(name: str) -> None:
    for file in sources(name):
        allowed = {"agentd.plugin", "agentd.testing"} if "tests" in file.parts else {"agentd.plugin"}
        assert {module for module in imported(file) if module.partition(".")[0] == "agentd"} <= allowed, file


@pytest.mark.parametrize("name", SHIPPED)
def test_it_loads_with_the_settings_that_its_readme_shows(name: str) -> None:
    shown = re.findall(r"```toml\n(.*?)```", (ROOT / "plugins" / name / "README.md").read_text(), re.DOTALL)[0]
    [settings] = tomllib.loads(shown)["plugin"].values()
    assert settings["use"] == name
    loaded = load(name, PluginSettings(**settings), ROOT, nothing)
    assert loaded.plugin.name == name
