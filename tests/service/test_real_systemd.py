"""The service under a real systemd: a user manager in namespaces of its own, which can write to the test's folder only.

Installed by `agentd service install --user`, started, asked, killed, blocked, stopped. Where the namespaces or systemd
are not to be had, the units are checked part by part in test_service.py and tests/control/test_systemd.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "user_manager.sh"
AGENTD = Path(sys.prefix) / "bin" / "agentd"
TIMEOUT_S = 60.0

# A plugin that blocks the loop when it is told to, as a C extension or a tight loop would.
BLOCKER = """
import time
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("blocker")

@plugin.on(Message)
async def answer(message: Message, ctx: Context) -> None:
    if message.text == "block":
        time.sleep(600)
    ctx.reply("echo: " + message.text)
"""

RAISER = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("raiser")

@plugin.on(Message)
async def answer(message: Message, ctx: Context) -> None:
    raise ValueError("first\\nsecond")
"""

TARGETS = {
    "default.target": "[Unit]\nRequires=basic.target\nAfter=basic.target\n",
    "basic.target": "[Unit]\nDescription=Basic\n",
    "shutdown.target": "[Unit]\nDescription=Shutdown\nDefaultDependencies=no\n",
}

# The unit as it is installed, but for two waits, and for where its log can be read without journald.
DROP_IN = """
[Service]
WatchdogSec=3s
RestartSec=100ms
StandardOutput=append:{log}
StandardError=append:{log}
"""


class Manager:
    """A running user manager. folder: all that it can write to."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder = folder
        self._enter = ["nsenter", "-t", str(pid), "-m", "-p", "-C", "--"]
        self._environ = {
            "PATH": f"{AGENTD.parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "LC_ALL": "C",
            "XDG_RUNTIME_DIR": "/run/user/0",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "SYSTEMD_UNIT_PATH": str(folder / "config" / "systemd" / "user"),
        }

    def run(self, *words: str, check: bool = True) -> str:
        """Run something where the manager runs."""
        done = subprocess.run(
            [*self._enter, *words], env=self._environ, cwd="/", capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0 or not check, (words, done.stdout, done.stderr, self.log())
        return done.stdout

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", "--user", "--no-pager", *words, check=check)

    def show(self, *names: str) -> dict[str, str]:
        lines = self.systemctl("show", "agentd", *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, condition: Callable[[dict[str, str]], bool], *names: str) -> dict[str, str]:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition(shown := self.show(*names)):
            assert time.monotonic() < deadline, (shown, self.log())
            time.sleep(0.1)
        return shown

    def log(self) -> str:
        logs = (self.folder / "daemon.log", self.folder / "manager.log")
        return "\n".join(log.read_text(errors="replace")[-6_000:] for log in logs if log.exists())


def require_the_tools() -> None:
    """Skip with the reason where this cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("namespaces of this kind need root")
    for program in ("unshare", "nsenter", "systemctl", "/lib/systemd/systemd", "/lib/systemd/systemd-journald"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    require_the_tools()
    units = tmp_path / "config" / "systemd" / "user"
    for folder in (units, tmp_path / "home", tmp_path / "tmp", tmp_path / "config" / "agentd"):
        folder.mkdir(parents=True)
    for name, text in TARGETS.items():
        (units / name).write_text(text)
    cgroup = f"agentd-test-{os.getpid()}"
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"]
    with subprocess.Popen([*command, SCRIPT, tmp_path, cgroup], stderr=subprocess.PIPE, text=True) as unshare:
        try:
            yield started(unshare, tmp_path)
        finally:
            unshare.kill()
            unshare.wait(TIMEOUT_S)
            remove_cgroup(cgroup)


def started(unshare: subprocess.Popen[str], folder: Path) -> Manager:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if unshare.poll() is not None:
            assert unshare.stderr is not None
            pytest.skip(f"no manager of its own: {unshare.stderr.read().strip()}")
        if (pid := pid_of_first_child(unshare.pid)) is not None:
            manager = Manager(folder, pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                if "running" in manager.systemctl("is-system-running", check=False):
                    return manager
        time.sleep(0.1)
    raise AssertionError(f"the manager did not come up: {Manager(folder, 0).log()}")


def pid_of_first_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def remove_cgroup(name: str) -> None:
    """What the manager leaves behind outside its folder: empty groups."""
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


def test_it_is_installed_started_killed_bitten_and_stopped(manager: Manager) -> None:
    configuration = manager.folder / "config" / "agentd"
    (configuration / "blocker.py").write_text(BLOCKER)
    (configuration / "agentd.toml").write_text('[plugin.echo]\nuse = "./blocker.py"\n')

    manager.run(str(AGENTD), "service", "install", "--user", "--yes")
    drop_in = manager.folder / "config" / "systemd" / "user" / "agentd.service.d"
    drop_in.mkdir()
    (drop_in / "test.conf").write_text(DROP_IN.format(log=manager.folder / "daemon.log"))
    manager.systemctl("daemon-reload")

    manager.systemctl("start", "agentd")  # returns at READY=1
    told = json.loads(manager.run(str(AGENTD), "service", "status", "--user", "--json"))
    assert (told["installed"], told["current"], told["systemd"]["ActiveState"]) == (True, True, "active")
    manager.until(lambda shown: shown["StatusText"] == "2 live", "StatusText")
    assert "echo: hello" in say(manager, "hello"), "its client finds the socket of the service"

    first = manager.show("MainPID")["MainPID"]
    manager.systemctl("kill", "--signal=SIGKILL", "--kill-who=main", "agentd")
    again = manager.until(running_after(1), "MainPID", "ActiveState", "NRestarts")
    assert again["MainPID"] != first
    assert "echo: back" in say(manager, "back")

    say(manager, "block", "--no-wait")
    # Killed twice over the same event, the daemon puts it aside, and lives.
    manager.until(running_after(3), "MainPID", "ActiveState", "NRestarts")
    assert "echo: alive" in say(manager, "alive")
    assert "blocker.py" in manager.log(), "faulthandler has named the line"
    letters = json.loads(manager.run(str(AGENTD), "dead", "ls", "--json"))
    assert len(letters) == 1

    manager.systemctl("stop", "agentd")
    assert manager.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert not manager.run(str(AGENTD), "service", "uninstall", "--user", "--yes").count("Failed")
    assert manager.show("LoadState")["LoadState"] == "not-found"


def test_under_journald_a_line_has_its_fields_and_a_traceback_is_one_entry(manager: Manager) -> None:
    configuration = manager.folder / "config" / "agentd"
    (configuration / "raiser.py").write_text(RAISER)
    (configuration / "agentd.toml").write_text('[plugin.echo]\nuse = "./raiser.py"\nattempts = 1\n')
    manager.run(str(AGENTD), "service", "install", "--user", "--yes")
    manager.systemctl("start", "agentd")
    manager.until(lambda shown: shown["StatusText"] == "2 live", "StatusText")
    manager.run(str(AGENTD), "send", "@echo", "line one", "--no-wait")
    entries: list[dict[str, str]] = []
    deadline = time.monotonic() + TIMEOUT_S
    while not entries:
        assert time.monotonic() < deadline, manager.log()
        lines = manager.run("journalctl", "--quiet", "-o", "json", "AGENTD_PLUGIN=echo", check=False).splitlines()
        entries = [entry for entry in map(json.loads, lines) if "ValueError" in str(entry["MESSAGE"])]
        time.sleep(0.1)
    entry = entries[0]
    assert (entry["AGENTD_IDENTITY"], entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]) == ("echo", "agentd", "4")
    assert entry["AGENTD_CONVERSATION"].startswith("conv_")
    assert entry["AGENTD_EVENT_ID"].startswith("msg_")
    assert "Traceback" in entry["MESSAGE"]
    assert 'raise ValueError("first\\nsecond")' in entry["MESSAGE"]
    assert len(manager.run("journalctl", "--quiet", "-o", "cat", "AGENTD_IDENTITY=me").splitlines()) >= 2


def say(manager: Manager, text: str, *more: str) -> str:
    return manager.run(str(AGENTD), "send", "@echo", text, "--wait", "30", *more)


def running_after(restarts: int) -> Callable[[dict[str, str]], bool]:
    return lambda shown: shown["ActiveState"] == "active" and int(shown["NRestarts"]) >= restarts


def test_a_configuration_that_is_broken_is_not_started_again_and_again(manager: Manager) -> None:
    (manager.folder / "config" / "agentd" / "agentd.toml").write_text("[agentd]\nlog_level = 3\n")
    manager.run(str(AGENTD), "service", "install", "--user", "--yes")
    manager.systemctl("start", "agentd", check=False)
    shown = manager.until(lambda shown: shown["ActiveState"] == "failed", "ActiveState", "NRestarts", "ExecMainStatus")
    assert (shown["ExecMainStatus"], shown["NRestarts"]) == ("78", "0")


def test_the_manager_cannot_write_outside_its_folder(manager: Manager) -> None:
    for place in ("/", "/tmp", "/var", "/etc", str(Path(__file__).parent)):
        done = manager.run("sh", "-c", f"touch {place}/.agentd-probe 2>&1 || true")
        assert "Read-only" in done
        assert not Path(place, ".agentd-probe").exists()
