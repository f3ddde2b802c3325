"""The journal against a plain dict: any changes, grouped and reopened at will, read back as a dict would give them."""

import asyncio
import tempfile
from pathlib import Path

import msgspec
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentd.config import JournalSettings
from agentd.core.events import Content, Message, Record, Send, Source
from agentd.errors import JournalError
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import (
    Appended,
    Attempt,
    Carried,
    Conversation,
    CursorMoved,
    Dead,
    GapNoted,
    Outcome,
    Paused,
    Queued,
    Resumed,
    Retried,
    Rewound,
    StatePut,
    TimerGone,
    TimerSet,
)

IDENTITIES = ("alice", "bob")
PLUGINS = ("echo", "log")
KEYS = ("k1", "k2", "k3")
SETTLED = ("sent", "refused", "expired", "dropped")
identities = st.sampled_from(IDENTITIES)
plugins = st.sampled_from(PLUGINS)
small = st.integers(0, 4)
ranges = st.lists(st.tuples(small, small), max_size=2).map(tuple)


class JournalAgainstDict(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.journal = self.open()
        self.futures = []
        self.marks, self.log, self.gaps, self.cursors = {}, [], {}, {}
        self.attempts, self.dead, self.state, self.outbox = {}, {}, {}, {}
        self.replays, self.outcomes, self.pauses, self.timers = {}, [], {}, {}

    def open(self):
        path = Path(self.folder.name) / "journal.db"
        return self.runner.run(open_journal(path, JournalSettings(linger_ms=0.0)))

    def teardown(self):
        try:
            self.settle()
        finally:
            self.runner.run(self.journal.close())
            self.runner.close()
            self.folder.cleanup()

    def settle(self):
        futures, self.futures = self.futures, []
        self.runner.run(all_as_expected(futures))

    def commit(self, *changes, fails=False):
        async def hand_in():
            return self.journal.commit(*changes)

        self.futures.append((self.runner.run(hand_in()), fails))

    @rule(
        identity=identities,
        absent=ranges,
        late=st.booleans(),
        source=st.sampled_from(Source),
        said=st.binary(min_size=1),
    )
    def meet_and_append(self, identity, absent, late, source, said):
        """An event in a new conversation or the last one, with its mark, in one commit."""
        mine = [mark for mark in self.marks.values() if mark.identity == identity]
        number = mine[-1].number if mine and len(mine) > 2 else self.journal.next_conversation()
        seq = self.marks[number].mark + 1 if number in self.marks else 1
        position = self.journal.next_position()
        mark = Conversation(number, identity, f"conv_{number}", 1, 1, seq, f"m{position}", seq, position, absent)
        event = Message(
            identity=identity,
            conversation=mark.conversation,
            seq=seq,
            id=mark.mark_id,
            sender="@peer",
            late=late,
            source=source,
            payload=said,
        )
        self.commit(Appended(Record(position, number, event, 1.5)), mark)
        self.marks[number] = mark
        self.log.append((position, number, identity, mark.conversation, 1, late, str(source), said, 1.5, ""))

    @rule(plugin=plugins)
    def break_one_commit(self, plugin):
        """A commit of which one change is refused; the others in it must not be there."""
        self.commit(StatePut(plugin, 1, "broken", b"1"), CursorMoved(plugin, 9_999, 1), fails=True)

    @rule(number=small, attempts=small, outcome=st.sampled_from(["", "filled", "absent"]), data=st.data())
    def note_gap(self, number, attempts, outcome, data):
        if not self.marks:
            return
        known = self.gaps.get(number)
        conversation = known.conversation if known else data.draw(st.sampled_from(sorted(self.marks)))
        gap = GapNoted(number, conversation, 1, 2, 5, 1.5, attempts, 1, 2.5 if outcome else None, outcome, 1, "why")
        self.commit(gap)
        self.gaps[number] = gap

    @rule(plugin=plugins, position=small, data=st.data())
    def move_cursor(self, plugin, position, data):
        if not self.marks:
            return
        conversation = data.draw(st.sampled_from(sorted(self.marks)))
        self.commit(CursorMoved(plugin, conversation, position))
        self.cursors[plugin, conversation] = position
        for key in list(self.attempts):
            if key[:2] == (plugin, conversation) and key[2] <= position:
                del self.attempts[key]

    @rule(plugin=plugins, position=small, replay=st.integers(1, 9), until=small, data=st.data())
    def rewind(self, plugin, position, replay, until, data):
        if not self.marks:
            return
        conversation = data.draw(st.sampled_from(sorted(self.marks)))
        self.commit(Rewound(plugin, conversation, position, replay, until))
        self.cursors[plugin, conversation] = position
        self.replays[plugin, conversation] = (replay, until)
        for key in [key for key in self.attempts if key[:2] == (plugin, conversation)]:
            del self.attempts[key]

    @rule(plugin=plugins, conversation=small, first=small, word=st.text(), noted=st.none() | st.binary())
    def come_to(self, plugin, conversation, first, word, noted):
        outcome = Outcome(plugin, conversation, first, first + 1, word, noted, 1.5)
        self.commit(outcome)
        self.outcomes.append(outcome)

    @rule(pauses=st.booleans(), until=st.none() | st.floats(0, 9), data=st.data())
    def pause_or_resume(self, pauses, until, data):
        if not self.marks:
            return
        mark = self.marks[data.draw(st.sampled_from(sorted(self.marks)))]
        if pauses:
            pause = Paused(
                number=mark.number,
                identity=mark.identity,
                conversation=mark.conversation,
                at=1.5,
                until=until,
                reason="why",
            )
            self.commit(pause)
            self.pauses[mark.number] = pause
        else:
            self.commit(Resumed(mark.number))
            self.pauses.pop(mark.number, None)

    @rule(
        key=st.sampled_from(KEYS),
        goes=st.booleans(),
        due_at=st.floats(0, 9),
        position=small,
        noted=st.none() | st.binary(),
    )
    def set_timer(self, key, goes, due_at, position, noted):
        if goes:
            self.commit(TimerGone(key))
            self.timers.pop(key, None)
            return
        fresh = TimerSet(key, "echo", "alice", 0, "", "", due_at, b"null", 1, "", position, "replay", noted)
        self.commit(fresh)
        self.timers[key] = fresh

    @rule(plugin=plugins, position=small, count=small, dies=st.booleans(), data=st.data())
    def fail(self, plugin, position, count, dies, data):
        if not self.marks:
            return
        conversation = data.draw(st.sampled_from(sorted(self.marks)))
        attempt = Attempt(plugin, conversation, position, count, "ValueError", 3.5, 0, position + count, b"{}")
        letter = Dead(plugin, conversation, position, count, "ValueError", "", "1", 4.5)
        self.commit(attempt, *[letter] * dies)
        key = (plugin, conversation, position)
        self.attempts[key] = attempt
        if dies:
            self.dead[key] = letter

    @rule(plugin=plugins, conversation=small, key=st.sampled_from(KEYS), value=st.none() | st.binary())
    def put_state(self, plugin, conversation, key, value):
        self.commit(StatePut(plugin, conversation, key, value))
        self.state[plugin, conversation, key] = value

    @rule(identity=identities, key=st.sampled_from(KEYS), text=st.text())
    def queue(self, identity, key, text):
        send = Send(identity=identity, target="@bob", content=Content(text=text), client_msg_id=key, expires_at=9.5)
        self.commit(Queued(send, 5.5))
        self.outbox.setdefault((key, identity), send)

    @rule(identity=identities, key=st.sampled_from(KEYS), state=st.sampled_from(("ready", "unknown", *SETTLED)))
    def carry(self, identity, key, state):
        known = (key, identity) in self.outbox
        if known:
            self.commit(Carried(key, identity, state, 3, 6.5))
            self.outbox[key, identity] = msgspec.structs.replace(
                self.outbox[key, identity], state=state, attempts=3, not_before=6.5
            )
        else:
            # Alone in its group: within one, sends are queued before anything is told of them.
            self.settle()
            self.commit(Carried(key, identity, state, 3, 6.5), fails=True)
            self.settle()

    @rule(identity=identities, key=st.sampled_from(KEYS))
    def retry(self, identity, key):
        if (key, identity) not in self.outbox:
            return
        self.commit(Retried(key, identity, 7.5))
        self.outbox[key, identity] = msgspec.structs.replace(
            self.outbox[key, identity], state="ready", not_before=0.0, expires_at=None
        )

    @rule(reopen=st.booleans())
    def settle_and_compare(self, reopen):
        """Wait for everything, perhaps come back after a restart, and compare every answer with the dict's."""
        self.settle()
        if reopen:
            self.runner.run(self.journal.close())
            self.journal = self.open()
        self.runner.run(self.compare())

    @invariant()
    def a_position_is_free(self):
        taken = {row[0] for row in self.log}
        assert len(taken) == len(self.log)

    async def compare(self):
        journal = self.journal
        for identity in IDENTITIES:
            mine = [mark for mark in self.marks.values() if mark.identity == identity]
            assert await journal.conversations(identity) == mine
            open_sends = [s for (_, i), s in self.outbox.items() if i == identity and s.state not in SETTLED]
            assert await journal.outbox_open(identity) == open_sends
            listed = await journal.outbox_list(identity, ("ready", "unknown", *SETTLED), 999)
            assert {row.send.client_msg_id: row.send for row in listed} == {
                key: send for (key, i), send in self.outbox.items() if i == identity
            }
            totals = await journal.totals(identity)
            numbers = {mark.number for mark in mine}
            assert totals.journaled == sum(row[2] == identity for row in self.log)
            assert totals.absent == sum(gap.conversation in numbers for gap in self.gaps.values())
            assert journal.dead_count(identity) == sum(key[1] in numbers for key in self.dead)
            assert sum(totals.outbox.values()) == sum(i == identity for _, i in self.outbox)
            rows = [row for row in self.log if row[2] == identity]
            assert [msgspec.structs.astuple(row) for row in await journal.read_log(identity, 0, 999)] == rows
        assert [msgspec.structs.astuple(row) for row in await journal.read_log(None, 0, 999)] == self.log
        for plugin in PLUGINS:
            assert await journal.cursors(plugin) == {c: at for (p, c), at in self.cursors.items() if p == plugin}
            assert await journal.replays(plugin) == {c: r for (p, c), r in self.replays.items() if p == plugin}
            for conversation in range(5):
                for position in range(6):
                    assert await journal.outcomes(plugin, conversation, position) == [
                        o
                        for o in self.outcomes
                        if (o.plugin, o.conversation) == (plugin, conversation) and o.first <= position <= o.last
                    ]
            mine = [row for key, row in sorted(self.attempts.items()) if key[0] == plugin]
            assert await journal.attempts(plugin) == mine
            assert await journal.state_get(plugin, 1, "broken") is None
        assert sorted(await journal.pauses(), key=lambda p: p.number) == [p for _, p in sorted(self.pauses.items())]
        assert await journal.timers("echo") == sorted(self.timers.values(), key=lambda t: (t.due_at, t.id))
        for mark in self.marks.values():
            assert await journal.conversation_find(mark.identity, mark.conversation) == mark
        assert await journal.conversation_find("alice", "nowhere") is None
        for (plugin, conversation, key), value in self.state.items():
            assert await journal.state_get(plugin, conversation, key) == value
        for open_only in (True, False):
            wanted = [gap for gap in self.gaps.values() if not (open_only and gap.outcome)]
            wanted.sort(key=lambda gap: -gap.number)
            assert [gap for _, gap in await journal.gaps(None, open_only=open_only, limit=99)] == wanted
        letters = [
            Dead(*[getattr(row, name) for name in Dead.__struct_fields__]) for row in await journal.dead(None, 99)
        ]
        assert {(d.plugin, d.conversation, d.position): d for d in letters} == self.dead


async def all_as_expected(futures):
    for future, fails in futures:
        try:
            await future
        except JournalError:
            assert fails
        else:
            assert not fails


TestJournalAgainstDict = JournalAgainstDict.TestCase
TestJournalAgainstDict.settings = profile(max_examples=25, stateful_step_count=40, deadline=None)
