"""Serves the control socket: HTTP/1.1 with JSON over a Unix socket, for the daemon's owner and root.

Protocol, version 1. Within a version, fields and calls are only added.

    GET  /v1                          {api, version}
    GET  /v1/status[?identity=NAME]   what `Daemon.status` gives; with a name, that identity alone
    POST /v1/send                     {target, content, identity?, wait_s?, client_msg_id?} to {client_msg_id, ...}
    POST /v1/release                  {plugin, conversation, identity?} to {released: number of conversations}
    GET  /v1/conversations[?identity=NAME][&prefix=TEXT][&limit=N]  {conversations: [...]}, newest first
    POST /v1/pause                    {conversation, identity?, for_s?} to the pause; a conversation may be "@peer"
    POST /v1/resume                   {conversation, identity?} to the pause that is over
    GET  /v1/gaps[?identity=NAME][&open=0|1][&limit=N]     {gaps: [...]}, newest first
    GET  /v1/outbox[?identity=NAME][&states=A,B][&limit=N]  {outbox: [...]}, newest first; without states all but sent
                                                            and dropped
    GET  /v1/outbox/send?client_msg_id=ID[&identity=NAME]   one of them
    POST /v1/outbox/retry             {client_msg_id, identity?} to the send as it is then: it leaves (again)
    POST /v1/outbox/drop              the same: it never leaves; its row stays
    GET  /v1/dead[?identity=NAME][&dropped=0|1][&limit=N]   {dead: [...]}, newest first
    GET  /v1/dead/letter?number=N     one of them, with its event and traceback
    POST /v1/dead/replay              {number} to the letter as it is then: its event is delivered again
    POST /v1/dead/drop                {number} to the letter as it is then; it stays
    GET  /v1/tail[?identity=NAME][&since=POSITION]         JSON lines without end; blank ones mean nothing
    GET  /v1/export[?identity=NAME][&conversation=ID][&since=ISO]  JSON lines: {up_to: position}, events (see
                                                            core.exported), {exported: number, unreadable: number}
    POST /v1/replay                   {plugin, step, identity?, conversation?, from_seq?, since?: ISO} to JSON lines, of
                                      which the last has `done`; step: count, rehearse or set_back (see Daemon.replay)
    GET  /v1/explain?event=EVENT[&identity=NAME][&plugin=NAME]  {events: [...]}; EVENT: a platform id or a position
    POST /v1/retention                {} to {rows}: what [agentd.retention] lets go, goes now
    POST /v1/vacuum                   {} to JSON lines {given_back, of}, of which the last has `done` (see
                                      Daemon.vacuum)
    POST /v1/reload                   {} to {identities, plugins, at_next_start, still_running}
    POST /v1/hand-over                {protocol, tables, version, pid, socket, manager} to {version, pid}: let the
                                                            process take over that listens there (see agentd.handover)
    POST /v1/upgrade                  {} to {version, pid, former_version, former_pid, turns}: start the program that is
                                                            installed now, and let it take over
    POST /v1/stop                     {stopping: true}, at once

What cannot be done has a status from 400 and {code, message, remedy}: 400 BAD_REQUEST or WHICH_IDENTITY, 403 NOT_OWNER,
404 UNKNOWN_IDENTITY, UNKNOWN_SEND, UNKNOWN_LETTER, UNKNOWN_CONVERSATION, UNKNOWN_EVENT, UNKNOWN_PLUGIN or UNKNOWN_CALL,
409 NOTHING_TO_RETRY, NOTHING_TO_DROP, NOT_PAUSED, NOT_SERVED, UNREADABLE_EVENT, NOT_WHILE_RUNNING, NOT_HANDED_OVER or
NOT_UPGRADED,
422 the platform's code or CONFIGURATION (its message holds one problem a line), 503 UNAVAILABLE, HANDING_OVER or
OUTBOX_FULL, 504 OUTCOME_UNKNOWN, 507 JOURNAL, 500 INTERNAL.

Always true: the socket has mode 0600 from its first moment, and the user on the other end is asked of the kernel for
every request. A slow or vanished reader of `tail` or `export` costs one suspended iterator.
Not here: what a daemon does with a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import errno
import logging
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec
import orjson
from aiohttp import web

from agentd import __version__
from agentd.control.address import short_name
from agentd.control.answers import as_json, bad_request, refusal, streamed, whole, whole_number
from agentd.control.peer import uid_of_peer
from agentd.control.refusal import ControlError
from agentd.core.events import OPEN_STATES, SETTLED_STATES, Content
from agentd.core.moments import unix
from agentd.errors import ConfigError, JournalError, OutcomeUnknown, Refused, Unavailable

API = 1
PAUSE_MAX_S = 366 * 86_400.0  # who means longer means until it is resumed

T = TypeVar("T")

_BODY_MAX_BYTES = 4_194_304  # as much as the largest frame
_LISTED_MAX = 10_000
_LETTER_MAX = 2**53  # far above all that there will be, and below what the disk can hold
_LINES = "application/x-ndjson"
_HELD = ",".join(state for state in (*OPEN_STATES, *SETTLED_STATES) if state not in ("sent", "dropped"))
_WAIT_MAX_S = 600.0
_SHUTDOWN_TIMEOUT_S = 0.3  # enough for what is answered from memory; a tail or a waiting send is cancelled then

log = logging.getLogger(__name__)


class Daemon(Protocol):
    """What the control socket asks of the daemon. Names of identities were checked before they come here."""

    def status(self) -> dict[str, Any]:
        """The whole state, from memory; never blocks.

        {version, pid, uptime_s, state_dir, hub_url (None unless embedded), identities, plugins, pauses (see pause),
        undispatched, undispatched_bytes, journal, ...}; each
        identity: {name, platform, handle, url, state, state_since (ISO 8601, UTC), state_reason, conversations,
        journaled, handled, pending, gaps_open, absent, dead, outbox_ready, outbox_unknown, last_pong_age_s,
        last_inbound_age_s, last_audit_age_s, last_commit_age_s, ...}. Ages: seconds, or None for never.
        """
        ...

    async def send(
        self, identity: str | None, target: str, content: Content, wait_s: float, client_msg_id: str | None
    ) -> dict[str, Any]:
        """Put a message into the outbox, and wait up to `wait_s` for its acceptance and the first reply.

        identity: None stands for the only one, or the embedded hub's own user. client_msg_id: None for a new key.
        Returns {client_msg_id, state, seq, conversation, error, reply}; `reply` is {text, sender, seq} or None.
        Raises ControlError if no identity is meant clearly.
        """
        ...

    def release(self, plugin: str, identity: str | None, conversation: str) -> int:
        """Let a plugin go on in a conversation that it holds behind a dead letter. Returns how many it held.

        identity: None for every identity that has a conversation of this id.
        """
        ...

    async def conversations(self, identity: str | None, prefix: str, limit: int) -> list[dict[str, Any]]:
        """Conversations whose id begins so, those with the newest records first: {identity, conversation}."""
        ...

    async def pause(self, identity: str | None, conversation: str, for_s: float | None) -> dict[str, Any]:
        """Let no handler run in a conversation, for so long or until it is resumed; its mail is kept.

        conversation: an id, or the peer's "@handle" where something was sent to it lately. A pause that stands is
        replaced. {identity, conversation, paused_at, until, reason}; times are ISO 8601, UTC; until may be None.
        Raises ControlError if no conversation is meant clearly.
        """
        ...

    async def resume(self, identity: str | None, conversation: str) -> dict[str, Any]:
        """Let handlers run again. Returns the pause that is over; raises ControlError as pause, or if there is none."""
        ...

    async def gaps(self, identity: str | None, open_only: bool, limit: int) -> list[dict[str, Any]]:
        """Gaps, newest first.

        {identity, conversation, epoch, start, stop, found_at, closed_at, attempts, outcome, absent, reason}; the range
        is half-open, found_at and closed_at (None while open) are ISO 8601, UTC.
        """
        ...

    async def outbox(self, identity: str | None, states: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """Sends in any of these states, newest first.

        {client_msg_id, identity, target, state, needs_decision, attempts, error, code, request_id, queued_at,
        changed_at, not_before, expires_at, cause, content, result_id, seq, conversation, peer_backlog}. error: why it
        is not sent, in words; code, request_id: as the platform put it. Times are ISO 8601, UTC, or None. result_id,
        seq, conversation: its place, once sent. peer_backlog: what the recipient had not taken when the platform last
        warned, or None. needs_decision: nobody can tell whether it arrived, and its target waits for retry or drop.
        """
        ...

    async def outbox_show(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        """The send under this key, of whichever identity has it if None.

        Raises ControlError if none has it, or several have.
        """
        ...

    async def outbox_retry(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        """Let it leave (again) under its key. Returns as outbox_show; raises ControlError if it goes on by itself."""
        ...

    async def outbox_drop(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        """Let it never leave. Returns as outbox_show; raises ControlError if it is too late for that."""
        ...

    async def dead(self, identity: str | None, dropped_too: bool, limit: int) -> list[dict[str, Any]]:
        """Dead letters, newest first.

        {number, identity, conversation, position, plugin, plugin_version, attempts, error, died_at, dropped_at}; times
        are ISO 8601, UTC; dropped_at is None while somebody should look at it.
        """
        ...

    async def dead_show(self, number: int) -> dict[str, Any]:
        """The same with `traceback`, and `event` as `tail` shows it, or None if it cannot be read any more.

        held: its conversation stands still behind a dead letter.

        Raises ControlError if there is none.
        """
        ...

    async def dead_replay(self, number: int) -> dict[str, Any]:
        """Deliver its event again: in its place where the conversation is held behind it, else by itself, marked late.

        The letter is off the list then, and in its place those of the other events of its turn, which begins anew as a
        whole. One that was tried again already is left at that. Returns as dead_show; raises ControlError if there is
        none, or nobody to ask.
        """
        ...

    async def dead_drop(self, number: int) -> dict[str, Any]:
        """Nobody needs to look at it any more. Returns as dead_show; raises ControlError if there is none."""
        ...

    def tail(self, identity: str | None, since: int | None) -> AsyncGenerator[dict[str, Any], None]:
        """Records as they are committed, or from behind a journal position; ends when the daemon stops.

        {position, identity, conversation, seq, id, sender, source, own, late, type, text, received_at}. A reader that
        falls behind is not waited for: what it misses is read from the journal.
        """
        ...

    async def export(
        self, identity: str | None, conversation: str | None, since: float | None
    ) -> AsyncGenerator[bytes, None]:
        """What is recorded by now, oldest first, as the lines of /v1/export, many at a time.

        since: Unix seconds; only what was received from then on. unreadable: events that cannot be decoded any more, or
        whose identity is not configured. Raises ControlError if no identity has this conversation, or several have.
        """
        ...

    async def replay(
        self,
        step: Literal["count", "rehearse", "set_back"],
        plugin: str,
        identity: str | None,
        conversation: str | None,
        from_seq: int | None,
        since: float | None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Recorded events once more: count those that a plugin's handlers match, show what these would do, or do it.

        In one conversation, or in all of the identities that the plugin serves. from_seq: from this seq on, in one
        conversation; since: Unix seconds, received from then on; else from the beginning of what is recorded.
        The first line: {plugin, events, conversations, waiting, waits: [{identity, conversation, why, remedy}]}; waits
        names some of those that cannot be set back now. Then, among lines of {read: number} that tell how far it is:
        rehearse: {event, handlers, sends: [{identity, target, content}], sends_at_once, state: [{key, shared, value}],
        reminders: [{after_s, at, data}], outcomes: [{word, data}], failure: None or {error, handler}} for each event
        that matches. Nothing is sent or stored, but what handlers do without their context happens. Each is shown by
        itself, also where a turn would have several, and over what is stored now, not over what others would put.
        set_back: {set_back: {identity, conversation, events}} for each conversation, as soon as that is on disk; from
        then on its events are handled again, and their sends have new keys.
        The last: {done, events, matches, conversations (in which any matches), unreadable}; of rehearse with {sends,
        sends_at_once, failed} too; of set_back {done, conversations, events, waiting, waits} instead: what waits is
        set back once it goes on, unless the daemon is stopped before.
        Raises ControlError if the plugin is unknown, does not serve the identity, or no conversation is meant clearly.
        """
        ...

    async def explain(self, event: str, identity: str | None, plugin: str | None) -> dict[str, Any]:
        """What the plugins that serve its identity make of an event. Two identities may have one of the same id.

        {events: [{event, plugins: [{plugin, breaker, trial_in_s, trouble, pause, fate, outcomes, handlers}]}]}. event:
        as `tail` shows it. trouble: what failed last with the plugin, while its breaker is not closed. pause: what
        keeps the plugin out of its conversation (see pause), or None. fate: {state, attempts, error, not_before,
        letter, behind, replays}; state: one of operations.explaining.STATES. outcomes: [{word, data, at,
        first, last}], oldest first: what turns about it came to by the word of their handlers, and "passed", "set
        back" and "tried again"; first, last: positions of the events that this was about. handlers: [{name, place,
        event, matches, filters: [{name, wanted, had, passed, error}]}]; matches is None where a filter raised; passed
        is None where it raised `error`, or was not asked.
        Raises ControlError if there is no such event or plugin.
        """
        ...

    async def retain(self) -> dict[str, Any]:
        """Let go of what the bounds of the running configuration say, as the daemon does by itself: {rows}."""
        ...

    async def vacuum(self) -> AsyncGenerator[dict[str, Any], None]:
        """Give room of the journal that is free back to the disk, in small steps between commits.

        {given_back, of}: bytes so far; the last: {done, bytes_before, bytes, free_bytes}, the file's size and what in
        it is free. It ends early, without harm, when nobody listens any more. Raises ControlError if the journal has to
        be rebuilt for that.
        """
        ...

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again, and the plugins whose files changed, and apply the difference.

        {identities: {added, removed, moved, rekeyed, changed}, plugins: {added, removed, reloaded}, at_next_start,
        still_running}: lists of names; at_next_start: settings that cannot change while the daemon runs; still_running:
        "identity: plugin" whose last turn there has not ended. Raises ConfigError with every problem; then nothing has
        changed.
        """
        ...

    async def hand_over(self, wanted: HandOverRequest) -> dict[str, Any]:
        """Begin to hand over to another process; returns {version, pid} of this one, before that is done.

        Raises ControlError if it cannot be: then nothing has happened.
        """
        ...

    async def upgrade(self) -> dict[str, Any]:
        """Have the program that is installed now take over, as a process of the same service.

        Returns once everything runs there: {version, pid, former_version, former_pid, turns}; turns: those that end in
        this process. Raises ControlError if it cannot be: then this process goes on as if nothing had been.
        """
        ...

    async def stop(self) -> None:
        """Begin to stop; returns before that is done."""
        ...


class SendRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/send."""

    target: Annotated[str, msgspec.Meta(min_length=1)]
    content: Content
    identity: str | None = None
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=_WAIT_MAX_S)] = 0.0
    client_msg_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None


class ReplayRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/replay."""

    plugin: str
    step: Literal["count", "rehearse", "set_back"]
    identity: str | None = None
    conversation: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    from_seq: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    since: str | None = None


class SendChosen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/outbox/retry and /v1/outbox/drop."""

    client_msg_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    identity: str | None = None


class LetterChosen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/dead/replay and /v1/dead/drop."""

    number: Annotated[int, msgspec.Meta(ge=1, le=_LETTER_MAX)]


class PauseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/pause."""

    conversation: Annotated[str, msgspec.Meta(min_length=1)]
    identity: str | None = None
    for_s: Annotated[float, msgspec.Meta(gt=0, le=PAUSE_MAX_S)] | None = None


class ResumeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/resume."""

    conversation: Annotated[str, msgspec.Meta(min_length=1)]
    identity: str | None = None


class ReleaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/release."""

    plugin: str
    conversation: str
    identity: str | None = None


class HandOverRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/hand-over. version, pid: of the process that wants to take over.

    protocol: of agentd.handover. tables: which version of the journal it knows. socket: where it listens. manager: the
    address of the service manager that looks after it, or "".
    """

    protocol: int
    tables: int
    version: str
    pid: int
    socket: str
    manager: str = ""


class ControlServer:
    """The listening end. `owners`: the user ids that may ask; this process's own and root unless told.

    handing_over: another process takes over: what is asked meanwhile has to be asked again.
    """

    handing_over = False

    def __init__(self, daemon: Daemon, paths: Sequence[Path], owners: Collection[int] | None = None) -> None:
        self._daemon = daemon
        self._paths = paths
        self._owners = frozenset((0, os.geteuid()) if owners is None else owners)
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            handler_cancellation=True,  # a client that has gone ends its tail
            shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        )
        self._listening = contextlib.AsyncExitStack()

    async def start(self, *, in_place: bool = False) -> None:
        """Listen. in_place: instead of the process that hands over to us, so that a client always finds somebody.

        Raises OSError if a daemon listens there already, or the folder cannot be written.
        """
        await self._runner.setup()
        self._listening.push_async_callback(self._runner.cleanup)
        try:
            for path in self._paths:
                await self._listen(path, in_place=in_place)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening, end every tail, remove the sockets."""
        await self._listening.aclose()

    async def _listen(self, path: Path, *, in_place: bool) -> None:
        assert self._runner.server is not None
        bound = bind(path, in_place=in_place)
        self._listening.callback(_unlink, path, path.stat().st_ino)  # noqa: ASYNC240 -- a local inode, just made
        try:
            server = await asyncio.get_running_loop().create_unix_server(self._runner.server, sock=bound)
        except BaseException:
            bound.close()
            raise
        self._listening.callback(server.close)

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=_BODY_MAX_BYTES, middlewares=[_answered, self._owner_only])
        application.router.add_get("/v1", self._version)
        application.router.add_get("/v1/status", self._status)
        application.router.add_post("/v1/send", self._send)
        application.router.add_post("/v1/release", self._release)
        application.router.add_get("/v1/conversations", self._conversations)
        application.router.add_post("/v1/pause", self._pause)
        application.router.add_post("/v1/resume", self._resume)
        application.router.add_get("/v1/gaps", self._gaps)
        application.router.add_get("/v1/outbox", self._outbox)
        application.router.add_get("/v1/outbox/send", self._outbox_show)
        application.router.add_post("/v1/outbox/retry", self._outbox_retry)
        application.router.add_post("/v1/outbox/drop", self._outbox_drop)
        application.router.add_get("/v1/dead", self._dead)
        application.router.add_get("/v1/dead/letter", self._dead_show)
        application.router.add_post("/v1/dead/replay", self._dead_replay)
        application.router.add_post("/v1/dead/drop", self._dead_drop)
        application.router.add_get("/v1/tail", self._tail)
        application.router.add_get("/v1/export", self._export)
        application.router.add_post("/v1/replay", self._replay)
        application.router.add_get("/v1/explain", self._explain)
        application.router.add_post("/v1/retention", self._retain)
        application.router.add_post("/v1/vacuum", self._vacuum)
        application.router.add_post("/v1/reload", self._reload)
        application.router.add_post("/v1/hand-over", self._hand_over)
        application.router.add_post("/v1/upgrade", self._upgrade)
        application.router.add_post("/v1/stop", self._stop)
        return application

    @web.middleware
    async def _owner_only(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if _peer_uid(request) not in self._owners:
            raise ControlError(
                403, "NOT_OWNER", "this daemon belongs to another user", "run the command as that user or as root"
            )
        if self.handing_over:
            raise ControlError(503, "HANDING_OVER", "another process is taking over", "try again in a moment")
        return await handler(request)

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return as_json({"api": API, "version": __version__})

    async def _status(self, request: web.Request) -> web.StreamResponse:
        status = self._daemon.status()
        if name := self._identity(request.query.get("identity"), status):
            identities = [each for each in status["identities"] if each["name"] == name]
            pauses = [each for each in status["pauses"] if each["identity"] == name]
            status = {**status, "identities": identities, "pauses": pauses}
        return as_json(status)

    async def _send(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, SendRequest)
        content = wanted.content
        if content.text is None and content.data is None and content.attachment_id is None:
            raise bad_request("content has neither text, data nor attachment_id")
        identity = self._identity(wanted.identity)
        return as_json(await self._daemon.send(identity, wanted.target, content, wanted.wait_s, wanted.client_msg_id))

    async def _release(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, ReleaseRequest)
        released = self._daemon.release(wanted.plugin, self._identity(wanted.identity), wanted.conversation)
        return as_json({"released": released})

    async def _conversations(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        prefix = request.query.get("prefix", "")
        return as_json({"conversations": await self._daemon.conversations(identity, prefix, _limit(request))})

    async def _pause(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, PauseRequest)
        identity = self._identity(wanted.identity)
        return as_json(await whole(self._daemon.pause(identity, wanted.conversation, wanted.for_s)))

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, ResumeRequest)
        return as_json(await whole(self._daemon.resume(self._identity(wanted.identity), wanted.conversation)))

    async def _gaps(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        open_only = request.query.get("open", "1") != "0"
        return as_json({"gaps": await self._daemon.gaps(identity, open_only, _limit(request))})

    async def _outbox(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        states = request.query.get("states", _HELD).split(",")
        if unknown := [state for state in states if state not in (*OPEN_STATES, *SETTLED_STATES)]:
            known = ", ".join((*OPEN_STATES, *SETTLED_STATES))
            raise bad_request(f"no send is ever {unknown[0]!r}, but {known}")
        return as_json({"outbox": await self._daemon.outbox(identity, states, _limit(request))})

    async def _outbox_show(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        if not (key := request.query.get("client_msg_id", "")):
            raise bad_request("client_msg_id is missing")
        return as_json(await self._daemon.outbox_show(identity, key))

    async def _outbox_retry(self, request: web.Request) -> web.StreamResponse:
        chosen = await _body(request, SendChosen)
        return as_json(await whole(self._daemon.outbox_retry(self._identity(chosen.identity), chosen.client_msg_id)))

    async def _outbox_drop(self, request: web.Request) -> web.StreamResponse:
        chosen = await _body(request, SendChosen)
        return as_json(await whole(self._daemon.outbox_drop(self._identity(chosen.identity), chosen.client_msg_id)))

    async def _dead(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        dropped_too = request.query.get("dropped", "0") == "1"
        return as_json({"dead": await self._daemon.dead(identity, dropped_too, _limit(request))})

    async def _dead_show(self, request: web.Request) -> web.StreamResponse:
        return as_json(await self._daemon.dead_show(_number(request, "number", 0)))

    async def _dead_replay(self, request: web.Request) -> web.StreamResponse:
        return as_json(await whole(self._daemon.dead_replay((await _body(request, LetterChosen)).number)))

    async def _dead_drop(self, request: web.Request) -> web.StreamResponse:
        return as_json(await whole(self._daemon.dead_drop((await _body(request, LetterChosen)).number)))

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        since = _number(request, "since", 0) if "since" in request.query else None
        return await streamed(request, _LINES, _beginning_at_once(self._daemon.tail(identity, since)))

    async def _export(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        pages = await self._daemon.export(
            identity, request.query.get("conversation"), _read_moment("since", request.query.get("since"))
        )
        return await streamed(request, _LINES, pages)

    async def _replay(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, ReplayRequest)
        if wanted.from_seq is not None and wanted.conversation is None:
            raise bad_request("from_seq is a place in one conversation, and none is named")
        lines = await self._daemon.replay(
            wanted.step,
            wanted.plugin,
            self._identity(wanted.identity),
            wanted.conversation,
            wanted.from_seq,
            _read_moment("since", wanted.since),
        )
        return await streamed(request, _LINES, _lines(lines))

    async def _retain(self, request: web.Request) -> web.StreamResponse:
        return as_json(await self._daemon.retain())

    async def _vacuum(self, request: web.Request) -> web.StreamResponse:
        return await streamed(request, _LINES, _lines(await self._daemon.vacuum()))

    async def _explain(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        if not (event := request.query.get("event", "")):
            raise bad_request("event is missing")
        return as_json(await self._daemon.explain(event, identity, request.query.get("plugin")))

    async def _reload(self, request: web.Request) -> web.StreamResponse:
        return as_json(await whole(self._daemon.reload()))

    async def _hand_over(self, request: web.Request) -> web.StreamResponse:
        return as_json(await self._daemon.hand_over(await _body(request, HandOverRequest)))

    async def _upgrade(self, request: web.Request) -> web.StreamResponse:
        return as_json(await whole(self._daemon.upgrade()))

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        await self._daemon.stop()
        return as_json({"stopping": True})

    def _identity(self, name: str | None, status: dict[str, Any] | None = None) -> str | None:
        if name is None:
            return None
        names = [each["name"] for each in (status or self._daemon.status())["identities"]]
        if name in names:
            return name
        close = difflib.get_close_matches(name, names, n=1)
        known = f"name one of: {', '.join(sorted(names))}" if names else "the configuration has none"
        raise ControlError(
            404,
            "UNKNOWN_IDENTITY",
            f"there is no identity {name!r}",
            f"did you mean {close[0]!r}?" if close else known,
        )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong becomes an answer with code, message and remedy."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return refusal(bad_request(f"the body is longer than {_BODY_MAX_BYTES} bytes"))
    except web.HTTPException as error:
        return refusal(
            ControlError(
                error.status, "UNKNOWN_CALL", f"no call {request.method} {request.path}", f"this is API version {API}"
            )
        )
    except Exception as error:
        return refusal(_explained(error))


def _explained(error: Exception) -> ControlError:
    match error:
        case ControlError():
            return error
        case Refused():
            return ControlError(422, error.code, f"the platform refused it: {error.message or error.code}")
        case ConfigError(problems=problems):
            return ControlError(422, "CONFIGURATION", "\n".join(problems))
        case Unavailable():
            return ControlError(503, "UNAVAILABLE", f"not now: {error}", "try again in a moment")
        case OutcomeUnknown():
            return ControlError(504, "OUTCOME_UNKNOWN", str(error), "repeat it with the same key")
        case JournalError():
            return ControlError(507, "JOURNAL", str(error), "see: agentd status")
        case _:
            log.error("a call on the control socket failed", exc_info=error)
            return ControlError(500, "INTERNAL", f"the daemon failed ({type(error).__name__})", "see its log")


async def _lines(told: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(told):
        async for each in told:
            yield orjson.dumps(each) + b"\n"


async def _beginning_at_once(records: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """The head leaves with the first bytes, and a client waits for it."""
    yield b"\n"
    async with contextlib.aclosing(_lines(records)) as lines:
        async for line in lines:
            yield line


async def _body(request: web.Request, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=shape)
    except msgspec.DecodeError as error:
        raise bad_request(str(error)) from None


def _limit(request: web.Request) -> int:
    limit = _number(request, "limit", 100)
    if not 1 <= limit <= _LISTED_MAX:
        raise bad_request(f"limit must lie between 1 and {_LISTED_MAX}")
    return limit


def _number(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name)
    return default if given is None else whole_number(name, given)


def _read_moment(name: str, given: str | None) -> float | None:
    try:
        return None if given is None else unix(given)
    except (ValueError, OverflowError):
        raise bad_request(f"{name} must be a moment such as 2026-01-02T03:04:05Z") from None


def _peer_uid(request: web.Request) -> int | None:
    """The user on the other end, as the kernel knows it; None if the connection has gone."""
    connection = request.get_extra_info("socket")
    if connection is None:
        return None
    return uid_of_peer(connection)


def bind(path: Path, *, in_place: bool = False) -> socket.socket:
    """A bound socket with mode 0600. A socket that nobody listens on any more is replaced, and any if `in_place`."""
    if in_place:
        fresh = path.with_name(path.name + ".new")
        bound = bind(fresh)
        bound.listen()  # before it has the name, so that nobody is turned away
        fresh.replace(path)
        return bound
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # Before bind, so that the file never has another mode; umask would be the whole process's.
        os.fchmod(bound.fileno(), 0o600)
        with short_name(path) as name:
            _make_room(path, name)
            bound.bind(name)
    except BaseException:
        bound.close()
        raise
    return bound


def _make_room(path: Path, name: str) -> None:
    if not path.is_socket():
        return  # nothing, or something that bind will refuse to replace
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # so many wait for an answer that there is no room for us: a daemon that stands still is one, too
    raise OSError(errno.EADDRINUSE, "another daemon listens there; stop it, or use another state folder", str(path))


def _unlink(path: Path, inode: int) -> None:
    """Remove our socket, but not one that a successor has put there."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()
