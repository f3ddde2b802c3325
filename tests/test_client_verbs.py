"""A verb that asks a running daemon starts at once: it loads neither the daemon nor what the daemon stands on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from agentd.core import exported
from agentd.core.events import Message, Record
from tests.test_help import commands

EVENT = Message(identity="alice", conversation="conv_1", seq=1, id="m1", sender="bob", text="hi", payload=b"{}")

CLIENT: dict[str, list[str]] = {
    "status": [],
    "send": ["@bob", "hello"],
    "tail": [],
    "gaps": [],
    "export": [],
    "explain": ["msg_9"],
    "outbox ls": [],
    "outbox show": ["agentd-7-0"],
    "outbox retry": ["agentd-7-0"],
    "outbox drop": ["agentd-7-0", "--yes"],
    "dead ls": [],
    "dead show": ["3"],
    "dead drop": ["3", "--yes"],
    "release": ["echo", "conv_held"],
    "reload": [],
    "upgrade": [],
    "dashboard": [],
    "pause": ["conv_1", "--for", "2h"],
    "resume": ["conv_1"],
    "replay": ["--plugin", "echo", "--dry-run"],
    "dead replay": ["3", "--yes"],
}
"""Verbs that ask a daemon, with words that it can answer."""

ENDS = {"tail": 69, "dashboard": 1}
"""How those end that do not end well here: the daemon ends the stream, and it has no page."""

OTHER = {
    "run": "is the daemon",
    "hub": "is a server",
    "demo": "starts both",
    "dev": "starts both",
    "check": "loads the configuration",
    "doctor": "looks at everything itself",
    "import": "writes the journal",
    "backup": "reads the journal",
    "restore": "writes the journal",
    "vacuum": "writes the journal",
    "retention": "reads the journal",
    "upgrade-check": "reads the journal",
    "service install": "writes a unit",
    "service status": "asks systemd",
    "service uninstall": "removes a unit",
    "completion": "prints",
    "new plugin": "writes files",
}
"""The others, and why they are no clients."""

DAEMON = (
    "agentd.daemon",
    "agentd.dispatcher",
    "agentd.supervisor",
    "agentd.journal",
    "agentd.transport",
    "agentd.host",
    "agentd.hub",
    "agentd.operations",
    "agentd.control.api",
)
LIBRARIES = ("asyncio", "aiohttp", "websockets", "aiosqlite", "sqlite3", "uvloop")

PROGRAM = """
import json, sys, time
from agentd.cli import main
try:
    main()
finally:
    print(json.dumps([time.process_time(), sorted(sys.modules)]), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", CLIENT)
def test_a_client_verb_loads_neither_the_daemon_nor_a_network_library(verb: str, served: Any) -> None:
    served.daemon.exported = [
        b'{"up_to":1}\n',
        exported.line(Record(1, 1, EVENT, 1.0)),
        b'{"exported":1,"unreadable":0}\n',
    ]
    served.happen(None)  # a tail ends at once
    words = [*verb.split(), *CLIENT[verb], "--state", str(served.path.parent)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=60)
    cpu_s, modules = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == ENDS.get(verb, 0), done.stderr
    loaded = {name for name in modules if name.startswith(DAEMON) or name.split(".")[0] in LIBRARIES}
    print(f"agentd {verb}: {1_000 * cpu_s:.0f} ms of CPU, {len(modules)} modules")
    assert loaded == set()


@pytest.mark.parametrize("verb", ["", "outbox", "send"])
def test_help_and_completion_load_as_little(verb: str) -> None:
    for environ, words in (({}, [*verb.split(), "--help"]), ({"_AGENTD_COMPLETE": "bash_complete"}, [])):
        asked = {"COMP_WORDS": f"agentd {verb} -", "COMP_CWORD": str(1 + len(verb.split())), **environ}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            timeout=60,
        )
        _, modules = json.loads(done.stderr.splitlines()[-1])
        assert "agentd.control.client" not in modules
        assert not {"msgspec", *LIBRARIES} & set(modules)


def test_every_verb_is_one_or_the_other() -> None:
    paths = {" ".join(path) for path in commands() if path}
    groups = {path for path in paths if any(other.startswith(f"{path} ") for other in paths)}
    assert paths - groups == CLIENT.keys() | OTHER.keys()
