"""What the log says and how: the fields beside a line, its form, and the keys that it never shows.

The interface is the standard library's `logging`, so that plugins and libraries speak the same way. `bound` adds
fields to every line inside it; `extra={"conversation": ...}` adds them to one.

    on a terminal              one line to read, coloured unless NO_COLOR is set
    on a pipe or in a file     one JSON object per line
    stderr is the journal      journald's own protocol, fields as AGENTD_IDENTITY and so on, levels kept

Always true: everything that leaves through here, tracebacks included, has passed `redacted`. A line is one line: text
from a peer cannot start another, nor steer a terminal. Logging waits for no reader (outlet.py).
Not here: which level, which is configured.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TextIO

from agentd.outlet import Outlet

FIELDS = ("identity", "conversation", "plugin", "event_id")
"""What a line may be about. A field is set by `bound`, or for one line by `extra`, which wins."""

_JOURNAL_SOCKET = "/run/systemd/journal/socket"
_JOURNAL_VALUE_MAX_CHARS = 30_000  # all values of an entry must fit into one datagram, whose usual limit is 208 KiB
BACKLOG_MAX_BYTES = 1_048_576
"""What is kept of the log while nobody reads it, unless `configure` is told otherwise."""

_CONCEALED_MAX = 1_000  # keys remembered; with more, those rotated out long ago are forgotten first
_REDACTED = "[redacted]"
_KEY_LIKE = r"(?<![A-Za-z0-9])ac_[A-Za-z0-9_\-]{8,}|(?i:(?<=bearer )[^\s\"',;]+)"
# Control characters, further line ends, what turns the direction of writing around, and halves of characters, which no
# stream takes.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}

# These log every statement or frame at debug level, content included: our own lines say what happened instead.
_CHATTY = ("aiohttp", "aiosqlite", "asyncio", "urllib3", "websockets")

_bound: ContextVar[Mapping[str, str]] = ContextVar("agentd_log_fields", default={})  # noqa: B039 -- never changed


@contextlib.contextmanager
def bound(**fields: str) -> Iterator[None]:
    """Every line logged inside, tasks started there included, carries these fields. Names: those in FIELDS."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


class _Concealed:
    """The keys that were named, and the pattern that finds them and what looks like one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, None] = {}
        self._pattern: re.Pattern[str] | None = None  # made when it is needed: a start names hundreds of keys in a row

    def add(self, key: str) -> None:
        if not key:
            return
        with self._lock:
            if key in self._keys:
                self._keys[key] = self._keys.pop(key)  # the newest again: a key that is in use is read now and then
                return
            while len(self._keys) >= _CONCEALED_MAX:
                del self._keys[next(iter(self._keys))]
            self._keys[key] = None
            self._pattern = None

    def blotted(self, text: str) -> str:
        return (self._pattern or self._made()).sub(_REDACTED, text)

    def _made(self) -> re.Pattern[str]:
        with self._lock:
            # The longest first, so that a key that begins with another is blotted out whole.
            known = sorted(self._keys, key=len, reverse=True)
            self._pattern = pattern = re.compile("|".join([*map(re.escape, known), _KEY_LIKE]))
        return pattern


_concealed = _Concealed()


def conceal(secret: str) -> None:
    """From now on this text is blotted out of every line, in any place of it."""
    _concealed.add(secret)


def redacted(text: str) -> str:
    """The text without the keys that were concealed, and without what looks like one."""
    return _concealed.blotted(text)


def encodable(text: str) -> str:
    """The text, with what is no text (half a surrogate pair, as in some file names) written out."""
    return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """The text on one line, with whatever could steer a terminal written out."""
    return _CONTROL.sub(lambda found: "\\n" if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def configure(
    level: str,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    backlog_max_bytes: int = BACKLOG_MAX_BYTES,
) -> None:
    """Send the log to `stream` (stderr) in the form that suits it, warnings and uncaught exceptions included.

    level: "debug", "info", "warning" or "error". environ: for JOURNAL_STREAM and NO_COLOR; the process's own if None.
    backlog_max_bytes: what is kept while nobody reads it; what comes then is dropped, counted, and told afterwards.
    A second call replaces what the first set up.
    """
    stream = stream or sys.stderr
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if getattr(handler, "_of_agentd", False)]:
        root.removeHandler(old)
        old.close()
    handler = _handler(stream, os.environ if environ is None else environ, backlog_max_bytes)
    vars(handler)["_of_agentd"] = True
    root.addHandler(handler)
    set_level(level)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def dropped() -> int:
    """Lines that are missing in the log since nobody read it."""
    ours = (getattr(handler, "outlet", None) for handler in logging.getLogger().handlers)
    return sum(outlet.dropped for outlet in ours if outlet is not None)


def set_level(level: str) -> None:
    """Log from this level on: "debug", "info", "warning" or "error"."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))


def _handler(stream: TextIO, environ: Mapping[str, str], backlog_max_bytes: int) -> logging.Handler:
    if is_journal(stream, environ):
        return JournalHandler(stream, backlog_max_bytes)
    if stream.isatty():
        return LineHandler(stream, HumanFormatter(colour=not environ.get("NO_COLOR")), backlog_max_bytes)
    return LineHandler(stream, JsonFormatter(), backlog_max_bytes)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream is the very one that systemd connected to its journal."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # a stream in memory has no descriptor
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def entry(record: logging.LogRecord) -> dict[str, str]:
    """A record as redacted texts: time (ISO 8601, UTC), level, logger, message, its fields, exception, stack."""
    try:
        message = record.getMessage()
    except Exception as error:  # a wrong format string must not cost the line
        message = f"{record.msg!r} (its arguments do not fit: {error})"
    texts = {
        "time": _iso(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": message,
    }
    fields = _bound.get()
    for name in FIELDS:
        value = getattr(record, name, None) or fields.get(name)
        if value is not None:
            texts[name] = str(value)
    if record.exc_info:
        texts["exception"] = _FORMATTER.formatException(record.exc_info)
    elif record.exc_text:  # of another process, which has the exception itself
        texts["exception"] = record.exc_text
    if record.stack_info:
        texts["stack"] = record.stack_info
    return {name: redacted(text) for name, text in texts.items()}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The entry as JSON."""
        import orjson  # here, since client verbs import this module and never log

        # A lone surrogate, as in a file name that is not UTF-8, is no JSON text.
        line = orjson.dumps({name: encodable(text) for name, text in entry(record).items()}).decode()
        return printable(line)  # what JSON may hold as it is, but a terminal should not see; the escapes are JSON's own


class HumanFormatter(logging.Formatter):
    """One line to read, and a traceback indented below it."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Local time, level, message, fields."""
        texts = entry(record)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = self._painted(f"{texts['level']:<8}", _COLOURS.get(record.levelno, ""))
        fields = " ".join(f"{name}={printable(texts[name])}" for name in FIELDS if name in texts)
        head = f"{clock} {level} {encodable(printable(texts['message']))}"
        lines = [head + (f"  {self._painted(encodable(fields), '2')}" if fields else "")]
        for name in ("exception", "stack"):
            lines += [f"    {encodable(printable(line))}" for line in texts.get(name, "").splitlines()]
        return "\n".join(lines)

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour else text


class LineHandler(logging.Handler):
    """Lines on a stream, in this form."""

    def __init__(self, stream: TextIO, form: logging.Formatter, backlog_max_bytes: int) -> None:
        super().__init__()
        self.setFormatter(form)
        self.outlet = Outlet(stream, backlog_max_bytes, lambda missing: form.format(_missed(missing)))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            self.outlet.put(self.format(record))
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait for its reader, but not for long."""
        self.outlet.flush()

    def close(self) -> None:
        """Nothing more is logged here."""
        self.outlet.close()
        super().close()


class JournalHandler(logging.Handler):
    """journald's native protocol: one datagram per entry. What the journal does not take goes to `fallback`."""

    def __init__(self, fallback: TextIO, backlog_max_bytes: int, address: str = _JOURNAL_SOCKET) -> None:
        super().__init__()
        self.outlet = Outlet(fallback, backlog_max_bytes, lambda missing: f"<4>{_missed(missing).getMessage()}")
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # A full journal must not hold up the event loop.
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one entry to the journal."""
        try:
            values = _journal_fields(record)
        except Exception:  # whoever logs something that cannot be shown goes on
            self.handleError(record)
            return
        try:
            self._socket.sendto(journal_datagram(values), self._address)
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                self.outlet.put(f"<{values['PRIORITY']}>{encodable(printable(values['MESSAGE']))}")

    def flush(self) -> None:
        """Wait for the reader of what the journal did not take, but not for long."""
        self.outlet.flush()

    def close(self) -> None:
        """Close the socket."""
        self.outlet.close()
        self._socket.close()
        super().close()


def _journal_fields(record: logging.LogRecord) -> dict[str, str]:
    texts = entry(record)
    return {
        # journalctl shows nothing of a message with a control character in it but its length.
        "MESSAGE": "\n".join(
            printable(line)
            for name in ("message", "exception", "stack")
            if name in texts
            for line in texts[name].split("\n")
        ),
        "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
        "SYSLOG_IDENTIFIER": "agentd",
        "LOGGER": texts["logger"],
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        **{f"AGENTD_{name.upper()}": texts[name] for name in FIELDS if name in texts},
    }


def journal_datagram(values: Mapping[str, str]) -> bytes:
    """Fields in journald's native form: KEY=value lines, or KEY, length and bytes where a value has a new line.

    Source: systemd's "Native Journal Protocol".
    """
    datagram = bytearray()
    for name, text in values.items():
        value = text[:_JOURNAL_VALUE_MAX_CHARS].encode(errors="backslashreplace")
        if b"\n" in value:
            datagram += name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            datagram += name.encode() + b"=" + value + b"\n"
    return bytes(datagram)


def _missed(lines: int) -> logging.LogRecord:
    told = "%d lines of the log are missing here: nobody read it (see log_backlog_max_bytes)"
    return logging.LogRecord("agentd.logs", logging.WARNING, "", 0, told, (lines,), None)


def _iso(unix_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s)) + f".{int(unix_s % 1 * 1000):03d}Z"


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("agentd").critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_value is not None:
        name = uncaught.thread.name if uncaught.thread else "?"
        logging.getLogger("agentd").error("uncaught exception in thread %s", name, exc_info=uncaught.exc_value)


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    logging.getLogger("agentd").error(
        "exception that nobody could catch, in %r", unraisable.object, exc_info=unraisable.exc_value
    )


_FORMATTER = logging.Formatter()
