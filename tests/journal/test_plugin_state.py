"""The plugins' durable values through a real file."""

from agentd.journal.storage import StatePut


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
