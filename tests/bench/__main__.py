"""agentd beside the official SDK's client: the same hub, the same run, rounds in turn.

    python -m tests.bench [--quick] [--rounds N] [--only NAME ...] [--json]

Two client processes and the hub in a third, so that CPU is counted apart. Every line shows the median of the rounds,
their least and their greatest, and the ratio of the medians, agentd's to the SDK's. It measures and asserts nothing,
except that the work was done.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.bench import report
from tests.bench.clients import SDK_PYTHON, Client
from tests.bench.drain import Drain
from tests.bench.idle import Idle
from tests.bench.isolation import Isolation
from tests.bench.latency import Answers, Latency
from tests.bench.measuring import KINDS, QUICK, Measurement, Sample, Sizes, measure
from tests.bench.neighbours import Neighbours
from tests.bench.processes import Failed
from tests.bench.saturation import Saturation
from tests.bench.start import Start
from tests.bench.take_over import CrowdTakeOver, TakeOver

_MEASUREMENTS: dict[str, Callable[[Sizes], Measurement]] = {
    "saturation": Saturation,
    "latency": Latency,
    "answers": Answers,
    "neighbours": Neighbours,
    "drain": Drain,
    "idle": Idle,
    "start": Start,
    "isolation": Isolation,
    "take-over": TakeOver,
    "take-over-crowd": CrowdTakeOver,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="samples of each client (5; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="less work in each sample, for a fast look")
    parser.add_argument("--only", nargs="+", choices=_MEASUREMENTS, default=list(_MEASUREMENTS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; the table goes to stderr")
    chosen = parser.parse_args()
    if not SDK_PYTHON.exists():
        parser.error("the official SDK is not installed; run: make peers")
    try:
        _run(chosen.only, QUICK if chosen.quick else Sizes(), chosen.rounds or (1 if chosen.quick else 5), chosen.json)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


def _run(names: list[str], sizes: Sizes, rounds: int, as_json: bool) -> None:
    def show(line: str) -> None:
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)

    facts = report.machine(Path(tempfile.gettempdir()))
    for name, value in facts.items():
        show(f"{name:>14}: {value}")
    show(report.head())
    measured: list[report.Row] = []
    for name in names:
        measurement = _MEASUREMENTS[name](sizes)
        samples: dict[type[Client], list[Sample]] = {kind: [] for kind in KINDS}
        for kind, sample in measure(measurement, rounds):
            samples[kind].append(sample)
        found = report.rows(measurement.figures, samples)
        measured += found
        for line in report.lines(measurement, found):
            show(line)
    if as_json:
        result = {"machine": facts, "rounds": rounds, "sizes": sizes, "figures": measured}
        print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    sys.exit(main())
