"""What one more identity costs that has nothing to do: the memory of a process with many, less that with one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.bench.clients import Client, Sdk
from tests.bench.measuring import Figure, Place, Sample, Sizes

_REST_S = 1.0  # for what runs once after the start


class Idle:
    figures: Sequence[Figure] = (
        Figure("idle.one", "process with one identity", "KiB", "less"),
        Figure("idle.rss", "per further identity", "KiB", "less"),
        Figure("idle.bare", "the same, without REST clients", "KiB", "less"),
    )
    note = "Resident memory, a second after everything is live."

    def __init__(self, sizes: Sizes) -> None:
        self._further = sizes.idle_identities
        self.title = f"idle: 1 and {1 + self._further} identities"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        one = self._rss_kib(place, kind, 1)
        figures = {"idle.one": one, "idle.rss": self._further_kib(place, kind, one)}
        if kind is Sdk:
            bare = self._rss_kib(place, kind, 1, with_rest=False)
            figures["idle.bare"] = self._further_kib(place, kind, bare, with_rest=False)
        return figures

    def _further_kib(self, place: Place, kind: type[Client], one: float, *, with_rest: bool = True) -> float:
        return (self._rss_kib(place, kind, 1 + self._further, with_rest=with_rest) - one) / self._further

    def _rss_kib(self, place: Place, kind: type[Client], identities: int, *, with_rest: bool = True) -> float:
        with place.client(kind, place.identities(identities), with_rest=with_rest) as client:
            client.live()
            time.sleep(_REST_S)
            rss_kib = client.rss_kib()
            client.finish()
        return rss_kib
