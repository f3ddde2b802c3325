"""The service of the machine, under systemd as PID 1: installed, started, killed, bitten, reloaded, upgraded, stopped.

The units are those of systemd/, as `agentd service install` writes them, with their user, their folders, their
credentials and all of their sandbox. A drop-in shortens waits where a test says so, and nothing else. agentd is at
/opt/agentd, as the documentation has it, and its far end is the hub's unit beside it.

What this machine cannot show: MemoryMax= and TasksMax= are set and read back, and hold back nobody where the kernel
keeps these controllers out of the unified hierarchy. Where namespaces or systemd are not to be had, the units are
checked part by part in tests/test_service.py and tests/control/test_systemd.py.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import agentd
from tests.service.machines import HERE, TIMEOUT_S, Manager, running_after, system_manager, version_of

HUB = "http://127.0.0.1:8787"
PROGRAM = "/opt/agentd"

CONFIGURATION = f"""
[agentd.dispatch]
drain_timeout_s = 2.0

[identity.alice]
url = "{HUB}"
key = {{ credential = "keys_alice.key" }}
plugins = ["answer"]
loop_guard = {{ answers_max = 0 }}

[plugin.answer]
use = "./answer.py"
"""

# "slow" takes its time; "linger" longer than a stop waits; "block" keeps the loop, once.
PLUGIN = """
import asyncio, pathlib, time
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("answer")

@plugin.on(Message)
async def answer(message: Message, ctx: Context) -> None:
    text = message.text or ""
    ctx.log.info("begun")
    if text.startswith("slow"):
        await asyncio.sleep(2)
    if text.startswith("linger"):
        await asyncio.sleep(600)
    once = pathlib.Path("/var/lib/agentd/blocked")
    if text.startswith("block") and not once.exists():
        once.touch()
        time.sleep(600)
    ctx.reply("echo: " + text)
"""


# Tries what a plugin has no business to do, and logs what came of each.
PROBE = """
import errno, mmap, os, pathlib, socket, subprocess
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("answer")
own = pathlib.Path("/var/lib/agentd/probe")

def tried(attempt):
    try:
        return str(attempt())
    except OSError as error:
        return errno.errorcode[error.errno]

def users():
    return {os.stat(f"/proc/{pid}").st_uid for pid in os.listdir("/proc") if pid.isdigit()}

@plugin.on(Message)
def answer(message: Message, ctx: Context) -> None:
    own.touch()
    for name, attempt in {
        "raw frames": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "code in memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
        "another namespace": lambda: subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode,
        "a set-uid file": lambda: own.chmod(0o4755),
        "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "the kernel": lambda: pathlib.Path("/proc/sys/kernel/panic").write_text("1"),
        "control groups": lambda: pathlib.Path("/sys/fs/cgroup/probe").mkdir(),
        "the system": lambda: pathlib.Path("/etc/probe").touch(),
        "the configuration": lambda: pathlib.Path("/etc/agentd/probe").touch(),
        "the keys' files": lambda: os.listdir("/etc/agentd/credentials"),
        "homes": lambda: os.listdir("/root") + os.listdir("/home"),
        "others' temporary files": lambda: os.listdir("/tmp"),
        "disks": lambda: [name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "loop", "mem", "kmsg"))],
        "others' processes": lambda: sorted(users() - {os.getuid()}),
    }.items():
        ctx.log.info("tried %s: %s", name, tried(attempt))
"""
TRIED = {
    "raw frames": "EAFNOSUPPORT",
    "code in memory": "EPERM",
    "another namespace": "1",
    "a set-uid file": "EPERM",
    "real time": "EPERM",
    "the kernel": "EROFS",
    "control groups": "EROFS",
    "the system": "EROFS",
    "the configuration": "EACCES",
    "the keys' files": "EACCES",
    "homes": "EACCES",
    "others' temporary files": "[]",
    "disks": "[]",
    "others' processes": "[]",
}


class Machine:
    """A machine on which the hub runs and agentd is configured for one identity. manager: its systemd."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.installed = manager.folder / "opt" / "agentd"

    def prepare(self) -> None:
        """Install the hub, as one does once."""
        self.run("agentd", "service", "install", "--hub", "--yes")
        self.run("systemctl", "enable", "agentd-hub")

    def begin_anew(self) -> None:
        """A hub without mail, an agentd without state, configured, not started."""
        self.manager.done("systemctl", "stop", "agentd", "agentd-hub")  # one of them may not be installed
        self.manager.done("systemctl", "reset-failed", "agentd", "agentd-hub")
        drop_ins = "/etc/systemd/system/agentd.service.d"
        self.run("rm", "-rf", drop_ins, *(f"/var/lib/private/{each}" for each in ("agentd", "agentd-hub")))
        self.run("agentd", "service", "install", "--yes")  # tells systemd to look at its units again
        self.run("systemctl", "start", "agentd-hub")  # returns when it can be dialled
        version_of(self.installed, agentd.__version__)
        self.write("/etc/agentd/agentd.toml", CONFIGURATION)
        self.write("/etc/agentd/answer.py", PLUGIN)
        self.give_key("alice", self.new_agent("alice"))
        self.new_agent("bob")
        self.manager.forget_entries()

    def run(self, *words: str) -> str:
        return self.manager.run(*words)

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    def write(self, path: str, text: str, mode: str = "644") -> None:
        source = self.installed / "written"
        source.write_text(text)
        self.run("install", "-D", "-m", mode, f"{PROGRAM}/written", path)
        source.unlink()

    def drop_in(self, *lines: str, unit: str = "agentd") -> None:
        self.write(f"/etc/systemd/system/{unit}.service.d/test.conf", "\n".join(["[Service]", *lines, ""]))
        self.run("systemctl", "daemon-reload")

    def hub(self, path: str, body: dict[str, Any]) -> Any:
        """Ask the hub for what only this machine may ask."""
        program = (
            "import sys, urllib.request as u; "
            "print(u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode())).read().decode())"
        )
        return json.loads(self.run(f"{PROGRAM}/bin/python", "-c", program, f"{HUB}{path}", json.dumps(body)))

    def new_agent(self, handle: str) -> str:
        return str(self.hub("/hub/v1/agents", {"handle": handle})["api_key"])

    def give_key(self, name: str, key: str) -> None:
        self.write(f"/etc/agentd/credentials/{name}.key", key, "600")

    def say(self, *texts: str, sender: str = "bob") -> None:
        self.hub("/hub/v1/messages", {"sender": sender, "to": "alice", "texts": list(texts)})

    def start(self) -> None:
        self.run("systemctl", "start", "agentd")
        self.until_says("1 live")

    def until_says(self, status: str) -> None:
        self.manager.until(lambda shown: shown["StatusText"] == status, "StatusText")

    def main_pid(self) -> int:
        return int(self.manager.show("MainPID")["MainPID"])

    def until_handled(self, count: int) -> None:
        """Wait until alice has handled so many messages."""
        deadline = time.monotonic() + TIMEOUT_S
        while (told := self.json("agentd", "status")["identities"][0])["handled"] < count or told["outbox_ready"]:
            assert time.monotonic() < deadline, (told, self.manager.log())
            time.sleep(0.1)

    def until_begun(self, count: int) -> None:
        """Wait until so many turns have begun, by what the plugin has logged."""
        deadline = time.monotonic() + TIMEOUT_S
        while len(self.manager.entries("-u", "agentd", "MESSAGE=begun")) < count:
            assert time.monotonic() < deadline, self.manager.log()
            time.sleep(0.1)

    def process(self, pid: int) -> dict[str, str]:
        """What the kernel knows of a process: the fields of its status, and its control group."""
        lines = self.run("cat", f"/proc/{pid}/status").splitlines()
        cgroup = self.run("cat", f"/proc/{pid}/cgroup").splitlines()[-1]
        return {**dict(line.split(":\t", 1) for line in lines if ":\t" in line), "cgroup": cgroup}

    def until_gone(self, pid: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while self.manager.done("test", "-e", f"/proc/{pid}").returncode == 0:
            assert time.monotonic() < deadline, self.manager.log()
            time.sleep(0.1)

    @contextlib.contextmanager
    def talk(self) -> Iterator[None]:
        """Six peers talk meanwhile, and every word of theirs is answered once and in order."""
        shutil.copy(HERE / "talker.py", self.installed)
        words = (f"{PROGRAM}/bin/python", f"{PROGRAM}/talker.py", HUB, "alice")
        with self.manager.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as talker:
            assert talker.stdout is not None
            try:
                assert talker.stdout.readline() == "talking\n"
                yield
                told, _ = talker.communicate(timeout=2 * TIMEOUT_S)
            finally:
                talker.kill()
        verdict = json.loads(told)
        assert verdict.pop("said") > 0
        assert verdict == {"missing": 0, "twice": 0, "out_of_order": 0}, self.manager.log()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with system_manager(tmp_path_factory.mktemp("machine")) as manager:
        machine = Machine(manager)
        machine.prepare()
        yield machine


@pytest.fixture
def machine(prepared: Machine) -> Machine:
    prepared.begin_anew()
    return prepared


def test_it_is_installed_started_asked_reloaded_killed_and_stopped(machine: Machine) -> None:
    told = machine.manager.done("agentd", "service", "status")
    assert told.returncode == 1
    assert "inactive" in told.stdout
    assert "start the service with: systemctl start agentd" in machine.manager.done("agentd", "status").stderr

    machine.run("systemctl", "enable", "--now", "agentd")  # returns at READY=1
    machine.until_says("1 live")
    status = machine.json("agentd", "service", "status")
    assert (status["current"], status["systemd"]["ActiveState"]) == (True, "active")
    machine.say("one")
    machine.until_handled(1)

    # A start of what runs changes nothing, and one by hand is refused and leaves nothing behind.
    first = machine.main_pid()
    machine.run("systemctl", "start", "agentd")
    for by_hand in (["run"], ["run", "--take-over"], ["run", "--state", "/var/lib/agentd"]):
        told = machine.manager.done("agentd", *by_hand)
        assert told.returncode == 1
        assert "/var/lib/agentd is the state of agentd.service" in told.stderr
    assert machine.run("find", "/var/lib/private/agentd", "-user", "root") == ""
    assert machine.main_pid() == first

    # A reload is made by the unit's own user from within its sandbox.
    machine.write(
        "/etc/agentd/agentd.toml",
        CONFIGURATION.replace('["answer"]', '["answer", "echo"]') + '[plugin.echo]\nuse = "echo"\n',
    )
    machine.run("systemctl", "reload", "agentd")
    assert [each["name"] for each in machine.json("agentd", "status")["plugins"]] == ["answer", "echo"]
    machine.write("/etc/agentd/agentd.toml", CONFIGURATION + "\n[agentd]\nlog_level = 3\n")
    assert machine.manager.done("systemctl", "reload", "agentd").returncode != 0
    machine.manager.until_entry(lambda each: "agentd.log_level: expected" in each["MESSAGE"], "-u", "agentd")
    machine.write("/etc/agentd/agentd.toml", CONFIGURATION)
    assert machine.main_pid() == first

    machine.run("systemctl", "kill", "--signal=SIGKILL", "--kill-who=main", "agentd")
    again = machine.manager.until(running_after(1), "MainPID", "ActiveState", "NRestarts")
    assert int(again["MainPID"]) != first
    machine.say("two")
    machine.until_handled(2)

    machine.run("systemctl", "stop", "agentd")
    assert machine.manager.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    machine.run("agentd", "service", "uninstall", "--yes")
    assert machine.manager.show("LoadState")["LoadState"] == "not-found"
    assert "alice.key" in machine.run("ls", "/etc/agentd/credentials")
    assert "journal.db" in machine.run("ls", "/var/lib/private/agentd")


def test_its_user_its_folders_and_its_sandbox_are_those_of_the_unit(machine: Machine) -> None:
    machine.start()
    pid = machine.main_pid()
    process = machine.process(pid)
    user = process["Uid"].split()[0]
    assert int(user) >= 61_184, "a user that systemd has made for it"
    assert process["CapBnd"] == process["CapEff"] == "0" * 16
    assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")
    assert process["cgroup"].endswith("/system.slice/agentd.service")
    for path, owner_and_mode in {
        "/var/lib/private/agentd": f"{user} 700",
        "/var/lib/private/agentd/journal.db": f"{user} 600",
        "/run/agentd": f"{user} 750",
        "/run/agentd/control.sock": f"{user} 600",
        "/run/credentials/agentd.service/keys_alice.key": f"{user} 400",
        "/etc/agentd/credentials": "0 700",
    }.items():
        assert machine.run("stat", "-c", "%u %a", path).strip() == owner_and_mode, path

    assert "keys_alice" not in machine.run("cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline")
    limits = machine.manager.show("MemoryMax", "TasksMax", "LimitNOFILE")
    assert (limits["MemoryMax"], limits["TasksMax"]) == ("536870912", "256")

    # Root reaches its socket, and nobody else does.
    assert machine.json("agentd", "status")["pid"] == pid
    other = machine.manager.done("setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "agentd", "status")
    assert other.returncode == 69
    assert "run this command as that user or as root" in other.stderr
    for verb in (["check"], ["doctor"], ["retention", "--dry-run"], ["upgrade-check"], ["backup", "/root/backup.db"]):
        machine.run("agentd", *verb)

    entry = machine.manager.until_entry(lambda each: each["MESSAGE"] == "live", "AGENTD_IDENTITY=alice")
    assert entry["_SYSTEMD_UNIT"] == "agentd.service"
    assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"], entry["_PID"]) == ("agentd", "6", str(pid))


def test_a_plugin_gets_nowhere_that_the_sandbox_keeps_it_from(machine: Machine) -> None:
    machine.write("/etc/agentd/answer.py", PROBE)
    machine.run("touch", "/tmp/of-another", "/home/of-another", "/root/of-another")
    machine.start()
    machine.say("probe")
    machine.until_handled(1)
    messages = [each["MESSAGE"] for each in machine.manager.entries("-u", "agentd")]
    found = dict(told.removeprefix("tried ").split(": ", 1) for told in messages if told.startswith("tried "))
    assert found == TRIED


def test_a_blocked_loop_is_bitten_and_the_service_comes_back(machine: Machine) -> None:
    """The drop-in shortens WatchdogSec, which is 30 s in the unit."""
    machine.drop_in("WatchdogSec=3s", "RestartSec=100ms")
    machine.start()
    machine.say("block", "after it")
    machine.manager.until(running_after(1), "ActiveState", "NRestarts")
    machine.until_handled(2)
    assert machine.manager.until_entry(lambda each: "Watchdog timeout" in each["MESSAGE"], "UNIT=agentd.service")
    assert machine.manager.until_entry(lambda each: "answer.py" in each["MESSAGE"], "-u", "agentd"), "the line is named"


def test_a_changed_credential_is_seen_after_a_restart_and_not_after_a_reload(machine: Machine) -> None:
    machine.start()
    fresh = str(machine.hub("/hub/v1/rotate", {"handle": "alice"})["api_key"])
    machine.until_says("1 parked")
    machine.give_key("alice", fresh)
    machine.run("systemctl", "reload", "agentd")
    assert fresh not in machine.run("cat", "/run/credentials/agentd.service/keys_alice.key")
    assert machine.json("agentd", "status")["identities"][0]["state"] == "parked"
    machine.run("systemctl", "restart", "agentd")
    machine.until_says("1 live")
    machine.say("one")
    machine.until_handled(1)


def test_a_missing_credential_is_named_and_the_start_is_not_tried_again(machine: Machine) -> None:
    machine.run("rm", "/etc/agentd/credentials/alice.key")
    assert machine.manager.done("systemctl", "start", "agentd").returncode != 0
    shown = machine.manager.until(
        lambda shown: shown["ActiveState"] == "failed", "ActiveState", "ExecMainStatus", "NRestarts"
    )
    assert (shown["ExecMainStatus"], shown["NRestarts"]) == ("78", "0")
    machine.manager.until_entry(lambda each: "keys_alice.key cannot be read" in each["MESSAGE"], "-u", "agentd")


def test_a_stop_gives_turns_back_that_outlast_the_drain(machine: Machine) -> None:
    machine.start()
    machine.say("linger")
    machine.until_begun(1)
    machine.run("systemctl", "stop", "agentd")
    assert machine.manager.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    machine.start()
    assert machine.json("agentd", "status")["identities"][0]["pending"] == 1, "it is there again"


@pytest.mark.soak
def test_what_does_not_stop_in_time_is_killed_and_comes_again(machine: Machine) -> None:
    """The drop-in shortens TimeoutStopSec, which is 45 s in the unit."""
    machine.drop_in("TimeoutStopSec=5s")
    machine.start()
    machine.say("block")
    machine.until_begun(1)
    machine.run("systemctl", "stop", "agentd")
    assert machine.manager.show("ActiveState", "Result") == {"ActiveState": "failed", "Result": "timeout"}
    assert "why: journalctl -u agentd" in machine.manager.done("agentd", "service", "status").stdout
    machine.start()
    machine.until_handled(1)


@pytest.mark.soak
def test_what_fails_at_every_start_is_given_up_after_a_while(machine: Machine) -> None:
    """The drop-in shortens RestartSec, which is 2 s in the unit."""
    machine.drop_in("RestartSec=50ms")
    machine.write("/etc/agentd/answer.py", "import os\nos._exit(3)\n")
    machine.manager.done("systemctl", "start", "agentd")
    machine.manager.until(lambda shown: shown["ActiveState"] == "failed", "ActiveState")
    starts = machine.manager.entries("UNIT=agentd.service", "_PID=1")
    assert sum("Starting" in each["MESSAGE"] for each in starts) == 8, [each["MESSAGE"] for each in starts]
    assert any("Start request repeated too quickly" in each["MESSAGE"] for each in starts)

    machine.write("/etc/agentd/answer.py", PLUGIN)
    machine.run("systemctl", "reset-failed", "agentd")
    machine.start()


def test_an_upgrade_loses_nothing_and_systemd_looks_after_the_new_process_as_after_the_old(machine: Machine) -> None:
    """Drop-ins shorten RestartSec, which is 2 s in the unit, and, for the bite, WatchdogSec, which is 30 s."""
    machine.drop_in("RestartSec=100ms")
    machine.start()
    pids = [machine.main_pid()]
    with machine.talk():
        for version in ("0.2.0", "0.3.0"):
            time.sleep(1.0)  # turns of every length are under way
            version_of(machine.installed, version)
            told = machine.json("agentd", "upgrade")
            assert (told["version"], told["former_pid"]) == (version, pids[-1])
            assert told["pid"] == machine.main_pid()
            assert f"Main PID: {told['pid']}" in machine.run("systemctl", "status", "--no-pager", "agentd")
            pids.append(told["pid"])
            machine.until_gone(pids[-2])
    begun = Counter(each["AGENTD_EVENT_ID"] for each in machine.manager.entries("-u", "agentd", "MESSAGE=begun"))
    assert set(begun.values()) == {1}, "no turn ran twice"
    assert machine.manager.show("NRestarts", "ActiveState") == {"NRestarts": "0", "ActiveState": "active"}

    first, last = machine.process(machine.main_pid()), pids[-1]
    assert machine.json("agentd", "status")["pid"] == last
    assert first["PPid"] == "1"
    assert first["cgroup"].endswith("/system.slice/agentd.service")
    assert (first["CapBnd"], first["NoNewPrivs"], first["Seccomp"]) == ("0" * 16, "1", "2")
    assert machine.run("stat", "-c", "%u", "/run/agentd/control.sock").strip() == first["Uid"].split()[0]
    assert not [each for each in machine.manager.entries("UNIT=agentd.service") if "not our child" in each["MESSAGE"]]

    machine.drop_in("RestartSec=100ms", "WatchdogSec=3s")
    machine.run("kill", "-KILL", str(last))
    machine.manager.until(running_after(1), "ActiveState", "NRestarts")
    assert machine.json("agentd", "upgrade")["version"] == "0.3.0"
    machine.say("block", "after it")
    machine.manager.until(running_after(2), "ActiveState", "NRestarts")
    assert machine.manager.until_entry(lambda each: "Watchdog timeout" in each["MESSAGE"], "UNIT=agentd.service")

    machine.drop_in()
    machine.until_handled(2)
    machine.run("agentd", "upgrade")
    machine.run("systemctl", "stop", "agentd")
    assert machine.manager.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert (
        machine.run("ls", "/run/agentd").strip() == ""
        if machine.manager.done("test", "-e", "/run/agentd").returncode == 0
        else True
    )


def test_an_upgrade_that_cannot_be_says_why_and_changes_nothing(machine: Machine) -> None:
    machine.start()
    pid = machine.main_pid()
    machine.write("/etc/agentd/answer.py", "this is no Python\n")
    told = machine.manager.done("agentd", "upgrade")
    assert told.returncode == 1
    assert "ended with code 78: its configuration or a plugin is broken" in told.stderr
    machine.write("/etc/agentd/answer.py", PLUGIN)

    [daemon] = machine.installed.glob("lib/*/site-packages/agentd/daemon.py")
    whole = daemon.read_text()
    daemon.write_text("raise SystemExit(7)\n")
    told = machine.manager.done("agentd", "upgrade")
    assert "ended with code 7" in told.stderr
    daemon.write_text(whole)

    assert machine.main_pid() == pid
    assert machine.json("agentd", "upgrade")["former_pid"] == pid
    machine.say("one")
    machine.until_handled(1)
