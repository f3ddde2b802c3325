"""Shows what was measured: a table for people, one JSON object for programs, and the machine that it was on."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from tests.bench.clients import SDK_PYTHON, Client
from tests.bench.measuring import KINDS, Figure, Measurement, Sample
from tests.bench.processes import cores

_SYNCS = 100


class Spread(msgspec.Struct, frozen=True):
    """The samples of one figure for one client."""

    median: float
    min: float
    max: float
    samples: list[float]


class Row(msgspec.Struct, frozen=True):
    """One figure of every client that has it. ratio: the first client's median to the second's; None if either lacks
    it, or is 0."""

    figure: Figure
    spreads: dict[str, Spread]
    ratio: float | None


def rows(figures: Sequence[Figure], samples: Mapping[type[Client], Sequence[Sample]]) -> list[Row]:
    """Gather each figure's samples."""
    return [_row(figure, samples) for figure in figures]


def _row(figure: Figure, samples: Mapping[type[Client], Sequence[Sample]]) -> Row:
    spreads: dict[str, Spread] = {}
    for kind in KINDS:
        values = [sample[figure.key] for sample in samples[kind] if figure.key in sample]
        if values:
            spreads[kind.name] = Spread(statistics.median(values), min(values), max(values), values)
    medians = [spread.median for spread in spreads.values()]
    ratio = medians[0] / medians[1] if len(medians) == len(KINDS) and medians[1] else None
    return Row(figure, spreads, ratio)


def head() -> str:
    names = "".join(f"{kind.name:>30}" for kind in KINDS)
    return f"{'median (min to max)':46}{'better':>6}{names}{'ratio':>8}"


def lines(measurement: Measurement, measured: Sequence[Row]) -> Iterator[str]:
    yield f"\n{measurement.title}"
    for row in measured:
        figure = row.figure
        title = f"  {figure.title}{', ' if figure.unit else ''}{figure.unit}"
        cells = "".join(f"{_cell(row.spreads.get(kind.name)):>30}" for kind in KINDS)
        ratio = "" if row.ratio is None else f"{row.ratio:.2g}"
        yield f"{title:46}{figure.better:>6}{cells}{ratio:>8}"
    yield f"  {measurement.note}"


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{_number(spread.median)} ({_number(spread.min)} to {_number(spread.max)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def machine(folder: Path) -> dict[str, str]:
    """What the figures depend on."""
    sdk = [str(SDK_PYTHON), "-c", "from importlib.metadata import version as v; print(v('agentchatme'))"]
    return {
        "cpu": _cpu(),
        "cores": f"{len(os.sched_getaffinity(0))}, {'client and hub pinned' if cores()[0] is not None else 'shared'}",
        "kernel": platform.release(),
        "disk": f"{folder}, append and fdatasync {_sync_ms(folder):.2f} ms p50",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "agentd": f"{version('agentd')}, uvloop {version('uvloop')}, websockets {version('websockets')}",
        "official SDK": subprocess.run(sdk, check=True, capture_output=True, text=True).stdout.strip(),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _sync_ms(folder: Path) -> float:
    took_s = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_SYNCS):
            began_s = time.perf_counter()
            file.write(b"x" * 450)
            file.flush()
            os.fdatasync(file.fileno())
            took_s.append(time.perf_counter() - began_s)
    return statistics.median(took_s) * 1e3
