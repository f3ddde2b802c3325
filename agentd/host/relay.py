"""Log lines of a worker in the daemon's log: told there with their fields, logged here as if said here.

Always true: a line that the daemon would not show does not cross. What crosses was redacted once, and is again.
Not here: the pipe, and what a worker prints (process.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from agentd import logs
from agentd.host.pipe import Said

_TEXT_MAX_CHARS = 65_536  # of one field of one line


class Relay(logging.Handler):
    """In the worker: the only handler of its root logger. tell: from any thread."""

    def __init__(self, tell: Callable[[Said], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line to the daemon."""
        texts = {name: logs.encodable(text[:_TEXT_MAX_CHARS]) for name, text in logs.entry(record).items()}
        self._tell(Said(record.levelno, record.created, record.name, texts))


def said_again(line: Said, plugin: str) -> None:
    """In the daemon: log what a worker said. plugin: whose worker, for lines that do not tell."""
    logger = logging.getLogger(line.logger)
    if not logger.isEnabledFor(line.level):
        return
    texts = line.texts
    fields = {name: texts[name] for name in logs.FIELDS if name in texts}
    record = logging.makeLogRecord(
        {
            "name": line.logger,
            "levelno": line.level,
            "levelname": logging.getLevelName(line.level),
            "created": line.created,
            "msecs": line.created % 1 * 1_000,
            "msg": "%s",
            "args": (texts["message"],),
            "exc_text": texts.get("exception"),
            "stack_info": texts.get("stack"),
            "plugin": plugin,
            **fields,
        }
    )
    logger.handle(record)
