"""Where a plugin is, by what the configuration calls it. Found, not run: nothing of the plugin is imported here.

    ./greeter.py, ./greeter/    a file, or a folder with an __init__.py
    package.module:attribute    importable, and the name of its Plugin
    greeter                     an entry point of the group `agentd.plugins`

Always true: what cannot be found raises PluginLoadError with the remedy.
Not here: importing, and looking at what was imported (lifecycle.py).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import NamedTuple

from agentd.config import is_path
from agentd.errors import PluginLoadError

GROUP = "agentd.plugins"
"""The entry point group of installed plugins."""

_DEFAULT_ATTRIBUTE = "plugin"


class FoundFile(NamedTuple):
    """A plugin that is not installed. path: the file to run. folder: the package around it, or None."""

    path: Path
    folder: Path | None
    attribute: str

    @property
    def files(self) -> list[Path]:
        """The file, or every module of the folder."""
        return [self.path] if self.folder is None else sorted(self.folder.rglob("*.py"))

    @property
    def version(self) -> str:
        """What the files hold, in a few characters: it has no other version."""
        return hashlib.blake2b(b"\0".join(file.read_bytes() for file in self.files), digest_size=6).hexdigest()


class FoundModule(NamedTuple):
    """An installed plugin. version: of its distribution, or ""."""

    module: str
    attribute: str
    version: str


Found = FoundFile | FoundModule


def find(use: str, base: Path) -> Found:
    """Where `use` points. base: the folder that relative paths start from."""
    if is_path(use):
        return _find_file(base / Path(use).expanduser(), use)
    if ":" in use:
        module, _, attribute = use.partition(":")
        return _find_module(module, attribute, use)
    return _find_entry_point(use)


def installed() -> dict[str, str]:
    """Every entry point of the group: its name and where it points."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}


def _find_file(path: Path, use: str) -> FoundFile:
    if path.is_dir():
        path = path / "__init__.py"
        if path.is_file():
            return FoundFile(path, path.parent, _DEFAULT_ATTRIBUTE)
        raise PluginLoadError(f"{use}: this folder has no __init__.py; add one that defines `plugin`, or name a file")
    if not path.is_file():
        raise PluginLoadError(f"{use}: there is no file {path}; mend the path")
    return FoundFile(path, None, _DEFAULT_ATTRIBUTE)


def _find_module(module: str, attribute: str, use: str) -> FoundModule:
    # Only the top-level package is looked up: looking up a submodule would import its parents.
    top = module.partition(".")[0]
    if not (module and attribute.isidentifier() and top.isidentifier()):
        raise PluginLoadError(f'{use}: write it as "package.module:attribute"')
    if importlib.util.find_spec(top) is None:
        raise PluginLoadError(f"{use}: no module {top} is installed; install it beside agentd, or mend the name")
    return FoundModule(module, attribute, _version_of(top))


def _find_entry_point(name: str) -> FoundModule:
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        return FoundModule(point.module, point.attr or _DEFAULT_ATTRIBUTE, point.dist.version if point.dist else "")
    known = ", ".join(sorted(installed())) or "none"
    raise PluginLoadError(
        f"{name}: no plugin of this name is installed (installed: {known}); a file is named by its path, ./{name}.py"
    )


def _version_of(top: str) -> str:
    for distribution in importlib.metadata.packages_distributions().get(top, ()):
        return importlib.metadata.version(distribution)
    return ""
