"""Mail that was stored while nobody was connected: from the connection until every row is acknowledged."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.clients import Client
from tests.bench.measuring import Figure, Place, Sample, Sizes


class Drain:
    figures: Sequence[Figure] = (
        Figure("drain.time", "connection to last row acked", "s", "less"),
        Figure("drain.rate", "rows acked", "/s", "more"),
        Figure("drain.cpu", "CPU per row, the client's start included", "µs", "less"),
        Figure("drain.unhandled", "rows acked and never handled", "", "less"),
    )
    note = "The hub pushes stored rows by itself as well, 200 each 0.1 s, as the platform does."

    def __init__(self, sizes: Sizes) -> None:
        self._rows = sizes.stored_rows
        self.title = f"drain: {self._rows:,} rows stored"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        keys, rows = place.identities(), self._rows
        place.far_end.store(*keys, rows)
        with place.client(kind, keys) as client:
            began_s, acked_s = place.far_end.drained(*keys)
            client.live()
            client.settled(rows)
            cpu_s = client.cpu_s()
            handled = client.finish().handled
        return {
            "drain.time": acked_s - began_s,
            "drain.rate": rows / (acked_s - began_s),
            "drain.cpu": cpu_s / rows * 1e6,
            "drain.unhandled": rows - handled,
        }
