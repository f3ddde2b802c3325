"""Who follows hears of records, and nobody is waited for."""

from __future__ import annotations

from agentd.core.events import Event, Record
from agentd.operations.following import Followers


def record(position: int) -> Record:
    event = Event(identity="me", conversation="c", seq=position, id=f"m{position}", sender="bob")
    return Record(position, 1, event, 1.0)


async def test_every_follower_hears_of_what_is_recorded_while_it_follows() -> None:
    followers = Followers(1_000)
    followers.offer([record(1)])
    with followers.following() as one, followers.following() as other:
        followers.offer([record(2), record(3)])
        assert [one.get_nowait(), one.get_nowait()] == [other.get_nowait(), other.get_nowait()]
        assert one.empty()
    followers.offer([record(4)])
    assert one.empty()


async def test_a_follower_that_does_not_read_costs_a_bounded_queue() -> None:
    followers = Followers(1_000)
    with followers.following() as queue:
        followers.offer([record(position) for position in range(1, 5_001)])
        assert queue.full()
        assert queue.get_nowait().position == 1
