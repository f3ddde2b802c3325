"""One message is one trace, from the frame that brought it to the answer that the platform took, over every restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.hub.faults import Action, Point, Rule
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
