"""Staged over committed over stored; a value is what it was when it was put."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agentd.host.state import PluginState, Puts, Scope


class Stored:
    """What the disk holds; `gate` lets a test decide when a read ends."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int, str], bytes] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, plugin: str, conversation: int, key: str) -> bytes | None:
        await self.gate.wait()
        return self.values.get((plugin, conversation, key))


def scope(state: PluginState, conversation: int = 1) -> tuple[Scope, Puts]:
    puts = Puts()
    return Scope(state, conversation, lambda: puts), puts


async def test_a_turn_sees_what_it_has_put_and_removed() -> None:
    stored = Stored()
    stored.values["p", 1, "a"] = b"1"
    values, puts = scope(PluginState("p", stored.read))
    assert await values.get("a", int) == 1
    values.put("a", 2)
    assert await values.get("a", int) == 2
    values.delete("a")
    assert await values.get("a", int, 0) == 0
    assert puts == {(1, "a"): None}


async def test_another_turn_sees_puts_that_are_committed_but_not_on_disk() -> None:
    stored = Stored()
    state = PluginState("p", stored.read)
    first, puts = scope(state, 0)
    first.put("a", 1)
    second, _ = scope(state, 0)
    assert await second.get("a", int) is None
    state.committing(puts)
    assert await second.get("a", int) == 1
    state.committed(puts)
    assert await second.get("a", int) is None


async def test_the_end_of_an_older_commit_does_not_hide_a_newer_put() -> None:
    state = PluginState("p", Stored().read)
    (older, old), (newer, new) = scope(state, 0), scope(state, 0)
    older.put("a", 1)
    newer.put("a", 2)
    state.committing(old)
    state.committing(new)
    state.committed(old)
    assert await newer.get("a", int) == 2


async def test_changing_a_value_after_putting_it_changes_nothing() -> None:
    values, _ = scope(PluginState("p", Stored().read))
    words = ["a"]
    values.put("words", words)
    words.append("b")
    assert await values.get("words", list[str]) == ["a"]


async def test_a_value_of_another_type_is_an_error_and_not_a_default() -> None:
    values, _ = scope(PluginState("p", Stored().read))
    values.put("n", "many")
    with pytest.raises(msgspec.ValidationError):
        await values.get("n", int, 0)


@pytest.mark.parametrize(("key", "value"), [(7, 1), ("\ud800", 1), ("a", object())])
def test_what_the_disk_cannot_hold_fails_where_it_is_put(key: Any, value: object) -> None:
    puts = Puts()
    values = Scope(PluginState("p", lambda *_: pytest.fail("was read")), 1, lambda: puts)
    with pytest.raises((TypeError, ValueError)):
        values.put(key, value)
    assert puts == {}


def test_a_value_beyond_its_bound_is_refused_and_the_one_before_stands() -> None:
    values, puts = scope(PluginState("p", Stored().read, 10))
    values.put("a", "12345678")
    with pytest.raises(ValueError, match="11 bytes are more than the 10 of state_value_max_bytes"):
        values.put("a", "123456789")
    assert puts == {(1, "a"): b'"12345678"'}


def bounded(stored: int, max_bytes: int = 20) -> PluginState:
    state = PluginState("p", Stored().read, max_bytes=max_bytes)
    state.stored_bytes = lambda: stored
    return state


def test_a_put_that_the_plugin_has_no_room_for_is_refused_with_key_and_setting_and_a_delete_never_is() -> None:
    state = bounded(stored=10)
    values, puts = scope(state)
    values.put("a", 1234)
    values.put("a", 12345678)
    assert not state.full
    with pytest.raises(ValueError, match=r"b: p keeps 10 bytes already, and state_max_mb in \[plugin.p\] allows 20"):
        values.put("b", 1)
    assert state.full
    values.delete("a")
    values.put("b", 1)
    assert puts == {(1, "a"): None, (1, "b"): b"1"}


class Unseen(Puts):
    """Nobody looks through all that was staged."""

    def __iter__(self) -> Iterator[tuple[int, str]]:
        raise AssertionError("a put looked through all of them")

    keys = values = items = __iter__  # type: ignore[assignment]


def test_a_put_costs_no_more_for_those_before_it() -> None:
    puts = Unseen()
    values = Scope(bounded(stored=0, max_bytes=1_000), 1, lambda: puts)
    for number in range(100, 200):
        values.put(f"{number}", number)
    values.put("100", None)
    values.delete("101")
    assert puts.size == 99 * 3 + 98 * 3 + len("null")


def test_puts_that_are_on_their_way_to_the_disk_count_until_they_are_there() -> None:
    state = bounded(stored=0)
    first, puts = scope(state)
    first.put("a", 1234567890)
    state.committing(puts)
    second, _ = scope(state)
    with pytest.raises(ValueError, match="state_max_mb"):
        second.put("b", 123456789)
    state.committed(puts)
    second.put("b", 123456789)


def test_a_state_that_shrank_again_is_not_full() -> None:
    state = bounded(stored=20)
    values, _ = scope(state)
    with pytest.raises(ValueError, match="state_max_mb"):
        values.put("b", 1)
    assert state.full
    state.stored_bytes = lambda: 19
    assert not state.full
