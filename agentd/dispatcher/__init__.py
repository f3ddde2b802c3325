"""Runs handlers in ordered lanes, bounded, and commits what they did together with "handled".

actor.py        the Dispatcher: builds the parts, takes records in, and what people decide
serving.py      which plugins serve which identity, and changes of that
engine.py       what all turns have in common: lanes, workers, time, effects
deliveries.py   turns about recorded events, and their fates
wakeups.py      turns at a time: timers, and events that are delivered out of their order
signals.py      turns about signals
rehearsal.py    turns of which nothing comes
backlog.py      which records of which conversation wait for which plugin
loading.py      which of them are in memory
pauses.py       conversations in which nothing runs
timers.py       what is due
handing.py      turns that outlive their process's journal
predecessor.py  turns that the process before this one runs
room.py         turns that wait for room in an outbox
suspects.py     events during which the process died
trials.py       suspects that run with nothing beside them
fates.py        what became of a turn, as changes and lines of the log
commits.py      the way to the journal: cursors gathered, effects at once
workers.py      the tasks that handlers run in
clock.py        where the time comes from
"""

from agentd.dispatcher.actor import Dispatcher
from agentd.dispatcher.clock import Clock, LoopClock
from agentd.dispatcher.commits import Log
from agentd.dispatcher.engine import calls_max
from agentd.dispatcher.handing import Elsewhere, Over, Successor, Turn
from agentd.dispatcher.loading import Marks

__all__ = [
    "Clock",
    "Dispatcher",
    "Elsewhere",
    "Log",
    "LoopClock",
    "Marks",
    "Over",
    "Successor",
    "Turn",
    "calls_max",
]
