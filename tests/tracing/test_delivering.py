"""The way to the collector: bounded, from a thread of its own, and without keys."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status, StatusCode

from agentd import logs
from agentd.tracing.delivering import Delivery


class Far(SpanExporter):
    """A collector that can be closed: what is offered then waits for `gate`, and comes to `result`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.offered = threading.Event()
        self.result: SpanExportResult | Exception = SpanExportResult.SUCCESS
        self.taken: list[ReadableSpan] = []
        self.ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.offered.set()
        self.gate.wait(30)
        if isinstance(self.result, Exception):
            raise self.result
        if self.result is SpanExportResult.SUCCESS:
            self.taken += spans
        return self.result

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def far() -> Iterator[Far]:
    far = Far()
    yield far
    far.gate.set()


def delivery(far: Far, queue_max: int = 1_000) -> Delivery:
    return Delivery(lambda: far, "http://far/v1/traces", queue_max=queue_max, every_s=0.005, own_scope="agentd")


def spans(to: Delivery, *names: str, scope: str = "agentd") -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(to)
    for name in names:
        provider.get_tracer(scope).start_span(name).end()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_is_handed_in_arrives_in_order_and_what_waits_at_the_end_too(far: Far) -> None:
    to = delivery(far)
    spans(to, *(f"span {number}" for number in range(1_200)))
    await to.close(20)
    assert [span.name for span in far.taken] == [f"span {number}" for number in range(1_200)]
    assert (to.delivered, to.lost, to.waiting, far.ended) == (1_200, 0, 0, True)


async def test_a_full_queue_loses_what_comes_and_counts_it_and_nobody_waits(far: Far) -> None:
    to = delivery(far, queue_max=10)
    far.gate.clear()
    spans(to, "first")
    await until(far.offered.is_set)
    spans(to, *map(str, range(15)))
    assert (to.waiting, to.lost) == (10, 5)
    far.gate.set()
    await to.close(20)
    assert [span.name for span in far.taken] == ["first", *map(str, range(10))]


@pytest.mark.parametrize("result", [SpanExportResult.FAILURE, RuntimeError("odd")])
async def test_what_the_collector_does_not_take_is_counted_and_said_once_in_a_while(
    far: Far, caplog: pytest.LogCaptureFixture, result: SpanExportResult | Exception
) -> None:
    caplog.set_level(logging.INFO)
    to = delivery(far)
    far.result = result
    for number in range(5):
        spans(to, str(number))
        await until(lambda number=number: to.lost == number + 1)
    assert to.failing_since is not None
    assert [entry.levelno for entry in caplog.records if entry.name == "agentd.tracing"] == [logging.WARNING]
    far.result = SpanExportResult.SUCCESS
    spans(to, "last")
    await until(lambda: to.delivered == 1)
    assert to.failing_since is None
    far.result = result
    spans(to, "and again")
    await until(lambda: to.failing_since is not None)
    await to.close(20)
    assert [entry.levelno for entry in caplog.records if entry.name == "agentd.tracing"] == [
        logging.WARNING,  # not a second one so soon
        logging.INFO,
    ]
    assert "takes spans again" in caplog.text


async def test_the_end_waits_no_longer_than_it_is_told_and_counts_what_is_left(
    far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    to = delivery(far)
    far.gate.clear()
    spans(to, "under way")
    await until(far.offered.is_set)
    spans(to, "waiting")
    await to.close(0.05)
    assert to.lost == 2
    assert far.ended
    assert "2 spans were not delivered" in caplog.text
    spans(to, "too late")
    assert to.lost == 3


async def test_spans_of_plugins_leave_without_keys(far: Far) -> None:
    key = "marked-key-of-somebody"
    logs.conceal(key)
    to = delivery(far)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(to)
    tracer = provider.get_tracer("of-a-plugin")
    with (
        suppress(ValueError),
        tracer.start_as_current_span(f"with {key}", attributes={"n": 3, "of": [key, "x"]}) as span,
    ):
        span.set_status(Status(StatusCode.ERROR, f"no {key}"))
        raise ValueError(key)
    await to.close(20)
    [taken] = far.taken
    assert taken.attributes == {"n": 3, "of": ["[redacted]", "x"]}
    assert taken.events[0].name == "exception"
    assert key not in taken.to_json()
    assert taken.to_json().count("[redacted]") >= 4
