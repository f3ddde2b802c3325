"""Errors that cross from one process to another: taken apart there, made again here.

What is made again is of the same kind where the kind decides something (RetryLater, GiveUp, NotSent, Unavailable,
NotConnected, Refused, DeadlinePassed), has the name and the text that it had, and tells the traceback of the process
that it was raised in as its cause.

Always true: making one up imports nothing of the plugin's. Texts and tracebacks are cut, and hold no key that this
process knows.
Not here: the pipe (pipe.py), what follows from an error (the dispatcher).
"""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import msgspec

from agentd import logs
from agentd.errors import GiveUp, NotConnected, NotSent, Refused, RetryLater, Unavailable
from agentd.host.turns import DeadlinePassed

_TEXT_MAX_CHARS = 10_000  # of an error's own words, which may quote anything
_TRACE_MAX_CHARS = 20_000  # more than a dead letter keeps


class Elsewhere(Exception):
    """An error whose own class is known to the other process alone; a subclass of it bears the same name."""


class RemoteTraceback(Exception):
    """Where an error was raised in the other process, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """An error taken apart. kind: the class that it is made again as. handler: which one failed, by its number."""

    kind: str
    module: str
    name: str
    text: str
    trace: str
    fields: dict[str, Any] = {}
    handler: int | None = None


_KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (DeadlinePassed, RetryLater, GiveUp, NotSent, NotConnected, Unavailable, Refused, Elsewhere)
}


def taken_apart(error: BaseException, handler: int | None = None) -> Fault:
    """The error in values."""
    kind, fields = _known(error)
    return Fault(
        kind=kind.__name__,
        module=type(error).__module__,
        name=type(error).__qualname__,
        text=_told(_text(error))[:_TEXT_MAX_CHARS],
        # The innermost frames come last, and say the most.
        trace=_told("".join(traceback.format_exception(error)))[-_TRACE_MAX_CHARS:],
        fields=fields,
        handler=handler,
    )


def made_again(fault: Fault, overrun: asyncio.Future[Any] | None = None) -> BaseException:
    """The error that was taken apart. overrun: of a deadline that passed while its thread runs on."""
    kind = _KINDS[fault.kind]
    if fault.name != kind.__qualname__:
        name = fault.name.rpartition(".")[2]
        kind = type(name, (kind,), {"__module__": fault.module, "__qualname__": fault.name})
    error = kind.__new__(kind)
    error.args = (fault.text,)
    vars(error).update(fault.fields)
    if isinstance(error, DeadlinePassed):
        error.overrun = overrun
    error.__cause__ = RemoteTraceback(fault.trace)
    return error


def _known(error: BaseException) -> tuple[type[BaseException], dict[str, Any]]:
    """The class that decides its fate, and what that class carries."""
    try:
        if isinstance(error, RetryLater):
            whole_plugin = bool(error.whole_plugin)
            return RetryLater, {
                "after_s": float(error.after_s),
                "reason": _told(str(error.reason)),
                "whole_plugin": whole_plugin,
            }
        if isinstance(error, GiveUp):
            return GiveUp, {"reason": _told(str(error.reason))}
        if isinstance(error, NotSent):
            return NotSent, {"state": _told(str(error.state))}
        if isinstance(error, Unavailable):
            wait_s = None if error.retry_after_s is None else float(error.retry_after_s)
            kind = NotConnected if isinstance(error, NotConnected) else Unavailable
            return kind, {"retry_after_s": wait_s, "request_id": _told_or_none(error.request_id)}
        if isinstance(error, Refused):
            return Refused, {
                "status": int(error.status),
                "code": _told(str(error.code)),
                "message": _told(str(error.message))[:_TEXT_MAX_CHARS],
                "details": msgspec.msgpack.decode(msgspec.msgpack.encode(error.details)),
                "request_id": _told_or_none(error.request_id),
            }
    except (
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ):  # a fate that makes no sense is an error like any other
        return Elsewhere, {}
    return (DeadlinePassed if isinstance(error, DeadlinePassed) else Elsewhere), {}


def _told(text: str) -> str:
    # Here, since the keys that a worker has read are known to it alone.
    return logs.encodable(logs.redacted(text))


def _told_or_none(text: str | None) -> str | None:
    return None if text is None else _told(text)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "its text cannot be told"
