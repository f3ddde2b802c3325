"""Plugins are found by path, module and entry point, and nothing of them runs."""

import sys
from pathlib import Path

import pytest

from agentd.errors import PluginLoadError
from agentd.host.discovery import FoundFile, FoundModule, find, installed

RUNS = "raise AssertionError('was run')\n"


def test_a_file_is_found_by_its_path_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "greeter.py").write_text(RUNS)
    found = find("./greeter.py", tmp_path)
    assert isinstance(found, FoundFile)
    assert found.path == tmp_path / "greeter.py"
    assert len(found.version) == 12


def test_a_folder_is_found_if_it_is_a_package(tmp_path: Path) -> None:
    (tmp_path / "greeter").mkdir()
    with pytest.raises(PluginLoadError, match=r"no __init__\.py; add one"):
        find("./greeter", tmp_path)
    (tmp_path / "greeter" / "__init__.py").write_text(RUNS)
    assert find("./greeter", tmp_path) == FoundFile(
        tmp_path / "greeter" / "__init__.py", tmp_path / "greeter", "plugin"
    )


def test_a_module_is_found_without_importing_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "agentd_found_not_run"
    package.mkdir()
    (package / "__init__.py").write_text(RUNS)
    monkeypatch.syspath_prepend(tmp_path)
    assert find("agentd_found_not_run.deep:bot", tmp_path) == FoundModule("agentd_found_not_run.deep", "bot", "")
    assert "agentd_found_not_run" not in sys.modules


def test_an_entry_point_is_found_by_its_name() -> None:
    assert installed()["echo"] == "agentd_echo:plugin"
    found = find("echo", Path())
    assert isinstance(found, FoundModule)
    assert (found.module, found.attribute) == ("agentd_echo", "plugin")


@pytest.mark.parametrize(
    ("use", "told"),
    [
        ("./nowhere.py", "there is no file"),
        ("no_such_package_here:plugin", "no module no_such_package_here is installed"),
        ("json:", 'write it as "package.module:attribute"'),
        ("ecko", "installed: .*echo.*; a file is named by its path, ./ecko.py"),
    ],
)
def test_what_cannot_be_found_is_told_with_the_remedy(use: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(PluginLoadError, match=told):
        find(use, tmp_path)
