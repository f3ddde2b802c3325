"""Where the daemon can be killed: between the socket and the disk, the handler and the disk, the disk and the platform.

A point names a function of the daemon, whether its call is about to begin or has ended, and what its arguments must
hold. The launcher wraps that function in the process under test; nothing of this is in the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agentd.core.events import Send
from agentd.journal.storage import Appended, Carried, CursorMoved, Queued, Shrink, TimerGone, TimerSet, Trim
from agentd.wire.platform import Request

Arguments = Sequence[Any]


def changes(arguments: Iterable[Any]) -> Iterator[Any]:
    """The changes among a call's arguments, however they are nested."""
    for each in arguments:
        if isinstance(each, list | tuple):
            yield from changes(each)
        else:
            yield each


def holding(*wanted: type | Callable[[Any], bool], without: type | tuple[()] = ()) -> Callable[[Arguments], bool]:
    """Whether the arguments hold a change of each kind, and none of another."""

    def holds(arguments: Arguments) -> bool:
        found = list(changes(arguments))
        if without and any(isinstance(each, without) for each in found):
            return False
        return all(any(_is(each, kind) for each in found) for kind in wanted)

    return holds


def _is(change: Any, kind: type | Callable[[Any], bool]) -> bool:
    return isinstance(change, kind) if isinstance(kind, type) else kind(change)


def carried(state: str) -> Callable[[Any], bool]:
    return lambda change: isinstance(change, Carried) and change.state == state


def inbound(change: Any) -> bool:
    return isinstance(change, Appended) and not change.record.event.own


def tried(change: Any) -> bool:
    return isinstance(change, TimerSet) and change.failures > 0


def sends(arguments: Arguments) -> bool:
    """A request that says something."""
    return any(isinstance(each, Request) and each.path == "/v1/messages" for each in arguments)


def answers_a_send(arguments: Arguments) -> bool:
    return arguments[0].method == "POST" and arguments[0].url.path.endswith("/messages")


def acks(arguments: Arguments) -> bool:
    """Frames that acknowledge messages, and are no greeting."""
    return any(b'"ack"' in frame for frame in arguments[1])


def a_queued_send(arguments: Arguments) -> bool:
    return any(isinstance(each, Send) for each in changes(arguments))


def anything(_: Arguments) -> bool:
    return True


turn = holding(CursorMoved, Queued)
said_now = holding(Queued, without=CursorMoved | TimerGone)
fired = holding(TimerGone, Queued)

_COMMIT = "agentd.journal.sqlite.database:SqliteJournal.commit"  # in the loop: handed in
_APPLY = "agentd.journal.sqlite.writer:Writer._apply"  # in the writer's thread: written, before COMMIT
_WRITE = "agentd.journal.sqlite.writer:Writer.write"  # in the writer's thread: the whole transaction
_TOLD = "agentd.journal.sqlite.group_commit:GroupCommit._write_until_written"  # back in the loop, no future told yet


_TRIMMING = "agentd.journal.sqlite.trimming"
_COPIES = "agentd.journal.sqlite.copies"


class Point(NamedTuple):
    """where: "module:function". after: its call has ended, else it is about to begin. holds: of its arguments."""

    where: str
    after: bool
    holds: Callable[[Arguments], bool] = anything


POINTS: Mapping[str, Point] = {
    # in: the socket, the disk, the ack
    "event handed to the journal": Point(_COMMIT, True, holding(inbound)),
    "event written, not committed": Point(_APPLY, True, holding(inbound)),
    "event on disk, nobody told": Point(_WRITE, True, holding(inbound)),
    "ack not yet sent": Point("agentd.transport.link:Link.send_burst", False, acks),
    "ack sent": Point("agentd.transport.link:Link.send_burst", True, acks),
    # the turn
    "turn about to begin": Point("agentd.host.turns:Turns.run", False),
    "turn returned": Point("agentd.host.turns:Turns.run", True),
    "turn about to be committed": Point(_COMMIT, False, turn),
    "turn handed to the journal": Point(_COMMIT, True, turn),
    "turn in the writer's thread": Point(_WRITE, False, turn),
    "turn written, not committed": Point(_APPLY, True, turn),
    "turn on disk, nobody told": Point(_WRITE, True, turn),
    "turn on disk, no future told": Point(_TOLD, True, turn),
    "turn on disk, sender not rung": Point("agentd.sender:Sender.queued", False, a_queued_send),
    "sender rung": Point("agentd.sender:Sender.queued", True, a_queued_send),
    # out
    "send taken up": Point("agentd.sender:Sender._carry", False),
    "about to be marked as leaving": Point(_COMMIT, False, holding(carried("sending"))),
    "marked as leaving, not committed": Point(_APPLY, True, holding(carried("sending"))),
    "marked as leaving, on disk": Point(_WRITE, True, holding(carried("sending"))),
    "request about to be written": Point("agentd.transport.rest:Rest.perform", False, sends),
    "request written, no answer": Point("aiohttp.client_reqrep:ClientResponse.start", False, answers_a_send),
    "answer there, not read": Point("aiohttp.client_reqrep:ClientResponse.start", True, answers_a_send),
    "answer read, not understood": Point("agentd.transport.rest:Rest.perform", True, sends),
    "answer understood": Point("agentd.sender:Sender._ask", True),
    "own seq about to be told": Point("agentd.intake.actor:Intake.own", False),
    "own seq told": Point("agentd.intake.actor:Intake.own", True),
    "outcome about to be handed to the journal": Point(_COMMIT, False, holding(carried("sent"))),
    "outcome handed to the journal": Point(_COMMIT, True, holding(carried("sent"))),
    "outcome written, not committed": Point(_APPLY, True, holding(carried("sent"))),
    "outcome on disk, nobody told": Point(_WRITE, True, holding(carried("sent"))),
    "outcome about to be told": Point("agentd.daemon:Daemon._settled", False),
    "outcome told": Point("agentd.daemon:Daemon._settled", True),
    # send_now: all of this is in the middle of a turn
    "send_now about to be committed": Point(_COMMIT, False, said_now),
    "send_now written, not committed": Point(_APPLY, True, said_now),
    "send_now on disk, nobody told": Point(_WRITE, True, said_now),
    "send_now answered, handler not told": Point("agentd.operations.sending:Sending.send_now", True),
    # timers
    "timer about to run": Point(_COMMIT, False, holding(tried)),
    "timer noted as running": Point(_WRITE, True, holding(tried)),
    "timer's turn about to be committed": Point(_COMMIT, False, fired),
    "timer's turn written, not committed": Point(_APPLY, True, fired),
    "timer's turn on disk, nobody told": Point(_WRITE, True, fired),
}

UPKEEP: Mapping[str, Point] = {
    "about to let go of what is old": Point(f"{_TRIMMING}:write", False),
    "let go, not committed": Point(f"{_TRIMMING}:write", True),
    "let go, on disk, nobody told": Point(_WRITE, True, holding(Trim)),
    "about to give room back": Point(f"{_TRIMMING}:give_back", False),
    "room given back, not committed": Point(f"{_TRIMMING}:give_back", True),
    "room given back, on disk, nobody told": Point(_WRITE, True, holding(Shrink)),
}
"""The same where the daemon keeps its journal small."""

COPYING: Mapping[str, Point] = {
    "some of it copied": Point(f"{_COPIES}:_Bounded.__call__", True),
    "all of it copied, without its name": Point("agentd.journal.sqlite.opening:sync", True),
}
"""In the process of `agentd backup`."""
