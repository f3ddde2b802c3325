"""What the daemon's status says, read as facts about its health and as the values of gauges.

One status is taken per question, so that all numbers of one answer are of the same moment.

Always true: nothing is asked of a disk but the process's own entries in /proc, and nothing is waited for.
Not here: what the facts mean (core/health.py), the text that a scraper reads (exposition.py).
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from agentd import config, metrics
from agentd.control.exposition import render
from agentd.core.breaker import Standing
from agentd.core.events import OPEN_STATES, SETTLED_STATES
from agentd.core.health import STATES, IdentityFacts, Limits, ProcessFacts, Reason, reasons
from agentd.metrics import Gauge

Status = Mapping[str, Any]

_OUTBOX = tuple(dict.fromkeys(state for state in (*OPEN_STATES, *SETTLED_STATES) if state not in ("sending",)))
_AUDITS_MISSED = 4  # one may fail, and one may be slow; intervals have a jitter of a fifth


def limits(settings: config.Agentd) -> Limits:
    """What may pass by itself, from the configuration."""
    health, link = settings.health, settings.link
    return Limits(
        reconnect_s=health.reconnect_s,
        silent_s=link.ping_interval_s + link.ping_timeout_s,
        audit_s=_AUDITS_MISSED * settings.intake.audit_interval_s,
        commit_s=health.commit_s,
        lag_s=health.lag_s,
    )


def why_not_ready(status: Status, bounds: Limits, now: float) -> list[Reason]:
    """What speaks against "mail is flowing". now: monotonic seconds, those of the reasons."""
    return reasons(_process(status, now), [_identity(each, now) for each in status["identities"]], bounds, now)


def _process(status: Status, now: float) -> ProcessFacts:
    journal = status["journal"]
    waiting = _at(now, journal["waiting_s"])
    return ProcessFacts(
        shedding=status["shedding"],
        shedding_since=_at(now, status["shedding_s"]),
        full_since=(now if waiting is None else waiting) if journal["full"] else None,
        commit_since=waiting,
        lag_s=status["loop_lag_s"],
        lag_at=now - status["loop_lag_age_s"],
    )


def _identity(status: Status, now: float) -> IdentityFacts:
    return IdentityFacts(
        name=status["name"],
        state=status["state"],
        since=now - status["state_age_s"],
        began=now - status["up_s"],
        why=status["state_reason"],
        live_at=_at(now, status["last_live_age_s"]),
        deaf=status.get("deaf", False),
        proved_at=_at(now, status.get("last_pong_age_s")),
        audited_at=_at(now, status.get("last_audit_age_s")),
        shedding=status.get("shedding", ""),
        shedding_since=_at(now, status.get("shedding_s")),
    )


def _at(now: float, age_s: float | None) -> float | None:
    return None if age_s is None else now - age_s


class Readings:
    """The gauges of one daemon, while the context lasts. status: `Daemon.status`."""

    def __init__(self, status: Callable[[], Status], bounds: Limits) -> None:
        self._status = status
        self._bounds = bounds
        self._values: dict[Gauge, metrics.Readings] = {}
        self._telling = asyncio.Lock()

    def __enter__(self) -> Readings:
        for gauge in _gauges():
            gauge.watch(partial(self._values_of, gauge))
        return self

    def __exit__(self, *_: object) -> None:
        for gauge in _gauges():
            gauge.unwatch()

    def _values_of(self, gauge: Gauge) -> metrics.Readings:
        return self._values.get(gauge, {})

    async def page(self) -> str:
        """Every metric as it is now; gauges are all of one moment. The loop is let on between one and the next."""
        async with self._telling:  # of one moment also where two ask at a time
            return await self._page()

    async def _page(self) -> str:
        status = self._status()
        reasons_now = why_not_ready(status, self._bounds, time.monotonic())
        self._values = {
            **_of_readiness(reasons_now),
            **_of_identities(status["identities"], time.time()),
            **_of_plugins(status["plugins"]),
            **_of_the_rest(status, time.time()),
            **_of_traces(status.get("tracing")),
            **_of_process(),
        }
        pieces: list[str] = []
        for metric in list(metrics.ALL.values()):
            pieces.append(render([metric]))
            await asyncio.sleep(0)
        return "".join(pieces)


def _gauges() -> Iterable[Gauge]:
    return (metric for metric in metrics.ALL.values() if isinstance(metric, Gauge))


def _of_readiness(found: list[Reason]) -> dict[Gauge, metrics.Readings]:
    counts: dict[tuple[str, ...], float] = {}
    for reason in found:
        counts[reason.code,] = counts.get((reason.code,), 0) + 1
    return {metrics.READY: {(): float(not found)}, metrics.NOT_READY: counts}


def _of_identities(identities: list[Status], now: float) -> dict[Gauge, metrics.Readings]:
    fields = {
        metrics.CONVERSATIONS: "conversations",
        metrics.HELD_EARLY: "held",
        metrics.GAPS_OPEN: "gaps_open",
        metrics.ABSENT: "absent",
        metrics.PENDING: "pending",
        metrics.DEAD_LETTERS: "dead",
        metrics.PACING_RATE: "pacing_per_s",
    }
    ages = {
        metrics.LAST_PONG: "last_pong_age_s",
        metrics.LAST_INBOUND: "last_inbound_age_s",
        metrics.LAST_AUDIT: "last_audit_age_s",
    }
    found: dict[Gauge, metrics.Readings] = {}
    for gauge, field in fields.items():
        found[gauge] = {(each["name"],): each[field] for each in identities if each.get(field) is not None}
    for gauge, field in ages.items():
        found[gauge] = {(each["name"],): round(now - each[field], 1) for each in identities if _is_known(each, field)}
    found[metrics.IDENTITY_STATE] = {
        (each["name"], state): float(state == each["state"]) for each in identities for state in STATES
    }
    found[metrics.OUTBOX] = {
        (each["name"], state): each[f"outbox_{state}"]
        for each in identities
        for state in _OUTBOX
        if f"outbox_{state}" in each
    }
    return found


def _is_known(status: Status, field: str) -> bool:
    return status.get(field) is not None


def _of_plugins(plugins: list[Status]) -> dict[Gauge, metrics.Readings]:
    used = [each for each in plugins if "breaker" in each]  # the others serve no identity
    return {
        metrics.LANES: {(each["name"],): each["lanes"] for each in used},
        metrics.LANE_DEPTH: {
            (each["name"],): max((lane["depth"] for lane in each["deepest"]), default=0) for each in used
        },
        metrics.LANES_HELD: {(each["name"],): len(each["held"]) for each in used},
        metrics.BREAKER: {
            (each["name"], standing.value): float(standing.value == each["breaker"])
            for each in used
            for standing in Standing
        },
    }


def _of_the_rest(status: Status, now: float) -> dict[Gauge, metrics.Readings]:
    journal = status["journal"]
    committed = [each["last_commit_age_s"] for each in status["identities"] if _is_known(each, "last_commit_age_s")]
    return {
        metrics.BUILD_INFO: {(status["version"], platform.python_version()): 1},
        metrics.UNDISPATCHED: {(): status["undispatched"]},
        metrics.SHEDDING: {
            (): float(bool(status["shedding"] or any(each.get("shedding") for each in status["identities"])))
        },
        metrics.LOG_DROPPED: {(): status["log_lines_dropped"]},
        metrics.JOURNAL_BYTES: {(): journal["bytes"]},
        metrics.JOURNAL_WAL_BYTES: {(): journal["wal_bytes"]},
        metrics.JOURNAL_FULL: {(): float(journal["full"])},
        metrics.JOURNAL_WAITING: {(): journal["waiting_s"] or 0},
        metrics.LAST_COMMIT: {(): round(now - min(committed), 1)} if committed else {},
    }


def _of_traces(tracing: Status | None) -> dict[Gauge, metrics.Readings]:
    if tracing is None:
        return {}
    return {
        metrics.TRACE_SPANS: {(fate,): tracing[fate] for fate in ("delivered", "lost")},
        metrics.TRACE_WAITING: {(): tracing["waiting"]},
    }


def _of_process() -> dict[Gauge, metrics.Readings]:
    """What the kernel knows of us. /proc/stat is not asked: a sandboxed unit does not see it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # a program's name may hold anything
    ticks_per_s, page_bytes = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    user, system, began, virtual_bytes, resident_pages = (int(fields[place]) for place in (11, 12, 19, 20, 21))
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began / ticks_per_s
    most_fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        metrics.PROCESS_CPU: {(): (user + system) / ticks_per_s},
        metrics.PROCESS_RESIDENT: {(): resident_pages * page_bytes},
        metrics.PROCESS_VIRTUAL: {(): virtual_bytes},
        metrics.PROCESS_START: {(): round(time.time() - up_s, 2)},
        metrics.PROCESS_FDS: {(): sum(1 for _ in Path("/proc/self/fd").iterdir())},
        metrics.PROCESS_FDS_MAX: {(): most_fds},
    }
