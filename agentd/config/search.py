"""Which configuration file is read, and which folder holds the state.

Always true: nothing is created; a file that cannot be read for its state folder counts as silent.
Not here: checking the file (loader.py).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

DEFAULT_STATE = "./state"

SERVICE_STATE = Path("/var/lib/agentd")
"""What StateDirectory=agentd of the system unit makes."""

_SERVICE_CONFIGURATION = Path("/etc/agentd")
_DYNAMIC_STATE = Path("/var/lib/private")  # where systemd keeps it while its owner is a DynamicUser
_SERVICE_CREDENTIALS = Path("/run/credentials/agentd.service")


def find_configuration(environ: Mapping[str, str]) -> Path | None:
    """The file named by AGENTD_CONFIG, else the first that exists of the usual places, else None."""
    if named := environ.get("AGENTD_CONFIG"):
        return Path(named)
    folders = [Path()]
    if managed := environ.get("CONFIGURATION_DIRECTORY"):  # systemd; several are joined by colons
        folders += [Path(folder) for folder in managed.split(":")]
    folders.append(Path("/etc/agentd"))
    return next((file for folder in folders if (file := folder / "agentd.toml").is_file()), None)


def looking_at_the_service(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment for a command that only looks: root finds the keys that the running service was given."""
    try:
        given = _SERVICE_CREDENTIALS.is_dir()
    except OSError:
        given = False
    return {"CREDENTIALS_DIRECTORY": str(_SERVICE_CREDENTIALS), **environ} if given else environ


def state_folder(named: str | None, beside: Path, environ: Mapping[str, str]) -> Path:
    """The absolute state folder, from AGENTD_STATE, else the configuration, else systemd, else the default.

    The machine's own configuration has the service's state, whoever asks: nobody starts a second daemon beside it.
    named: what the configuration says. beside: the folder of the configuration file.
    """
    if chosen := environ.get("AGENTD_STATE"):
        return Path(chosen).absolute()
    if named is None and (managed := environ.get("STATE_DIRECTORY")):
        return Path(managed.split(":")[0]).absolute()
    if named is None and beside.absolute() == _SERVICE_CONFIGURATION:
        return SERVICE_STATE
    return anchored(named or DEFAULT_STATE, beside)


def anchored(path: str, folder: Path) -> Path:
    """The path as the configuration in this folder means it. As in a shell, "~nobody" is a name like any other."""
    return (folder / (path if is_homeless(path) else Path(path).expanduser())).absolute()


def is_homeless(path: str) -> bool:
    """Whether it begins in the home of somebody who is not known here, or has none."""
    try:
        Path(path).expanduser()
    except RuntimeError:
        return True
    return False


def is_kept_for_the_service(state: Path) -> bool:
    """Only the service may run over this folder: files of root in it could not be opened by the service's own user."""
    return os.geteuid() == 0 and state.resolve().is_relative_to(_DYNAMIC_STATE)


def find_state(config: Path | None, environ: Mapping[str, str]) -> Path:
    """The state folder that a daemon started here would use, for those who only look for its socket.

    It reads one value and judges nothing, so that a client works for whoever may not read the keys.
    """
    file = config or find_configuration(environ)
    return state_folder(_named_state(file) if file else None, file.parent if file else Path(), environ)


def _named_state(file: Path) -> str | None:
    try:
        section = tomllib.loads(file.read_text("utf-8")).get("agentd")
    except (OSError, ValueError, RecursionError):
        return None
    state = section.get("state") if isinstance(section, dict) else None
    return state if isinstance(state, str) else None
