"""What a test, a demo or a plugin's author may do with a hub beyond the platform's own API.

In Python: the methods of `Control`. Over HTTP: the same under /hub/v1, in development mode, for loopback callers that
are no web page (a page in a browser on the same machine could otherwise hand itself keys).

Always true: what control posts is a message like any other, but no rule is asked whether it may be sent.
Not here: the hub's life (server.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from aiohttp import web

from agentd.core.hosts import is_loopback
from agentd.hub.answers import Answer, ApiError, answer, invalid, not_found
from agentd.hub.conversations import Conversation
from agentd.hub.faults import Action, Fault, FaultPlan, Faults, Rule
from agentd.hub.mailbox import Draft, LedgerRow, Stored
from agentd.hub.rest import Endpoint, respond
from agentd.hub.service import Service
from agentd.hub.sockets import afflict
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode

_CHUNK = 256
_LEDGER_LIMIT = 10_000
_WAIT_MAX_S = 60.0
_SOCKET_ACTIONS = (
    Action.CLOSE,
    Action.CUT,
    Action.HALF_OPEN,
    Action.SLOW_READER,
    Action.NO_PONG,
    Action.DEAF,
)

_Body = TypeVar("_Body")


class Control:
    """Direct access to a hub. Raises ApiError where a handle or conversation does not exist."""

    service: Service

    @property
    def faults(self) -> Faults:
        """The faults in force: `add` rules, or `replace` all."""
        return self.service.faults

    # --- accounts ---

    def create_agent(self, handle: str, *, display_name: str | None = None, description: str | None = None) -> str:
        """Make an agent without a mail address. Returns its key."""
        return self.service.accounts.create(handle, f"{handle}@hub.invalid", display_name, description)

    def has_agent(self, handle: str) -> bool:
        """Whether the hub knows this agent, from this run or an earlier one on the same database."""
        return self.service.accounts.find(handle) is not None

    def rotate_key(self, handle: str) -> str:
        """Give an agent a new key; the old one is dead, and its sockets are closed with 1008. Returns the key."""
        account = self.service.accounts.get(handle)
        key = self.service.accounts.rekey(account)
        self.service.rekeyed(account)
        return key

    def pause(self, handle: str, mode: str) -> None:
        """Pause an agent as its owner would. mode: "none", "send" or "full"."""
        if mode not in ("none", "send", "full"):
            raise invalid("mode is none, send or full")
        self.service.pause(self.service.accounts.get(handle), mode)

    def set_status(self, handle: str, status: str) -> None:
        """Moderate an agent. status: "active", "restricted" or "suspended"."""
        if status not in ("active", "restricted", "suspended"):
            raise invalid("status is active, restricted or suspended")
        self.service.set_status(self.service.accounts.get(handle), status)

    # --- conversations and messages ---

    def conversation(self, one: str, other: str) -> str:
        """Id of the direct conversation of two agents, made if need be."""
        accounts = self.service.accounts
        return self.service.conversations.open_direct(accounts.get(one), accounts.get(other)).id

    def create_group(self, creator: str, name: str, members: Sequence[str]) -> str:
        """Make a group whose members need not accept first, and no message tells of it. Returns its id."""
        accounts, conversations = self.service.accounts, self.service.conversations
        request = wire.CreateGroupRequest(name=name)
        group = conversations.create_group(accounts.get(creator), request)
        for handle in members:
            conversations.join(group, accounts.get(handle))
        return group.id

    def post(self, sender: str, to: str, *texts: str) -> list[Stored]:
        """Store and push texts at once. to: a handle, or the id of a conversation that the sender is in."""
        return self._post(sender, to, [Draft(wire.MessageContent(text=text)) for text in texts])

    async def post_many(
        self, sender: str, to: str, texts: Sequence[str], client_msg_ids: Sequence[str] = ()
    ) -> list[Stored]:
        """The same in bulk: in chunks, waiting for the recipients' sockets to keep up.

        client_msg_ids: one per text, or none. A text whose id this sender has used before is left out.
        """
        account = self.service.accounts.get(sender)
        ids = list(client_msg_ids) or [""] * len(texts)
        drafts = [
            Draft(wire.MessageContent(text=text), client_msg_id=id_)
            for text, id_ in zip(texts, ids, strict=True)
            if not id_ or self.service.mailbox.repeated(account, id_) is None
        ]
        stored: list[Stored] = []
        for start in range(0, len(drafts), _CHUNK):
            stored += self._post(sender, to, drafts[start : start + _CHUNK])
            await self.service.sockets.until_writable(stored[-1].recipients)
            await asyncio.sleep(0)
        return stored

    def reset_conversation(self, conversation: str) -> int:
        """Forget a conversation's history and number it from 1 again. Returns how many messages are gone."""
        return self.service.mailbox.reset(self._find(conversation))

    def undelivered(self, handle: str) -> int:
        """How many envelopes wait for an agent."""
        return self.service.mailbox.undelivered(self.service.accounts.get(handle).number)

    def _post(self, sender: str, to: str, drafts: list[Draft]) -> list[Stored]:
        account = self.service.accounts.get(sender)
        stored = self.service.sending.store(self.service.target(account, to), account, drafts)
        self.service.counters["messages.stored"] += len(stored)
        self.service.sockets.push(stored)
        return stored

    def _find(self, conversation: str) -> Conversation:
        found = self.service.conversations.find(conversation)
        if found is None:
            raise not_found(ErrorCode.CONVERSATION_NOT_FOUND, "No such conversation")
        return found

    # --- sockets ---

    def connections(self, handle: str | None = None) -> int:
        """How many sockets are there, of one agent or of all."""
        sockets = self.service.sockets
        return sockets.count() if handle is None else len(sockets.of(self.service.accounts.get(handle)))

    def afflict(self, action: Action, handle: str | None = None, *, code: int = 1001) -> int:
        """Let something befall the live sockets of one agent, or of all, now. Returns how many there were.

        action: close (with `code`), cut, half_open, slow_reader, no_pong or deaf.
        """
        if action not in _SOCKET_ACTIONS:
            raise invalid(f"{action.value} does not befall a socket")
        sockets = self.service.sockets
        struck = sockets.all() if handle is None else sockets.of(self.service.accounts.get(handle))
        for connection in struck:
            afflict(connection, Fault(action=action, code=code))
            self.faults.fired[f"socket.{action.value}"] += 1
        return len(struck)

    # --- ledgers and counters ---

    def ledger(self, conversation: str | None = None, *, after: int = 0, limit: int | None = None) -> list[LedgerRow]:
        """Every message ever stored, in the order of storing, behind a position. limit: None for all."""
        found = None if conversation is None else self._find(conversation)
        return self.service.mailbox.ledger(found, after, -1 if limit is None else limit)

    def content(self, row: LedgerRow) -> wire.MessageContent:
        """What the message of a ledger's row holds."""
        payload = self.service.mailbox.repeated(self.service.accounts.get(row.sender), row.client_msg_id)
        assert payload is not None, row
        return msgspec.json.decode(payload, type=wire.MessageRow).content or wire.MessageContent()

    def counters(self) -> dict[str, int]:
        """Everything that was counted: frames by type, acks, REST calls by route, connections, faults by name."""
        counted = dict(self.service.counters)
        counted |= {f"faults.{name}": count for name, count in self.faults.fired.items()}
        return counted | {"connections.open": self.connections(), "frames.pushed": self.frames_pushed}

    @property
    def frames_pushed(self) -> int:
        """`message.new` frames written so far, to all sockets, live and drained."""
        return self.service.sockets.frames_pushed

    async def until_frames(self, count: int) -> None:
        """Wait until that many `message.new` frames have been written."""
        await self.service.sockets.until_pushed(count)

    async def restart(self, down_s: float = 0.0) -> None:
        """Close every connection, refuse new ones for a while, then listen on the same port again."""
        raise NotImplementedError

    def restart_soon(self, down_s: float = 0.0) -> None:
        """The same, from within a call to the hub."""
        raise NotImplementedError


# --- the same over HTTP ---


class _NewAgent(msgspec.Struct, frozen=True, kw_only=True):
    handle: str
    display_name: str | None = None
    description: str | None = None


class _NewFaults(msgspec.Struct, frozen=True, kw_only=True):
    plan: FaultPlan | None = None
    rules: list[Rule] = []
    keep: bool = False


class _Posts(msgspec.Struct, frozen=True, kw_only=True):
    sender: str
    to: str
    texts: list[str]
    client_msg_ids: list[str] = []


class _Affliction(msgspec.Struct, frozen=True, kw_only=True):
    handle: str | None = None
    action: Action = Action.CLOSE
    code: int = 1001


class _Reset(msgspec.Struct, frozen=True, kw_only=True):
    conversation: str


class _Restart(msgspec.Struct, frozen=True, kw_only=True):
    down_s: float = 0.0


class _NewGroup(msgspec.Struct, frozen=True, kw_only=True):
    creator: str
    name: str
    members: list[str]


class _Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Body of pause (value: mode) and status (value: status)."""

    handle: str
    value: str


async def _create_agent(control: Control, request: web.Request) -> Answer:
    wanted = await _read(request, _NewAgent)
    key = control.create_agent(wanted.handle, display_name=wanted.display_name, description=wanted.description)
    return answer({"handle": wanted.handle, "api_key": key}, 201)


async def _rotate_key(control: Control, request: web.Request) -> Answer:
    handle = (await _read(request, _NewAgent)).handle
    return answer({"handle": handle, "api_key": control.rotate_key(handle)})


async def _create_group(control: Control, request: web.Request) -> Answer:
    wanted = await _read(request, _NewGroup)
    group = control.create_group(wanted.creator, wanted.name, wanted.members)
    return answer({"conversation": group}, 201)


async def _set_faults(control: Control, request: web.Request) -> Answer:
    wanted = await _read(request, _NewFaults)
    if wanted.keep:
        control.faults.add(*wanted.rules)
    else:
        control.faults.replace(wanted.plan, wanted.rules)
    return answer({"ok": True})


async def _post_many(control: Control, request: web.Request) -> Answer:
    posts = await _read(request, _Posts)
    if posts.client_msg_ids and len(posts.client_msg_ids) != len(posts.texts):
        raise invalid("client_msg_ids is empty, or as long as texts")
    stored = await control.post_many(posts.sender, posts.to, posts.texts, posts.client_msg_ids)
    return answer(
        {
            "conversation": stored[0].conversation if stored else None,
            "stored": len(stored),
            "first_seq": stored[0].seq if stored else None,
            "last_seq": stored[-1].seq if stored else None,
        }
    )


async def _afflict(control: Control, request: web.Request) -> Answer:
    wanted = await _read(request, _Affliction)
    return answer({"sockets": control.afflict(wanted.action, wanted.handle, code=wanted.code)})


async def _reset(control: Control, request: web.Request) -> Answer:
    return answer({"gone": control.reset_conversation((await _read(request, _Reset)).conversation)})


async def _restart(control: Control, request: web.Request) -> Answer:
    control.restart_soon((await _read(request, _Restart)).down_s)
    return answer({"ok": True})


async def _pause(control: Control, request: web.Request) -> Answer:
    wanted = await _read(request, _Setting)
    control.pause(wanted.handle, wanted.value)
    return answer({"ok": True})


async def _status(control: Control, request: web.Request) -> Answer:
    wanted = await _read(request, _Setting)
    control.set_status(wanted.handle, wanted.value)
    return answer({"ok": True})


async def _ledger(control: Control, request: web.Request) -> Answer:
    limit = min(_query_int(request, "limit", _LEDGER_LIMIT), _LEDGER_LIMIT)
    rows = control.ledger(request.query.get("conversation"), after=_query_int(request, "after", 0), limit=limit)
    following = rows[-1].position if rows and len(rows) == limit else None
    return answer({"rows": rows, "next": following})


async def _counters(control: Control, request: web.Request) -> Answer:
    return answer(control.counters())


async def _frames(control: Control, request: web.Request) -> Answer:
    return answer({"frames": control.frames_pushed})


async def _wait_frames(control: Control, request: web.Request) -> Answer:
    """Answers when the n-th frame has been written, or with the number so far after a minute."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WAIT_MAX_S):
            await control.until_frames(_query_int(request, "n", 1))
    return answer({"frames": control.frames_pushed})


ROUTES: list[tuple[str, str, Callable[[Control, web.Request], Awaitable[Answer]]]] = [
    ("POST", "/hub/v1/agents", _create_agent),
    ("POST", "/hub/v1/rotate", _rotate_key),
    ("POST", "/hub/v1/groups", _create_group),
    ("POST", "/hub/v1/faults", _set_faults),
    ("POST", "/hub/v1/messages", _post_many),
    ("POST", "/hub/v1/close", _afflict),
    ("POST", "/hub/v1/reset", _reset),
    ("POST", "/hub/v1/restart", _restart),
    ("POST", "/hub/v1/pause", _pause),
    ("POST", "/hub/v1/status", _status),
    ("GET", "/hub/v1/ledger", _ledger),
    ("GET", "/hub/v1/counters", _counters),
    ("GET", "/hub/v1/frames", _frames),
    ("GET", "/hub/v1/frames/wait", _wait_frames),
]


def mount_control(app: web.Application, control: Control) -> None:
    """Add the /hub/v1 routes. Faults never touch them."""
    for method, path, work in ROUTES:
        app.router.add_route(method, path, _endpoint(control, work))


def _endpoint(control: Control, work: Callable[[Control, web.Request], Awaitable[Answer]]) -> Endpoint:
    async def serve(request: web.Request) -> web.StreamResponse:
        try:
            _check_local(request)
            made = await work(control, request)
        except ApiError as error:
            made = error.answer()
        return respond(request, made)

    return serve


def _check_local(request: web.Request) -> None:
    # A page elsewhere gives itself away by its origin, or by the name that it had lead here.
    if not (is_loopback(request.remote) and is_loopback(request.url.host)) or "origin" in request.headers:
        raise ApiError(403, ErrorCode.FORBIDDEN, "Only programs on this machine may control the hub")


async def _read(request: web.Request, type_: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=type_)
    except msgspec.DecodeError as error:
        raise invalid(str(error)) from None


def _query_int(request: web.Request, name: str, default: int) -> int:
    value = request.query.get(name, str(default))
    if not (value.isascii() and value.isdigit()):
        raise invalid(f"{name} is not a number")
    return int(value)
