"""What is encrypted at rest: every column that holds content, each value in its own place, under a key of its own."""

import base64
import contextlib
import sqlite3
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.config import Encryption, JournalSettings, KeySource
from agentd.core import exported
from agentd.core.events import Content, Message, Record, Send
from agentd.errors import ConfigError, JournalUnusable, ValueDamaged
from agentd.journal.sqlite import copies, open_journal, opening, resealing, sealing
from agentd.journal.sqlite.importing import import_events
from agentd.journal.storage import (
    Appended,
    Attempt,
    Conversation,
    Dead,
    Outcome,
    Queued,
    StatePut,
    TimerSet,
)

MARK = "the-words-of-somebody"
PAYLOAD = f'{{"text":"{MARK}"}}'.encode()


@pytest.fixture
def key(tmp_path):
    """Writes a key file, and gives what names it."""

    def make(name="one", text=None):
        file = tmp_path / f"{name}.key"
        file.write_text(text or base64.b64encode(name.encode().ljust(32, b".")).decode())
        file.chmod(0o600)
        return KeySource(file=str(file))

    return make


def under(key=None, old_key=None):
    return JournalSettings(encryption=Encryption(key=key, old_key=old_key))


def message(seq=1):
    return Message(
        identity="alice", conversation="conv", seq=seq, id=f"msg_{seq}", sender="peer", text=MARK, payload=PAYLOAD
    )


async def fill(journal, seq=1):
    """One value in every column that holds content."""
    conversation = 1 if seq > 1 else journal.next_conversation()
    position = journal.next_position()
    event = message(seq)
    data = f'"{MARK}"'.encode()
    await journal.commit(
        Conversation(conversation, "alice", "conv", 1, 1, seq, event.id, seq, position),
        Appended(Record(position, conversation, event, 1.5)),
        Attempt("echo", conversation, position, 1, f"ValueError: {MARK}", 2.0, progress=data),
        Dead("echo", conversation, position, 1, f"ValueError: {MARK}", f"Traceback: {MARK}", "v1", 3.0),
        Outcome("echo", conversation, position, position, "said", data, 4.0),
        StatePut("echo", conversation, f"key {seq}", data),
        TimerSet(f"t{seq}", "echo", "alice", conversation, "conv", "wake", 5.0, data, error=MARK, progress=data),
        Queued(Send(identity="alice", target="@bob", content=Content(text=MARK), client_msg_id=f"key-{seq}"), 6.0),
    )
    return position


async def everything(journal):
    """What `fill` wrote, as it is read."""
    [outbox] = [(await journal.outbox_find("key-1", "alice")).send.content.text]
    [attempt] = await journal.attempts("echo")
    [letter] = await journal.dead(None, 10)
    [timer] = await journal.timers("echo")
    [outcome] = await journal.outcomes("echo", 1, 1)
    [record] = await journal.read_log(None, 0, 10)
    [ready] = await journal.outbox_open("alice")
    assert ready.content.text == outbox
    return [
        record.payload.decode(),
        outbox,
        attempt.error,
        attempt.progress.decode(),
        letter.error,
        letter.traceback,
        timer.data.decode(),
        timer.error,
        timer.progress.decode(),
        outcome.data.decode(),
        (await journal.state_get("echo", 1, "key 1")).decode(),
    ]


def found_in(folder):
    """Files that hold the mark."""
    return sorted(file.name for file in folder.iterdir() if MARK.encode() in file.read_bytes())


def stored(path):
    """Every value of every sealed column, as the disk has it."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return {
            (each.table, each.name): db.execute(f"SELECT {each.name} FROM {each.table}").fetchall()
            for each in resealing.COLUMNS
        }


async def written(path, settings, seqs=(1,)):
    journal = await open_journal(path, settings)
    for seq in seqs:
        await fill(journal, seq)
    return journal


async def test_no_word_of_what_was_written_is_on_the_disk_and_all_of_it_can_be_read(path, key):
    journal = await written(path, under(key()))
    read = await everything(journal)
    assert found_in(path.parent) == [], "the write-ahead log is looked at as well"
    await journal.close()
    assert found_in(path.parent) == []
    assert all(MARK in each for each in read)
    again = await open_journal(path, under(key()))
    assert await everything(again) == read
    await again.close()


async def test_without_a_key_everything_is_there_to_read(path):
    journal = await written(path, under())
    read = await everything(journal)
    await journal.close()
    assert found_in(path.parent) == ["journal.db"]
    assert all(MARK in each for each in read)


async def test_every_column_that_holds_content_is_sealed(path, key):
    await (await written(path, under(key()))).close()
    for place, rows in stored(path).items():
        assert rows, place
        for (value,) in rows:
            assert value[:1] in (b"\x01", "\x01"), place


@pytest.mark.parametrize("at_rest", [under, lambda: under(KeySource(env="NOT_SET"))], ids=["none", "not there"])
async def test_without_the_key_it_is_refused_with_the_remedy_and_left_as_it_is(path, key, at_rest):
    await (await written(path, under(key()))).close()
    before = path.read_bytes()
    with pytest.raises((JournalUnusable, ConfigError), match=r"encryption|NOT_SET"):
        await open_journal(path, at_rest())
    assert path.read_bytes() == before


async def test_another_key_is_refused_and_says_how_keys_are_changed(path, key):
    await (await written(path, under(key()))).close()
    before = path.read_bytes()
    with pytest.raises(JournalUnusable, match="old_key beside a new one"):
        await open_journal(path, under(key("another")))
    assert path.read_bytes() == before
    both = await open_journal(path, under(key("another"), key()))
    assert MARK in (await everything(both))[0]
    await both.close()


@pytest.mark.parametrize("text", ["too-short", "ab" * 31, "!" * 44, base64.b64encode(bytes(33)).decode()])
async def test_what_is_no_key_of_32_bytes_is_refused(path, key, text):
    with pytest.raises(ConfigError, match="openssl rand -base64 32"):
        await open_journal(path, under(key(text=text)))


async def test_a_value_opens_in_its_own_place_only(path, key):
    journal = await written(path, under(key()), seqs=(1, 2))
    await journal.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE event SET payload = (SELECT payload FROM event WHERE position = 2) WHERE position = 1")
        db.execute("UPDATE outbox SET content = substr(content, 1, 30) || 'AAAA' WHERE number = 1")
        db.commit()
    again = await open_journal(path, under(key()))
    moved, right = await again.read_log(None, 0, 10)
    assert moved.payload == b""
    assert "event.payload of row 1 in the journal does not open" in moved.damage
    assert (right.payload, right.damage) == (PAYLOAD, "")
    with pytest.raises(ValueDamaged, match=r"outbox\.content of row key-1 .* does not open"):
        await again.outbox_find("key-1", "alice")
    await again.close()


async def test_what_only_people_read_says_why_it_does_not_open(path, key):
    await (await written(path, under(key()))).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        for table, column in (("attempt", "error"), ("dead", "error"), ("dead", "traceback"), ("timer", "error")):
            db.execute(f"UPDATE {table} SET {column} = substr({column}, 1, 8)")
        db.execute("UPDATE outcome SET data = substr(data, 1, 30)")
        db.commit()
    journal = await open_journal(path, under(key()))
    [attempt], [dead], [timer] = (
        await journal.attempts("echo"),
        await journal.dead(None, 9),
        await journal.timers("echo"),
    )
    [outcome] = await journal.outcomes("echo", 1, 1)
    for told in (attempt.error, dead.error, dead.traceback, timer.error, outcome.data.decode()):
        assert "does not open" in told
    await journal.close()


async def test_a_vacuum_names_what_does_not_open_and_leaves_it(path, key):
    await (await written(path, under(key()))).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE outbox SET content = substr(content, 1, 4)")  # cut short: no base 64 any more
        db.commit()
    with pytest.raises(ValueDamaged, match=r"outbox\.content of row key-1"):
        copies.vacuum(path, under(key("another"), key()))
    assert stored(path)["outbox", "content"][0][0].startswith("\x01")


async def test_a_lost_data_key_is_told_from_a_damaged_value(path, key):
    await (await written(path, under(key()))).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM sealing")
        db.execute("UPDATE event SET payload = CAST(x'0100000009' || substr(payload, 6) AS BLOB)")
        db.commit()
    journal = await open_journal(path, under(key()))
    with pytest.raises(JournalUnusable, match="has no salt"):
        await journal.read_log(None, 0, 9)
    await journal.close()


async def test_what_retention_let_go_stays_gone(path, key):
    journal = await written(path, under(key()))
    await journal.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE event SET payload = x''")
        db.execute("UPDATE outbox SET content = '{}'")
        db.commit()
    again = await open_journal(path, under(key()))
    assert await again.read_log(None, 0, 10) == []
    assert (await again.outbox_find("key-1", "alice")).send.content.text is None
    await again.close()


async def test_no_two_values_are_ever_sealed_with_the_same_nonce_under_the_same_key(path, key):
    for seq in (1, 2, 3):
        await (await written(path, under(key()), seqs=(seq,))).close()
    heads = [
        (value if isinstance(value, bytes) else b"\x01" + base64.b64decode(value[1:]))[:13]
        for rows in stored(path).values()
        for (value,) in rows
    ]
    assert len(heads) == len(set(heads)) == 33
    assert {int.from_bytes(head[1:5], "big") for head in heads} == {1, 2, 3}


# --- switched on, changed, switched off


async def test_what_was_written_before_can_be_read_and_a_vacuum_leaves_nothing_of_it(path, key):
    await (await written(path, under())).close()
    journal = await written(path, under(key()), seqs=(2,))
    assert [record.payload for record in await journal.read_log(None, 0, 10)] == [PAYLOAD, PAYLOAD]
    await journal.close()
    assert found_in(path.parent) == ["journal.db"]
    copies.vacuum(path, under(key()))
    assert found_in(path.parent) == []
    journal = await open_journal(path, under(key()))
    assert [record.payload for record in await journal.read_log(None, 0, 10)] == [PAYLOAD, PAYLOAD]
    assert len(await journal.timers("echo")) == 2
    await journal.close()


async def test_a_key_is_changed_with_the_old_one_beside_it_until_a_vacuum(path, key):
    await (await written(path, under(key()))).close()
    copies.vacuum(path, under(key("another"), key()))
    journal = await open_journal(path, under(key("another")))
    assert all(MARK in each for each in await everything(journal))
    await journal.close()
    with pytest.raises(JournalUnusable):
        await open_journal(path, under(key()))


async def test_encryption_is_ended_with_the_key_as_the_old_one(path, key):
    await (await written(path, under(key()))).close()
    copies.vacuum(path, under(None, key()))
    journal = await open_journal(path, under())
    assert all(MARK in each for each in await everything(journal))
    await journal.close()


class KilledError(Exception):
    """Somebody's."""


async def test_one_that_is_killed_at_any_step_leaves_everything_readable_and_goes_on_the_next_time(path, key):
    await (await written(path, under(), seqs=range(1, 6))).close()
    settings, steps = under(key("another"), key()), 0
    copies.vacuum(path, under(key()))
    while True:
        left = steps

        def progress(done, of):
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError

        try:
            copies.vacuum(path, settings, progress)
            break
        except KilledError:
            steps += 1
        journal = await open_journal(path, settings)
        assert len(await journal.read_log(None, 0, 10)) == len(await journal.timers("echo")) == 5
        assert len(await journal.attempts("echo")) == len(await journal.dead(None, 10)) == 5
        await journal.close()
    assert steps == len(resealing.COLUMNS), "each column was one step"
    journal = await open_journal(path, under(key("another")))
    assert len(await journal.read_log(None, 0, 10)) == 5
    await journal.close()


async def test_a_vacuum_with_nothing_to_write_anew_changes_no_value(path, key):
    await (await written(path, under(key()))).close()
    before = stored(path)
    copies.vacuum(path, under(key()))
    assert stored(path) == before


# --- copies and files


async def test_a_backup_is_encrypted_and_needs_the_key_where_it_is_restored(path, key, tmp_path):
    journal = await written(path, under(key()))
    copies.back_up(path, tmp_path / "backup.db")
    await journal.close()
    assert MARK.encode() not in (tmp_path / "backup.db").read_bytes()
    elsewhere = tmp_path / "elsewhere" / "journal.db"
    elsewhere.parent.mkdir()
    copies.restore(tmp_path / "backup.db", elsewhere)
    with pytest.raises(JournalUnusable, match="names no key"):
        await open_journal(elsewhere, under())
    restored = await open_journal(elsewhere, under(key()))
    assert all(MARK in each for each in await everything(restored))
    await restored.close()


async def test_what_is_imported_is_encrypted(path, key):
    given_lines = [exported.line(Record(1, 1, message(), 7.0))]
    imported = import_events(
        path,
        exported.numbered(given_lines),
        identity=None,
        platform="agentchat",
        fit=lambda event: None,
        now=8.0,
        settings=under(key()),
    )
    assert imported.events == 1
    assert found_in(path.parent) == []
    journal = await open_journal(path, under(key()))
    assert [record.payload for record in await journal.read_log(None, 0, 10)] == [PAYLOAD]
    await journal.close()


def test_a_look_at_the_version_needs_no_key(path, key, tmp_path):
    path.parent.mkdir()
    opening.open_writer(path, under(key())).close()
    assert copies.standing(path).readable
    assert copies.rehearse(path, tmp_path) >= 0.0


# --- values


def sealed_and_plain(path, source):
    path.parent.mkdir(exist_ok=True)
    connection = opening.open_writer(path, under(source))
    return connection, sealing.seals_of(connection)


@settings(deadline=None)  # each example makes a journal
@given(value=st.binary(), text=st.text(), place=st.tuples(st.text(), st.integers()))
def test_any_value_comes_back_as_it_was_and_only_in_its_place(tmp_path_factory, value, text, place):
    folder = tmp_path_factory.mktemp("values")
    file = folder / "a.key"
    file.write_text("7e" * 32)
    file.chmod(0o600)
    connection, seals = sealed_and_plain(folder / "state" / "journal.db", KeySource(file=str(file)))
    with contextlib.closing(connection):
        sealed, sealed_text = seals.seal(value, *place), seals.seal_text(text, *place)
        assert seals.open(sealed, *place) == value
        assert seals.open_text(sealed_text, *place) == text
        if value:
            assert value not in sealed or len(value) < 4
            with pytest.raises(JournalUnusable):
                seals.open(sealed, *place, "elsewhere")
            with pytest.raises(JournalUnusable):
                seals.open(sealed[:-1], *place)


@given(st.text(), st.binary(), st.sampled_from(["", "\x01", "\x02", "\x02\x01"]))
def test_what_looks_sealed_and_is_not_comes_back_as_it_was(text, value, head):
    kept = sealing.NONE.seal_text(head + text, "dead.error", 1)
    assert sealing.NONE.open_text(kept, "dead.error", 1) == head + text
    blob = sealing.NONE.seal(head.encode() + value, "event.payload", 1)
    assert sealing.NONE.open(blob, "event.payload", 1) == head.encode() + value


async def test_a_vacuum_needs_memory_for_one_value_at_a_time(path, key):
    journal = await open_journal(path, under())
    for number in range(60):
        await journal.commit(StatePut("hoarder", 0, f"k{number}", b"x" * 1_000_000))
    await journal.close()
    tracemalloc.start()
    copies.vacuum(path, under(key()))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000_000
    journal = await open_journal(path, under(key()))
    assert await journal.state_get("hoarder", 0, "k59") == b"x" * 1_000_000
    await journal.close()
