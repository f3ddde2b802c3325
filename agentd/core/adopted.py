"""What an exported conversation leaves behind in a journal that did not see it happen: a mark, and what is missing.

Always true: every seq from the anchor to the mark is one of the events or absent, so that intake goes on behind the
mark as if the events had come here. What the file lacks is absent: should the platform still offer it, it is delivered,
marked late, and never taken for a repeat.
Not here: the format of the file (exported.py), the disk.
"""

from __future__ import annotations

from agentd.core.events import FIRST_SEQ, Event, Message
from agentd.core.ranges import Ranges


class Adopted:
    """One conversation of one identity. Hand it the events in the order of the file.

    epoch: the newest. mark, mark_id: the highest seq in that epoch, and the id of its event. address: where an answer
    goes if that is not the conversation's id, or "".
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.mark = 0
        self.mark_id = ""
        self.address = ""
        self._anchor: int | None = None
        self._seqs = Ranges()

    def take(self, event: Event) -> None:
        """The next event. Raises ValueError with the reason if it cannot follow those before it."""
        if event.epoch < self.epoch:
            raise ValueError(f"its epoch {event.epoch} was over: a line before it is of epoch {self.epoch}")
        if event.seq < FIRST_SEQ:
            raise ValueError(f"seq {event.seq} is none: they begin at {FIRST_SEQ}")
        if event.epoch > self.epoch:
            self.epoch, self.mark, self.mark_id = event.epoch, 0, ""
            self._anchor, self._seqs = None, Ranges()
        if event.seq in self._seqs:
            raise ValueError(f"seq {event.seq} of epoch {event.epoch} is in the file twice")
        if event.seq < self.mark and not event.late:
            raise ValueError(f"seq {event.seq} comes behind seq {self.mark} and is not marked late")
        self._seqs.add(event.seq, event.seq + 1)
        if self._anchor is None and not event.late:
            self._anchor = event.seq
        if event.seq > self.mark:
            self.mark, self.mark_id = event.seq, event.id
        if isinstance(event, Message) and event.direct and not event.own and event.answer_to:
            self.address = "" if event.answer_to == event.conversation else event.answer_to

    @property
    def anchor(self) -> int:
        """The first seq that is answered for."""
        return self._anchor if self._anchor is not None else next(iter(self._seqs))[0]

    @property
    def absent(self) -> Ranges:
        """What is missing up to the mark, the stretch before the anchor included."""
        return self._missing(FIRST_SEQ)

    @property
    def holes(self) -> Ranges:
        """What is missing between anchor and mark."""
        return self._missing(self.anchor)

    def _missing(self, start: int) -> Ranges:
        missing = Ranges([(start, self.mark + 1)])
        for there in self._seqs:
            missing.remove(*there)
        return missing
