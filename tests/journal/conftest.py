"""A journal in a fresh folder, events to put into it, and a way to wait for what it logs."""

import asyncio
import logging

import pytest
import pytest_asyncio

from agentd.config import Encryption, JournalSettings, KeySource
from agentd.core.events import Content, Message, Record, Send
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Appended, Conversation


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "journal.db"


@pytest.fixture(params=["plain", "encrypted"])
def encryption(request, tmp_path):
    if request.param == "plain":
        return Encryption()
    key = tmp_path / "journal.key"
    key.write_text("4f" * 32)
    key.chmod(0o600)
    return Encryption(key=KeySource(file=str(key)))


@pytest.fixture
def settings(encryption):
    return JournalSettings(linger_ms=2.0, full_retry_s=0.01, encryption=encryption)


@pytest_asyncio.fixture
async def journal(path, settings):
    journal = await open_journal(path, settings)
    yield journal
    await journal.close()


class Arrivals:
    """Makes the changes of an arriving event: the record, and its conversation's mark at that event."""

    def __init__(self, journal):
        self.journal = journal
        self.numbers = {}

    def number(self, conversation, identity="alice"):
        key = (identity, conversation)
        if key not in self.numbers:
            self.numbers[key] = self.journal.next_conversation()
        return self.numbers[key]

    def __call__(self, conversation="conv_a", seq=1, *, identity="alice", epoch=1, payload=b"{}", **fields):
        number = self.number(conversation, identity)
        position = self.journal.next_position()
        event = Message(
            identity=identity,
            conversation=conversation,
            seq=seq,
            epoch=epoch,
            id=f"msg_{conversation}_{epoch}_{seq}",
            sender="@peer",
            payload=payload,
            **fields,
        )
        mark = Conversation(number, identity, conversation, epoch, 1, seq, event.id, seq, position)
        return mark, Appended(Record(position, number, event, 1.5))


@pytest.fixture
def arrived(journal):
    return Arrivals(journal)


@pytest.fixture
def arrivals():
    return Arrivals


@pytest.fixture
def send():
    def make(key, *, identity="alice", text="hello", **fields):
        return Send(identity=identity, target="@bob", content=Content(text=text), client_msg_id=key, **fields)

    return make


class LoggedLines(logging.Handler):
    """The journal's log, and a way to wait until a line with these words was written."""

    def __init__(self):
        super().__init__()
        self.lines = []
        self._changed = asyncio.Event()

    def emit(self, record):
        self.lines.append(record.getMessage())
        self._changed.set()

    async def wait_for(self, words):
        async with asyncio.timeout(10):
            while not any(words in line for line in self.lines):
                self._changed.clear()
                await self._changed.wait()


@pytest_asyncio.fixture
async def logged():
    handler = LoggedLines()
    logger = logging.getLogger("agentd.journal")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
