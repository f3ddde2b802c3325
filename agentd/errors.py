"""What can go wrong, told by what the caller should do about it.

AgentdError
├── ConfigError          the operator must mend the configuration; carries every problem found
├── Unavailable          try again after `retry_after_s`; nothing is known to have happened
│   └── NotConnected         because our identity is not; wait until it is
├── OutcomeUnknown       the request may have been carried out; repeat it only under the same key
├── Refused              repeating cannot help; carries the platform's status, code and request id
│   └── CredentialsRefused   this identity's key is not valid; wait until it changes
├── WireViolation        the far end broke its contract; carries no content of the message
├── JournalError         the disk does not hold what was asked of it
│   ├── JournalFull          no room; ends by itself when there is room again
│   └── JournalUnusable      locked, corrupt or from a newer version; carries the remedy
│       └── ValueDamaged         that is so of one sealed value alone; carries its row
├── ExportUnreadable     a line that `agentd export` did not write so; export anew
├── ExportMisfit         an exported event that has no place in this journal; carries its line and the remedy
├── StillRunning         what is to be served again has a turn under way that began before; try again when it has ended
├── NotSent              a message that a handler waited for will never arrive
└── PluginLoadError      a plugin cannot run as written; names the file and line

RetryLater, GiveUp       raised by plugins: the fate of one event
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class AgentdError(Exception):
    """Base of every error that agentd raises on purpose."""


class ConfigError(AgentdError):
    """The configuration cannot be used. `problems`: one sentence each, naming file, key and remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Unavailable(AgentdError):
    """The far end did not answer usefully now. `retry_after_s`: what it asked for, or None."""

    def __init__(self, why: str, retry_after_s: float | None = None, request_id: str | None = None) -> None:
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        super().__init__(why)


class NotConnected(Unavailable):
    """The identity that should ask is not connected, or its key is refused: this says nothing about what was asked."""


class OutcomeUnknown(AgentdError):
    """The request was written, but its answer never came: it may or may not have been carried out."""


class Refused(AgentdError):
    """The platform understood the request and will not carry it out, however often it is repeated."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str = "",
        details: Mapping[str, Any] | None = None,
        request_id: str | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.details = dict(details or {})
        self.request_id = request_id
        super().__init__(f"{status} {code}" + (f": {message}" if message else ""))


class CredentialsRefused(Refused):
    """The key of this identity is not accepted. Trying again helps only after it has changed."""


class WireViolation(AgentdError):
    """The far end sent what its contract rules out. The text never quotes the content."""


class JournalError(AgentdError):
    """The journal cannot do what was asked."""


class JournalFull(JournalError):
    """The disk (or the journal's own limit) has no room; the write waits and is tried again."""


class JournalUnusable(JournalError):
    """The journal cannot be opened as it is; the text names the file and the remedy."""


class ValueDamaged(JournalUnusable):
    """One value does not open any more, and all else may be used; the text names its row and the remedy."""


class PluginLoadError(AgentdError):
    """A plugin cannot be loaded or is written wrongly; the text names file, line and remedy."""


class ExportUnreadable(AgentdError):
    """A line is no exported event. line: its number, from 1 on."""

    def __init__(self, line: int, why: str) -> None:
        self.line = line
        super().__init__(f"line {line} is no event as `agentd export` writes it ({why}); export the conversation anew")


class ExportMisfit(AgentdError):
    """An exported event has no place in this journal, and nothing of its file was imported. line: its number."""

    def __init__(self, line: int, why: str) -> None:
        self.line = line
        super().__init__(f"line {line}: {why} (nothing was imported)")


class StillRunning(AgentdError):
    """A plugin is to serve an identity again while a turn of its last service runs; the text names both."""


class NotSent(AgentdError):
    """A send that was waited for will never arrive. state: "refused", "expired" or "dropped"; the text says why."""

    def __init__(self, state: str, why: str) -> None:
        self.state = state
        super().__init__(f"{state}: {why}" if why else state)


class RetryLater(Exception):
    """Raised by a handler: run me again with the same event, not before `after_s` seconds from now.

    whole_plugin: what failed would fail for every event, such as a service that is down. All lanes of the plugin wait,
    and it costs no attempt.
    """

    def __init__(self, after_s: float = 1.0, reason: str = "", *, whole_plugin: bool = False) -> None:
        self.after_s = after_s
        self.reason = reason
        self.whole_plugin = whole_plugin
        super().__init__(reason or f"retry in {after_s} s")


class GiveUp(Exception):
    """Raised by a handler: this event cannot be handled; put it with the dead letters."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group that is no group itself: what a task group's end is best told by."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
