"""The two clients under measurement: processes that serve some identities with one of the handlers.

Always true: both are driven and judged alike. agentd runs as anybody's would, with its default settings but for the
pace of sending, since the far end sets no limit.
Not here: what is measured.
"""

from __future__ import annotations

import abc
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from agentd.control.client import Client as ControlClient
from agentd.control.refusal import ControlError, UnreachableError
from tests.bench.processes import ROOT, Failed, Program

SDK_PYTHON = ROOT / ".peers" / "bin" / "python"

_SDK_SCRIPT = Path(__file__).parent / "peers" / "sdk_client.py"
_PATIENCE_S = 90.0
_LOOK_S = 0.005

_CONFIG = """
[agentd]
state = "{folder}"

[agentd.sending]
rate_per_s = 100_000

[agentd.dispatch]
drain_timeout_s = {drain_timeout_s}

[plugin.bench]
use = "tests.bench.handlers:{handler}"
config = {{ report = "{folder}/report.json" }}
"""

_NEIGHBOUR = """
[plugin.{name}]
use = "tests.bench.handlers:{name}"
{settings}
"""

_IDENTITY = """
[identity.{name}]
url = "{url}"
key = {{ file = "{key}" }}
plugins = {plugins}
loop_guard = {{ answers_max = 0 }}
"""


class Report(msgspec.Struct):
    """What a client's handlers had. latencies_s: of the timed messages, from post to handler."""

    handled: int
    latencies_s: list[float]


class Client(Program, abc.ABC):
    """One run of a client."""

    name: ClassVar[str]

    def __init__(self, command: list[str], core: int | None, folder: Path, *, piped: bool = False) -> None:
        self._folder = folder
        super().__init__(command, core, folder / "client.log", piped=piped)

    @classmethod
    @abc.abstractmethod
    def start(
        cls, folder: Path, core: int | None, url: str, keys: Mapping[str, str], handler: str, *, with_rest: bool
    ) -> Client:
        """Start a run. folder: may hold what an earlier run has left. keys: one for each identity.

        with_rest: as people use it; without, the SDK's clients have no REST client each, and drain nothing.
        """

    @abc.abstractmethod
    def live(self) -> float:
        """Wait until every identity is connected and has drained. Returns the monotonic clock then."""

    @abc.abstractmethod
    def settled(self, handled: int) -> float:
        """Wait until this many messages, acknowledged already, are handled. Returns the monotonic clock then."""

    def finish(self) -> Report:
        """End the process in order."""
        self.stop()
        return msgspec.json.decode((self._folder / "report.json").read_bytes(), type=Report)


class Agentd(Client):
    """neighbours: plugins beside the one under measurement, with their settings as lines of the configuration.

    drain_timeout_s: how long a stop waits for them.
    """

    name = "agentd"
    neighbours: ClassVar[Mapping[str, str]] = {}
    drain_timeout_s: ClassVar[float] = 20.0

    @classmethod
    def start(
        cls, folder: Path, core: int | None, url: str, keys: Mapping[str, str], handler: str, *, with_rest: bool
    ) -> Agentd:
        text = _CONFIG.format(folder=folder, handler=handler, drain_timeout_s=cls.drain_timeout_s)
        text += "".join(_NEIGHBOUR.format(name=name, settings=given) for name, given in cls.neighbours.items())
        plugins = json.dumps(["bench", *cls.neighbours])
        for name, key in keys.items():
            file = folder / f"{name}.key"
            file.touch(0o600)
            file.write_text(key)
            text += _IDENTITY.format(name=name, url=url, key=file, plugins=plugins)
        config = folder / "agentd.toml"
        config.write_text(text)
        return cls([sys.executable, "-m", "agentd", "run", "--config", str(config)], core, folder)

    def live(self) -> float:
        return self._until(lambda identity: identity["state"] == "live")

    def settled(self, handled: int) -> float:
        # More than that with a handler that answers: its own words are events, too.
        return self._until(lambda identity: identity["handled"] >= handled and identity["pending"] == 0)

    def _until(self, reached: Callable[[dict[str, Any]], bool]) -> float:
        control = ControlClient(self._folder / "control.sock")
        deadline_s = time.monotonic() + _PATIENCE_S
        identities: list[dict[str, Any]] = []
        while time.monotonic() < deadline_s:
            self.require_running()
            with contextlib.suppress(UnreachableError, ControlError):
                identities = control.status()["identities"]
                if all(map(reached, identities)):
                    return time.monotonic()
            time.sleep(_LOOK_S)
        raise Failed(f"agentd does not get there: {json.dumps(identities[:1])}")


class Sdk(Client):
    name = "official SDK"

    @classmethod
    def start(
        cls, folder: Path, core: int | None, url: str, keys: Mapping[str, str], handler: str, *, with_rest: bool
    ) -> Sdk:
        job = {
            "url": url,
            "keys": dict(keys),
            "handler": handler,
            "with_rest": with_rest,
            "report": str(folder / "report.json"),
        }
        return cls([str(SDK_PYTHON), str(_SDK_SCRIPT), json.dumps(job)], core, folder, piped=True)

    def live(self) -> float:
        if self.stdout.readline() != b"live\n":
            raise Failed("the SDK's client did not get there; see client.log")
        return time.monotonic()

    def settled(self, handled: int) -> float:
        return time.monotonic()  # it acknowledges only what was handled
