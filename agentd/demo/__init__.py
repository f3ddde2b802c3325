"""`agentd demo`: the proof that nothing is lost, out of order or answered twice, under faults and kills.

A hub with seeded faults, a real daemon process that is killed at random moments, and in the end three ledgers that must
agree: what the hub stored, what the plugin handled, which replies the hub accepted.

Always true: the verdict comes from the ledgers. Faults and kills really happened, or the proof is not one and fails.
Not here: the rig (proof.py), the plugin (ledger.py).
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from agentd.config import JournalSettings
from agentd.core.events import Source
from agentd.demo.proof import Proof, Verdict
from agentd.hub.faults import FaultPlan
from agentd.journal.sqlite import open_journal

__all__ = ["Proof", "Verdict", "run"]

_SEND_FOR_S = 40.0
"""How long the sending takes whatever the number: about a minute in all, with the drain."""
_SEND_SLOWEST_PER_S, _SEND_FASTEST_PER_S = 50.0, 400.0
_AT_ONCE_MAX = 4
"""Peers say up to this many things in a row, so that a loss in between shows as a hole."""
_SETTLE_FOR_S = 120.0
_BAR = 30
_SHOW_EVERY_S = 0.1


class Result(Verdict, frozen=True):
    """The verdict with what happened meanwhile."""

    gaps_found: int
    seqs_refetched: int
    reconnects: int
    kills: int
    seconds: float


def run(*, messages: int, identities: int, conversations: int, kills: int, seed: int, as_json: bool) -> int:
    """Run the proof and print its verdict. Returns 0 only for a clean one in which faults really happened."""
    folder = Path(tempfile.mkdtemp(prefix="agentd-demo-"))
    result = asyncio.run(_prove(folder, messages, identities, conversations, kills, seed))
    faulty = min(result.gaps_found, result.seqs_refetched, result.reconnects) > 0 and result.kills == kills
    if as_json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        sys.stdout.write(_table(result, seed) + "\n")
    if result.clean and faulty:
        shutil.rmtree(folder)
        return 0
    why = "too few faults happened to prove anything: take more --messages" if result.clean else "not clean"
    sys.stderr.write(f"{why}; journal, ledger and log are in {folder}\n")
    return 1


async def _prove(folder: Path, messages: int, identities: int, conversations: int, kills: int, seed: int) -> Result:
    chance = random.Random(seed)
    began = time.monotonic()
    async with Proof(folder, identities) as proof:
        peers = [proof.peer(f"peer-{number}") for number in range(1, conversations + 1)]
        talks = [(peer, proof.identities[number % identities]) for number, peer in enumerate(peers)]
        proof.hub.faults.replace(_plan(seed, messages))
        proof.start()
        await proof.until_live()
        progress = _Progress(messages)
        moments = sorted(
            chance.randrange(messages // 10, max(messages // 10 + 1, messages * 9 // 10)) for _ in range(kills)
        )
        killing = asyncio.create_task(_kill_at(proof, moments, chance, progress), name="kills")
        rate_per_s = min(_SEND_FASTEST_PER_S, max(_SEND_SLOWEST_PER_S, messages / _SEND_FOR_S))
        try:
            await _send(proof, talks, messages, rate_per_s, chance, progress)
            await killing
            deadline = time.monotonic() + _SETTLE_FOR_S
            while (open_ := proof.unanswered()) and time.monotonic() < deadline:
                progress.show(messages, open_, proof.kills)
                await asyncio.sleep(0.2)
        finally:
            killing.cancel()
            progress.end()
        await proof.stop()
        gaps, refetched = await _recovered(folder)
        greeted = proof.hub.counters().get("connections.opened", 0)
        return Result(
            **msgspec.structs.asdict(proof.verdict()),
            gaps_found=gaps,
            seqs_refetched=refetched,
            reconnects=max(0, greeted - identities),
            kills=proof.kills,
            seconds=round(time.monotonic() - began, 2),
        )


def _plan(seed: int, messages: int) -> FaultPlan:
    """Two faults in a hundred frames, and more where so few frames would see none."""
    return FaultPlan(
        seed=seed,
        push_drop=min(0.25, max(0.02, 30 / messages)),
        push_duplicate=0.02,
        push_reorder=0.02,
        push_delay=0.02,
        push_cut=min(0.05, max(0.002, 5 / messages)),
        push_cut_mid_frame=0.001,
        rest_5xx=0.02,
        rest_disconnect=0.005,
        rest_disconnect_after=0.01,
    )


async def _send(
    proof: Proof,
    talks: list[tuple[str, str]],
    messages: int,
    rate_per_s: float,
    chance: random.Random,
    progress: _Progress,
) -> None:
    began = time.monotonic()
    while progress.sent < messages:
        peer, identity = talks[chance.randrange(len(talks))]
        count = min(chance.randint(1, _AT_ONCE_MAX), messages - progress.sent)
        proof.hub.post(peer, identity, *(f"message {progress.sent + number}" for number in range(count)))
        progress.sent += count
        progress.show(progress.sent, None, proof.kills)
        await asyncio.sleep(max(0.0, progress.sent / rate_per_s - (time.monotonic() - began)))


async def _kill_at(proof: Proof, moments: list[int], chance: random.Random, progress: _Progress) -> None:
    """Kill the daemon when so many messages have been sent, at a random moment after that, and start it again."""
    for moment in moments:
        while progress.sent < moment:
            await asyncio.sleep(0.01)
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        await proof.kill()
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        proof.start()


async def _recovered(folder: Path) -> tuple[int, int]:
    """Gaps found and events refetched over all the daemon's lives, from its journal."""
    journal = await open_journal(folder / "state" / "journal.db", JournalSettings())
    try:
        gaps = await journal.gaps(None, open_only=False, limit=1_000_000)
        refetched, position = 0, 0
        while rows := await journal.read_log(None, position, 1_000):
            refetched += sum(row.source == Source.REFETCH for row in rows)
            position = rows[-1].position
    finally:
        await journal.close()
    return len(gaps), refetched


class _Progress:
    """One line on a terminal, rewritten; on anything else nothing but the last word."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._shown_at = 0.0
        self._began = time.monotonic()
        self._live = sys.stderr.isatty()
        self.sent = 0

    def show(self, sent: int, unanswered: int | None, kills: int) -> None:
        """Say how far it is. unanswered: None while sending."""
        if not self._live or time.monotonic() - self._shown_at < _SHOW_EVERY_S:
            return
        self._shown_at = time.monotonic()
        share = sent / self._messages if unanswered is None else 1 - unanswered / self._messages
        bar = ("#" * int(share * _BAR)).ljust(_BAR, ".")
        doing = "sending " if unanswered is None else "settling"
        seconds = time.monotonic() - self._began
        sys.stderr.write(
            f"\r{doing} [{bar}] {share:4.0%}  {kills} {'kill' if kills == 1 else 'kills'}  {seconds:3.0f} s "
        )
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._live:
            sys.stderr.write("\n")


def _table(result: Result, seed: int) -> str:
    values: dict[str, Any] = msgspec.structs.asdict(result)
    lines = [f"  {name.replace('_', ' '):<20}{value:>10}" for name, value in values.items()]
    verdict = "nothing lost, in order, answered once" if result.clean else "NOT CLEAN"
    return "\n".join([f"{verdict} (seed {seed})", *lines])
