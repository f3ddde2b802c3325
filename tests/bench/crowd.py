"""What the messages of many identities wait, alone and while one more goes wrong, in one way after the other.

Messages are posted at a steady rate to all identities but the first, in turn. Calm and trouble take turns, on the same
daemon; between one and the next the first identity is mended, and what it was sent is handled.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import uvloop

from agentd.hub.faults import Action, Point, Rule
from tests.bench.clients import Agentd, Client
from tests.bench.measuring import Figure, Place, Sample, Sizes, require_equal
from tests.bench.take_over import Punctual

Trouble = Callable[[Punctual], contextlib.AbstractAsyncContextManager[None]]

_PER_S = 100
_PEERS = 10
_FLOODING = 24
_SETTLE_S = 120.0


class Crowd:
    """Agentd alone: the SDK's client has one identity."""

    note = "From the post at the hub to the begin of the handler. The one in trouble: flooded by handlers that take\n  \
1.5 s, cut at each accept, deaf, refused every request, and with its key revoked."
    figures: Sequence[Figure] = (
        Figure("crowd.calm.p50", "all well, p50", "ms", "less"),
        Figure("crowd.calm.p99", "all well, p99", "ms", "less"),
        Figure("crowd.trouble.p50", "one in trouble, the others' p50", "ms", "less"),
        Figure("crowd.trouble.p99", "one in trouble, the others' p99", "ms", "less"),
        Figure("crowd.p50", "p50, with trouble to without", "", "less"),
        Figure("crowd.p99", "p99, with trouble to without", "", "less"),
    )

    def __init__(self, sizes: Sizes) -> None:
        self._identities = sizes.take_over_identities
        self._for_s = float(sizes.offered_for_s)
        self.title = f"crowd: {self._identities} identities at {_PER_S} messages a second, one of them in trouble"

    def sample(self, place: Place, kind: type[Client]) -> Sample:
        return uvloop.run(self._measured()) if kind is Agentd else {}

    async def _measured(self) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="agentd-bench-") as folder:
            async with Punctual(Path(folder), peers=_PEERS, identities=self._identities) as rig:
                for number in range(_FLOODING):
                    rig.peer(f"flooding-{number}")
                rig.start()
                await rig.until_live()
                posted: dict[str, dict[str, float]] = {"calm": {}, "trouble": {}}
                for trouble in (_flooded, _cut, _deaf, _refused, _revoked):
                    await self._talk(rig, posted["calm"])
                    async with trouble(rig):
                        await self._talk(rig, posted["trouble"])
                    rig.hub.faults.replace()
                    await _mended(rig)
                await rig.until_answered(_SETTLE_S)
                await rig.stop()
                return _figures(posted, [json.loads(line) for line in rig.handled.read_text().splitlines()])

    async def _talk(self, rig: Punctual, posted: dict[str, float]) -> None:
        peers, others = itertools.cycle(rig.said), itertools.cycle(rig.identities[1:])
        until = time.monotonic() + self._for_s
        while time.monotonic() < until:
            row = rig.hub.post(next(peers), next(others), "now")[0]
            posted[row.id] = time.time()
            await asyncio.sleep(1 / _PER_S)


async def _mended(rig: Punctual) -> None:
    async with asyncio.timeout(_SETTLE_S):
        while not (status := await rig.status()) or not _is_well(status["identities"][0]):
            await asyncio.sleep(0.1)


def _is_well(identity: dict[str, object]) -> bool:
    return identity["state"] == "live" and not identity["pending"]


@contextlib.asynccontextmanager
async def _flooded(rig: Punctual) -> AsyncIterator[None]:
    for number in range(_FLOODING):
        rig.hub.post(f"flooding-{number}", rig.identities[0], "long", "long")
    yield


def _faulty(
    point: Point, at_once: Action, **fault: object
) -> Callable[[Punctual], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def trouble(rig: Punctual) -> AsyncIterator[None]:
        bad = rig.identities[0]
        rig.hub.faults.add(Rule(point=point, identity=bad, times=None, **fault))  # type: ignore[arg-type]
        rig.hub.afflict(at_once, bad)
        yield

    return trouble


_cut = _faulty(Point.ACCEPT, Action.CUT, action=Action.CUT)
_deaf = _faulty(Point.ACCEPT, Action.DEAF, action=Action.DEAF)
_refused = _faulty(Point.REST, Action.CUT, action=Action.STATUS, status=503)


@contextlib.asynccontextmanager
async def _revoked(rig: Punctual) -> AsyncIterator[None]:
    bad = rig.identities[0]
    key = rig.hub.rotate_key(bad)
    yield
    (rig.folder / f"{bad}.key").write_text(key)


def _figures(posted: dict[str, dict[str, float]], handled: list[tuple[str, float]]) -> dict[str, float]:
    first: dict[str, float] = {}
    for id_, at in handled:
        first.setdefault(id_, at)
    figures: dict[str, float] = {}
    for when, sent in posted.items():
        require_equal(f"handled, {when}", len(sent.keys() & first.keys()), len(sent))
        cuts = statistics.quantiles([(first[id_] - at) * 1e3 for id_, at in sent.items()], n=100)
        figures[f"crowd.{when}.p50"], figures[f"crowd.{when}.p99"] = cuts[49], cuts[98]
    for which in ("p50", "p99"):
        figures[f"crowd.{which}"] = figures[f"crowd.trouble.{which}"] / figures[f"crowd.calm.{which}"]
    return figures
