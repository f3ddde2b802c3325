"""Metrics as Prometheus reads them: the text format, version 0.0.4.

Always true: every metric has its HELP and TYPE, samples of one metric stand together, a histogram's buckets are
cumulative and end with +Inf. What a label holds cannot end its line.
Not here: the metrics and what they mean (metrics.py), where gauges read (readings.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agentd.metrics import Counter, Gauge, Histogram, Labels, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
_HELP_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n"})


def render(metrics: Iterable[Metric]) -> str:
    """All samples of these, in the order given."""
    return "".join(line + "\n" for metric in metrics for line in _lines(metric))


def _lines(metric: Metric) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.meaning.translate(_HELP_ESCAPES)}"
    yield f"# TYPE {metric.name} {metric.kind}"
    match metric:
        case Counter():
            # Without labels a count of nothing is a sample, too: a rate over it is 0 and not unknown.
            for labels, count in (metric.values or ({} if metric.labels else {(): 0})).items():
                yield _sample(metric.name, metric.labels, labels, count)
        case Histogram():
            for labels, counts in metric.buckets.items():
                yield from _buckets(metric, labels, counts)
        case Gauge():
            for labels, value in metric.values().items():
                yield _sample(metric.name, metric.labels, labels, value)


def _buckets(metric: Histogram, labels: Labels, counts: list[int]) -> Iterator[str]:
    so_far = 0
    for bound, count in zip((*map(_number, metric.bounds), "+Inf"), counts, strict=True):
        so_far += count
        yield _sample(f"{metric.name}_bucket", (*metric.labels, "le"), (*labels, bound), so_far)
    yield _sample(f"{metric.name}_sum", metric.labels, labels, metric.sums[labels])
    yield _sample(f"{metric.name}_count", metric.labels, labels, so_far)


def _sample(name: str, names: tuple[str, ...], labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{each.translate(_ESCAPES)}"' for key, each in zip(names, labels, strict=True))
    return f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}"


def _number(value: float) -> str:
    """As short as it can be said exactly."""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
