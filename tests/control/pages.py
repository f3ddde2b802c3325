"""A daemon behind the HTTP surface that says what a test has put there: nothing, much, or that all is broken."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agentd import config
from agentd.control.http import HttpServer
from tests.conftest import ScriptedDaemon, explanation, identity_status, letter_row, pause_row, send_row

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def iso(age_s: float) -> str:
    return datetime.fromtimestamp(time.time() - age_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def identity(name: str, state: str = "live", **fields: Any) -> dict[str, Any]:
    history = [("off", "not started"), ("connecting", ""), ("catching_up", ""), (state, fields.get("state_reason", ""))]
    return identity_status(
        name,
        state=state,
        **{
            "state_reason": "",
            "state_age_s": 400.0,
            "up_s": 4_000.0,
            "last_live_age_s": 0.0,
            "last_audit_age_s": 20.0,
            "deaf": False,
            "held": 0,
            "reconnects": 1,
            "pacing_per_s": 50.0,
            "history": [
                {"state": each, "at": iso(4_000 - 10 * place), "reason": reason}
                for place, (each, reason) in enumerate(history)
            ],
            **fields,
        },
    )


def plugin(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "use": f"./{name}.py",
        "identities": ["alice"],
        "breaker": "closed",
        "trial_in_s": None,
        "trouble": "",
        "waiting_identities": [],
        "lanes": 0,
        "deepest": [],
        "timers": 0,
        "timers_given_up": [],
        "held": [],
        **fields,
    }


def gap(start: int, stop: int, **fields: Any) -> dict[str, Any]:
    return {
        "identity": "alice",
        "conversation": "conv_9f31b2c4",
        "epoch": 1,
        "start": start,
        "stop": stop,
        "found_at": iso(9),
        "closed_at": None,
        "attempts": 1,
        "rows": 0,
        "outcome": "",
        "absent": 0,
        "reason": "",
        **fields,
    }


def record(position: int, text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {
        "position": position,
        "identity": "alice",
        "conversation": "conv_9f31b2c4",
        "epoch": 1,
        "seq": position,
        "id": f"msg_{position}",
        "sender": "@bob",
        "source": "live",
        "own": False,
        "late": False,
        "type": "text",
        "text": text,
        "received_at": iso(0),
        **fields,
    }


class PageDaemon(ScriptedDaemon):
    """Empty and well until told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.identities: list[dict[str, Any]] = [identity("alice")]
        self.plugins = [plugin("greeter")]
        self.sends: dict[str, dict[str, Any]] = {}
        self.letters: dict[int, dict[str, Any]] = {}
        self.said: dict[str, Any] = {}
        self.position = 0
        self.log: list[dict[str, Any]] = []
        self.quiet: list[str] = []
        self.news = asyncio.Event()

    def status(self) -> dict[str, Any]:
        return {
            "version": "0.1.0",
            "pid": 42,
            "uptime_s": 4_000.0,
            "state_dir": "/var/lib/agentd",
            "hub_url": None,
            "http_url": None,
            "identities": self.identities,
            "plugins": self.plugins,
            "pauses": self.pauses,
            "journal": {"full": False, "bytes": 81_920, "wal_bytes": 4_152, "waiting_s": None},
            "position": self.log[-1]["position"] if self.log else 0,
            "undispatched": 0,
            "log_lines_dropped": 0,
            "shedding": "",
            "shedding_s": None,
            "loop_lag_s": 0.001,
            "loop_lag_age_s": 0.1,
            **self.said,
        }

    def busy(self) -> None:
        """Everything that a page can show, at once."""
        self.said = {"hub_url": "http://127.0.0.1:1"}
        self.identities = [
            identity("alice", journaled=1_234_567, pending=812, gaps_open=1, dead=1, outbox_ready=2),
            identity("a-rather-long-name-for-an-identity.example", pending=0, outbox_refused=1),
            identity("carol", "catching_up"),
        ]
        lanes = [
            {"identity": "alice", "conversation": conversation, "depth": depth}
            for conversation, depth in (("conv_0a7f3c21e", 512), ("conv_noisy", 130), ("conv_2a7f3c21e", 64), ("c", 2))
        ]
        held = [{"identity": "alice", "conversation": "conv_held", "event_id": "msg_5"}]
        self.plugins = [plugin("greeter", lanes=31, deepest=lanes, held=held), plugin("log")]
        self.sends = {
            "agentd-7-0": send_row(),
            "agentd-8-0": send_row("agentd-8-0", state="ready", error=None, queued_at=iso(3)),
        }
        self.letters = {
            3: letter_row(died_at=iso(500), error=f"ValueError: {HOSTILE}"),
            5: letter_row(5, conversation="conv_held", plugin="greeter", died_at=iso(20)),
        }
        self.pauses = [
            pause_row("conv_noisy", paused_at=iso(300), until=iso(-3_300)),
            pause_row("conv_person", paused_at=iso(60), reason=f"a person speaks {HOSTILE}"),
        ]
        self.gap_list = [
            gap(17, 20),
            gap(3, 4, closed_at=iso(60), outcome="filled", rows=1),
            gap(8, 12, closed_at=iso(300), outcome="absent", absent=4, reason="not in the server's history"),
        ]
        self.log = [
            record(1, "Could you book the 9:40 train to Leipzig, window seat, for Thursday?"),
            record(2, "Booked: 9:40, coach 11, seat 42.", own=True, sender="@alice", source="own"),
            record(3, HOSTILE, sender="@eve", late=True, source="refetch"),
            record(4, "A long line without a break: " + "x" * 300),
        ]

    def broken(self) -> None:
        """Nothing flows."""
        why = "the platform refused the key: 401 UNAUTHORIZED the key was revoked (request req_81f)"
        self.identities = [
            identity("alice", "parked", state_reason=why, last_live_age_s=900.0),
            identity("bob", "deaf", state_reason="3 events were found that this connection had not pushed", deaf=True),
            identity("carol", "connecting", state_reason="connection ended (1006)", last_live_age_s=95.0),
        ]
        why = "ConnectError: [Errno 111] refused"
        self.plugins = [
            plugin("greeter", breaker="open", trial_in_s=12.0, trouble=why),
            plugin(
                "log",
                waiting_identities=[{"identity": "bob", "breaker": "open", "trial_in_s": 5.0, "trouble": why}],
                reload_error="SyntaxError: line 3",
                worker={"up": False, "reason": "killed by signal 9"},
                timers_given_up=[{"id": "t", "identity": "carol", "error": "KeyError: 'x'"}],
            ),
        ]
        self.said = {
            "journal": {"full": True, "bytes": 81_920, "wal_bytes": 4_152, "waiting_s": 33.0},
            "shedding": "the disk takes no commits",
            "shedding_s": 30.0,
            "loop_lag_s": 4.2,
            "loop_lag_age_s": 3.0,
        }

    def hostile(self) -> None:
        """Whatever anybody else can write is an attempt to run as a script."""
        self.said = {"hub_url": "http://127.0.0.1:1"}
        self.identities = [identity("alice", "parked", state_reason=HOSTILE, outbox_refused=1, last_live_age_s=900.0)]
        at = {"identity": "alice", "conversation": HOSTILE}
        self.plugins = [
            plugin(
                "greeter",
                lanes=1,
                deepest=[{**at, "conversation": f"{HOSTILE}2", "depth": 1}],
                held=[{**at, "event_id": HOSTILE}],
                breaker="open",
                trouble=HOSTILE,
                waiting_identities=[{"identity": "alice", "breaker": "open", "trial_in_s": 5.0, "trouble": HOSTILE}],
                timers_given_up=[{"id": HOSTILE, "identity": "alice", "error": HOSTILE}],
                reload_error=HOSTILE,
                worker={"up": False, "reason": HOSTILE},
                use=HOSTILE,
            )
        ]
        content = {"text": HOSTILE}
        self.sends = {HOSTILE: send_row(HOSTILE, target=HOSTILE, error=HOSTILE, code=HOSTILE, content=content)}
        self.letters = {3: letter_row(plugin="greeter", conversation=HOSTILE, error=HOSTILE, plugin_version=HOSTILE)}
        self.pauses = [pause_row(HOSTILE, reason=HOSTILE), pause_row("conv_2", reason=HOSTILE)]
        self.gap_list = [gap(1, 2, conversation=HOSTILE, absent=1, reason=HOSTILE, outcome="absent", closed_at=iso(1))]
        self.log = [record(1, HOSTILE, sender=HOSTILE, conversation=HOSTILE, id=HOSTILE, type=HOSTILE)]

    def crowd(self) -> None:
        """Hundreds of identities, thousands of everything else."""
        names = [f"agent-{number:03}" for number in range(200)]
        self.identities = [
            identity(
                name,
                "live" if number % 9 else "connecting",
                last_live_age_s=0.0 if number % 9 else 95.0,
                dead=10,
                outbox_refused=10,
            )
            for number, name in enumerate(names)
        ]
        lanes = [{"identity": "agent-001", "conversation": f"conv_{at}", "depth": 900 - at} for at in range(10)]
        held = [{"identity": "agent-002", "conversation": f"held_{at}", "event_id": "msg_1"} for at in range(3_000)]
        self.plugins = [plugin("greeter", identities=names, lanes=9_000, deepest=lanes, held=held)]
        self.pauses = [pause_row(f"conv_{number}") for number in range(5_000)]
        self.sends = {f"{at}": send_row(f"{at}", identity=names[at % 200]) for at in range(2_000)}
        self.letters = {at: letter_row(at) for at in range(1, 2_001)}
        self.gap_list = [gap(1, 2, identity=name) for name in names]

    def happen(self, *records: dict[str, Any]) -> None:
        self.log += records
        self.news.set()

    async def tail(self, identity: str | None, since: int | None) -> AsyncGenerator[dict[str, Any], None]:
        position = self.status()["position"] if since is None else since
        while True:
            self.news.clear()
            for each in [each for each in self.log if each["position"] > position]:
                position = each["position"]
                yield each
            await self.news.wait()

    async def conversations(self, identity: str | None, prefix: str, limit: int) -> list[dict[str, Any]]:
        await super().conversations(identity, prefix, limit)
        named = [each for each in self.quiet if each.startswith(prefix)]
        return [{"identity": identity, "conversation": each} for each in named[:limit]]

    async def gaps(self, identity: str | None, open_only: bool, limit: int) -> list[dict[str, Any]]:
        rows = await super().gaps(identity, open_only, limit)
        asked = [row for row in rows if identity in (None, row["identity"]) and not (open_only and row["closed_at"])]
        return asked[:limit]

    async def dead(self, identity: str | None, dropped_too: bool, limit: int) -> list[dict[str, Any]]:
        return [each for each in self.letters.values() if dropped_too or each["dropped_at"] is None][:limit]

    async def dead_replay(self, number: int) -> dict[str, Any]:
        self.letters[number] = await super().dead_replay(number)
        return self.letters[number]

    async def dead_drop(self, number: int) -> dict[str, Any]:
        self.letters[number] = await super().dead_drop(number)
        return self.letters[number]

    async def outbox(self, identity: str | None, states: Any, limit: int) -> list[dict[str, Any]]:
        kept = [each for each in self.sends.values() if each["identity"] == identity and each["state"] in states]
        return kept[:limit]

    async def outbox_drop(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        self.sends[client_msg_id] = await super().outbox_drop(identity, client_msg_id)
        return self.sends[client_msg_id]

    async def outbox_retry(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        self.sends[client_msg_id] = {**await super().outbox_retry(identity, client_msg_id), "error": None}
        return self.sends[client_msg_id]

    async def pause(self, identity: str | None, conversation: str, for_s: float | None) -> dict[str, Any]:
        row = await super().pause(identity, conversation, for_s)
        row = {**row, "identity": identity, "paused_at": iso(0), "until": None if for_s is None else iso(-for_s)}
        self.pauses = [row, *(each for each in self.pauses if each["conversation"] != conversation)]
        return row

    async def resume(self, identity: str | None, conversation: str) -> dict[str, Any]:
        row = await super().resume(identity, conversation)
        self.pauses = [each for each in self.pauses if each["conversation"] != conversation]
        return row

    async def explain(self, event: str, identity: str | None, plugin: str | None) -> dict[str, Any]:
        await super().explain(event, identity, plugin)
        found = explanation()["events"][0]
        lane = found["plugins"][0]
        held = {"state": "held", "attempts": 5, "error": f"ValueError: {HOSTILE}", "letter": 5}
        outcome = {"word": "tried again", "data": None, "at": iso(30), "first": 17, "last": 17}
        return {
            "events": [
                {
                    "event": next(each for each in self.log if each["position"] == int(event)),
                    "plugins": [
                        {**lane, "plugin": "greeter"},
                        {
                            **lane,
                            "plugin": "log",
                            "fate": {**lane["fate"], **held},
                            "outcomes": [outcome],
                            "handlers": [],
                        },
                    ],
                }
            ]
        }

    def release(self, plugin: str, identity: str | None, conversation: str) -> int:
        released = super().release(plugin, identity, conversation)
        if released:
            self.plugins = [{**each, "held": []} for each in self.plugins]
        return released


class Page:
    """The HTTP surface on a loop and thread of its own, and programs that ask it."""

    def __init__(self, state: Path, **http: Any) -> None:
        self.state = state
        self.daemon = PageDaemon()
        settings = config.Agentd(state=str(state), http=config.Http(**{"listen": "127.0.0.1:0", **http}))
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.server: HttpServer = self.call(self._start(settings))
        self.token = (state / "http_token").read_text().strip()

    async def _start(self, settings: config.Agentd) -> HttpServer:
        server = HttpServer(self.daemon, settings)
        await server.start()
        return server

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def happen(self, *records: dict[str, Any]) -> None:
        self.loop.call_soon_threadsafe(self.daemon.happen, *records)

    @property
    def url(self) -> str:
        assert self.server.url is not None
        return self.server.url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def ask(
        self, method: str, path: str, body: object = None, *, bare: bool = False, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """(status, headers, text). bare: without the token."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if not bare:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        content = None
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = self.connection()
        try:
            connection.request(method, path, content, sent)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read().decode()
        finally:
            connection.close()

    def hang_up(self) -> None:
        """End every connection, in the page's own thread."""
        server = self.server._runner.server
        assert server is not None
        for connection in server.connections:
            connection.force_close()

    def invitation(self) -> str:
        return str(json.loads(self.ask("POST", "/api/invitations")[2])["invitation"])

    def cookie(self) -> str:
        """The cookie of a browser that was let in."""
        status, headers, _ = self.ask("POST", "/session", {"invitation": self.invitation()}, bare=True)
        assert status == 200
        return headers["Set-Cookie"].partition(";")[0]

    def close(self) -> None:
        self.call(self.server.close())
        self.call(self.loop.shutdown_asyncgens())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
