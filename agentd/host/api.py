"""`ctx.api`: the calls of the identity's platform, as one turn makes them.

    turn ── a name, arguments, a key ──> port ──> the platform

A `Port` answers for one identity: `Carrier` where the platform is at hand, another one in a worker (which asks the
daemon) and in tests. What can be called is read off `agentd.apis`.

Always true: a call that changes something has its key before anything is awaited, derived from the turn's cause and its
place among the changing calls, so that a repeated turn repeats it; and what the turn is about is on disk before it
leaves. A turn that has ended calls nothing. The key of the identity never gets here.
Not here: how a call is asked and read (wire/), the network (transport/).
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import GenericAlias
from typing import Any, NamedTuple, Protocol, cast, get_args, get_origin, get_type_hints

from agentd import apis
from agentd.wire.platform import Call, Calls, InProgress, Request, Response, Say, Transfer

_IN_PROGRESS_MAX_S = 75.0  # AgentChat forgets a call that never ended after 60 s
_PAGE = 50
_OFFSET_MAX = 10_000  # AgentChat's directory goes no further


class Method(NamedTuple):
    """One call as `agentd.apis` has it. returns: what its answer is. once: carries a key. paged: is iterated over."""

    name: str
    signature: inspect.Signature
    returns: Any
    once: bool
    paged: bool


class Surface(NamedTuple):
    """All calls of a platform, by group and name."""

    platform: str
    groups: Mapping[str, Mapping[str, Method]]

    def method(self, name: str) -> Method:
        """A call by its whole name. Raises ValueError, with the nearest, for one that is not there."""
        group, _, method = name.partition(".")
        if method not in self.groups.get(group, {}):
            near = difflib.get_close_matches(
                name, [each.name for all_ in self.groups.values() for each in all_.values()]
            )
            raise ValueError(f"{self.platform} has no call {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return self.groups[group][method]


def _surface(api: type[Any]) -> Surface:
    hints = get_type_hints(api)
    [platform] = get_args(hints.pop("platform"))
    return Surface(platform, {group: _methods(group, kind) for group, kind in hints.items()})


def _methods(group: str, kind: type[Any]) -> dict[str, Method]:
    methods = {}
    for name, function in vars(kind).items():
        if not name.startswith("_") and inspect.isfunction(function):
            returns = get_type_hints(function)["return"]
            paged = get_origin(returns) is AsyncIterator
            if paged:
                returns = GenericAlias(tuple, (*get_args(returns), ...))
            full = f"{group}.{name}"
            methods[name] = Method(full, inspect.signature(function), returns, full in apis.ONCE, paged)
    return methods


SURFACES = {"agentchat": _surface(apis.AgentChatApi)}
"""By the platform's name."""


class Port(Protocol):
    """Makes calls for one identity. platform: names the surface."""

    platform: str

    async def ask(self, name: str, arguments: Mapping[str, Any], key: str | None) -> Any:
        """The answer. Raises as `agentd.apis` says."""
        ...


class Line(Protocol):
    """The way to one identity's platform."""

    async def perform(self, request: Request) -> Response:
        """See transport.rest.Rest."""
        ...

    async def transfer(self, transfer: Transfer) -> Response:
        """See transport.rest.Rest."""
        ...

    def say(self, frame: bytes) -> bool:
        """Write a frame to the socket; False if there is none, or no room."""
        ...


class Carrier:
    """Carries calls out. See Port."""

    def __init__(self, calls: Calls, line: Line) -> None:
        self.platform = calls.platform
        self._calls = calls
        self._line = line

    async def ask(self, name: str, arguments: Mapping[str, Any], key: str | None) -> Any:
        """See Port."""
        step: Any = self._calls.call(name, arguments, key)
        if isinstance(step, Say):
            return self._line.say(step.frame)
        while isinstance(step, Call):
            step = await self._carry_out(step)
        return step

    async def _carry_out(self, call: Call[Any]) -> Any:
        ask, loop = call.ask, asyncio.get_running_loop()
        until = loop.time() + _IN_PROGRESS_MAX_S
        while True:
            try:
                if isinstance(ask, Transfer):
                    return call.read(await self._line.transfer(ask))
                return call.read(await self._line.perform(ask))
            except InProgress as running:
                wait_s = running.retry_after_s or 1.0
                if loop.time() + wait_s > until:
                    raise
            await asyncio.sleep(wait_s)


class Turn(Protocol):
    """The turn that calls."""

    def next_call_key(self) -> str:
        """Of a call that changes something. Raises RuntimeError if the turn has ended."""
        ...

    def must_be_open(self) -> None:
        """Raises RuntimeError if the turn has ended."""
        ...

    async def says_now(self) -> None:
        """Something of this turn is about to be seen."""
        ...


def api_of(port: Port, turn: Turn) -> apis.Api:
    """What a handler calls."""
    return cast(apis.Api, _Api(SURFACES[port.platform], port, turn))


class _Api:
    """The groups of a surface."""

    def __init__(self, surface: Surface, port: Port, turn: Turn) -> None:
        self.platform = surface.platform
        self._surface = surface
        self._port = port
        self._turn = turn

    def __getattr__(self, group: str) -> _Group:
        methods = self._surface.groups.get(group)
        if methods is None:
            raise AttributeError(f"{self.platform} has no ctx.api.{group}; it has {', '.join(self._surface.groups)}")
        return _Group(group, methods, self._port, self._turn)


class _Group:
    """The calls of a group."""

    def __init__(self, name: str, methods: Mapping[str, Method], port: Port, turn: Turn) -> None:
        self._name = name
        self._methods = methods
        self._port = port
        self._turn = turn

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = self._methods.get(name)
        if method is None:
            raise AttributeError(f"there is no ctx.api.{self._name}.{name}; there is {', '.join(self._methods)}")

        def call(*args: Any, **kwargs: Any) -> Awaitable[Any] | AsyncIterator[Any]:
            arguments = method.signature.bind(self, *args, **kwargs).arguments
            del arguments["self"]
            self._turn.must_be_open()
            if method.paged:
                return self._pages(method, arguments)
            return self._ask(method, arguments, self._turn.next_call_key() if method.once else None)

        return call

    async def _ask(self, method: Method, arguments: Mapping[str, Any], key: str | None) -> Any:
        if key is not None:
            await self._turn.says_now()
        return await self._port.ask(method.name, arguments, key)

    async def _pages(self, method: Method, arguments: Mapping[str, Any]) -> AsyncIterator[Any]:
        offset = 0
        while offset <= _OFFSET_MAX:
            self._turn.must_be_open()
            page = await self._port.ask(method.name, {**arguments, "offset": offset, "limit": _PAGE}, None)
            if not page:
                return
            for row in page:
                yield row
            offset += len(page)


class NoChanges:
    """A port of which nothing comes: it lets reading calls through. See Port."""

    def __init__(self, port: Port) -> None:
        self.platform = port.platform
        self._port = port

    async def ask(self, name: str, arguments: Mapping[str, Any], key: str | None) -> Any:
        """See Port. Raises RuntimeError for a call that changes something."""
        if key is not None or SURFACES[self.platform].method(name).returns is bool:
            raise RuntimeError(f"ctx.api.{name} is not made in a rehearsal, since it would change something")
        return await self._port.ask(name, arguments, None)


def no_api(identity: str) -> Port | None:
    """Where nobody has said what may be called."""
    return None
