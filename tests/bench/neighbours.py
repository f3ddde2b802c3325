"""What a healthy plugin's messages wait, alone and beside plugins in trouble on the same identity.

The same load in the same round, first the one, then the other, on a daemon and an identity of their own.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import ClassVar

from tests.bench.clients import Agentd, Client
from tests.bench.measuring import Figure, Place, Sample, Sizes, require_equal

_WARM_UP = 100
_ISOLATED = 'isolate = "process"'


class Troubled(Agentd):
    neighbours: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("raising", "hanging", "blocking", "overstaying"), ""),
        "hoarding": f"{_ISOLATED}\nmemory_max_mb = 128",
        "exiting": _ISOLATED,
        "looping": f"{_ISOLATED}\ncpu_max_s = 1.0",
        "crashing": _ISOLATED,
    }
    drain_timeout_s = 0.5


class Neighbours:
    figures: Sequence[Figure] = (
        Figure("neighbours.alone.p50", "alone, post to handler, p50", "ms", "less"),
        Figure("neighbours.alone.p99", "alone, post to handler, p99", "ms", "less"),
        Figure("neighbours.beside.p50", "beside them, p50", "ms", "less"),
        Figure("neighbours.beside.p99", "beside them, p99", "ms", "less"),
        Figure("neighbours.p50", "p50, beside them to alone", "", "less"),
        Figure("neighbours.p99", "p99, beside them to alone", "", "less"),
    )
    note = (
        "One plugin always raises, one hangs, one hangs in threads, one overstays its deadline; in processes of their\n"
        "  own, one eats all memory, one exits, one loops, one crashes. All get each message.\n"
        "  The SDK's client has one handler, and so no neighbours."
    )

    def __init__(self, sizes: Sizes) -> None:
        self._per_s = sizes.answers_per_s
        self._events = self._per_s * sizes.offered_for_s
        self.title = f"neighbours: a healthy plugin at {self._per_s:,} events/s for {sizes.offered_for_s} s"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        if kind is not Agentd:
            return {}
        alone, beside = self._cuts_ms(place, Agentd), self._cuts_ms(place, Troubled)
        return {
            "neighbours.alone.p50": alone[49],
            "neighbours.alone.p99": alone[98],
            "neighbours.beside.p50": beside[49],
            "neighbours.beside.p99": beside[98],
            "neighbours.p50": beside[49] / alone[49],
            "neighbours.p99": beside[98] / alone[98],
        }

    def _cuts_ms(self, place: Place, kind: type[Agentd]) -> list[float]:
        keys = place.identities()
        with place.client(kind, keys, "healthy") as client:
            client.live()
            place.far_end.push(*keys, _WARM_UP)
            place.far_end.offer(*keys, self._per_s, self._events)
            require_equal("answered", len(place.far_end.answers_s(self._events)), self._events)
            latencies_s = client.finish().latencies_s
        require_equal("timed", len(latencies_s), self._events)
        return [each * 1e3 for each in statistics.quantiles(latencies_s, n=100)]
