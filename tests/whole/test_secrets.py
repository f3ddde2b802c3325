"""A key goes into the hello frame and the Authorization header, and nowhere else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from agentd.control.client import Client
from agentd.control.refusal import UnreachableError
from agentd.demo.proof import Proof
from agentd.hub.faults import Action, Point, Rule
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings


async def test_a_key_is_in_no_log_no_status_no_journal_and_no_argument_whatever_goes_wrong(tmp_path: Path) -> None:
    async with Proof(tmp_path, 2) as proof:
        text = (tmp_path / "agentd.toml").read_text()
        (tmp_path / "agentd.toml").write_text(text.replace("[agentd]\n", '[agentd]\nlog_level = "debug"\n', 1))
        keys = [(tmp_path / f"{name}.key").read_text() for name in proof.identities]
        proof.peer("peer")
        proof.start()
        await proof.until_live()
        proof.hub.faults.add(
            Rule(point=Point.REST, action=Action.STATUS, status=500, route="send", times=3),
            Rule(point=Point.REST, action=Action.DISCONNECT_AFTER, route="send", times=2),
            Rule(point=Point.REST, action=Action.NOT_JSON, route="history", times=2),
            Rule(point=Point.PUSH, action=Action.DROP, times=2),
            Rule(point=Point.PUSH, action=Action.CUT_MID_FRAME, nth=6),
        )
        for number in range(8):
            proof.hub.post("peer", proof.identities[0], f"message {number}")
        assert await proof.until_answered(30)
        proof.hub.rotate_key(proof.identities[1])
        status = await proof.status()
        async with asyncio.timeout(20):
            while status is None or [each["state"] for each in status["identities"]] != ["live", "parked"]:
                await asyncio.sleep(0.05)
                status = await proof.status()
        assert proof.daemon_pid is not None
        arguments = Path(f"/proc/{proof.daemon_pid}/cmdline").read_bytes()
        assert await proof.stop() == 0
        kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".key"]
        assert {path.name for path in kept} >= {"daemon.log", "journal.db", "agentd.toml"}
        everything = {str(path): path.read_bytes() for path in kept}
        everything |= {"status": json.dumps(status).encode(), "arguments": arguments}
        assert b"parked" in everything[str(tmp_path / "daemon.log")], "the log was looked at"
        leaks = [name for name, data in everything.items() for key in keys if key.encode() in data]
        assert leaks == []


# A plugin that knows a key and is careless with it wherever agentd carries its words on.
LEAKY = """
import logging
from pathlib import Path
from agentd.plugin import Context, GiveUp, Message, Plugin

plugin = Plugin("leaky")

@plugin.on(Message)
async def leak(message: Message, ctx: Context) -> None:
    key = Path({key!r}).read_text()
    ctx.log.warning("logging in with %s", key)
    logging.getLogger("library").error("Authorization: Bearer %s", key)
    password = key
    if message.text == "give up":
        raise GiveUp("refused: " + key)
    raise ValueError("no login with " + password)
"""

CONFIG = """
[agentd]
state = "state"
log_level = "debug"

[plugin.leaky]
use = "./leaky.py"
attempts = 2

[plugin.shell]
use = "exec"
config.command = ['/bin/sh', '-c', 'cat >/dev/null; env; tr "[:cntrl:]" " " </proc/$PPID/cmdline']
config.format = "text"

[identity.file]
url = "{url}"
key = {{ file = "file.key" }}
plugins = ["leaky"]

[identity.env]
url = "{url}"
key = {{ env = "KEY_OF_ENV" }}
plugins = ["shell"]

[identity.command]
url = "{url}"
key = {{ command = "cat command.key" }}

[identity.credential]
url = "{url}"
key = {{ credential = "credential.key" }}
"""

SOURCES = ("file", "env", "command", "credential")


async def test_a_marked_key_from_each_source_is_in_nothing_that_agentd_says_or_keeps(tmp_path: Path) -> None:
    async with Hub(HubSettings(cold_rule=False)) as hub:
        keys = {name: hub.create_agent(name) for name in SOURCES}
        hub.create_agent("peer")
        environ = prepared(tmp_path, hub.url, keys)
        said: dict[str, bytes] = {}
        with (
            (tmp_path / "daemon.out").open("wb") as out,
            (tmp_path / "daemon.log").open("wb") as log,
            subprocess.Popen(
                [sys.executable, "-m", "agentd", "run"], cwd=tmp_path, env=environ, stdout=out, stderr=log
            ) as daemon,
        ):
            try:
                client = Client(tmp_path / "state" / "control.sock")
                await until(client, lambda status: {each["state"] for each in status["identities"]} == {"live"})
                hub.post("peer", "file", "fail")
                hub.post("peer", "file", "give up")
                hub.post("peer", "env", "show what you see")
                await until(client, lambda status: sum(each["dead"] for each in status["identities"]) == 2)
                await until(client, lambda status: sum(each["pending"] for each in status["identities"]) == 0)
                said |= await asyncio.to_thread(everything_said, tmp_path, environ, client)
                for name in ("cmdline", "limits"):
                    said[name] = Path(f"/proc/{daemon.pid}/{name}").read_bytes()
                daemon.send_signal(signal.SIGABRT)  # what a watchdog does: every stack goes into the log
                await asyncio.to_thread(daemon.wait, 20)
            finally:
                daemon.kill()
        kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".key"]
        said |= {str(path.relative_to(tmp_path)): path.read_bytes() for path in kept}
        said["ledger"] = repr(hub.ledger()).encode()

    # What was looked at is what was meant to be looked at.
    assert b"Fatal Python error: Aborted" in said["daemon.log"]
    assert said["daemon.log"].count(b"[redacted]") >= 6
    assert b"no login with [redacted]" in said["dead show 1 --json"] + said["dead show 2 --json"]
    assert b"PATH=" in said["state/journal.db"] + said["state/journal.db-wal"], (
        "what a program saw went out as its answer"
    )
    assert b"Max core file size        0" in said["limits"], "no core file, which would hold every key"
    assert {"backup.db", "daemon.log", "doctor --json", "tail"} <= said.keys()

    leaks = [(name, source) for name, data in said.items() for source, key in keys.items() if key.encode() in data]
    assert leaks == []


def prepared(folder: Path, url: str, keys: dict[str, str]) -> dict[str, str]:
    """Write the configuration and the keys. Returns the environment of the daemon."""
    for name in ("file", "command", "credential"):
        (folder / f"{name}.key").touch(0o600)
        (folder / f"{name}.key").write_text(keys[name])
    (folder / "leaky.py").write_text(LEAKY.format(key=str(folder / "file.key")))
    (folder / "agentd.toml").write_text(CONFIG.format(url=url))
    return {**os.environ, "KEY_OF_ENV": keys["env"], "CREDENTIALS_DIRECTORY": str(folder)}


def everything_said(folder: Path, environ: dict[str, str], client: Client) -> dict[str, bytes]:
    """What every verb says, in both forms; the backup goes into the folder."""
    said = {}
    for words in (
        "status",
        "status --json",
        "check",
        "check --json",
        "doctor",
        "doctor --json",
        "gaps --all --json",
        "outbox ls --all --json",
        "dead ls --json",
        "dead show 1",
        "dead show 1 --json",
        "dead show 2 --json",
        "retention --dry-run --json",
        "upgrade-check --json",
        "backup backup.db --json",
    ):
        command = [sys.executable, "-m", "agentd", *words.split()]
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, timeout=60)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        said[words] = done.stdout + done.stderr
    said["tail"] = json.dumps(list(islice(client.tail(since=0), 4))).encode()
    return said


async def until(client: Client, condition: Any) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if condition(await asyncio.to_thread(client.status)):
                    return
            except UnreachableError:
                pass
            await asyncio.sleep(0.05)
