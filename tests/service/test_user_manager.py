"""The service under a real systemd: a user manager in namespaces of its own, which can write to the test's folder only.

Installed by `agentd service install --user`, started, asked, killed, blocked, stopped. Where the namespaces or systemd
are not to be had, the units are checked part by part in test_service.py and tests/control/test_systemd.py.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.machines import AGENTD, TIMEOUT_S, Manager, running_after, user_manager

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

# The unit as it is installed, but for two waits, and for where its log can be read without journald.
DROP_IN = """
[Service]
WatchdogSec=3s
RestartSec=100ms
StandardOutput=append:{log}
StandardError=append:{log}
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with user_manager(tmp_path) as started:
        yield started


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

    assert "runs its own hub, which ends with it" in manager.done(str(AGENTD), "upgrade").stderr
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


def test_an_upgrade_makes_the_new_process_the_main_one_and_the_managers_own_child(manager: Manager) -> None:
    with manager.start(str(AGENTD), "hub", "--dev", "--port", "0", stdout=subprocess.PIPE) as hub:
        try:
            assert hub.stdout is not None
            url = hub.stdout.readline().split()[-1]
            asked = urllib.request.Request(f"{url}/hub/v1/agents", b'{"handle": "alice"}')
            with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
                key = json.load(answer)["api_key"]
            configuration = manager.folder / "config" / "agentd"
            (configuration / "alice.key").touch(0o600)
            (configuration / "alice.key").write_text(key)
            (configuration / "agentd.toml").write_text(
                f'[identity.alice]\nurl = "{url}"\nkey = {{ file = "alice.key" }}\n'
            )
            manager.run(str(AGENTD), "service", "install", "--user", "--yes")
            manager.systemctl("start", "agentd")
            manager.until(lambda shown: shown["StatusText"] == "1 live", "StatusText")
            told = json.loads(manager.run(str(AGENTD), "upgrade", "--json"))
            shown = manager.show("MainPID", "NRestarts")
            assert shown == {"MainPID": str(told["pid"]), "NRestarts": "0"}
            parent = manager.run("ps", "-o", "ppid=", "-p", str(told["pid"])).strip()
            assert "systemd" in manager.run("cat", f"/proc/{parent}/comm")
            manager.systemctl("stop", "agentd")
            assert manager.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
        finally:
            hub.kill()


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
