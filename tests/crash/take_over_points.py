"""Where either process can be killed while one takes over from the other. See points.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentd.handover import messages
from tests.crash.points import Arguments, Point


def telling(kind: type) -> Callable[[Arguments], bool]:
    return lambda arguments: isinstance(arguments[1], kind)


_TELL = "agentd.handover.line:Line.tell"
_DEPARTURE = "agentd.handover.departing:Departure"
_ARRIVAL = "agentd.handover.arriving:Arrival"

PREDECESSOR: Mapping[str, Point] = {
    "predecessor: asked": Point("agentd.handover.asked:Asked.hand_over", False),
    "predecessor: about to let go": Point("agentd.daemon:Daemon._hand_over", False),
    "predecessor: connections ended": Point("agentd.dispatcher.actor:Dispatcher.hold", False),
    "predecessor: holding": Point("agentd.dispatcher.actor:Dispatcher.hold", True),
    "predecessor: turns listed": Point("agentd.dispatcher.actor:Dispatcher.hand_over", True),
    "predecessor: journal closed": Point("agentd.journal.sqlite.database:SqliteJournal.close", True),
    "predecessor: released": Point(_TELL, True, telling(messages.Released)),
    "predecessor: knows that it is taken": Point(f"{_DEPARTURE}._decide", True),
    "predecessor: about to tell an end": Point(_TELL, False, telling(messages.Ended)),
    "predecessor: an end told": Point(_TELL, True, telling(messages.Ended)),
    "predecessor: about to ask for a value": Point(_TELL, False, telling(messages.AskState)),
    "predecessor: value read": Point(f"{_DEPARTURE}.state_get", True),
    "predecessor: about to send at once": Point(_TELL, False, telling(messages.AskSend)),
    "predecessor: sent at once": Point(f"{_DEPARTURE}.send_now", True),
    "predecessor: getting on": Point(_TELL, False, telling(messages.Progressed)),
    "predecessor: everything told": Point(f"{_DEPARTURE}.drain", True),
}

SUCCESSOR: Mapping[str, Point] = {
    "successor: about to ask": Point(f"{_ARRIVAL}._asked", False),
    "successor: list heard": Point(f"{_ARRIVAL}._take_list", True),
    "successor: journal open": Point("agentd.journal.sqlite.database:SqliteJournal.open", True),
    "successor: about to say that it is taken": Point(_TELL, False, telling(messages.Taken)),
    "successor: said that it is taken": Point(f"{_ARRIVAL}.taken", True),
    "successor: lanes restored": Point("agentd.dispatcher.actor:Dispatcher.start", True),
    "successor: has the control socket": Point("agentd.control.api:ControlServer.start", True),
    "successor: said that it serves": Point(f"{_ARRIVAL}.serves", True),
    "successor: an end heard": Point(f"{_ARRIVAL}._ended", False),
    "successor: an end to be committed": Point("agentd.dispatcher.predecessor:Predecessor._commit", False),
    "successor: an end on disk": Point("agentd.dispatcher.predecessor:Predecessor._on_disk", False),
    "successor: about to answer": Point(_TELL, False, telling(messages.Answer)),
}

BEFORE_TAKEN = tuple(SUCCESSOR)[: tuple(SUCCESSOR).index("successor: said that it is taken")]
"""A successor that dies there has written nothing, and the predecessor goes on."""
