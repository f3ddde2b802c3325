"""A hub, a real daemon process, and three ledgers that must agree in the end.

The hub runs here; the daemon is a child process with its own configuration, state and plugin, and is killed and
started like any other program.

Always true: nothing here looks into the daemon to decide what happened: the hub knows what it stored and accepted, the
plugin's file what was handled.
Not here: which faults and kills there are (the callers).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentd.control.client import Client
from agentd.control.refusal import ControlError, UnreachableError
from agentd.demo.ledger import entries
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings

_STOP_TIMEOUT_S = 40.0

_CONFIG = """
[agentd]
state = "{state}"
{settings}
[plugin.ledger]
use = "agentd.demo.ledger:plugin"
config = {{ file = "{ledger}" }}
"""

_IDENTITY = """
[identity.{name}]
url = "{url}"
key = {{ file = "{key}" }}
plugins = ["ledger"]
loop_guard = {{ answers_max = 0 }}
"""

IMPATIENT: Mapping[str, Mapping[str, float]] = {
    "intake": {"gap_grace_s": 0.2, "audit_interval_s": 4.0, "refetch_retry_max_s": 2.0},
    "link": {"backoff_first_s": 0.1, "backoff_max_s": 1.0},
    "rest": {"timeout_s": 3.0, "backoff_first_s": 0.05, "backoff_max_s": 0.5},
    "sending": {"rate_per_s": 500.0, "retry_first_s": 0.1, "retry_max_s": 1.0},
}
"""Waits shortened so that faults and their cures fit into a minute; nothing else differs from the defaults."""


class Verdict(msgspec.Struct, frozen=True):
    """The three ledgers compared.

    lost: stored by the hub for an identity and never handled. out_of_order: handled first after a later one.
    handled_again: handlings beyond the first, which a crash makes lawful. replies_*: per message, at the hub.
    """

    messages: int
    handled: int
    lost: int
    out_of_order: int
    handled_again: int
    replies_expected: int
    replies_accepted: int
    replies_missing: int
    replies_duplicated: int

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing out of order, every message answered exactly once."""
        return not (self.lost or self.out_of_order or self.replies_missing or self.replies_duplicated)


class Proof:
    """The far end, the daemon and the ledgers. Enter it inside a running loop.

    identities: handles that the daemon speaks for, each an identity of the same name.
    """

    def __init__(
        self,
        folder: Path,
        identities: int,
        *,
        hub: HubSettings | None = None,
        settings: Mapping[str, Mapping[str, float]] = IMPATIENT,
    ) -> None:
        self.folder = folder
        self.identities = [f"agent-{number}" for number in range(1, identities + 1)]
        self.hub = Hub(hub or HubSettings(cold_rule=False, sends_per_s=0, group_sends_per_s=0))
        self.kills = 0
        self._settings = settings
        self._ledger = folder / "handled.jsonl"
        self._state = folder / "state"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._peers: set[str] = set()

    async def __aenter__(self) -> Proof:
        await self.hub.start()
        keys = {name: self.hub.create_agent(name) for name in self.identities}
        for name, key in keys.items():
            file = self.folder / f"{name}.key"
            file.touch(0o600)
            file.write_text(key)
        self._config = self.folder / "agentd.toml"
        self._config.write_text(self._configuration())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            await asyncio.to_thread(self._daemon.wait)
        await self.hub.stop()

    def _configuration(self) -> str:
        settings = "".join(
            f"\n[agentd.{section}]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
            for section, values in self._settings.items()
        )
        text = _CONFIG.format(state=self._state, ledger=self._ledger, settings=settings)
        for name in self.identities:
            text += _IDENTITY.format(name=name, url=self.hub.url, key=self.folder / f"{name}.key")
        return text

    # -- the daemon -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """The daemon's process lives."""
        return self._daemon is not None and self._daemon.poll() is None

    @property
    def daemon_pid(self) -> int | None:
        """The daemon's process, None before the first start."""
        return None if self._daemon is None else self._daemon.pid

    def start(self, program: Sequence[str] = ("-m", "agentd"), **environ: str) -> None:
        """Start the daemon; its log goes to a file in the folder.

        program: what Python runs instead, with the same arguments. environ: variables for it.
        """
        assert not self.running
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
        with (self.folder / "daemon.log").open("ab") as output:
            self._daemon = subprocess.Popen(  # noqa: S603 -- this very program
                [sys.executable, *program, "run", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=inherited | environ,
                cwd=self.folder,
            )

    async def until_gone(self, timeout_s: float = 30.0) -> int:
        """Wait until the daemon has ended by itself; returns the exit code. Raises TimeoutError."""
        assert self._daemon is not None
        try:
            return await asyncio.to_thread(self._daemon.wait, timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError("the daemon goes on") from None

    async def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGKILL)
        await asyncio.to_thread(self._daemon.wait)
        self.kills += 1

    async def stop(self) -> int:
        """SIGTERM; returns the exit code. Raises TimeoutError if the daemon does not end."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._daemon.wait, _STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise TimeoutError("the daemon did not stop") from None

    async def status(self) -> dict[str, Any] | None:
        """What the daemon says of itself, None while it does not answer."""
        client = Client(self._state / "control.sock")
        with contextlib.suppress(UnreachableError, ControlError, OSError):
            return await asyncio.to_thread(client.status, None)
        return None

    async def until_live(self, timeout_s: float = 30.0) -> None:
        """Wait until every identity is connected and drained. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                status = await self.status()
                if status and all(each["state"] == "live" for each in status["identities"]):
                    return
                await asyncio.sleep(0.05)

    @property
    def log(self) -> str:
        """What the daemon has logged, over all its runs."""
        file = self.folder / "daemon.log"
        return file.read_text(errors="replace") if file.exists() else ""

    # -- the far end ------------------------------------------------------------------------------------------------

    def peer(self, handle: str) -> str:
        """Make a peer once; returns its handle."""
        if handle not in self._peers:
            self.hub.create_agent(handle)
            self._peers.add(handle)
        return handle

    # -- the ledgers ------------------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """Compare what the hub stored, what the plugin handled, and which answers the hub accepted."""
        stored = [row for row in self.hub.ledger() if row.sender in self._peers]
        answers = Counter(row.reply_to for row in self.hub.ledger() if row.sender in self.identities)
        handlings = list(entries(self._ledger))
        times = Counter(entry.id for entry in handlings)
        furthest: dict[tuple[str, str], tuple[int, int]] = {}
        seen: set[str] = set()
        out_of_order = 0
        for entry in handlings:
            if entry.id in seen:
                continue
            seen.add(entry.id)
            lane, place = (entry.identity, entry.conversation), (entry.epoch, entry.seq)
            out_of_order += place <= furthest.get(lane, (0, 0))
            furthest[lane] = max(place, furthest.get(lane, place))
        return Verdict(
            messages=len(stored),
            handled=len(times),
            lost=sum(row.id not in times for row in stored),
            out_of_order=out_of_order,
            handled_again=sum(times.values()) - len(times),
            replies_expected=len(stored),
            replies_accepted=sum(answers[row.id] for row in stored),
            replies_missing=sum(not answers[row.id] for row in stored),
            replies_duplicated=sum(max(0, answers[row.id] - 1) for row in stored),
        )

    async def until_answered(self, timeout_s: float) -> bool:
        """Wait until every stored message was answered at least once; False if that takes longer."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.unanswered():
                return True
            await asyncio.sleep(0.1)
        return False

    def unanswered(self) -> int:
        """Messages without an answer so far."""
        rows = self.hub.ledger()
        answered = {row.reply_to for row in rows if row.sender in self.identities}
        return sum(row.sender in self._peers and row.id not in answered for row in rows)

    def describe(self) -> str:
        """Everything that helps to find out what went wrong, for a failed test's message."""
        return json.dumps({"verdict": msgspec.to_builtins(self.verdict()), "hub": self.hub.counters()}, indent=1)
