"""Writes docs/metrics.md from the metrics that exist: `python -m agentd.control.metrics_page > docs/metrics.md`.

Not here: the metrics (metrics.py).
"""

from __future__ import annotations

import sys

from agentd.metrics import ALL, Histogram, Metric

_HEAD = """# Metrics

`/metrics` gives these in Prometheus' text format; [Operating](operating.md#watching-it) says how to turn it on and
scrape it. [alerts.yml](prometheus/alerts.yml) and [agentd.json](grafana/agentd.json) are made of them.

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(f"{_row(metric)}\n" for metric in ALL.values())


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
    bounds = f" Buckets: {', '.join(f'{bound:g}' for bound in metric.bounds)}." if isinstance(metric, Histogram) else ""
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning}{bounds} |"


if __name__ == "__main__":
    sys.stdout.write(page())
