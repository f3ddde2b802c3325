"""The plugins' durable values through a real file."""

import asyncio
import random

import pytest

from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Carried, StatePut

# News of a send that was never queued: a commit that holds it is undone after its state was written.
BROKEN = Carried("no such key", "alice", "sent", 1)


async def summed(journal, plugin):
    query = "SELECT coalesce(sum(length(CAST(key AS BLOB)) + length(value)), 0) FROM state WHERE plugin = ?"
    numbers = await journal._read(lambda db: dict(db.execute("SELECT name, number FROM plugin")))
    return await journal._read(lambda db: db.execute(query, (numbers.get(plugin),)).fetchone()[0])


async def test_a_value_belongs_to_its_plugin_conversation_and_key(journal):
    await journal.commit(StatePut("echo", 0, "count", b"1"), StatePut("echo", 7, "count", b"2"))
    await journal.commit(StatePut("log", 0, "count", b"3"))
    assert await journal.state_get("echo", 0, "count") == b"1"
    assert await journal.state_get("echo", 7, "count") == b"2"
    assert await journal.state_get("log", 0, "count") == b"3"
    assert await journal.state_get("echo", 0, "other") is None
    assert await journal.state_get("unheard of", 0, "count") is None


async def test_none_removes_a_value(journal):
    await journal.commit(StatePut("echo", 0, "count", b"1"))
    await journal.commit(StatePut("echo", 0, "count", None))
    assert await journal.state_get("echo", 0, "count") is None


async def test_the_last_value_of_a_key_in_a_group_stands(journal):
    journal.commit(StatePut("echo", 0, "a", b"1"), StatePut("echo", 0, "b", None))
    await journal.commit(StatePut("echo", 0, "a", None), StatePut("echo", 0, "b", b"2"))
    assert await journal.state_get("echo", 0, "a") is None
    assert await journal.state_get("echo", 0, "b") == b"2"


async def test_an_empty_value_is_a_value(journal):
    await journal.commit(StatePut("echo", 0, "blank", b""))
    assert await journal.state_get("echo", 0, "blank") == b""


@pytest.mark.parametrize("encryption", ["plain"], indirect=True)  # it counts bytes
async def test_what_a_plugin_keeps_is_counted_in_bytes_of_keys_and_values(journal, path, settings):
    await journal.commit(
        StatePut("echo", 0, "süß", b"12345"), StatePut("echo", 7, "a", b""), StatePut("log", 0, "b", b"1")
    )
    assert (journal.state_bytes("echo"), journal.state_bytes("log"), journal.state_bytes("new")) == (11, 2, 0)
    await journal.commit(StatePut("echo", 0, "süß", b"1"), StatePut("echo", 7, "a", None))
    assert journal.state_bytes("echo") == 6
    await journal.close()
    reopened = await open_journal(path, settings)
    assert (reopened.state_bytes("echo"), reopened.state_bytes("log")) == (6, 2)
    await reopened.close()


@pytest.mark.parametrize("encryption", ["plain"], indirect=True)  # it counts bytes
async def test_what_a_full_disk_has_not_taken_is_not_counted(journal, logged):
    await journal.commit(StatePut("echo", 0, "a", b"1"))
    await journal._connection.run(lambda db: db.execute("PRAGMA max_page_count = 1"))
    waiting = journal.commit(StatePut("echo", 0, "b", bytes(100_000)))
    await logged.wait_for("commits wait")
    assert journal.state_bytes("echo") == 2
    await journal._connection.run(lambda db: db.execute("PRAGMA max_page_count = 1000000"))
    await waiting
    assert journal.state_bytes("echo") == 2 + 1 + 100_000


@pytest.mark.parametrize("seed", range(5))
async def test_the_count_is_that_of_the_rows_whatever_is_put_removed_and_undone(journal, seed):
    chance = random.Random(seed)
    for _ in range(30):
        group = []
        for _ in range(chance.randrange(1, 6)):
            puts = [
                StatePut(
                    chance.choice("pq"),
                    chance.randrange(3),
                    chance.choice(["a", "ü", "long" * 5]),
                    chance.choice([None, bytes(chance.randrange(50))]),
                )
                for _ in range(chance.choice([1, 2, 20]))
            ]
            broken = [BROKEN] if chance.random() < 0.2 else []
            group.append(journal.commit(*puts, *broken))
        await asyncio.gather(*group, return_exceptions=True)
        for plugin in "pq":
            assert journal.state_bytes(plugin) == await summed(journal, plugin)
