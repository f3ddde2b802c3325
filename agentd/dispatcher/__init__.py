"""Runs handlers in ordered lanes, bounded, and commits what they did together with "handled".

actor.py     the Dispatcher: records in, turns run, fates out
backlog.py   which records of which conversation wait for which plugin
commits.py   the way to the journal: cursors gathered, effects at once
workers.py   the tasks that handlers run in
clock.py     where the time comes from
"""

from agentd.dispatcher.actor import Dispatcher
from agentd.dispatcher.clock import Clock, LoopClock
from agentd.dispatcher.commits import Log

__all__ = ["Clock", "Dispatcher", "Log", "LoopClock"]
