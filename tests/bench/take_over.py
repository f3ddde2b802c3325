"""How much longer a message waits for its handler when a new process takes over, measured at the hub.

Messages are posted at a steady rate all the time, while turns that outlast a take-over are under way in conversations
of their own. A message belongs to a take-over if it was posted between the start of the new process and its being live.
"""

from __future__ import annotations

import asyncio
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


class TakeOver:
    """Agentd alone: nobody else offers it."""

    note = "From the post at the hub to the begin of the handler, in the same machine's time; turns of 1.5 s beside it."
    figures: Sequence[Figure] = (
        *(
            Figure(f"take_over.{when}.{which}", f"{title}, {which}", "ms", "less")
            for when, title in (("steady", "while one process runs"), ("across", "while another takes over"))
            for which in ("p50", "p99", "max")
        ),
        Figure("take_over.extra", "longest wait beyond the steady p99", "ms", "less"),
        Figure("take_over.twice", "messages handled twice", "", "less"),
    )

    def __init__(self, sizes: Sizes) -> None:
        self._times = sizes.take_overs
        self.title = f"take-over: {self._times} in a row at {_PER_S} messages a second"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        return uvloop.run(self._measured()) if kind is Agentd else {}

    async def _measured(self) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="agentd-bench-") as folder:
            async with _Rig(Path(folder), peers=_PEERS) as rig:
                return await self._of(rig)

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


async def _talk(rig: _Rig, posted: dict[str, float], over: asyncio.Event) -> None:
    peers = list(rig.said)
    while not over.is_set():
        for peer in peers:
            row = rig.hub.post(peer, rig.identities[0], "now")[0]
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
    figures: dict[str, float] = {"take_over.twice": twice}
    for when, took_ms in waits.items():
        took_ms.sort()
        figures[f"take_over.{when}.p50"] = statistics.median(took_ms)
        figures[f"take_over.{when}.p99"] = took_ms[int(len(took_ms) * 0.99)]
        figures[f"take_over.{when}.max"] = took_ms[-1]
    figures["take_over.extra"] = figures["take_over.across.max"] - figures["take_over.steady.p99"]
    return figures
