"""What `agentd service` does: puts a unit of systemd in place, looks at it, takes it away.

Always true: nothing is written or removed before it was shown and agreed to. With a root folder nothing outside it is
touched, and the running systemd is not spoken to.
Not here: the units themselves (systemd/), words on the command line.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

import click

import agentd
from agentd.cli.agreeing import agree
from agentd.cli.printing import echo_json
from agentd.errors import AgentdError

_PLACEHOLDER = "/opt/agentd/bin/agentd"  # how the units in systemd/ name the program
_CREDENTIALS = Path("/etc/agentd/credentials")
_CONFIGURATION = Path("/etc/agentd/agentd.toml")
_SYSTEM_UNITS = Path("/etc/systemd/system")
_SYSTEMCTL_TIMEOUT_S = 90.0  # a stop waits for running handlers

_HIDDEN = {"/home": "ProtectHome", "/root": "ProtectHome", "/run/user": "ProtectHome"} | dict.fromkeys(
    ("/tmp", "/var/tmp"),  # noqa: S108 -- places that a unit does not see
    "PrivateTmp",
)
"""Folders that a system unit does not see, and the line of it that hides them."""

_SHOWN = ("LoadState", "ActiveState", "SubState", "StatusText", "MainPID", "NRestarts", "Result")


class ServiceError(AgentdError):
    """The service cannot be put in place or asked; the text names the remedy."""


class Service(NamedTuple):
    """One unit. name: as systemctl knows it. file: where the unit goes. folders: what it needs, with their modes.

    template: its text in systemd/. root: everything is below it, or None for this machine.
    """

    name: str
    user: bool
    template: str
    file: Path
    folders: tuple[tuple[Path, int], ...]
    root: Path | None

    @property
    def systemctl(self) -> str:
        """How people call the manager that has this unit."""
        return "systemctl --user" if self.user else "systemctl"

    @property
    def install(self) -> str:
        """How people install it."""
        flag = " --user" if self.user else " --hub" if self.name == "agentd-hub" else ""
        return f"agentd service install{flag}"

    @property
    def log(self) -> str:
        """How people read what it says."""
        return f"journalctl {'--user ' if self.user else ''}-u {self.name} -n 50"


def chosen(user: bool, hub: bool, root: Path | None, environ: Mapping[str, str]) -> Service:
    """The service that the options mean. Raises click's usage error."""
    if user and hub:
        raise click.UsageError("the hub has a system unit only; leave --user or --hub out")
    below = root.absolute() if root else Path("/")
    name = "agentd-hub" if hub else "agentd"
    if user:
        file = _users_folder(environ) / "systemd" / "user" / "agentd.service"
        return Service(name, True, "agentd-user.service", _below(below, file), (), root)
    # LoadCredential names it, and a unit whose credential is not there does not start.
    folders = () if hub else ((_below(below, _CREDENTIALS), 0o700),)
    return Service(name, False, f"{name}.service", _below(below, _SYSTEM_UNITS / f"{name}.service"), folders, root)


def _users_folder(environ: Mapping[str, str]) -> Path:
    """Where systemd looks for what this user configures. Raises ServiceError."""
    named = Path(environ.get("XDG_CONFIG_HOME", ""))
    if named.is_absolute():  # else it does not count, by the rules for it
        return named
    home = Path(environ.get("HOME", ""))
    if not home.is_absolute():
        try:
            home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        except KeyError:
            raise ServiceError("this user has no home; set HOME, or install a service of the machine") from None
    return home / ".config"


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def install(service: Service, *, dry_run: bool, yes: bool) -> None:
    """Write the unit and what it needs."""
    program = own_program()
    if not service.user:
        _refuse_hidden(program)
    text = unit_text(service.template, program)
    missing = [(folder, mode) for folder, mode in service.folders if not folder.is_dir()]
    if not missing and _is_written(service.file, text):
        click.echo(f"{service.file} is in place already", err=True)
    else:
        for folder, mode in missing:
            click.echo(f"makes the folder {folder} (mode {mode:04o})")
        click.echo(f"{'replaces' if service.file.exists() else 'writes'} {service.file} (mode 0644):\n")
        click.echo(text)
        if dry_run:
            return
        agree("write this?", yes)
        _write(service.file, text, missing)
    if dry_run:
        return
    if service.root is None:
        _systemctl(service, "daemon-reload")
    click.echo(f"now: {_next_step(service)}", err=True)


def _next_step(service: Service) -> str:
    if service.root is None and _shown(service)["ActiveState"] == "active":
        return f"it runs with the unit that it was started with; {service.systemctl} restart {service.name}"
    start = f"{service.systemctl} enable --now {service.name}"
    if service.user or service.template == "agentd-hub.service":
        return start
    return f"write {_CONFIGURATION}, put each key into {_CREDENTIALS}, then: {start}"


def status(service: Service, *, as_json: bool) -> bool:
    """Say how the service is. True if it runs (below a root folder: if it is in place)."""
    installed = service.file.exists()
    current = _is_current(service)
    shown = _shown(service) if service.root is None else {}
    if as_json:
        echo_json({"unit": str(service.file), "installed": installed, "current": current, "systemd": shown})
    else:
        _echo_status(service, installed, current, shown)
    return installed if service.root is not None else shown.get("ActiveState") == "active"


def _echo_status(service: Service, installed: bool, current: bool, shown: Mapping[str, str]) -> None:
    if not installed:
        click.echo(f"not installed: {service.file} is not there; install it with: {service.install}")
    else:
        differs = f"differs from what this agentd would write; see: {service.install} --dry-run"
        click.echo(f"{service.file}: {'up to date' if current else differs}")
    if not shown or shown["LoadState"] == "not-found":
        return
    pid = f", pid {shown['MainPID']}" if shown["MainPID"] != "0" else ""
    click.echo(f"{service.name}: {shown['ActiveState']} ({shown['SubState']}){pid}")
    click.echo(f"restarts: {shown['NRestarts']}, last result: {shown['Result']}")
    if shown["StatusText"]:
        click.echo(f"says: {shown['StatusText']}")
    if shown["Result"] != "success":
        click.echo(f"why: {service.log}")


def uninstall(service: Service, *, dry_run: bool, yes: bool) -> None:
    """Stop it and remove the unit."""
    if not service.file.exists():
        click.echo(f"{service.file} is not there", err=True)
        return
    click.echo(f"stops {service.name} and removes {service.file}")
    if dry_run:
        return
    agree("go on?", yes)
    if service.root is None:
        _systemctl(service, "disable", "--now", service.name)
    service.file.unlink()
    if service.root is None:
        _systemctl(service, "daemon-reload")
    click.echo("configuration, keys and state are left as they are", err=True)


def own_program() -> Path:
    """The `agentd` of the environment that runs this. Raises ServiceError if it has none."""
    program = Path(sysconfig.get_path("scripts")) / "agentd"
    if not program.is_file():
        raise ServiceError(f"{program} is not there; install agentd with pip into the environment that runs this")
    return program


def unit_text(template: str, program: Path) -> str:
    """A unit of systemd/ with the program's path in it. Raises ServiceError for a path that a unit cannot name."""
    if not str(program).isprintable() or any(char in str(program) for char in " \"'\\%$"):
        raise ServiceError(f"{program} has characters that a unit cannot name; install agentd into another folder")
    return (_folder_of_units() / template).read_text("utf-8").replace(_PLACEHOLDER, str(program))


def _folder_of_units() -> Traversable:
    packaged = resources.files("agentd") / "systemd"
    # In a checkout they lie beside the package.
    return packaged if packaged.is_dir() else Path(agentd.__file__).parent.parent / "systemd"


def _refuse_hidden(program: Path) -> None:
    for part in own_parts(program):
        for folder, line in _HIDDEN.items():
            if part.is_relative_to(folder):
                raise ServiceError(
                    f"{part} is under {folder}, which a system unit does not see ({line}=yes). Install agentd where "
                    f"all can read it: python3 -m venv /opt/agentd && /opt/agentd/bin/pip install agentd; or use --user"
                )


def own_parts(program: Path) -> list[Path]:
    """What has to be readable for the program to start: itself, its interpreter, its modules."""
    return [program, Path(sys.executable).resolve(), Path(sys.base_prefix), Path(agentd.__file__).resolve()]


def _is_current(service: Service) -> bool:
    try:
        return _is_written(service.file, unit_text(service.template, own_program()))
    except ServiceError:  # it would write none: what was installed from elsewhere runs all the same
        return False


def _is_written(file: Path, text: str) -> bool:
    try:
        return file.read_text("utf-8") == text
    except OSError:
        return False


def _write(file: Path, text: str, folders: Sequence[tuple[Path, int]]) -> None:
    new = file.with_name(f".{file.name}.new")
    try:
        for folder, mode in folders:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, "utf-8")
        new.chmod(0o644)
        new.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        remedy = "run this as root, or add --user" if isinstance(error, PermissionError) else "mend that, then again"
        raise ServiceError(f"{error.filename or file} cannot be written ({error.strerror}); {remedy}") from None


def _shown(service: Service) -> dict[str, str]:
    lines = _systemctl(service, "show", service.name, *(f"--property={name}" for name in _SHOWN)).splitlines()
    told = dict(line.split("=", 1) for line in lines if "=" in line)
    return {name: told.get(name, "") for name in _SHOWN}


def _systemctl(service: Service, *words: str) -> str:
    """Ask the manager. Raises ServiceError with its own words."""
    program = shutil.which("systemctl")
    if program is None:
        raise ServiceError("systemctl is not here: this machine does not run systemd; `agentd run` needs none")
    command = [program, *(["--user"] if service.user else []), "--no-pager", *words]
    try:
        done = subprocess.run(  # noqa: S603 -- our own words, without a shell
            command,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServiceError(f"{service.systemctl} {words[0]} did not end within {_SYSTEMCTL_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ServiceError(f"{service.systemctl} {words[0]} failed: {said[0] if said else done.returncode}")
    return done.stdout
