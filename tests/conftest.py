"""What every test stands on, and a control socket with a scripted daemon behind it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("agentd", deadline=None)  # several tests run at a time: examples are not timed
hypothesis.settings.load_profile("agentd")


@pytest.fixture(autouse=True, scope="session")
def loop_that_is_closed() -> Iterator[None]:
    """looptime asks for the current event loop around plain tests too, which makes one that nobody closes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """What a shell starts in the background ignores SIGINT, and so would every process that is started here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def identity_status(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "platform": "agentchat",
        "handle": f"@{name}",
        "url": "https://api.agentchat.me",
        "state": "live",
        "state_since": "2026-01-02T03:04:05+00:00",
        "state_reason": "",
        "conversations": 2,
        "journaled": 1_234_567,
        "handled": 1_234_560,
        "pending": 7,
        "gaps_open": 1,
        "absent": 3,
        "dead": 0,
        "outbox_ready": 0,
        "outbox_unknown": 0,
        "last_pong_age_s": 1.5,
        "last_inbound_age_s": 75.0,
        "last_audit_age_s": None,
        "last_commit_age_s": 0.1,
        **fields,
    }


def send_row(key: str = "agentd-7-0", **fields: Any) -> dict[str, Any]:
    return {
        "client_msg_id": key,
        "identity": "alice",
        "target": "@bob",
        "state": "refused",
        "needs_decision": False,
        "attempts": 2,
        "error": "403 BLOCKED you are blocked (request req_7)",
        "code": "BLOCKED",
        "request_id": "req_7",
        "queued_at": "2026-01-02T03:04:05.000Z",
        "changed_at": "2026-01-02T03:05:05.000Z",
        "not_before": None,
        "expires_at": None,
        "cause": "echo msg_1 0",
        "content": {"text": "hello\n\x1b[2Jbob"},
        "result_id": None,
        "seq": None,
        "conversation": None,
        "peer_backlog": None,
        **fields,
    }


def letter_row(number: int = 3, **fields: Any) -> dict[str, Any]:
    return {
        "number": number,
        "identity": "alice",
        "conversation": "conv_1",
        "position": 17,
        "plugin": "echo",
        "plugin_version": "1.2",
        "attempts": 5,
        "error": "ValueError: no",
        "died_at": "2026-01-02T03:04:05.000Z",
        "dropped_at": None,
        **fields,
    }


def pause_row(conversation: str = "conv_1", **fields: Any) -> dict[str, Any]:
    return {
        "identity": "alice",
        "conversation": conversation,
        "paused_at": "2026-01-02T03:04:05.000Z",
        "until": None,
        "reason": "by command",
        **fields,
    }


def explanation(**fate: Any) -> dict[str, Any]:
    event = {
        "position": 17,
        "identity": "alice",
        "conversation": "conv_1",
        "epoch": 1,
        "seq": 9,
        "id": "msg_9",
        "sender": "@eve\x1b",
        "source": "live",
        "own": False,
        "late": True,
        "type": "text",
        "text": "hello",
        "received_at": "2026-01-02T03:04:05.000Z",
    }
    filters = [
        {"name": "sender", "wanted": ["@ann", "@eve"], "had": "eve", "passed": True, "error": None},
        {"name": "text", "wanted": "^bye", "had": "hello", "passed": False, "error": None},
        {"name": "where", "wanted": "is_late", "had": None, "passed": None, "error": None},
    ]
    raised = {"name": "where", "wanted": "is_late", "had": None, "passed": None, "error": "KeyError: 'x'"}
    handlers = [
        {"name": "part", "place": "/p.py:3", "event": "Message", "matches": False, "filters": filters},
        {"name": "greet", "place": "/p.py:9", "event": "Message", "matches": True, "filters": filters[:1]},
        {"name": "check", "place": "/p.py:12", "event": "Message", "matches": None, "filters": [raised]},
    ]
    told = {"state": "handled", "attempts": None, "error": None, "not_before": None, "letter": None, "behind": None}
    lane = {"plugin": "echo", "breaker": "closed", "fate": {**told, **fate}, "handlers": handlers}
    return {"events": [{"event": event, "plugins": [lane]}]}


def replay_lines(**waits: Any) -> dict[str, list[dict[str, Any]]]:
    """What the daemon says of each step of a replay."""
    first = {"plugin": "echo", "events": 3_000, "conversations": 2, "waiting": 0, "waits": [], **waits}
    counted = {"done": True, "events": 3_000, "matches": 2_000, "conversations": 2, "unreadable": 1}
    said = {"identity": "alice", "target": "@bob", "content": {"text": "hello\x1b"}}
    event = explanation()["events"][0]["event"]
    shown = {
        "event": event,
        "handlers": ["greet", "count"],
        "sends": [said, {**said, "identity": "bob"}],
        "sends_at_once": [said],
        "state": [
            {"key": "count", "shared": False, "value": 2},
            {"key": "names", "shared": True, "value": ["a"]},
            {"key": "old", "shared": False, "value": None},
        ],
        "reminders": [{"after_s": 5.0, "at": None, "data": None}, {"after_s": None, "at": "2026-01-02T", "data": 1}],
        "outcomes": [{"word": "greeted", "data": {"n": 1}}, {"word": "counted", "data": None}],
        "failure": None,
    }
    failed = {**shown, "failure": {"error": "ValueError: no", "handler": "greet"}}
    back = {"identity": "alice", "conversation": "conv_1", "events": 1_500}
    return {
        "count": [first, {"read": 2_000}, {"read": 3_000}, counted],
        "rehearse": [first, shown, {"read": 2_000}, failed, {**counted, "sends": 2, "sends_at_once": 2, "failed": 1}],
        "set_back": [
            first,
            {"read": 3_000},
            {"set_back": back},
            {"done": True, "conversations": 2, "events": 3_000, "waiting": 0, "waits": [], **waits},
        ],
    }


class ScriptedDaemon:
    """Answers what the test put there, and remembers what it was asked."""

    def __init__(self) -> None:
        self.identities = [identity_status("alice"), identity_status("bob", state="parked", state_reason="key refused")]
        self.answer: dict[str, Any] = {
            "client_msg_id": "key-1",
            "state": "sent",
            "seq": 4,
            "conversation": "conv_1",
            "error": "",
            "reply": {"text": "hello back", "sender": "@echo", "seq": 5},
        }
        self.reply_after_s = 0.0
        self.plugins: list[dict[str, Any]] = []
        self.pauses: list[dict[str, Any]] = []
        self.undispatched: dict[str, Any] = {"undispatched": 0, "undispatched_bytes": 0, "shedding": ""}
        self.journal: dict[str, Any] = {}
        self.gap_list: list[dict[str, Any]] = []
        self.known = ["conv_2", "conv_1", "grp_7"]
        self.sends = {"agentd-7-0": send_row()}
        self.letters = {3: letter_row()}
        self.exported: list[bytes] = []
        self.explained = explanation()
        self.reloaded: dict[str, Any] = {
            "identities": {"added": ["bob"], "removed": [], "moved": [], "rekeyed": ["alice"], "changed": []},
            "plugins": {"added": [], "removed": [], "reloaded": ["echo"]},
            "at_next_start": ["agentd.state"],
            "still_running": ["carol: echo"],
        }
        self.replays = replay_lines()
        self.error: Exception | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.records: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.tail_ended = threading.Event()
        self.stopped = threading.Event()
        self.turns = 0

    def status(self) -> dict[str, Any]:
        return {
            "version": "0.1.0",
            "pid": 42,
            "uptime_s": 4_000.0,
            "state_dir": "/var/lib/agentd",
            "hub_url": None,
            "identities": self.identities,
            "plugins": self.plugins,
            "pauses": self.pauses,
            **self.undispatched,
            "journal": self.journal,
        }

    async def send(
        self, identity: str | None, target: str, content: Any, wait_s: float, client_msg_id: str | None
    ) -> dict[str, Any]:
        self.asked.append(("send", identity, target, content, wait_s, client_msg_id))
        if self.error:
            raise self.error
        await asyncio.sleep(self.reply_after_s)
        return self.answer

    def release(self, plugin: str, identity: str | None, conversation: str) -> int:
        self.asked.append(("release", plugin, identity, conversation))
        return int(conversation == "conv_held")

    async def conversations(self, identity: str | None, prefix: str, limit: int) -> list[dict[str, Any]]:
        self.asked.append(("conversations", identity, prefix, limit))
        found = [{"identity": "alice", "conversation": id_} for id_ in self.known]
        return [each for each in found if each["conversation"].startswith(prefix)]

    async def pause(self, identity: str | None, conversation: str, for_s: float | None) -> dict[str, Any]:
        self.asked.append(("pause", identity, conversation, for_s))
        if self.error:
            raise self.error
        return pause_row(conversation, until=None if for_s is None else "2026-01-02T05:04:05.000Z")

    async def resume(self, identity: str | None, conversation: str) -> dict[str, Any]:
        self.asked.append(("resume", identity, conversation))
        if self.error:
            raise self.error
        return pause_row(conversation)

    async def gaps(self, identity: str | None, open_only: bool, limit: int) -> list[dict[str, Any]]:
        self.asked.append(("gaps", identity, open_only, limit))
        return self.gap_list

    async def outbox(self, identity: str | None, states: Any, limit: int) -> list[dict[str, Any]]:
        self.asked.append(("outbox", identity, tuple(states), limit))
        return list(self.sends.values())

    async def outbox_show(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        return self._send("outbox_show", identity, client_msg_id)

    async def outbox_retry(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        return {**self._send("outbox_retry", identity, client_msg_id), "state": "ready"}

    async def outbox_drop(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        return {**self._send("outbox_drop", identity, client_msg_id), "state": "dropped"}

    def _send(self, asked: str, identity: str | None, key: str) -> dict[str, Any]:
        self.asked.append((asked, identity, key))
        if self.error:
            raise self.error
        return self.sends[key]

    async def dead(self, identity: str | None, dropped_too: bool, limit: int) -> list[dict[str, Any]]:
        self.asked.append(("dead", identity, dropped_too, limit))
        return list(self.letters.values())

    async def dead_show(self, number: int) -> dict[str, Any]:
        self.asked.append(("dead_show", number))
        if self.error:
            raise self.error
        event = {"seq": 9, "id": "msg_9", "sender": "@eve", "text": "poison\x1b", "received_at": "2026-01-02T03:04:04Z"}
        return {**self.letters[number], "traceback": "Traceback ...\n  ValueError: no\n", "event": event}

    async def dead_replay(self, number: int) -> dict[str, Any]:
        self.asked.append(("dead_replay", number))
        if self.error:
            raise self.error
        return {**self.letters[number], "dropped_at": "2026-01-02T03:06:05.000Z"}

    async def dead_drop(self, number: int) -> dict[str, Any]:
        self.asked.append(("dead_drop", number))
        return {**self.letters[number], "dropped_at": "2026-01-02T03:06:05.000Z"}

    async def tail(self, identity: str | None, since: int | None) -> AsyncGenerator[dict[str, Any], None]:
        self.asked.append(("tail", identity, since))
        try:
            while record := await self.records.get():
                yield record
        finally:
            self.tail_ended.set()

    async def export(self, identity: str | None, conversation: str | None, since: float | None) -> Any:
        self.asked.append(("export", identity, conversation, since))
        if self.error:
            raise self.error
        return self._pages()

    async def _pages(self) -> AsyncGenerator[bytes, None]:
        for page in self.exported:
            if page == b"gone":
                raise RuntimeError("the daemon breaks off")
            yield page

    async def explain(self, event: str, identity: str | None, plugin: str | None) -> dict[str, Any]:
        self.asked.append(("explain", event, identity, plugin))
        if self.error:
            raise self.error
        return self.explained

    async def hand_over(self, wanted: Any) -> dict[str, Any]:
        self.asked.append(("hand_over", wanted))
        if self.error:
            raise self.error
        return {"version": "0.1.0", "pid": 42}

    async def retain(self) -> dict[str, Any]:
        self.asked.append(("retain",))
        if self.error:
            raise self.error
        return {"rows": 3}

    async def vacuum(self) -> AsyncGenerator[dict[str, Any], None]:
        self.asked.append(("vacuum",))
        if self.error:
            raise self.error
        return self._lines(
            [{"given_back": 0, "of": 4_096}, {"done": True, "bytes_before": 8_192, "bytes": 4_096, "free_bytes": 0}]
        )

    async def upgrade(self) -> dict[str, Any]:
        self.asked.append(("upgrade",))
        if self.error:
            raise self.error
        return {"version": "0.2.0", "pid": 43, "former_version": "0.1.0", "former_pid": 42, "turns": self.turns}

    async def reload(self) -> dict[str, Any]:
        self.asked.append(("reload",))
        if self.error:
            raise self.error
        return self.reloaded

    async def replay(self, *asked: Any) -> Any:
        self.asked.append(("replay", *asked))
        if self.error:
            raise self.error
        return self._lines(self.replays[asked[0]])

    async def _lines(self, lines: list[dict[str, Any]]) -> AsyncGenerator[dict[str, Any], None]:
        for line in lines:
            if line == {"gone": True}:
                raise RuntimeError("the daemon breaks off")
            yield line

    async def stop(self) -> None:
        self.stopped.set()


class Served:
    """A control server on a loop and thread of its own, as a client in another process would meet it."""

    def __init__(self, folder: Path, new_loop: Callable[[], asyncio.AbstractEventLoop], **options: Any) -> None:
        from agentd.control.api import ControlServer

        self.path = folder / "control.sock"
        self.loop = new_loop()
        self.daemon = ScriptedDaemon()
        self.server = ControlServer(self.daemon, [self.path], **options)
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.call(self.server.start())

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def happen(self, record: dict[str, Any] | None) -> None:
        self.loop.call_soon_threadsafe(self.daemon.records.put_nowait, record)

    def close(self) -> None:
        self.call(self.server.close())
        self.call(self.loop.shutdown_asyncgens())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts control servers, and stops them in the end."""
    running: list[Served] = []

    def start(folder: Path = tmp_path, new_loop: Callable[[], Any] = asyncio.new_event_loop, **options: Any) -> Served:
        running.append(Served(folder, new_loop, **options))
        return running[-1]

    yield start
    for served in running:
        served.close()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()
