"""As much as a client can take: socket, journal, handler, cursor, ack.

The clock runs from the first push until everything is acknowledged and handled.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.clients import Client
from tests.bench.far_end import CONVERSATIONS
from tests.bench.measuring import Figure, Place, Sample, Sizes, require_equal

_WARM_UP = 500


class Saturation:
    figures: Sequence[Figure] = (
        Figure("saturation.rate", "events handled and acked", "/s", "more"),
        Figure("saturation.cpu", "CPU per event", "µs", "less"),
        Figure("saturation.far_end", "far end busy", "%", "less"),
    )
    note = (
        "agentd has every event on disk before its ack; the SDK writes nothing down. With the far end near 100 %, the\n"
        "  rate is the hub's, and the CPU per event says more."
    )

    def __init__(self, sizes: Sizes) -> None:
        self._events = sizes.saturation_events
        self.title = f"saturation: {self._events:,} events in {CONVERSATIONS} conversations, handler that does nothing"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        keys, events, far_end = place.identities(), self._events, place.far_end
        with place.client(kind, keys) as client:
            client.live()
            far_end.push(*keys, _WARM_UP)
            client.settled(_WARM_UP)
            cpu_s = client.cpu_s()
            began_s, acked_s, far_cpu_s = far_end.push(*keys, events)
            took_s = max(acked_s, client.settled(_WARM_UP + events)) - began_s
            cpu_s = client.cpu_s() - cpu_s
            require_equal("handled", client.finish().handled, _WARM_UP + events)
        return {
            "saturation.rate": events / took_s,
            "saturation.cpu": cpu_s / events * 1e6,
            "saturation.far_end": far_cpu_s / (acked_s - began_s) * 100,
        }
