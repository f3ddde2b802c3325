"""Counting: the sums are right, and every name follows Prometheus' conventions."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import metrics
from agentd.metrics import ALL, Counter, Gauge, Histogram


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    before = dict(ALL)
    yield
    ALL.clear()
    ALL.update(before)


def test_a_counter_counts_each_combination_of_labels_apart() -> None:
    counter = Counter("test_things_total", "Things.", ["kind"])
    counter.inc("a")
    counter.inc("a", by=2)
    counter.inc("b")
    assert (counter.value("a"), counter.value("b"), counter.value("c")) == (3, 1, 0)


@given(st.lists(st.integers(0, 100)))
def test_a_histogram_puts_each_value_into_the_first_bucket_that_holds_it(values: list[int]) -> None:
    ALL.pop("test_seconds", None)
    histogram = Histogram("test_seconds", "Seconds.", bounds=(10, 50))
    for value in values:
        histogram.observe(value)
    expected = [sum(v <= 10 for v in values), sum(10 < v <= 50 for v in values), sum(v > 50 for v in values)]
    assert histogram.buckets.get((), [0, 0, 0]) == expected
    assert histogram.count() == len(values)
    assert histogram.sums.get((), 0) == sum(values)


def test_a_gauge_reads_what_is_so_when_it_is_asked_and_nothing_while_nobody_watches() -> None:
    gauge = Gauge("test_depth", "Depth.", ["lane"])
    depths = {("a",): 1.0}
    gauge.watch(lambda: depths)
    depths["b",] = 2.0
    assert gauge.values() == {("a",): 1.0, ("b",): 2.0}
    gauge.unwatch()
    assert gauge.values() == {}


def test_a_name_is_given_once() -> None:
    with pytest.raises(AssertionError):
        Counter(metrics.EVENTS.name, "Again.")


def test_names_and_units_follow_the_conventions() -> None:
    for name, metric in ALL.items():
        assert re.fullmatch(r"(agentd|process)_[a-z]+(_[a-z]+)*", name), name
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.meaning.endswith("."), name
