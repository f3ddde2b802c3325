"""The world that a plugin is tried in: a hub with accounts that speak, and a daemon process over a state folder.

Always true: the daemon is a program like any other, told by its configuration and killed by a signal. What it did is
read from the hub, and how it fares from its control socket.
Not here: the terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agentd.config import is_path
from agentd.control.client import Client
from agentd.control.refusal import ControlError, UnreachableError
from agentd.dev.configured import KEY_VARIABLE, configuration, plugin_name
from agentd.dev.screen import Kind
from agentd.errors import AgentdError
from agentd.hub.answers import ApiError
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings

AGENT = "agent"
YOU = "you"

_LOOK_S = 0.05
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 40.0  # longer than handlers may take to finish
_LINE_MAX_BYTES = 1_048_576  # of the daemon's log
_GROUP = "everybody"
_AGENTD = Path(__file__).parent.parent / "host"
_HANDLE = re.compile(r"[a-z0-9][a-z0-9-]{1,29}")


class Unusable(AgentdError):
    """What was asked for cannot be done; the text says why."""


class World:
    """One plugin's. `start` and `stop` it, from one loop.

    use: the plugin. config: its settings. folder: for the state. show: says what happens. keeps: the folder, and the
    hub's mail in it, outlive this process.
    """

    def __init__(
        self, use: str, config: Mapping[str, Any], folder: Path, show: Callable[[Kind, str], None], *, keeps: bool
    ) -> None:
        self._use = str(Path(use).expanduser().absolute()) if is_path(use) else use
        self._config = config
        self._folder = folder
        self._show = show
        self.plugin = plugin_name(use)
        self._client = Client(folder / "control.sock")
        self._daemon: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        database = str(folder / "hub.db") if keeps else ":memory:"
        self._hub = Hub(HubSettings(database=database, sends_per_s=0, group_sends_per_s=0))
        self._up = contextlib.AsyncExitStack()
        self._launching = asyncio.Lock()
        self._shown = 0
        self._stays = False
        self._meant_to_run = False
        self._traced = ""

    # --- life

    async def start(self, *, stays: bool) -> None:
        """Bring everything up. stays: a daemon that cannot start is waited for, until its plugin was mended."""
        self._stays = stays
        await self._up.enter_async_context(self._hub)
        key = self._hub.rotate_key(AGENT) if self._hub.has_agent(AGENT) else self._hub.create_agent(AGENT)
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
        self._environ[KEY_VARIABLE] = key
        self._peer(YOU)
        rows = self._hub.ledger()
        self._shown = rows[-1].position if rows else 0
        file = self._folder / "dev.toml"
        file.write_text(configuration(self._use, self._config, self._folder, self._hub.url))
        self._tasks = [
            asyncio.create_task(self._show_answers(), name="answers"),
            asyncio.create_task(self._keep_running(), name="daemon"),
        ]
        async with self._launching:
            await self._launch()

    async def stop(self) -> None:
        """Stop the daemon as a service manager would, then the hub."""
        self._meant_to_run = False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._daemon is not None and self._daemon.returncode is None:
            self._daemon.terminate()
            try:
                await asyncio.wait_for(self._daemon.wait(), _STOP_TIMEOUT_S)
            except TimeoutError:
                self._daemon.kill()
                await self._daemon.wait()
        await self._up.aclose()

    async def restart(self) -> None:
        """Kill the daemon, and start it again over what it left."""
        async with self._launching:
            await self._kill()
            await self._launch()

    async def _kill(self) -> None:
        self._meant_to_run = False
        if self._daemon is not None and self._daemon.returncode is None:
            self._daemon.send_signal(signal.SIGKILL)
            await self._daemon.wait()

    async def _launch(self) -> None:
        """Start the daemon and wait until it is live, or has ended."""
        self._daemon = daemon = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentd", "run", "--reload", "--config", str(self._folder / "dev.toml")),
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_MAX_BYTES,
            start_new_session=True,  # Ctrl-C is for the prompt
        )
        assert daemon.stdout is not None
        assert daemon.stderr is not None
        streams = (daemon.stdout, daemon.stderr)
        relays = [asyncio.create_task(self._relay(stream), name="output") for stream in streams]
        self._tasks = [*(task for task in self._tasks if not task.done()), *relays]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_TIMEOUT_S):
                while daemon.returncode is None and not await self._is_live():
                    await asyncio.sleep(_LOOK_S)
        self._meant_to_run = True

    @property
    def exit_code(self) -> int | None:
        """Of the daemon, once it has ended."""
        return self._daemon.returncode if self._daemon is not None else None

    async def _keep_running(self) -> None:
        """Say that the daemon has ended by itself, and start it when its plugin has changed."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if not self._meant_to_run or self.exit_code is None:
                continue
            self._meant_to_run = False
            remedy = "; it starts again when the plugin changes, or at /restart" if self._stays else ""
            self._show("trouble", f"the daemon has ended (exit code {self.exit_code}){remedy}")
            if self._stays:
                before = self._stamp()
                while self.exit_code is not None and self._stamp() == before:
                    await asyncio.sleep(_LOOK_S * 4)
                async with self._launching:
                    if self.exit_code is not None:
                        await self._launch()

    def _stamp(self) -> list[tuple[str, int]]:
        path = Path(self._use)
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        return [(str(file), file.stat().st_mtime_ns) for file in files if file.exists()]

    # --- speaking

    def say(self, peer: str, text: str) -> None:
        """A peer says something to the agent."""
        self._peer(peer)
        self._post(peer, AGENT, text)

    def say_in_group(self, peer: str, text: str) -> None:
        """A peer says something in a group that the agent is in, too."""
        self._peer(peer)
        groups, accounts = self._hub.service.conversations, self._hub.service.accounts
        group = next((each for each in groups.listed(accounts.get(AGENT)) if not each.direct), None)
        if group is None:
            self._post(peer, self._hub.create_group(peer, _GROUP, [AGENT]), text)
            return
        if accounts.get(peer).number not in group.others(accounts.get(AGENT).number):
            groups.join(group, accounts.get(peer))
        self._post(peer, group.id, text)

    async def backlog(self, peer: str, count: int) -> None:
        """Mail that comes while the agent is away: stop the daemon, say so many things, start it."""
        async with self._launching:
            await self._kill()
            for number in range(1, count + 1):
                self.say(peer, f"message {number} of {count}")
            await self._launch()

    def _peer(self, handle: str) -> None:
        if not _HANDLE.fullmatch(handle) or handle == AGENT:
            raise Unusable(f"{handle!r} is no name for a peer: 2 to 30 small letters, digits and dashes, not {AGENT!r}")
        if not self._hub.has_agent(handle):
            self._hub.create_agent(handle)

    def _post(self, peer: str, to: str, text: str) -> None:
        try:
            self._hub.post(peer, to, text)
        except ApiError as error:
            raise Unusable(str(error)) from None

    # --- looking

    async def status(self) -> dict[str, Any] | None:
        """What the daemon says of itself; None while it does not answer."""
        try:
            return await asyncio.to_thread(self._client.status)
        except (ControlError, UnreachableError):
            return None

    async def _is_live(self) -> bool:
        status = await self.status()
        return status is not None and [each["state"] for each in status["identities"]] == ["live"]

    async def until_handled(self, wait_s: float) -> bool:
        """Wait until the agent has handled all that was said and its answers are out. False if that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not await self._is_handled():
                    if self.exit_code is not None:
                        return False
                    await asyncio.sleep(_LOOK_S)
                self._show_new_answers()
                return True
        return False

    async def dead(self) -> int:
        """How many dead letters there are."""
        status = await self.status()
        return 0 if status is None else sum(each["dead"] for each in status["identities"])

    async def _is_handled(self) -> bool:
        if self._hub.undelivered(AGENT) or (status := await self.status()) is None or self._hub.undelivered(AGENT):
            return False
        counts = ("pending", "outbox_ready", "outbox_unknown")
        waiting = [each.get(name, 1) for each in status["identities"] for name in counts]
        return bool(waiting) and not any(waiting) and not any(each.get("running") for each in status["plugins"])

    async def _show_answers(self) -> None:
        while True:
            self._show_new_answers()
            await asyncio.sleep(_LOOK_S)

    def _show_new_answers(self) -> None:
        mailbox, accounts = self._hub.service.mailbox, self._hub.service.accounts
        for row in self._hub.ledger(after=self._shown):
            self._shown = row.position
            content = self._hub.content(row)
            said = content.text if content.text is not None else json.dumps(content.data, ensure_ascii=False)
            place = self._place(row.conversation, row.sender)
            self._show("answer" if row.sender == AGENT else "said", f"{row.sender}{place}: {said}")
            if row.sender == AGENT:  # who reads here has it, so that nobody's backlog grows
                conversation = self._hub.service.conversations.find(row.conversation)
                for number in conversation.others(accounts.get(AGENT).number) if conversation is not None else ():
                    mailbox.settle(number, row.id)

    def _place(self, conversation: str, sender: str) -> str:
        """To whom, where that is not plain."""
        found, accounts = self._hub.service.conversations.find(conversation), self._hub.service.accounts
        if found is None or not found.direct:
            return " in the group"
        other = accounts.by_number(found.peer(accounts.get(sender).number)).handle
        return "" if other in (YOU, AGENT) else f" to {other}"

    # --- the daemon's words

    async def _relay(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than anything that we would show
                continue
            if not line:
                return
            self._tell(line.decode(errors="replace").rstrip("\n"))

    def _tell(self, line: str) -> None:
        try:
            entry = json.loads(line)
            level, logger, message = entry["level"], entry["logger"], entry["message"]
        except (ValueError, TypeError, KeyError):
            self._show("log", line)  # something that the plugin printed
            return
        serious = level in ("warning", "error", "critical")
        if not serious and not logger.startswith(("agentd.plugins.", "agentd.generations")):
            return
        about = logger.removeprefix("agentd.plugins.").removeprefix("agentd.")
        trace = _of_plugin(entry.get("exception", ""))
        if trace == self._traced:  # the same as at the attempt before
            trace = ""
        self._traced = trace or self._traced
        self._show("trouble" if serious else "log", f"{level}: {about}: {message}\n{trace}".rstrip())


def _of_plugin(trace: str) -> str:
    """A traceback without what agentd did to get to the plugin."""
    kept, ours = [], False
    for line in trace.splitlines():
        if line.startswith('  File "') or not line.startswith(" "):
            ours = line.startswith(f'  File "{_AGENTD}')
        if not ours:
            kept.append(line)
    return "\n".join(kept)
