"""What the journal costs: events/s and µs of CPU per event, by size of batch and by offered rate.

Run: python tests/bench/bench_journal.py [--quick]

The first table hands over one commit and waits for it before the next (closed loop). In "one commit per batch" its
events share a commit, as intake writes what it has received; in "one commit per event" each has its own, as lanes
finish. The second table offers commits of one event at a steady rate and shows what waiting for company
(`linger_ms`) saves, and what it costs in latency. The third runs batches with and without encryption, the fourth beside
a loop that never rests. Each event is a row of 450 bytes with its conversation's mark and a lane's cursor.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uvloop

from agentd.config import Encryption, JournalSettings, KeySource
from agentd.core.events import Message, Record
from agentd.journal.sqlite import SqliteJournal, open_journal
from agentd.journal.storage import Appended, Change, Conversation, CursorMoved

CONVERSATIONS = 40
PAYLOAD = b"x" * 450
ROUNDS = 5


class Traffic:
    """Events over a few conversations, with the marks and cursors that go with them."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._journal = journal
        self._seqs = [0] * CONVERSATIONS

    def next(self) -> tuple[Change, ...]:
        """The changes of one event."""
        position = self._journal.next_position()
        at = position % CONVERSATIONS
        self._seqs[at] += 1
        seq, number, id_ = self._seqs[at], at + 1, f"msg_{position:024x}"
        event = Message(identity="bench", conversation=f"conv_{at}", seq=seq, id=id_, sender="@peer", payload=PAYLOAD)
        return (
            Conversation(number, "bench", event.conversation, 1, 1, seq, id_, seq, position),
            Appended(Record(position, number, event, 1.7e9)),
            CursorMoved("echo", number, position),
        )


Work = Callable[[SqliteJournal], Awaitable[None]]


async def measured(work: Work, settings: JournalSettings) -> tuple[float, float]:
    """Wall and CPU seconds of this work on a fresh journal."""
    with tempfile.TemporaryDirectory() as folder:
        journal = await open_journal(Path(folder) / "journal.db", settings)
        try:
            wall, cpu = time.perf_counter(), time.process_time()
            await work(journal)
            return time.perf_counter() - wall, time.process_time() - cpu
        finally:
            await journal.close()


def batches(batch: int, events: int, *, together: bool) -> Work:
    """Hand over batch after batch, each when the one before is on disk."""

    async def work(journal: SqliteJournal) -> None:
        traffic = Traffic(journal)
        for _ in range(events // batch):
            calls = [traffic.next() for _ in range(batch)]
            if together:
                await journal.commit(*[change for call in calls for change in call])
            else:
                await asyncio.gather(*[journal.commit(*call) for call in calls])

    return work


def offered(rate_per_s: int, seconds: float, latencies_s: list[float]) -> Work:
    """Offer commits of one event at a steady rate, whether or not the disk keeps up."""

    async def work(journal: SqliteJournal) -> None:
        traffic = Traffic(journal)
        started = time.perf_counter()
        futures: list[asyncio.Future[None]] = []
        while (elapsed := time.perf_counter() - started) < seconds:
            while len(futures) < rate_per_s * elapsed:
                handed_in = time.perf_counter()
                future = journal.commit(*traffic.next())
                future.add_done_callback(lambda _, at=handed_in: latencies_s.append(time.perf_counter() - at))
                futures.append(future)
            # uvloop counts whole milliseconds, and anything less than one spins.
            await asyncio.sleep(max(1 / rate_per_s, 0.001))
        await asyncio.gather(*futures)

    return work


def busy_until(stop: threading.Event) -> None:
    """What a loop full of handlers does to the other threads of its process."""
    while not stop.is_set():
        sum(range(2_000))


def rows_by_batch(rounds: int) -> Iterator[str]:
    yield f"{'batch':>6} {'one commit per batch':>34} {'one commit per event':>34}"
    for batch, events in ((1, 2_000), (8, 8_000), (64, 32_000), (512, 51_200)):
        cells = []
        for together in (True, False):
            figures = [run(batches(batch, events, together=together), JournalSettings()) for _ in range(rounds)]
            wall = statistics.median(wall for wall, _ in figures)
            cpu = statistics.median(cpu for _, cpu in figures)
            cells.append(f"{events / wall:>14,.0f}/s {cpu / events * 1e6:>10.1f} µs CPU")
        yield f"{batch:>6} " + " ".join(f"{cell:>34}" for cell in cells)


def rows_by_rate(seconds: float) -> Iterator[str]:
    yield f"{'offered/s':>10} {'linger ms':>10} {'µs CPU':>8} {'p50 ms':>8} {'p99 ms':>8}"
    for rate_per_s in (100, 1_000, 5_000, 20_000):
        for linger_ms in (0.0, JournalSettings().linger_ms):
            latencies_s: list[float] = []
            _, cpu = run(offered(rate_per_s, seconds, latencies_s), JournalSettings(linger_ms=linger_ms))
            cuts = [cut * 1000 for cut in statistics.quantiles(latencies_s, n=100)]
            yield (
                f"{rate_per_s:>10,} {linger_ms:>10} {cpu / len(latencies_s) * 1e6:>8.0f}"
                f" {cuts[49]:>8.2f} {cuts[98]:>8.2f}"
            )


def rows_beside_a_busy_thread() -> Iterator[str]:
    yield f"{'batch':>6} {'switch interval ms':>20} {'ms per group':>14}"
    usual_s = sys.getswitchinterval()
    for batch in (8, 512):
        for interval_s in (usual_s, 0.0005):
            sys.setswitchinterval(interval_s)
            stop = threading.Event()
            thread = threading.Thread(target=busy_until, args=(stop,))
            thread.start()
            try:
                wall, _ = run(batches(batch, 20 * batch, together=True), JournalSettings())
            finally:
                stop.set()
                thread.join()
                sys.setswitchinterval(usual_s)
            yield f"{batch:>6} {interval_s * 1000:>20} {wall / 20 * 1000:>14.1f}"


def rows_encrypted(rounds: int) -> Iterator[str]:
    yield f"{'batch':>6} {'plain':>34} {'encrypted':>34}"
    with tempfile.NamedTemporaryFile("w") as key:
        key.write("5a" * 32)
        key.flush()
        encrypted = JournalSettings(encryption=Encryption(key=KeySource(file=key.name)))
        for batch, events in ((64, 32_000), (512, 51_200)):
            figures: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
            for _ in range(rounds):
                for which, settings in enumerate((JournalSettings(), encrypted)):
                    figures[which].append(run(batches(batch, events, together=True), settings))
            cells = []
            for taken in figures.values():
                wall = statistics.median(wall for wall, _ in taken)
                cpu = statistics.median(cpu for _, cpu in taken)
                cells.append(f"{events / wall:>14,.0f}/s {cpu / events * 1e6:>10.1f} µs CPU")
            yield f"{batch:>6} " + " ".join(f"{cell:>34}" for cell in cells)


def run(work: Work, settings: JournalSettings) -> tuple[float, float]:
    """Measure on the loop that the daemon uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measured(work, settings))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    quick = parser.parse_args().quick
    for table in (rows_by_batch(1 if quick else ROUNDS), rows_by_rate(1.0 if quick else 3.0)):
        for row in table:
            print(row, flush=True)
        print()
    for row in rows_encrypted(1 if quick else ROUNDS):
        print(row, flush=True)
    print()
    for row in rows_beside_a_busy_thread():
        print(row, flush=True)


if __name__ == "__main__":
    main()
