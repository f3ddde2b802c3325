"""Appends events for ever and tells each position on stdout once its commit is done. The crash test kills it.

Each commit holds an event, its conversation's mark, a lane's cursor and a value of a plugin, which must agree for ever.
"""

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from agentd.config import JournalSettings
from agentd.core.events import Message, Record
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Appended, Conversation, CursorMoved, StatePut

CONVERSATIONS = 5
IN_FLIGHT = 20


def payload_of(position: int) -> bytes:
    """What the event at this position says, so that a torn row would show."""
    return f"event {position} ".encode() * (1 + position % 90)


async def append_for_ever(path: Path) -> None:
    journal = await open_journal(path, JournalSettings(linger_ms=1.0))
    marks = {row.number: row for row in await journal.conversations("alice")}
    while len(marks) < CONVERSATIONS:
        number = journal.next_conversation()
        marks[number] = Conversation(number, "alice", f"conv_{number}", 1, 1, 0, "", 0, 0)
    print("open", flush=True)
    free = asyncio.Semaphore(IN_FLIGHT)
    while True:
        await free.acquire()
        position = journal.next_position()
        mark = marks[1 + position % CONVERSATIONS]
        event = Message(
            identity="alice",
            conversation=mark.conversation,
            seq=mark.mark + 1,
            id=f"msg_{position}",
            sender="@peer",
            payload=payload_of(position),
        )
        mark = msgspec.structs.replace(mark, mark=event.seq, top=event.seq, mark_id=event.id, position=position)
        marks[mark.number] = mark
        future = journal.commit(
            StatePut("echo", mark.number, "last", str(position).encode()),
            CursorMoved("echo", mark.number, position),
            Appended(Record(position, mark.number, event, 1.5)),
            mark,
        )

        def told(_: object, position: int = position) -> None:
            os.write(1, b"%d\n" % position)
            free.release()

        future.add_done_callback(told)


if __name__ == "__main__":
    asyncio.run(append_for_ever(Path(sys.argv[1])))
