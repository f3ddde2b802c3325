"""What all measurements share: their sizes, a place to run in, and rounds in which the clients take turns.

Always true: within a round every client meets the same hub, and who begins changes from round to round. A measurement
asserts that the work was done, and nothing about how fast.
Not here: what is measured (one module each), how it is shown (report.py).
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from tests.bench.clients import Agentd, Client, Sdk
from tests.bench.far_end import FarEnd
from tests.bench.processes import Failed, cores

KINDS: tuple[type[Client], ...] = (Agentd, Sdk)


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much work there is in one sample."""

    saturation_events: int = 20_000
    offered_per_s: int = 1_000
    answers_per_s: int = 200
    offered_for_s: int = 5
    stored_rows: int = 10_000
    idle_identities: int = 100
    journaled_events: int = 100_000
    isolated_calls: int = 5_000
    take_overs: int = 5
    take_over_identities: int = 200


QUICK = Sizes(
    saturation_events=5_000,
    offered_for_s=2,
    stored_rows=3_000,
    idle_identities=20,
    journaled_events=20_000,
    isolated_calls=1_000,
    take_overs=2,
    take_over_identities=50,
)


class Figure(msgspec.Struct, frozen=True):
    """One line of the table. better: which way is good."""

    key: str
    title: str
    unit: str
    better: Literal["more", "less"]


Sample = Mapping[str, float]
"""Figures by key; a client that lacks the feature has none."""


class Measurement(Protocol):
    """note: what a reader of its figures has to know."""

    title: str
    note: str
    figures: Sequence[Figure]

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        """Measure one client once."""
        ...


class Place:
    """Where one measurement runs: a hub, a core for the client, folders."""

    def __init__(self, folder: Path, far_end: FarEnd, core: int | None) -> None:
        self.far_end = far_end
        self._folder = folder
        self._core = core
        self._runs = itertools.count(1)

    def identities(self, count: int = 1) -> dict[str, str]:
        """New agents on the hub: their keys by name, which is their handle too."""
        run = next(self._runs)
        return self.far_end.agents([f"agent-{run}-{number}" for number in range(1, count + 1)])

    def client(
        self, kind: type[Client], keys: Mapping[str, str], handler: str = "counting", *, with_rest: bool = True
    ) -> Client:
        """Start a client; started again with the same identities, it finds what it left behind."""
        folder = self._folder / next(iter(keys))
        folder.mkdir(exist_ok=True)
        return kind.start(folder, self._core, self.far_end.url, keys, handler, with_rest=with_rest)


def measure(measurement: Measurement, rounds: int) -> Iterator[tuple[type[Client], Sample]]:
    """Sample every client in every round."""
    with _place() as place:
        for number in range(rounds):
            for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
                yield kind, measurement.sample(place, kind)


@contextmanager
def _place() -> Iterator[Place]:
    client_core, far_core = cores()
    with tempfile.TemporaryDirectory(prefix="agentd-bench-") as name:
        folder = Path(name)
        with FarEnd(folder, far_core) as far_end:
            yield Place(folder, far_end, client_core)


def require_equal(what: str, found: float, wanted: float) -> None:
    """The work was done, or the figures mean nothing."""
    if found != wanted:
        raise Failed(f"{what}: {found}, not {wanted}")
