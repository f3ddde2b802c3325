"""One message is one trace, from the frame that brought it to the answer that the platform took, over every restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentd.hub.faults import Action, Point, Rule
from agentd.tracing.naming import name_of
from tests.whole.traced import Span, Traced, tracing

INTERNAL, PRODUCER, CONSUMER = 1, 4, 5

ECHO = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("mine")

@plugin.on(Message)
async def answer(message: Message, ctx: Context) -> None:
    ctx.reply(message.text)
"""


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    async with tracing(tmp_path) as traced:
        yield traced


def shape(spans: list[Span]) -> list[str]:
    return [span.name for span in spans]


async def whole(traced: Traced, count: int = 1) -> list[Span]:
    """The spans of the first trace, once so many have their root."""
    await traced.collector.until(lambda: len(traced.collector.named("receive agent")) == count)
    spans = traced.collector.of(traced.collector.named("receive agent")[0].trace)
    assert_sane(spans)
    return spans


def assert_sane(spans: list[Span]) -> None:
    """One root, begun first and ended last; every other span is its child, or a child of one that is there."""
    [root] = [span for span in spans if not span.parent]
    known = {span.id: span for span in spans}
    assert len(known) == len(spans)
    for span in spans:
        assert span.began <= span.ended, span
        if span is not root:
            parent = known[span.parent]
            assert parent.began <= span.began, (span, parent)
            assert span.ended <= parent.ended, (span, parent)


async def test_a_message_and_its_answer_are_one_trace_with_every_stretch_of_the_way(traced: Traced) -> None:
    traced.configure(ECHO)
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    spans = await whole(traced)
    assert shape(spans) == [
        "receive agent",
        "journal",
        "wait mine",
        "process mine",
        "outbox agent",
        "send agent",
    ]
    root, journal, wait, process, outbox, send = spans
    assert {span.parent for span in spans[1:]} == {root.id}
    assert [span.kind for span in spans] == [CONSUMER, INTERNAL, INTERNAL, CONSUMER, INTERNAL, PRODUCER]
    assert journal.began == root.began
    assert journal.ended <= wait.began <= wait.ended == process.began
    assert process.ended <= outbox.began <= outbox.ended == send.began <= send.ended <= root.ended
    assert {span.service for span in spans} == {"agentd"}
    assert not any(span.failed for span in spans)
    [row] = [row for row in traced.hub.ledger() if row.sender == "peer"]
    assert root.attributes == {
        "messaging.system": "agentchat",
        "messaging.operation.type": "receive",
        "messaging.operation.name": "receive",
        "messaging.destination.name": "agent",
        "messaging.message.id": row.id,
        "messaging.message.conversation_id": row.conversation,
        "messaging.message.envelope.size": root.attributes["messaging.message.envelope.size"],
        "agentd.identity": "agent",
        "agentd.seq": row.seq,
        "agentd.epoch": 1,
        "agentd.source": "live",
    }
    assert process.attributes["agentd.plugin"] == "mine"
    assert process.attributes["agentd.handlers"] == ["answer"]
    assert process.attributes["agentd.attempt"] == 1
    assert process.attributes["agentd.outcome"] == "handled"
    [answer] = traced.answers()
    assert send.attributes["messaging.destination.name"] == "@peer"
    assert send.attributes["messaging.operation.type"] == "send"
    assert send.attributes["messaging.message.id"] == answer
    assert send.attributes["agentd.client_msg_id"] == outbox.attributes["agentd.client_msg_id"]
    assert send.attributes["agentd.client_msg_id"].startswith("agentd-")
    assert send.attributes["http.response.status_code"] == 201
    assert send.attributes["agentd.outcome"] == "sent"
    assert await traced.stop() == 0


UNSURE = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("mine")

@plugin.on(Message)
async def answer(message: Message, ctx: Context) -> None:
    if ctx.attempt < 3:
        raise LookupError("no " + message.text)
    ctx.reply("at last")
"""


async def test_each_attempt_of_a_handler_is_a_span_with_the_wait_before_it(traced: Traced) -> None:
    traced.configure(UNSURE)
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    spans = await whole(traced)
    assert shape(spans)[2:] == [*["wait mine", "process mine"] * 3, "outbox agent", "send agent"]
    attempts = [span for span in spans if span.name == "process mine"]
    assert [span.attributes["agentd.attempt"] for span in attempts] == [1, 2, 3]
    assert [span.attributes["agentd.outcome"] for span in attempts] == ["retried", "retried", "handled"]
    assert [span.attributes.get("error.type") for span in attempts] == ["LookupError", "LookupError", None]
    assert [span.attributes.get("agentd.handler") for span in attempts] == ["answer", "answer", None]
    assert [span.failed for span in attempts] == [True, True, False]
    waits = [span for span in spans if span.name == "wait mine"]
    assert [span.began for span in waits[1:]] == [span.ended for span in attempts[:2]]


async def test_an_event_that_is_given_up_ends_its_trace_with_the_dead_letter(traced: Traced) -> None:
    traced.configure(UNSURE, of_plugin="attempts = 1")
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    spans = await whole(traced)
    assert shape(spans) == ["receive agent", "journal", "wait mine", "process mine"]
    assert spans[-1].attributes["agentd.outcome"] == "dead"


async def test_after_a_crash_between_the_commit_and_the_send_the_same_trace_goes_on(traced: Traced) -> None:
    traced.configure(ECHO)
    traced.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=503, route="send", times=1_000_000))
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    await traced.collector.until(lambda: len(traced.collector.named("send agent")) > 1)
    await traced.kill()
    assert traced.answers() == []
    before = list(traced.collector.spans)
    assert not traced.collector.named("receive agent"), "nobody has seen its end yet"
    traced.hub.faults.replace()
    await traced.live()
    spans = await whole(traced)
    assert set(shape(before)) == {"journal", "wait mine", "process mine", "outbox agent", "send agent"}
    assert {span.trace for span in before} == {spans[0].trace}
    assert len(traced.answers()) == 1
    assert len(traced.collector.named("receive agent")) == 1
    assert shape(spans)[:4] == ["receive agent", "journal", "wait mine", "process mine"]
    assert spans[0].began == spans[1].began, "the root begins where it began, in the process before"
    sends = [span for span in spans if span.name == "send agent"]
    assert [span.attributes["http.response.status_code"] for span in sends] == [503] * (len(sends) - 1) + [201]
    assert [span.attributes["agentd.outcome"] for span in sends] == ["later"] * (len(sends) - 1) + ["sent"]
    assert len({span.attributes["agentd.client_msg_id"] for span in sends}) == 1
    await traced.stop()


async def test_an_event_that_was_not_handled_before_a_crash_has_one_root_too(traced: Traced) -> None:
    slow = ECHO.replace(
        "    ctx.reply", '    while not __import__("pathlib").Path("go").exists():\n        pass\n    ctx.reply'
    )
    slow = slow.replace("async def", "def")
    traced.configure(slow)
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    await traced.collector.until(lambda: traced.collector.named("wait mine"))
    await traced.kill()
    (traced.folder / "go").touch()
    await traced.live()
    spans = await whole(traced)
    assert shape(spans).count("wait mine") == 2, "until it was begun before the crash, and until it was after that"
    assert shape(spans)[-3:] == ["process mine", "outbox agent", "send agent"]
    assert spans[0].began == traced.collector.named("journal")[0].began


async def test_what_was_never_pushed_says_how_it_was_found(traced: Traced) -> None:
    traced.configure(ECHO, intake="audit_interval_s = 0.3")
    traced.hub.faults.add(Rule(point=Point.PUSH, action=Action.DROP))
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    [root, *_] = await whole(traced)
    assert root.attributes["agentd.source"] in ("drain", "refetch")


JOINING = """
import time

from opentelemetry import trace

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("mine")
tracer = trace.get_tracer("of-the-plugin")

@plugin.on(Message, text="async")
async def answer(message: Message, ctx: Context) -> None:
    with tracer.start_as_current_span("ask the model"):
        trace.get_current_span().set_attribute("tokens", 3)
    trace.get_current_span().set_attribute("mine.mood", "good")

@plugin.on(Message, text="thread")
def answer_in_thread(message: Message, ctx: Context) -> None:
    with tracer.start_as_current_span("ask the model"):
        pass

@plugin.on(Message, text="twice")
async def answer_twice(message: Message, ctx: Context) -> None:
    pass
"""


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_spans_that_a_handler_makes_are_children_of_its_attempt(traced: Traced, kind: str) -> None:
    traced.configure(JOINING)
    await traced.live()
    traced.hub.post("peer", "agent", kind)
    spans = await whole(traced)
    [process] = [span for span in spans if span.name == "process mine"]
    [inner] = [span for span in spans if span.name == "ask the model"]
    assert inner.parent == process.id
    assert inner.scope == "of-the-plugin"
    if kind == "async":
        assert inner.attributes == {"tokens": 3}
        assert process.attributes["mine.mood"] == "good"


ISOLATED = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("mine")

@plugin.setup
async def export(ctx) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

@plugin.on(Message)
def answer(message: Message, ctx: Context) -> None:
    with trace.get_tracer("of-the-plugin").start_as_current_span("ask the model"):
        ctx.reply("done")
"""


async def test_spans_of_a_plugin_in_a_process_of_its_own_join_the_same_trace(traced: Traced) -> None:
    traced.configure(ISOLATED, of_plugin='isolate = "process"')
    traced.environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": traced.collector.url, "OTEL_SERVICE_NAME": "the-worker"}
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    spans = await whole(traced)
    [process] = [span for span in spans if span.name == "process mine"]
    [inner] = [span for span in spans if span.name == "ask the model"]
    assert inner.parent == process.id
    assert shape(spans)[-2:] == ["outbox agent", "send agent"]


async def test_a_batch_is_one_attempt_in_the_trace_of_its_newest_event_and_linked_in_the_others(traced: Traced) -> None:
    traced.configure(
        ECHO.replace("@plugin.on(Message)", "@plugin.on(Message, batch=3, settle_s=5.0)")
        .replace("message: Message,", "messages: tuple[Message, ...],")
        .replace("message.text", "messages[-1].text")
    )
    await traced.live()
    traced.hub.post("peer", "agent", "one", "two", "three")
    await whole(traced, 3)
    attempts = traced.collector.named("process mine")
    rows = [row.id for row in traced.hub.ledger() if row.sender == "peer"]
    roots = {span.attributes["messaging.message.id"]: span for span in traced.collector.named("receive agent")}
    assert len(attempts) == 3
    [newest] = [span for span in attempts if span.trace == roots[rows[2]].trace]
    assert newest.attributes["messaging.batch.message_count"] == 3
    assert set(newest.links) == {(roots[id_].trace, roots[id_].id) for id_ in rows[:2]}
    for span in attempts:
        if span is not newest:
            assert span.links == [(newest.trace, newest.id)]
    [send] = traced.collector.named("send agent")
    assert send.trace == newest.trace


RECURRING = """
from agentd.plugin import Context, Message, Plugin, Timer

plugin = Plugin("mine")

@plugin.on(Message)
async def remember(message: Message, ctx: Context) -> None:
    ctx.remind(0.05)

@plugin.on(Timer)
async def fire(timer: Timer, ctx: Context) -> None:
    ctx.send("@peer", "time is up")
"""


async def test_a_timer_is_a_trace_of_its_own_with_what_it_says(traced: Traced) -> None:
    traced.configure(RECURRING)
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    await traced.collector.until(lambda: traced.collector.named("timer mine"))
    spans = traced.collector.of(traced.collector.named("timer mine")[0].trace)
    assert_sane(spans)
    assert shape(spans) == ["timer mine", "process mine", "outbox agent", "send agent"]


async def test_what_a_person_says_is_a_trace_too(traced: Traced) -> None:
    traced.configure(ECHO)
    await traced.live()
    traced.client.send("@peer", {"text": "hello"}, identity="agent")
    await traced.collector.until(lambda: traced.collector.named("say agent"))
    spans = traced.collector.of(traced.collector.named("say agent")[0].trace)
    assert_sane(spans)
    assert shape(spans) == ["say agent", "outbox agent", "send agent"]


async def test_a_collector_that_is_not_there_disturbs_nothing_and_is_told_of_once(traced: Traced) -> None:
    traced.configure(ECHO, tracing="timeout_s = 0.3\nqueue_max = 10")
    await traced.collector.stop()
    await traced.live()
    for number in range(10):
        traced.hub.post("peer", "agent", *(f"message {number}.{place}" for place in range(5)))
        answered = (number + 1) * 5
        await traced.until(lambda status, wanted=answered: status["identities"][0]["outbox_sent"] == wanted)
    status = await traced.until(lambda status: status["tracing"]["lost"] > 100 and status["tracing"]["reason"])
    assert status["tracing"]["delivered"] == 0
    assert status["tracing"]["failing_s"] > 0
    assert status["tracing"]["waiting"] <= 10
    assert traced.log.count("takes no spans") == 1
    assert "opentelemetry" not in traced.log
    findings = {each["check"]: each for each in traced.doctor()}
    assert findings["traces"]["state"] == "warn"
    assert traced.collector.url in findings["traces"]["told"]
    assert "spans lost" in traced.verb("status")

    await traced.collector.start()
    traced.hub.post("peer", "agent", "and another")
    await whole(traced)
    status = await traced.until(lambda status: status["tracing"]["delivered"])
    assert (status["tracing"]["failing_s"], status["tracing"]["reason"]) == (None, "")
    assert traced.log.count("takes spans again") == 1
    assert await traced.stop() == 0


async def test_a_stop_does_not_wait_for_a_collector_that_hangs(traced: Traced) -> None:
    traced.configure(ECHO, tracing="timeout_s = 600\nflush_timeout_s = 0.2")
    traced.collector.hangs = True
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    await traced.until(lambda status: status["identities"][0]["outbox_sent"] == 1)
    await traced.collector.until(lambda: traced.collector.requests)
    assert await traced.stop() == 0
    assert "not delivered before the end" in traced.log


async def test_the_last_spans_are_delivered_at_a_stop(traced: Traced) -> None:
    traced.configure(ECHO, every_s=600)
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    await traced.until(lambda status: status["tracing"]["waiting"] == 6)
    assert traced.collector.spans == []
    assert await traced.stop() == 0
    assert len(await whole(traced)) == 6


async def test_a_sample_is_the_same_events_before_and_after_a_restart_and_takes_their_handlers_along(
    traced: Traced,
) -> None:
    traced.configure(JOINING, tracing="sample_ratio = 0.5")
    await traced.live()
    for start in range(2):
        traced.hub.post("peer", "agent", *["async"] * 10)
        await traced.until(lambda status, wanted=10 * start + 10: handled(status) == wanted)
        await traced.stop()
        if not start:
            await traced.live()
    ids = [row.id for row in traced.hub.ledger() if row.sender == "peer"]
    wanted = {f"{trace:032x}" for trace in (name_of("agent", id_).trace for id_ in ids) if trace % 2**64 < 2**63}
    assert len(ids) == 20
    assert {span.trace for span in traced.collector.spans} == wanted
    for name in ("receive agent", "process mine", "ask the model"):
        assert len(traced.collector.named(name)) == len(wanted)


def handled(status: dict[str, Any]) -> int:
    [identity] = status["identities"]
    return int(identity["handled"])


async def test_the_variables_of_opentelemetry_are_heard_where_the_configuration_is_silent(traced: Traced) -> None:
    traced.configure(ECHO)
    text = (traced.folder / "agentd.toml").read_text()
    (traced.folder / "agentd.toml").write_text(text.replace(f'endpoint = "{traced.collector.url}"\n', ""))
    traced.environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": traced.collector.url,
        "OTEL_SERVICE_NAME": "the-agents",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=nightshift",
    }
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    spans = await whole(traced)
    assert {span.service for span in spans} == {"the-agents"}
    assert {headers["x-team"] for headers, _ in traced.collector.requests} == {"nightshift"}


LEAKY = """
from pathlib import Path

from opentelemetry import trace

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("mine")

@plugin.on(Message)
async def leak(message: Message, ctx: Context) -> None:
    key = Path("agent.key").read_text()
    with trace.get_tracer("of-the-plugin").start_as_current_span("log in with " + key) as span:
        span.set_attribute("password", key)
        span.set_attribute("passwords", ["none", key])
        span.add_event("tried " + key, {"with": key})
    ctx.reply("my key is " + key)
    if ctx.attempt == 1:
        raise ValueError("no login with " + key + " for " + message.text)
"""


async def test_no_span_holds_a_text_a_payload_or_a_key_whatever_a_plugin_does(traced: Traced) -> None:
    header = traced.folder / "collector.key"
    header.touch(0o600)
    header.write_text("Bearer marked-collector-key")
    traced.configure(LEAKY, tracing='headers.authorization = { file = "collector.key" }')
    await traced.live()
    traced.hub.post("peer", "agent", "marked-text")
    spans = await whole(traced)
    assert [span for span in spans if span.name == "log in with [redacted]"]
    assert await traced.stop() == 0
    assert {headers["Authorization"] for headers, _ in traced.collector.requests} == {"Bearer marked-collector-key"}
    everything = b"".join(body for _, body in traced.collector.requests)
    assert b"ValueError" in everything, "it was looked at"
    assert everything.count(b"[redacted]") >= 5
    for secret in (traced.key, "marked-text", "marked-collector-key", "no login"):
        assert secret.encode() not in everything
    kept = b"".join(path.read_bytes() for path in traced.folder.rglob("*") if path.is_file() and path.suffix != ".key")
    assert b"marked-collector-key" not in kept
    assert b"marked-text" in kept, "the journal has it"


async def test_a_turn_that_outlives_its_process_ends_in_the_trace_of_its_event(traced: Traced) -> None:
    waits = (
        '    import asyncio, pathlib\n    while not pathlib.Path("go").exists():\n        await asyncio.sleep(0.02)\n'
    )
    traced.configure(ECHO.replace("    ctx.reply", f"{waits}    ctx.reply"))
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    await traced.collector.until(lambda: traced.collector.named("wait mine"))
    old = traced.hand_over()
    await traced.until(lambda status: status["pid"] != old.pid and status["turns_in_predecessor"] == 1)
    (traced.folder / "go").touch()
    await traced.collector.until(lambda: len(traced.collector.named("process mine")) == 2)
    spans = await whole(traced)
    fates = {span.attributes["agentd.outcome"] for span in spans if span.name == "process mine"}
    assert fates == {"handed over", "handled"}
    assert not any(span.failed for span in spans)
    assert shape(spans)[-2:] == ["outbox agent", "send agent"]
    assert spans[0].began == spans[1].began
    assert old.wait() == 0


async def test_a_new_process_that_takes_over_ends_the_traces_of_the_old_one(traced: Traced) -> None:
    traced.configure(ECHO)
    traced.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=503, route="send", times=1_000_000))
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    await traced.collector.until(lambda: len(traced.collector.named("send agent")) > 1)
    old = traced.hand_over()
    await traced.until(lambda status: status["pid"] != old.pid and status["identities"][0]["state"] == "live")
    traced.hub.faults.replace()
    spans = await whole(traced)
    assert shape(spans)[:4] == ["receive agent", "journal", "wait mine", "process mine"]
    assert old.wait() == 0
    assert traced.collector.of(spans[0].trace)[-1].attributes["agentd.outcome"] == "sent"


async def test_a_timer_that_is_given_up_ends_its_trace_too(traced: Traced) -> None:
    traced.configure(
        RECURRING.replace('ctx.send("@peer", "time is up")', "raise LookupError"), of_plugin="attempts = 1"
    )
    await traced.live()
    traced.hub.post("peer", "agent", "hello")
    await traced.collector.until(lambda: traced.collector.named("timer mine"))
    root, attempt = traced.collector.of(traced.collector.named("timer mine")[0].trace)
    assert_sane([root, attempt])
    assert (attempt.name, attempt.failed, attempt.attributes["error.type"]) == ("process mine", True, "LookupError")
