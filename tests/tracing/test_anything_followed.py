"""Whatever happens to a dispatcher, who follows its events comes to the end of each, once, and remembers none."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings

from agentd.testing import Harness
from agentd.tracing.following import Follower
from tests.dispatcher.test_anything import Anything, Tight
from tests.tracing.test_following import Ledger


class Followed(Harness):
    """Each process follows anew. ledgers: of each, the newest last."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ledgers: list[Ledger] = []

    async def _start(self) -> None:
        await super()._start()
        self.ledgers.append(Ledger())
        self.follower = Follower(self.ledgers[-1], 1_000, lambda identity: "agentchat")
        self._dispatcher._engine.traces = self.follower


class TightAndFollowed(Tight, Followed):
    pass


class AnythingFollowed(Anything):
    harnesses = (TightAndFollowed, Followed)

    def _assert_that_the_books_balance(self) -> None:
        super()._assert_that_the_books_balance()
        harness: Any = self.h
        assert len(harness.follower) == 0, [each.attributes for each in harness.follower._open.values()]
        everywhere: set[str] = set()
        for ledger in harness.ledgers:
            roots = Counter(each.attributes["messaging.message.id"] for each in ledger.puts if each.root)
            assert set(roots.values()) <= {1}, roots
            everywhere |= set(roots)
        assert {each.event.id for each in self.h.journal.records} <= everywhere


AnythingFollowed.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    print_blob=True,
)
TestAnythingFollowed = AnythingFollowed.TestCase
