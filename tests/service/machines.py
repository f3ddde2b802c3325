"""Managers of systemd that these tests start for themselves, in namespaces, and take away again.

    user_manager.sh     systemd --user, with this machine's files read-only around it
    system_manager.sh   systemd as PID 1, with a root of its own

Always true: nothing of this machine is changed but an empty control group, which is removed; where the rights or the
tools for that are not to be had, a test is skipped with what is missing.
Not here: what is shown with them (the tests).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
AGENTD = Path(sys.prefix) / "bin" / "agentd"
TIMEOUT_S = 60.0

TARGETS = {
    "default.target": "[Unit]\nRequires=basic.target\nAfter=basic.target\n",
    "basic.target": "[Unit]\nDescription=Basic\n",
    "shutdown.target": "[Unit]\nDescription=Shutdown\nDefaultDependencies=no\n",
}

Shown = dict[str, str]


class Manager:
    """A running manager. folder: of the test. enter: words that run something where it runs, with this environment.

    calls: how its services are asked about.
    """

    def __init__(
        self, folder: Path, pid: int, enter: Sequence[str], environ: Mapping[str, str], calls: Sequence[str]
    ) -> None:
        self.folder = folder
        self._enter = ["nsenter", "-t", str(pid), *enter, "--"]
        self._environ = dict(environ)
        self._calls = ["systemctl", *calls, "--no-pager"]
        self._since_us = 0

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Begin something where the manager runs."""
        return subprocess.Popen([*self._enter, *words], env=self._environ, cwd="/", text=True, **options)

    def done(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run something there, however it ends."""
        command = [*self._enter, *words]
        return subprocess.run(command, env=self._environ, cwd="/", capture_output=True, text=True, timeout=TIMEOUT_S)

    def run(self, *words: str, check: bool = True) -> str:
        """Run something there, and return what it says."""
        done = self.done(*words)
        assert done.returncode == 0 or not check, (words, done.stdout, done.stderr, self.log())
        return done.stdout

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run(*self._calls, *words, check=check)

    def show(self, *names: str, unit: str = "agentd") -> Shown:
        lines = self.systemctl("show", unit, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, condition: Callable[[Shown], bool], *names: str, unit: str = "agentd") -> Shown:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition(shown := self.show(*names, unit=unit)):
            assert time.monotonic() < deadline, (shown, self.log())
            time.sleep(0.1)
        return shown

    def entries(self, *words: str) -> list[dict[str, Any]]:
        """What is in the journal of systemd, oldest first."""
        lines = self.run("journalctl", "--quiet", "-o", "json", *words).splitlines()
        # Not --after-cursor, which leaves out the first entry that matches if the one at the cursor does not.
        return [each for each in map(json.loads, lines) if int(each["__REALTIME_TIMESTAMP"]) > self._since_us]

    def forget_entries(self) -> None:
        """Leave out of `entries` from now on what is there."""
        self._since_us = max(int(each["__REALTIME_TIMESTAMP"]) for each in self.entries("-n", "1"))

    def until_entry(self, wanted: Callable[[dict[str, Any]], object], *words: str) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            for entry in self.entries(*words):
                if wanted(entry):
                    return entry
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        logs = (self.folder / "daemon.log", self.folder / "manager.log")
        told = [log.read_text(errors="replace")[-6_000:] for log in logs if log.exists()]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            told.append(self.done("journalctl", "--quiet", "--no-pager", "-n", "100").stdout[-12_000:])
        return "\n".join(told)


def running_after(restarts: int) -> Callable[[Shown], bool]:
    return lambda shown: shown["ActiveState"] == "active" and int(shown["NRestarts"]) >= restarts


def require(*programs: str) -> None:
    """Skip with the reason where this cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("namespaces of this kind need root")
    for program in ("unshare", "nsenter", "systemctl", "/lib/systemd/systemd", *programs):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")


@contextlib.contextmanager
def booted(
    folder: Path, unshared: Sequence[str], script: Sequence[str], made: Callable[[int], Manager]
) -> Iterator[Manager]:
    """A manager, while the context lasts. script: and its words. made: from the pid of its namespaces."""
    cgroup = f"agentd-test-{os.getpid()}"
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *unshared, "sh"]
    with subprocess.Popen(
        [*command, script[0], str(folder), cgroup, *script[1:]], stderr=subprocess.PIPE, text=True
    ) as unshare:
        try:
            yield until_up(unshare, made)
        finally:
            # --kill-child does not reach a manager that has given up capabilities.
            for pid in filter(None, (pid_of_first_child(unshare.pid),)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            unshare.kill()
            unshare.wait(TIMEOUT_S)
            remove_cgroup(cgroup)


def until_up(unshare: subprocess.Popen[str], made: Callable[[int], Manager]) -> Manager:
    deadline = time.monotonic() + TIMEOUT_S
    told = ""
    while time.monotonic() < deadline:
        if unshare.poll() is not None:
            assert unshare.stderr is not None
            pytest.skip(f"no manager of its own: {unshare.stderr.read().strip()}")
        if (pid := pid_of_first_child(unshare.pid)) is not None:
            manager = made(pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                told = manager.systemctl("is-system-running", check=False).strip()
                if told in ("running", "degraded"):
                    return manager
        time.sleep(0.05)
    raise AssertionError(f"the manager did not come up: {told}")


def pid_of_first_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def remove_cgroup(name: str) -> None:
    """What a manager leaves behind outside its folder: empty groups."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for root in (Path(mount[1]) / name for mount in mounts if mount[2] == "cgroup2"):
        for _ in range(100):
            if not root.exists():
                break
            for folder in sorted(root.rglob("*/"), key=lambda each: len(each.parts), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                root.rmdir()
            time.sleep(0.05)


def install_into(folder: Path) -> None:
    """agentd as `pip install` lays it out in a virtual environment at /opt/agentd, and its compiled code.

    What it depends on is not copied: the environment of these tests is seen as /opt/packages.
    """
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    for package in wheel["packages"]:
        copy(CHECKOUT / package, packages / Path(package).name)
    for source, target in wheel["force-include"].items():
        copy(CHECKOUT / source, packages / target)
    (packages / "packages.pth").write_text("/opt/packages\n")
    (folder / "bin").mkdir()
    home = seen_home() / "bin"
    python = home / Path(sys.executable).resolve().name
    (folder / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    (folder / "bin" / "python").symlink_to(python)
    program = folder / "bin" / "agentd"
    program.write_text("#!/opt/agentd/bin/python\nfrom agentd.cli import main\n\nmain()\n")
    program.chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    compiled = [sys.executable, "-m", "compileall", "-q", "-s", str(folder), "-p", "/opt/agentd", str(packages)]
    subprocess.run(compiled, check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""})


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def seen_home() -> Path:
    """Where the Python of these tests is seen in the machine."""
    base = Path(sys.base_prefix).resolve()
    return base if base.is_relative_to("/usr") else Path("/opt/python")


def own_packages() -> Path:
    """Where the environment of these tests keeps what agentd depends on."""
    import msgspec

    return Path(msgspec.__file__).parents[1]


def version_of(folder: Path, version: str) -> None:
    """Make what is installed there another version, as an upgrade with pip does."""
    [init] = folder.glob("lib/*/site-packages/agentd/__init__.py")
    text = re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text())
    fresh = init.with_name("__init__.new")
    fresh.write_text(text)
    fresh.replace(init)


@contextlib.contextmanager
def user_manager(folder: Path) -> Iterator[Manager]:
    """A manager of this user's services. It can write to its folder and to nothing else."""
    require("/lib/systemd/systemd-journald")
    config = folder / "config"
    units = config / "systemd" / "user"
    for each in (units, folder / "home", folder / "tmp", config / "agentd"):
        each.mkdir(parents=True)
    for name, text in TARGETS.items():
        (units / name).write_text(text)
    environ = {
        "PATH": f"{AGENTD.parent}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "LC_ALL": "C",
        "XDG_RUNTIME_DIR": "/run/user/0",
        "XDG_CONFIG_HOME": str(config),
        "SYSTEMD_UNIT_PATH": str(units),
    }

    def made(pid: int) -> Manager:
        return Manager(folder, pid, ["-m", "-p", "-C"], environ, ["--user"])

    with booted(folder, ["--mount-proc"], [str(HERE / "user_manager.sh")], made) as manager:
        yield manager


@contextlib.contextmanager
def system_manager(folder: Path) -> Iterator[Manager]:
    """A machine of its own, with agentd at /opt/agentd and nothing configured. See system_manager.sh."""
    require("setpriv", "pivot_root")
    install_into(folder / "opt" / "agentd")
    environ = {"PATH": "/opt/agentd/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C"}
    script = [str(HERE / "system_manager.sh"), str(Path(sys.base_prefix).resolve()), str(own_packages())]

    def made(pid: int) -> Manager:
        return Manager(folder, pid, ["-m", "-p", "-C", "-i", "-u", "-n", "-r", "-w"], environ, [])

    with booted(folder, ["--ipc", "--uts", "--net"], script, made) as manager:
        yield manager
