"""The text that Prometheus reads, and the page that says what is in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.control import metrics_page
from agentd.control.exposition import render
from agentd.metrics import ALL, Counter, Gauge, Histogram

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    before = dict(ALL)
    yield
    ALL.clear()
    ALL.update(before)


def test_a_histogram_is_cumulative_and_ends_with_everything() -> None:
    histogram = Histogram("test_seconds", "How long.", ["who"], bounds=(0.5, 1.0))
    for value in (0.1, 0.7, 0.7, 4.0):
        histogram.observe(value, "a")
    assert render([histogram]).splitlines() == [
        "# HELP test_seconds How long.",
        "# TYPE test_seconds histogram",
        'test_seconds_bucket{who="a",le="0.5"} 1',
        'test_seconds_bucket{who="a",le="1"} 3',
        'test_seconds_bucket{who="a",le="+Inf"} 4',
        'test_seconds_sum{who="a"} 5.5',
        'test_seconds_count{who="a"} 4',
    ]


def test_a_counter_without_labels_starts_at_nought_and_one_with_labels_at_nothing() -> None:
    bare, labelled = Counter("test_bare_total", "Bare."), Counter("test_labelled_total", "Labelled.", ["who"])
    assert render([bare]).splitlines()[2:] == ["test_bare_total 0"]
    assert render([labelled]).splitlines()[2:] == []


@given(st.text())
def test_no_label_can_end_its_line_or_its_quotes(text: str) -> None:
    ALL.pop("test_state", None)
    gauge = Gauge("test_state", "State.", ["who"])
    gauge.watch(lambda: {(text,): 1.5})
    *_, sample, end = render([gauge]).split("\n")
    assert end == ""
    assert sample.startswith('test_state{who="')
    assert sample.endswith('"} 1.5')
    told = sample[len('test_state{who="') : -len('"} 1.5')]
    assert re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], told) == text


def test_the_page_of_the_metrics_is_what_its_command_writes() -> None:
    told = "write it anew: python -m agentd.control.metrics_page > docs/metrics.md"
    assert (DOCS / "metrics.md").read_text() == metrics_page.page(), told


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say_about_names_and_types() -> None:
    for metric in ALL.values():
        labels = tuple("x" for _ in metric.labels)
        match metric:
            case Counter():
                metric.inc(*labels)
            case Histogram():
                metric.observe(1.0, *labels)
            case Gauge():
                metric.watch(lambda labels=labels: {labels: 1.0})
    try:
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=render(ALL.values()), capture_output=True, text=True, check=False
        )
    finally:
        for metric in ALL.values():
            if isinstance(metric, Gauge):
                metric.unwatch()
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
