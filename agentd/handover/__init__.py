"""Hands a running daemon's journal over to a process that starts beside it, while turns go on where they run.

    messages.py   what passes between the two, and its version
    line.py       the connection that it passes over
    asked.py      whether this process hands over, when it is asked to or has itself replaced
    departing.py  the process that hands over: its turns run on, what they read and end with goes to the other
    arriving.py   the process that takes over: asks, opens the journal, and gives those turns their fates
    upgrading.py  the process that hands over starts the other one itself, as it must under a service manager

    predecessor                                   successor
                                                  loads and sets up its plugins, listens at a socket of its own
          <──── POST /v1/hand-over, on the control socket ────
    may refuse: nothing has happened then
    connects to that socket
    ends its connections and senders, hands out no turn,
    writes what has ended, closes and unlocks the journal
          ──── Released: the turns that run ────>
                                                  locks and opens the journal
          <──── Taken ────                        and writes to it from here on
          <──── Serves ────                       connects, handles, and has the control socket
    turns read, send at once, get on, and end:
          ──── asks, Progressed, Ended ────>      commits what they came to, as that of its own turns
    ends when the last has ended

Always true: there are never two writers. The lock of the journal is the kernel's, and whoever is without it has closed
the file. The predecessor takes the journal back only where the line ended without a Taken, which is said before the
first write: what it knows from memory is then still what is on disk. The fate of a turn is decided once, by who has the
journal; of a turn whose process is gone, or that was given back, nothing is kept but what it noted, and it runs again.
Not here: what the dispatchers do with such turns (dispatcher/handing, dispatcher/predecessor).
"""

from agentd.handover.arriving import Arrival, NotHandedOver
from agentd.handover.asked import RESTART, Asked
from agentd.handover.departing import Departure, Whereabouts
from agentd.handover.upgrading import FORMER

__all__ = ["FORMER", "RESTART", "Arrival", "Asked", "Departure", "NotHandedOver", "Whereabouts"]
