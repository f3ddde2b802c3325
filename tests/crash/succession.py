"""A daemon that is taken over, again and again, by processes that start beside it; and the books of the crash tests.

Always true: a turn that began once and was not killed is handled once: the plugin's own file tells.
Not here: when it is taken over, and who is killed (the tests).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentd.demo.ledger import entries
from tests.crash.lingerer import PATIENT
from tests.crash.rig import ROOT, SETTLE_S, WISHES, Books

_MAIN = ("-m", "agentd")
LAUNCHER = ("-m", "tests.crash.launcher")


class Succession(Books):
    """See Books. `take_over` starts the next process; `former` are those that were taken over, the newest last."""

    plugin = "tests.crash.lingerer:plugin"
    lawful = ("the process that took over has ended",)

    def __init__(self, folder: Path, *, peers: int = 3, identities: int = 1) -> None:
        super().__init__(folder, peers=peers, identities=identities)
        self.former: list[subprocess.Popen[bytes]] = []

    async def __aexit__(self, *error: Any) -> None:
        for process in self.former:
            if process.poll() is None:
                process.kill()
                await asyncio.to_thread(process.wait)
        await super().__aexit__(*error)

    def begin_take_over(self, program: Sequence[str] = _MAIN, **environ: str) -> subprocess.Popen[bytes]:
        """Start the next process. It is a candidate until `succeeded` makes it the daemon."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
        with (self.folder / "daemon.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *program, "run", "--take-over", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=inherited | {"PYTHONPATH": str(ROOT)} | environ,
                cwd=self.folder,
            )

    @property
    def handled(self) -> Path:
        """The plugin's file."""
        return self._ledger

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The daemon."""
        assert self._daemon is not None
        return self._daemon

    def succeeded(self, process: subprocess.Popen[bytes], *, killed: bool = False) -> None:
        """This one is the daemon from now on. killed: the one before it was."""
        if not killed:
            self.former.append(self.process)
        self._daemon = process

    async def until_serving(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it has the control socket and its identities are live."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                assert process.poll() is None, f"the process that takes over ended with {process.returncode}"
                status = await self.status()
                states = [each["state"] for each in status["identities"]] if status else []
                if status and status["pid"] == process.pid and states.count("live") == len(states):
                    return
                await asyncio.sleep(0.1)  # the status of hundreds of identities is work, here and there

    async def take_over(self) -> None:
        """The next process takes over; the one before goes on with what it runs."""
        process = self.begin_take_over()
        await self.until_serving(process)
        self.succeeded(process)

    async def until_former_ended(self) -> None:
        """Every process that was taken over ends by itself, in order."""
        for process in self.former:
            code = await asyncio.to_thread(process.wait, SETTLE_S)
            assert code == 0, f"a process that was taken over ended with {code}"

    async def begin_patient_turns(self, peers: Sequence[str]) -> None:
        """A turn of each wish, that does nothing before `let_go_on`. Returns when they are under way."""
        for peer, wish in zip(peers, WISHES, strict=True):
            self.say(peer, f"{PATIENT} {wish}")
        said = {id_ for peer in peers for id_, _ in self.said[peer]}
        begun = Path(f"{self._ledger}.begun")
        async with asyncio.timeout(SETTLE_S):
            while not (begun.exists() and said <= {json.loads(line)[0] for line in begun.read_text().splitlines()}):
                await asyncio.sleep(0.02)

    async def let_go_on_once_handed_over(self) -> None:
        """So that whatever a patient turn does, it does it in a process that was taken over."""
        while "handed over; " not in self.log:
            await asyncio.sleep(0.02)
        self.let_go_on()

    def let_go_on(self) -> None:
        Path(f"{self._ledger}.go").touch()

    async def until_killed(self, process: subprocess.Popen[bytes], point: str) -> None:
        """Wait for the SIGKILL that the launcher of this process waits for."""
        code = await asyncio.to_thread(process.wait, SETTLE_S)
        assert code == -signal.SIGKILL, f"it ended with {code} instead of being killed"
        assert (self.folder / "reached").read_text().splitlines() == [point]
        self.kills += 1

    def to_die_at(self, point: str) -> dict[str, str]:
        """Variables for the launcher."""
        return {"CRASH_AT": f"1 {point}", "CRASH_REACHED": str(self.folder / "reached")}

    def handled_again(self) -> int:
        times = Counter(entry.id for entry in entries(self._ledger))
        return sum(times.values()) - len(times)
