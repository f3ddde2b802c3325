"""A real daemon process on a hub, with a collector that understands what OpenTelemetry sends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from agentd.control.client import Client
from agentd.control.refusal import ControlError, UnreachableError
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings

PROTOBUF = "application/x-protobuf"


class Span(NamedTuple):
    """One span as the collector got it. began, ended: nanoseconds."""

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    began: int
    ended: int
    failed: bool
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    service: str
    scope: str


class Collector:
    """Takes OTLP over HTTP. status: what it answers. requests: (headers, body) of each."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.requests: list[tuple[Mapping[str, str], bytes]] = []
        self.status = 200
        self.hangs = False
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        assert request.content_type == PROTOBUF
        body = await request.read()
        self.requests.append((request.headers, body))
        if self.hangs:
            await asyncio.Event().wait()
        if self.status == 200:
            self.spans += decoded(body)
        return web.Response(
            status=self.status, body=ExportTraceServiceResponse().SerializeToString(), content_type=PROTOBUF
        )

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def of(self, trace: str) -> list[Span]:
        """The spans of a trace, in the order in which they began, the longest first."""
        return sorted((span for span in self.spans if span.trace == trace), key=lambda span: (span.began, -span.ended))

    async def until(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                while not (found := condition()):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError("\n".join(map(str, self.spans))) from None
        return found


def decoded(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    name=span.name,
                    kind=span.kind,
                    began=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    failed=span.status.code == 2,
                    attributes={each.key: plain(each.value) for each in span.attributes},
                    links=[(each.trace_id.hex(), each.span_id.hex()) for each in span.links],
                    service=service,
                    scope=scope.scope.name,
                )


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


class Traced:
    """One identity, "agent", whose plugin is given as text; "peer" speaks to it."""

    def __init__(self, folder: Path, hub: Hub, collector: Collector) -> None:
        self.folder = folder
        self.hub = hub
        self.collector = collector
        self.client = Client(folder / "state" / "control.sock")
        self.environ: dict[str, str] = {}
        self._daemon: subprocess.Popen[bytes] | None = None
        self._before: subprocess.Popen[bytes] | None = None
        key = folder / "agent.key"
        key.touch(0o600)
        self.key = hub.create_agent("agent")
        key.write_text(self.key)
        hub.create_agent("peer")

    def configure(
        self, plugin: str, *, tracing: str = "", of_plugin: str = "", every_s: float = 0.1, intake: str = ""
    ) -> None:
        (self.folder / "plugin.py").write_text(plugin)
        (self.folder / "agentd.toml").write_text(
            f"""
[agentd]
state = "state"
sending = {{ retry_first_s = 0.05, retry_max_s = 0.2 }}
dispatch = {{ retry_first_s = 0.05, retry_max_s = 0.2 }}
intake = {{ {intake} }}

[agentd.tracing]
enabled = true
endpoint = "{self.collector.url}"
every_s = {every_s}
{tracing}

[plugin.mine]
use = "./plugin.py"
{of_plugin}

[identity.agent]
url = "{self.hub.url}"
key = {{ file = "agent.key" }}
plugins = ["mine"]
"""
        )

    def hand_over(self) -> subprocess.Popen[bytes]:
        """Start another daemon that takes over; returns the one that ran."""
        assert self._daemon is not None
        old = self._before = self._daemon
        self.start("--take-over")
        return old

    def verb(self, *words: str) -> str:
        command = [sys.executable, "-m", "agentd", *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False).stdout

    def doctor(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.verb("doctor", "--json"))["findings"]
        return found

    def start(self, *more: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTD_", "OTEL_"))}
        with (self.folder / "daemon.log").open("ab") as output:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "agentd", "run", *more],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ | self.environ,
            )

    async def live(self) -> None:
        self.start()
        await self.until(lambda status: [each["state"] for each in status["identities"]] == ["live"])

    async def until(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """What status says once this holds."""
        try:
            async with asyncio.timeout(30):
                while True:
                    status = await self.status()
                    if status is not None and condition(status):
                        return status
                    await asyncio.sleep(0.03)
        except TimeoutError:
            raise AssertionError(self.log) from None

    async def status(self) -> dict[str, Any] | None:
        try:
            return await asyncio.to_thread(self.client.status, None)
        except (UnreachableError, ControlError):  # which the daemon says while it is taken over
            return None

    async def stop(self) -> int:
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self._daemon.wait, 30)

    async def kill(self) -> None:
        for daemon in (self._daemon, self._before):
            if daemon is not None:
                daemon.kill()
                await asyncio.to_thread(daemon.wait)

    @property
    def log(self) -> str:
        return (self.folder / "daemon.log").read_text(errors="replace")

    def answers(self) -> list[str]:
        """Ids of what the agent said, in order."""
        return [row.id for row in self.hub.ledger() if row.sender == "agent"]


@asynccontextmanager
async def tracing(folder: Path) -> AsyncIterator[Traced]:
    collector = Collector()
    await collector.start()
    try:
        async with Hub(HubSettings(cold_rule=False)) as hub:
            traced = Traced(folder, hub, collector)
            try:
                yield traced
            finally:
                await traced.kill()
    finally:
        await collector.stop()
