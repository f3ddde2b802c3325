"""From the execution of the program until its identity is live: with nothing on disk, and with much."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.clients import Agentd, Client
from tests.bench.measuring import Figure, Place, Sample, Sizes


class Start:
    note = "Live is: connected, greeted and drained."

    def __init__(self, sizes: Sizes) -> None:
        self._events = sizes.journaled_events
        self._filled: dict[str, str] = {}
        self.title = "start: from exec to live"
        self.figures: Sequence[Figure] = (
            Figure("start.empty", "with nothing on disk", "ms", "less"),
            Figure("start.cpu", "CPU until then", "ms", "less"),
            Figure("start.filled", f"with {self._events:,} events in the journal", "ms", "less"),
        )

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        took_ms, cpu_ms = _start(place, kind, place.identities())
        figures = {"start.empty": took_ms, "start.cpu": cpu_ms}
        if kind is Agentd:
            self._filled = self._filled or self._fill(place)
            figures["start.filled"], _ = _start(place, kind, self._filled)
        return figures

    def _fill(self, place: Place) -> dict[str, str]:
        keys = place.identities()
        with place.client(Agentd, keys) as client:
            client.live()
            place.far_end.push(*keys, self._events)
            client.settled(self._events)
            client.finish()
        return keys


def _start(place: Place, kind: type[Client], keys: dict[str, str]) -> tuple[float, float]:
    with place.client(kind, keys) as client:
        live_s = client.live()
        took_ms, cpu_ms = (live_s - client.started_s) * 1e3, client.cpu_s() * 1e3
        client.finish()
    return took_ms, cpu_ms
