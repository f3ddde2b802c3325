"""Asks a running daemon through its control socket.

Always true: the standard library only, so that a verb of the command line starts in a fraction of a second.
Nobody is told anything but a daemon of this user or of root, unless it is root that asks.
Not here: how answers look to people (cli).
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from agentd.control.address import short_name
from agentd.control.peer import uid_of_peer
from agentd.control.refusal import ControlError, SilentError, UnreachableError
from agentd.errors import AgentdError, ConfigError

_OF_THE_SERVICE = (Path("/var/lib/agentd"), Path("/run/agentd"))
_ANSWER_TIMEOUT_S = 15.0  # the daemon answers from memory; this long only if its loop is stuck
_SEARCH_TIMEOUT_S = 60.0  # an id has no index
_RETAIN_TIMEOUT_S = 3_600.0  # ten million rows, in slices with a pause between
_UPGRADE_TIMEOUT_S = 900.0  # the other process loads and sets up its plugins first, as for a reload; then it takes over
_RELOAD_TIMEOUT_S = (
    600.0  # commands that give keys, setups of plugins, handlers that finish: each has a bound of its own
)


class Client:
    """One daemon, one connection per question. path: of its socket.

    patience_s: how long an answer from its memory may take.
    """

    def __init__(self, path: Path, *, patience_s: float = _ANSWER_TIMEOUT_S) -> None:
        self.path = path
        self._patience_s = patience_s

    def status(self, identity: str | None = None) -> dict[str, Any]:
        """The daemon and its identities, or only one of them."""
        return self._ask("GET", _target("/v1/status", identity=identity))

    def send(
        self,
        target: str,
        content: Mapping[str, Any],
        *,
        identity: str | None = None,
        wait_s: float = 0.0,
        client_msg_id: str | None = None,
    ) -> dict[str, Any]:
        """Say something. wait_s: how long to wait for acceptance and a reply; 0 returns once it is on disk."""
        body = {
            "identity": identity,
            "target": target,
            "content": content,
            "wait_s": wait_s,
            "client_msg_id": client_msg_id,
        }
        return self._ask("POST", "/v1/send", body, self._patience_s + wait_s)

    def conversations(self, identity: str | None = None, *, prefix: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Conversations whose id begins so, those with the newest records first."""
        query = _target("/v1/conversations", identity=identity, prefix=prefix, limit=str(limit))
        found: list[dict[str, Any]] = self._ask("GET", query)["conversations"]
        return found

    def gaps(self, identity: str | None = None, *, open_only: bool = True, limit: int = 100) -> list[dict[str, Any]]:
        """Gaps, newest first."""
        query = _target("/v1/gaps", identity=identity, open="1" if open_only else "0", limit=str(limit))
        found: list[dict[str, Any]] = self._ask("GET", query)["gaps"]
        return found

    def outbox(
        self, identity: str | None = None, *, states: Sequence[str] | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Sends, newest first; without states all but those that are sent or dropped."""
        wanted = None if states is None else ",".join(states)
        query = _target("/v1/outbox", identity=identity, states=wanted, limit=str(limit))
        found: list[dict[str, Any]] = self._ask("GET", query)["outbox"]
        return found

    def outbox_show(self, client_msg_id: str, identity: str | None = None) -> dict[str, Any]:
        """One send, with what became of it."""
        return self._ask("GET", _target("/v1/outbox/send", client_msg_id=client_msg_id, identity=identity))

    def outbox_retry(self, client_msg_id: str, identity: str | None = None) -> dict[str, Any]:
        """Let a send leave (again)."""
        return self._ask("POST", "/v1/outbox/retry", {"client_msg_id": client_msg_id, "identity": identity})

    def outbox_drop(self, client_msg_id: str, identity: str | None = None) -> dict[str, Any]:
        """Let a send never leave."""
        return self._ask("POST", "/v1/outbox/drop", {"client_msg_id": client_msg_id, "identity": identity})

    def dead(self, identity: str | None = None, *, dropped_too: bool = False, limit: int = 100) -> list[dict[str, Any]]:
        """Dead letters, newest first."""
        query = _target("/v1/dead", identity=identity, dropped="1" if dropped_too else "0", limit=str(limit))
        found: list[dict[str, Any]] = self._ask("GET", query)["dead"]
        return found

    def dead_show(self, number: int) -> dict[str, Any]:
        """One dead letter, with its event and traceback."""
        return self._ask("GET", _target("/v1/dead/letter", number=str(number)))

    def dead_replay(self, number: int) -> dict[str, Any]:
        """Deliver the event of a dead letter again."""
        return self._ask("POST", "/v1/dead/replay", {"number": number})

    def dead_drop(self, number: int) -> dict[str, Any]:
        """Say that nobody needs to look at a dead letter any more."""
        return self._ask("POST", "/v1/dead/drop", {"number": number})

    def release(self, plugin: str, conversation: str, identity: str | None = None) -> int:
        """Let a plugin go on in a conversation that it holds. Returns how many it held."""
        body = {"plugin": plugin, "conversation": conversation, "identity": identity}
        released: int = self._ask("POST", "/v1/release", body)["released"]
        return released

    def hand_over(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the daemon to hand over to this process. wanted: body of POST /v1/hand-over."""
        return self._ask("POST", "/v1/hand-over", wanted)

    def reload(self) -> dict[str, Any]:
        """Have the configuration read again. Returns what changed; raises ConfigError if it was refused."""
        try:
            return self._ask("POST", "/v1/reload", {}, timeout_s=_RELOAD_TIMEOUT_S)
        except ControlError as refused:
            if refused.code != "CONFIGURATION":
                raise
            raise ConfigError(refused.message.splitlines()) from None

    def upgrade(self) -> dict[str, Any]:
        """Have the program that is installed now take over. Returns once it has; see control.api.Daemon."""
        return self._ask("POST", "/v1/upgrade", {}, timeout_s=_UPGRADE_TIMEOUT_S)

    def pause(self, conversation: str, identity: str | None = None, *, for_s: float | None = None) -> dict[str, Any]:
        """Let no handler run in a conversation. Returns the pause."""
        return self._ask("POST", "/v1/pause", {"conversation": conversation, "identity": identity, "for_s": for_s})

    def resume(self, conversation: str, identity: str | None = None) -> dict[str, Any]:
        """Let handlers run again in a conversation. Returns the pause that is over."""
        return self._ask("POST", "/v1/resume", {"conversation": conversation, "identity": identity})

    def stop(self) -> None:
        """Ask the daemon to stop; it goes on for as long as its running handlers need."""
        self._ask("POST", "/v1/stop", {})

    def tail(self, identity: str | None = None, since: int | None = None) -> Iterator[dict[str, Any]]:
        """Records as they are committed, without end. since: a journal position to start behind.

        Raises UnreachableError when the daemon ends the stream.
        """
        query = _target("/v1/tail", identity=identity, since=None if since is None else str(since))
        with _Connection(self.path, self._patience_s) as connection:
            response = self._response(connection, "GET", query, None)
            if connection.sock is not None:
                connection.sock.settimeout(None)  # it has begun, and may be silent for days
            try:
                for line in response:
                    if line.strip():
                        yield json.loads(line)
            except (OSError, http.client.HTTPException, ValueError):
                pass  # cut off in the middle: the same as a proper end, to a reader
        raise UnreachableError(f"the daemon at {self.path} ended the stream; see its log, or start it with: agentd run")

    def export(self, identity: str | None = None, conversation: str | None = None, since: str | None = None) -> Export:
        """Recorded events as lines, oldest first. since: ISO 8601. Raises ControlError, UnreachableError."""
        query = _target("/v1/export", identity=identity, conversation=conversation, since=since)
        connection = _Connection(self.path, timeout_s=None)
        try:
            return Export(self.path, connection, self._response(connection, "GET", query, None))
        except AgentdError:
            connection.close()
            raise

    def replay(
        self,
        step: str,
        plugin: str,
        identity: str | None = None,
        conversation: str | None = None,
        from_seq: int | None = None,
        since: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The lines of a step of a replay; see control.api.Daemon. since: ISO 8601.

        Raises ControlError at once; UnreachableError if the daemon breaks off, so that what was told is not all.
        """
        body = {
            "step": step,
            "plugin": plugin,
            "identity": identity,
            "conversation": conversation,
            "from_seq": from_seq,
            "since": since,
        }
        yield from self._lines("/v1/replay", body)

    def retain(self) -> int:
        """Let what is old go now. Returns how many rows."""
        rows: int = self._ask("POST", "/v1/retention", {}, timeout_s=_RETAIN_TIMEOUT_S)["rows"]
        return rows

    def vacuum(self) -> Iterator[dict[str, Any]]:
        """Give free room of the journal back to the disk: how far that is, line by line.

        Raises ControlError if the daemon cannot while it runs; UnreachableError.
        """
        yield from self._lines("/v1/vacuum", {})

    def _lines(self, target: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The lines of an answer, the last of which has `done`. Raises UnreachableError if it breaks off before."""
        with _Connection(self.path, timeout_s=None) as connection:
            response = self._response(connection, "POST", target, body)
            told: dict[str, Any] = {}
            while "done" not in told:
                try:
                    told = json.loads(response.readline())
                except (OSError, http.client.HTTPException, ValueError) as error:
                    raise _unreachable(self.path, error) from None
                yield told

    def explain(self, event: str, identity: str | None = None, plugin: str | None = None) -> dict[str, Any]:
        """What the plugins make of an event. event: the platform's id, or a position."""
        target = _target("/v1/explain", event=event, identity=identity, plugin=plugin)
        return self._ask("GET", target, timeout_s=_SEARCH_TIMEOUT_S)

    def _ask(
        self, method: str, target: str, body: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        with _Connection(self.path, timeout_s or self._patience_s) as connection:
            try:
                answer: dict[str, Any] = json.loads(self._response(connection, method, target, body).read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise _unreachable(self.path, error) from None
            return answer

    def _response(
        self, connection: _Connection, method: str, target: str, body: Mapping[str, Any] | None
    ) -> http.client.HTTPResponse:
        with _readable():
            content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        try:
            connection.request(method, target, content, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            if response.status < 400:
                return response
            refusal = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _unreachable(self.path, error) from None
        raise ControlError(
            response.status, refusal.get("code", ""), refusal.get("message", ""), refusal.get("remedy", "")
        )


class Export:
    """The lines of an export, each with its end; to be read once, and closed. up_to: position of the last record meant.

    unreadable: how many events were left out, once the lines were read. Iterating raises UnreachableError if the daemon
    breaks off: what was read until then is not all.
    """

    def __init__(self, path: Path, connection: _Connection, response: http.client.HTTPResponse) -> None:
        self._path = path
        self._connection = connection
        self._response = response
        self.unreadable = 0
        self.up_to: int = self._told(self._line())["up_to"]

    def __iter__(self) -> Iterator[bytes]:
        line = self._line()
        # The last line is known by its beginning, so that no event is decoded for it.
        while not line.startswith(b'{"exported"'):
            yield line
            line = self._line()
        self.unreadable = self._told(line)["unreadable"]

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()

    def _line(self) -> bytes:
        try:
            line = self._response.readline()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _unreachable(self._path, error) from None
        if not line.endswith(b"\n"):
            raise _unreachable(self._path, EOFError())
        return line

    def _told(self, line: bytes) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(line)
        return told


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short_name(self._path) as name:
            self.sock.connect(name)
        # A command looks in the folder that it runs in, where somebody else may have put a socket to be talked to.
        if os.geteuid() not in (0, served_by := uid_of_peer(self.sock)) and served_by != 0:
            raise PermissionError(errno.EPERM, "served by another user", str(self._path))

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _target(path: str, **query: str | None) -> str:
    with _readable():
        given = urlencode({name: value for name, value in query.items() if value is not None})
    return f"{path}?{given}" if given else path


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """What was given leaves as UTF-8. Raises ControlError where it cannot: a command line may hold any bytes."""
    try:
        yield
    except UnicodeEncodeError:
        raise ControlError(400, "BAD_REQUEST", "a word of the command is not UTF-8", "write it in UTF-8") from None


def _how_to_start(path: Path) -> str:
    if path.parent not in _OF_THE_SERVICE:
        return "start one with: agentd run (or name its folder with --state)"
    return "start the service with: systemctl start agentd"


def _unreachable(path: Path, error: Exception) -> UnreachableError:
    match error:
        case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
            return UnreachableError(f"no daemon answers at {path}; {_how_to_start(path)}")
        case PermissionError():
            return UnreachableError(f"{path} belongs to another user; run this command as that user or as root")
        case TimeoutError():
            return SilentError(f"the daemon at {path} does not answer in time; see its log, then restart it")
        case _:
            return UnreachableError(f"the daemon at {path} broke off its answer ({type(error).__name__}); see its log")
