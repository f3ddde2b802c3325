"""The hub's life: one port for REST and sockets, in a process of its own or inside the daemon's event loop.

    async with Hub(HubSettings()) as hub:
        key = hub.create_agent("alice")
        ...  # dial hub.url and hub.ws_url

Always true: after `stop` no socket, task or file of the hub is open. A restart keeps the port and everything stored.
Not here: what is served (rest.py, routes/, sockets.py), and control over it (control.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from agentd.hub.control import Control, mount_control
from agentd.hub.rest import mount
from agentd.hub.routes import ROUTES
from agentd.hub.service import Service
from agentd.hub.settings import HubSettings
from agentd.wire.agentchat.types import CloseCode


class Hub(Control):
    """One development server. Start and stop it once, from a running event loop."""

    def __init__(self, settings: HubSettings | None = None) -> None:
        self._settings = settings or HubSettings()
        self._port = self._settings.port
        self._runner: web.AppRunner | None = None
        self._restart: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base of the REST API, for example http://127.0.0.1:4711."""
        return f"http://{self._authority}"

    @property
    def ws_url(self) -> str:
        """Base of the socket; clients append /v1/ws."""
        return f"ws://{self._authority}"

    @property
    def _authority(self) -> str:
        host = self._settings.host
        return f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"

    async def start(self) -> None:
        """Open the database and listen. Raises OSError where the port is taken."""
        self.service = Service(self._settings)
        self.service.sockets.restart_wanted = self.restart_soon
        try:
            await self._listen()
        except BaseException:
            self.service.close()
            raise

    async def stop(self) -> None:
        """Close every connection with 1001, stop listening, and close the database."""
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        await self._hang_up()
        self.service.close()

    async def restart(self, down_s: float = 0.0) -> None:
        """Close every connection, refuse new ones for a while, then listen on the same port again."""
        await self._hang_up()
        await asyncio.sleep(down_s)
        await self._listen()

    def restart_soon(self, down_s: float = 0.0) -> None:
        """The same, from within a call to the hub. Does nothing while a restart is under way."""
        if self._restart is None or self._restart.done():
            loop = asyncio.get_running_loop()
            self._restart = loop.create_task(self.restart(down_s), name="hub restart")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _listen(self) -> None:
        settings = self._settings
        app = web.Application(client_max_size=max(settings.body_max_bytes, settings.attachment_max_bytes))
        if settings.development:
            mount_control(app, self)
        mount(app, self.service, ROUTES)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=settings.close_timeout_s)
        await runner.setup()
        try:
            site = web.TCPSite(runner, settings.host, self._port, reuse_address=True)
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = runner.addresses[0][1]
        self.service.stopping.clear()

    async def _hang_up(self) -> None:
        runner, self._runner = self._runner, None
        if runner is None:
            return
        self.service.stopping.set()
        for site in list(runner.sites):
            await site.stop()
        # First the sockets: once the runner has begun its own clean-up it reads no more answers to close frames.
        self.service.sockets.end_all(CloseCode.GOING_AWAY, "Server shutting down")
        await self.service.sockets.until_empty()
        await runner.cleanup()


async def serve(settings: HubSettings, ready: Callable[[str], None]) -> None:
    """Run a hub until cancelled. ready: called with its base address once it listens."""
    async with Hub(settings) as hub:
        ready(hub.url)
        await asyncio.Event().wait()
