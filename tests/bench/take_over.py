"""How much longer a message waits for its handler when a new process takes over, measured at the hub.

Messages are posted at a steady rate all the time, while turns that outlast a take-over are under way in conversations
of their own. A message belongs to a take-over if it was posted between the start of the new process and its being live.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tests.bench.clients import Agentd, Client
from tests.bench.measuring import Figure, Place, Sample, Sizes, require_equal
from tests.crash.succession import Succession

_PER_S = 100
_PEERS = 10
_BETWEEN_S = 1.0
_SETTLE_S = 60.0


class _Rig(Succession):
    plugin = "tests.bench.punctual:plugin"


def _figures_named(name: str) -> Sequence[Figure]:
    return (
        *(
            Figure(f"{name}.{when}.{which}", f"{title}, {which}", "ms", "less")
            for when, title in (("steady", "while one process runs"), ("across", "while another takes over"))
            for which in ("p50", "p99", "max")
        ),
        Figure(f"{name}.extra", "longest wait beyond the steady p99", "ms", "less"),
        Figure(f"{name}.twice", "messages handled twice", "", "less"),
    )


class TakeOver:
    """Agentd alone: nobody else offers it."""

    name = "take_over"
    note = "From the post at the hub to the begin of the handler, in the same machine's time; turns of 1.5 s beside it."
    figures = _figures_named(name)

    def __init__(self, sizes: Sizes, identities: int = 1) -> None:
        self._times = sizes.take_overs
        self._identities = identities
        whose = "" if identities == 1 else f" of {identities} identities"
        self.title = f"take-over{whose}: {self._times} in a row at {_PER_S} messages a second"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        return uvloop.run(self._measured()) if kind is Agentd else {}

    async def _measured(self) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="agentd-bench-") as folder:
            async with _Rig(Path(folder), peers=_PEERS, identities=self._identities) as rig:
                return {f"{self.name}.{figure}": value for figure, value in (await self._of(rig)).items()}

    async def _of(self, rig: _Rig) -> dict[str, float]:
        rig.start()
        await rig.until_live()
        posted: dict[str, float] = {}
        windows: list[tuple[float, float]] = []
        over = asyncio.Event()
        talking = asyncio.create_task(_talk(rig, posted, over))
        for _ in range(self._times):
            await asyncio.sleep(_BETWEEN_S)
            rig.hub.post(rig.peer("patient"), rig.identities[0], "long")
            await asyncio.sleep(0.1)
            began = time.time()
            await rig.take_over()
            windows.append((began, time.time()))
            await rig.until_former_ended()
        await asyncio.sleep(_BETWEEN_S)
        over.set()
        await talking
        await rig.until_answered(_SETTLE_S)
        await rig.stop()
        return _figures(posted, windows, [json.loads(line) for line in rig.handled.read_text().splitlines()])


class CrowdTakeOver(TakeOver):
    """With as many identities as a large installation has: all of their connections are replaced at once."""

    name = "take_over_crowd"
    figures = _figures_named(name)

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, sizes.take_over_identities)


async def _talk(rig: _Rig, posted: dict[str, float], over: asyncio.Event) -> None:
    peers = itertools.cycle(rig.said)
    while not over.is_set():
        for identity in rig.identities:
            row = rig.hub.post(next(peers), identity, "now")[0]
            posted[row.id] = time.time()
            await asyncio.sleep(1 / _PER_S)


def _figures(
    posted: dict[str, float], windows: list[tuple[float, float]], handled: list[tuple[str, float]]
) -> dict[str, float]:
    first: dict[str, float] = {}
    twice = 0
    for id_, at in handled:
        twice += id_ in first
        first.setdefault(id_, at)
    require_equal("messages handled", len(first.keys() & posted.keys()), len(posted))
    waits: dict[str, list[float]] = {"steady": [], "across": []}
    for id_, at in posted.items():
        when = "across" if any(began <= at <= ended for began, ended in windows) else "steady"
        waits[when].append(max(0.0, first[id_] - at) * 1e3)
    figures: dict[str, float] = {"twice": twice}
    for when, took_ms in waits.items():
        took_ms.sort()
        figures[f"{when}.p50"] = statistics.median(took_ms)
        figures[f"{when}.p99"] = took_ms[int(len(took_ms) * 0.99)]
        figures[f"{when}.max"] = took_ms[-1]
    figures["extra"] = figures["across.max"] - figures["steady.p99"]
    return figures
