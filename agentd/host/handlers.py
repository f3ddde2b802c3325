"""What a plugin declared, checked once and made ready to match events.

Always true: whatever is wrong in a declaration raises PluginLoadError with file, line and remedy before any event is
seen. Matching reads the event only.
Not here: calling (turns.py), loading modules (lifecycle.py).
"""

from __future__ import annotations

import fnmatch
import inspect
import re
import typing
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

from agentd.core.events import Event, Signal, Timer
from agentd.core.stretches import Batch
from agentd.errors import PluginLoadError
from agentd.plugin import Declared, Plugin

# Who a signal is about has another name in each.
_SENDER_FIELDS = ("sender", "handle", "reader", "inviter", "deleted_by")
_FIELD_OF = {
    "identity": ("identity",),
    "conversation": ("conversation",),
    "sender": _SENDER_FIELDS,
    "text": ("text",),
    "mentioned": ("mentioned",),
    "direct": ("direct",),
    "kind": ("kind",),
}
_HANDLER_REMEDY = "write `async def {name}(event: {event}, ctx: Context) -> None`"


_ON_DEAD = ("skip", "hold", "detach")

BATCH_MAX = 1_000
"""Events in one batch at most: a turn's events lie in memory together, however long it takes."""


class Filter(NamedTuple):
    """One condition. `name`, `wanted`: as the author wrote it. `passes`: called with the event.

    field: of the event, that it looks at; "" for the author's own function.
    """

    name: str
    wanted: object
    passes: Callable[[Any], object]
    field: str = ""


class Verdict(NamedTuple):
    """What one filter says of one event. had: what the event has there; None where the author's function decides.

    passed: None where it was not asked, or raised `error`.
    """

    name: str
    wanted: object
    had: object
    passed: bool | None
    error: Exception | None = None


class Handler:
    """One function of a plugin with the events it wants. `place`: its file and line.

    `timeout_s`, `attempts`, `on_dead`: its own, or None. threaded: a `def`, which must not run on the event loop.
    batch: it takes so many events at once, or None.
    """

    __slots__ = (
        "attempts",
        "batch",
        "event",
        "every_s",
        "filters",
        "function",
        "is_open",
        "name",
        "on_dead",
        "own",
        "passes",
        "place",
        "threaded",
        "timeout_s",
    )

    def __init__(self, plugin: str, declared: Declared) -> None:
        self.function = declared.function
        self.name = getattr(declared.function, "__qualname__", repr(declared.function))
        self.place = place_of(declared.function)
        self.event = declared.event
        self.own = declared.own
        self.timeout_s = declared.timeout_s
        self.attempts = declared.attempts
        self.on_dead = declared.on_dead
        self.every_s = declared.every_s
        self.threaded = not is_async(declared.function)
        _check_event(plugin, self)
        _check_signature(plugin, self, declared)
        _check_limits(plugin, self)
        _check_batch(plugin, self, declared)
        self.batch = None if declared.batch is None else Batch(declared.batch, declared.settle_s or 0.0)
        self.filters = tuple(_filter(plugin, self, name, wanted) for name, wanted in declared.filters.items())
        self.passes = tuple(filter_.passes for filter_ in self.filters)
        if self.event is Timer:
            self.passes += (self._is_its_timer,)
        # The commonest handler of all is not asked about each event.
        self.is_open = not self.passes

    def _is_its_timer(self, timer: Timer) -> bool:
        return timer.name == ("" if self.every_s is None else self.name)

    def matches(self, event: Event | Signal) -> bool:
        """Whether it wants this event, which is of its type. Raises what a `where` raises."""
        if not self.own and isinstance(event, Event) and event.own:
            return False
        return self.is_open or all(passes(event) for passes in self.passes)

    def explain(self, event: Event) -> tuple[Verdict, ...]:
        """What each filter says of an event; it matches if all passed. Never raises.

        That it is of another type, or this identity's own, is told as a filter of that name. The author's `where` is
        asked only where matching would ask it: behind a refusal it may not be ready for the event.
        """
        if not isinstance(event, self.event):
            return (Verdict("event", self.event.__name__, type(event).__name__, False),)
        verdicts = [Verdict("own", False, True, False)] if event.own and not self.own else []
        for filter_ in self.filters:
            refused = any(verdict.passed is not True for verdict in verdicts)
            verdicts.append(_verdict(filter_, event, ask_author=not refused))
        return tuple(verdicts)


class Matches(Protocol):
    """A plugin, as far as matching goes."""

    handlers: Handlers


class Handlers:
    """All handlers of a plugin, in the order of definition."""

    def __init__(self, plugin: str, declared: Iterable[Declared]) -> None:
        self.all = tuple(Handler(plugin, each) for each in declared)
        self._by_type: dict[type[Any], tuple[Handler, ...]] = {}

    def match(self, event: Event | Signal) -> tuple[Handler, ...]:
        """Those that want this event, a function that was declared twice only once. Raises what a `where` raises."""
        kind = type(event)
        wanting = self._by_type.get(kind)
        if wanting is None:
            # Timers are a plugin's own business, and go to whom they are meant for.
            wanting = tuple(
                each for each in self.all if issubclass(kind, each.event) and (kind is not Timer or each.event is Timer)
            )
            self._by_type[kind] = wanting
        if not wanting:
            return ()
        if len(wanting) == 1:
            return wanting if wanting[0].matches(event) else ()
        matched: dict[Callable[..., Any], Handler] = {}
        for handler in wanting:
            if handler.function not in matched and handler.matches(event):
                matched[handler.function] = handler
        return tuple(matched.values())


def matching(plugin: Matches, event: Event | Signal) -> tuple[Handler, ...] | None:
    """The handlers of a plugin that want an event; None if a filter raised.

    The plugin's turn will see it raise again, as a failure like any other.
    """
    try:
        return plugin.handlers.match(event)
    except Exception:
        return None


def _verdict(filter_: Filter, event: Event, *, ask_author: bool) -> Verdict:
    had = getattr(event, filter_.field) if filter_.field else None
    if not filter_.field and not ask_author:
        return Verdict(filter_.name, filter_.wanted, had, None)
    try:
        return Verdict(filter_.name, filter_.wanted, had, bool(filter_.passes(event)))
    except Exception as error:  # the author's code: its lane counts it as a failure
        return Verdict(filter_.name, filter_.wanted, had, None, error)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; a callable object is judged by its `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def place_of(function: Callable[..., Any]) -> str:
    """File and line of a function, for people to find it."""
    code = code_of(function)
    return f"{Path(code.co_filename)}:{code.co_firstlineno}" if code is not None else repr(function)


def code_of(function: Callable[..., Any]) -> Any | None:
    """The code object that shows on the stack while this function runs, or None for what is not Python."""
    plain = inspect.unwrap(function)
    plain = getattr(plain, "func", plain)  # a functools.partial
    return getattr(plain, "__code__", None) or getattr(type(plain).__call__, "__code__", None)


def check_hooks(name: str, plugin: Plugin[Any]) -> None:
    """Refuse setups, teardowns and middlewares that could not be called. Raises PluginLoadError."""
    for hook in (*plugin.setups, *plugin.teardowns):
        if not _takes(hook, 1):
            _refuse(name, place_of(hook), "must take one argument; write `async def setup(ctx: PluginContext) -> None`")
    for function in plugin.middlewares:
        if not inspect.isasyncgenfunction(function) or not _takes(function, 2):
            _refuse(
                name,
                place_of(function),
                "a middleware is an async generator of two arguments with one yield; "
                "write `async def around(event, ctx): ...; yield; ...`",
            )


def _refuse(plugin: str, place: str, problem: str) -> NoReturn:
    raise PluginLoadError(f"{place}: plugin {plugin}: {problem}")


def _check_event(plugin: str, handler: Handler) -> None:
    if not (isinstance(handler.event, type) and issubclass(handler.event, (Event, Signal))):
        _refuse(
            plugin,
            handler.place,
            f"{handler.name} is registered for {handler.event!r}, which is no event; "
            "name one of those in agentd.plugin, such as Message",
        )


def _check_signature(plugin: str, handler: Handler, declared: Declared) -> None:
    remedy = _HANDLER_REMEDY.format(name=handler.name.rsplit(".", 1)[-1], event=handler.event.__name__)
    if inspect.isgeneratorfunction(handler.function) or inspect.isasyncgenfunction(handler.function):
        _refuse(plugin, handler.place, f"{handler.name} is a generator, which cannot be a handler; {remedy}")
    if not _takes(handler.function, 2):
        _refuse(plugin, handler.place, f"{handler.name} must take two arguments, the event and the context; {remedy}")
    wanted = _hint_of_first(handler.function)
    if isinstance(wanted, type) and declared.batch is not None and issubclass(wanted, (Event, Signal)):
        _refuse(
            plugin,
            handler.place,
            f"{handler.name} takes one {wanted.__name__}, but batch= gives several; "
            f"annotate it as tuple[{wanted.__name__}, ...]",
        )
    if isinstance(wanted, type) and declared.batch is None and not issubclass(handler.event, wanted):
        _refuse(
            plugin,
            handler.place,
            f"{handler.name} takes {wanted.__name__}, but is registered for {handler.event.__name__}; {remedy}",
        )


def _check_limits(plugin: str, handler: Handler) -> None:
    timeout_s, attempts = handler.timeout_s, handler.attempts
    if handler.every_s is not None and not (isinstance(handler.every_s, (int, float)) and handler.every_s > 0):
        _refuse(
            plugin, handler.place, f'the interval of {handler.name}: give "30s", "5m", "2h", "1d" or seconds above 0'
        )
    if handler.on_dead not in (None, *_ON_DEAD):
        _refuse(plugin, handler.place, f"on_dead={handler.on_dead!r} of {handler.name}: give one of {_ON_DEAD}")
    if timeout_s is not None and not (isinstance(timeout_s, (int, float)) and timeout_s > 0):
        _refuse(plugin, handler.place, f"timeout_s={timeout_s!r} of {handler.name}: give seconds above 0")
    if attempts is not None and not (isinstance(attempts, int) and attempts >= 1):
        _refuse(plugin, handler.place, f"attempts={attempts!r} of {handler.name}: give a number from 1 on")


def _check_batch(plugin: str, handler: Handler, declared: Declared) -> None:
    size, settle_s = declared.batch, declared.settle_s
    if size is None:
        return
    if not (isinstance(size, int) and 1 <= size <= BATCH_MAX):
        _refuse(plugin, handler.place, f"batch={size!r} of {handler.name}: give a number from 1 to {BATCH_MAX}")
    if not (isinstance(settle_s, (int, float)) and settle_s >= 0):
        _refuse(plugin, handler.place, f"settle_s={settle_s!r} of {handler.name}: give seconds, 0 or more")
    if not issubclass(handler.event, Event):
        _refuse(
            plugin, handler.place, f"batch= of {handler.name}: a {handler.event.__name__} comes alone; leave it out"
        )


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _hint_of_first(function: Callable[..., Any]) -> object:
    plain = inspect.unwrap(function)
    try:
        hints = typing.get_type_hints(plain)
        first = next(iter(inspect.signature(plain).parameters))
    except Exception:  # names that only a type checker imports, or no names at all: the author's own business
        return None
    return hints.get(first)


def _filter(plugin: str, handler: Handler, name: str, wanted: object) -> Filter:
    if name == "where":
        if not callable(wanted) or not _takes(wanted, 1):
            _refuse(plugin, handler.place, f"where={wanted!r} of {handler.name}: give a function of one argument")
        return Filter(name, wanted, wanted)
    fields = getattr(handler.event, "__struct_fields__", ())
    field = next((field for field in _FIELD_OF[name] if field in fields), None)
    if field is None:
        _refuse(
            plugin, handler.place, f"{name}= of {handler.name}: {handler.event.__name__} has no {name}; leave it out"
        )
    try:
        return Filter(name, wanted, _MAKERS[name](field, wanted), field)
    except (TypeError, re.error) as error:
        _refuse(plugin, handler.place, f"{name}={wanted!r} of {handler.name}: {error}")


def _by_name(field: str, wanted: object) -> Callable[[Any], object]:
    if isinstance(wanted, str):
        wanted = (wanted,)
    if not isinstance(wanted, Collection) or not all(isinstance(each, str) for each in wanted):
        raise TypeError("give a name, a glob, or a set of them")
    # A handle is the same in any case, as it is for `ctx.send`; platforms tell it in lower case.
    of_handle = field in _SENDER_FIELDS
    bare = [(each.lower() if of_handle else each).removeprefix("@") for each in wanted]
    exact = frozenset(each for each in bare if not _is_glob(each))
    globs = [re.compile(fnmatch.translate(each)).match for each in bare if _is_glob(each)]

    def passes(event: Any) -> bool:
        value = (getattr(event, field) or "").removeprefix("@")
        if of_handle:
            value = value.lower()
        return value in exact or any(match(value) for match in globs)

    return passes


def _is_glob(name: str) -> bool:
    return any(character in name for character in "*?[")


def _by_text(field: str, wanted: object) -> Callable[[Any], object]:
    if not isinstance(wanted, (str, re.Pattern)) or isinstance(getattr(wanted, "pattern", ""), bytes):
        raise TypeError("give a regular expression as text")
    search = re.compile(wanted).search
    return lambda event: search(getattr(event, field) or "")


def _by_flag(field: str, wanted: object) -> Callable[[Any], object]:
    if not isinstance(wanted, bool):
        raise TypeError("give True or False")
    return lambda event: getattr(event, field) is wanted


_MAKERS: dict[str, Callable[[str, object], Callable[[Any], object]]] = {
    "identity": _by_name,
    "conversation": _by_name,
    "sender": _by_name,
    "kind": _by_name,
    "text": _by_text,
    "mentioned": _by_flag,
    "direct": _by_flag,
}
