"""What a message waits at a steady rate: from post to handler, and from post to the acceptance of its answer.

agentd's answers go through the outbox on disk; the SDK's handler awaits the sending.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tests.bench.clients import Client
from tests.bench.measuring import Figure, Place, Sample, Sizes, require_equal

_WARM_UP = 100


class Latency:
    """With a handler that looks at the clock."""

    figures: Sequence[Figure] = (
        Figure("latency.p50", "post to handler, p50", "ms", "less"),
        Figure("latency.p99", "post to handler, p99", "ms", "less"),
        Figure("latency.cpu", "CPU per event", "µs", "less"),
    )
    note = "agentd calls the handler after the commit, the SDK on arrival."

    def __init__(self, sizes: Sizes) -> None:
        self._per_s = sizes.offered_per_s
        self._events = self._per_s * sizes.offered_for_s
        self.title = f"latency at {self._per_s:,} events/s offered, for {sizes.offered_for_s} s"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        keys, events = place.identities(), self._events
        with _warm(place, kind, keys, "timing") as client:
            cpu_s = client.cpu_s()
            place.far_end.offer(*keys, self._per_s, events)
            place.far_end.acknowledged(*keys)
            cpu_s = client.cpu_s() - cpu_s
            latencies_s = client.finish().latencies_s
        require_equal("timed", len(latencies_s), events)
        return _figures("latency", latencies_s, cpu_s)


class Answers:
    """With a handler that answers each message once."""

    figures: Sequence[Figure] = (
        Figure("answers.p50", "post to answer accepted, p50", "ms", "less"),
        Figure("answers.p99", "post to answer accepted, p99", "ms", "less"),
        Figure("answers.cpu", "CPU per event and answer", "µs", "less"),
        Figure("answers.missing", "messages without an answer", "", "less"),
    )
    note = (
        "An answer takes a seq that is not pushed back. agentd knows it for its own; the SDK holds what follows it\n"
        "  for 2 s, and may then leave messages unhandled and unacked until it reconnects."
    )

    def __init__(self, sizes: Sizes) -> None:
        self._per_s = sizes.answers_per_s
        self._events = self._per_s * sizes.offered_for_s
        self.title = f"answers at {self._per_s:,} events/s offered, for {sizes.offered_for_s} s"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        keys, events = place.identities(), self._events
        with _warm(place, kind, keys, "replying") as client:
            cpu_s = client.cpu_s()
            place.far_end.offer(*keys, self._per_s, events)
            latencies_s = place.far_end.answers_s(events)
            cpu_s = client.cpu_s() - cpu_s
            client.finish()
        return _figures("answers", latencies_s, cpu_s) | {"answers.missing": events - len(latencies_s)}


@contextmanager
def _warm(place: Place, kind: type[Client], keys: Mapping[str, str], handler: str) -> Iterator[Client]:
    with place.client(kind, keys, handler) as client:
        client.live()
        place.far_end.push(*keys, _WARM_UP)
        client.settled(_WARM_UP)
        yield client


def _figures(name: str, latencies_s: Sequence[float], cpu_s: float) -> dict[str, float]:
    cuts = statistics.quantiles(latencies_s, n=100)
    cpu_us = cpu_s / len(latencies_s) * 1e6
    return {f"{name}.p50": cuts[49] * 1e3, f"{name}.p99": cuts[98] * 1e3, f"{name}.cpu": cpu_us}
