"""Spans as OpenTelemetry has them.

A root span and its trace have the ids that they are given, every other span one drawn at random.

Always true: a span is a child of its trace's root whether or not that was exported yet. The provider is the process's
own, unless a plugin has set one before: so spans that plugins make go the same way.
Not here: which spans there are (following.py), the way to the collector (delivering.py).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from opentelemetry import context, trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from agentd import __version__
from agentd.config import Tracing
from agentd.tracing.following import Attributes, Kind
from agentd.tracing.joining import Joined
from agentd.tracing.naming import Name

SCOPE = "agentd"
"""Under which our own spans are told from those of plugins."""

_KINDS: dict[Kind, SpanKind] = {"inside": SpanKind.INTERNAL, "in": SpanKind.CONSUMER, "out": SpanKind.PRODUCER}
_FAILED = Status(StatusCode.ERROR)


class _Ids(RandomIdGenerator):
    """Gives the ids out that were put here by this thread, else random ones."""

    def __init__(self) -> None:
        self._given = threading.local()

    def give(self, name: Name | None) -> None:
        self._given.name = name

    def generate_trace_id(self) -> int:
        name: Name | None = getattr(self._given, "name", None)
        return super().generate_trace_id() if name is None else name.trace

    def generate_span_id(self) -> int:
        name: Name | None = getattr(self._given, "name", None)
        return super().generate_span_id() if name is None else name.root


class OtelSpans:
    """See following.Spans. processor: takes the spans that are over."""

    def __init__(self, settings: Tracing, processor: SpanProcessor) -> None:
        self._ids = _Ids()
        self._provider = TracerProvider(
            sampler=_sampler(settings), resource=_resource(settings), id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SCOPE, __version__)
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(self._provider)

    def is_sampled(self, trace: int) -> bool:
        """See following.Spans."""
        return self._provider.sampler.should_sample(None, trace, SCOPE).decision is Decision.RECORD_AND_SAMPLE

    def put(
        self,
        name: str,
        of: Name,
        began: int,
        ended: int,
        attributes: Attributes,
        *,
        kind: Kind = "inside",
        root: bool = False,
        failed: bool = False,
        links: Sequence[Name] = (),
    ) -> None:
        """See following.Spans."""
        if root:
            self._ids.give(of)
        try:
            span = self._tracer.start_span(
                name,
                context=context.Context() if root else _under(of),
                kind=_KINDS[kind],
                attributes=attributes,
                links=_links(links),
                start_time=began,
            )
        finally:
            self._ids.give(None)
        if failed:
            span.set_status(_FAILED)
        span.end(end_time=ended)

    def begin(self, name: str, of: Name, began: int, attributes: Attributes, links: Sequence[Name]) -> _Live:
        """See following.Spans."""
        span = self._tracer.start_span(
            name,
            context=_under(of),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=_links(links),
            start_time=began,
        )
        return _Live(of.trace, span)

    def unsampled(self, of: Name) -> Joined:
        """See following.Spans."""
        return Joined(NonRecordingSpan(SpanContext(of.trace, of.root, is_remote=False)))


class _Live(Joined):
    """See following.Live."""

    def __init__(self, trace_id: int, span: Span) -> None:
        super().__init__(span)
        self.as_link = Name(trace_id, span.get_span_context().span_id)

    def ended(self, at: int, attributes: Attributes, *, failed: bool) -> None:
        """See following.Live."""
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(_FAILED)
        self._span.end(end_time=at)


def _under(name: Name) -> context.Context:
    return trace.set_span_in_context(NonRecordingSpan(_known(name)), context.Context())


def _links(names: Sequence[Name]) -> list[Link]:
    return [Link(_known(name)) for name in names]


def _known(name: Name) -> SpanContext:
    return SpanContext(name.trace, name.root, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _sampler(settings: Tracing) -> Sampler | None:
    """None leaves it to OTEL_TRACES_SAMPLER."""
    return None if settings.sample_ratio is None else ParentBased(TraceIdRatioBased(settings.sample_ratio))


def _resource(settings: Tracing) -> Resource:
    """OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, unless the configuration names the service."""
    found = Resource.create({SERVICE_VERSION: __version__})
    name = settings.service_name
    if not name and str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        name = SCOPE
    return found.merge(Resource({SERVICE_NAME: name})) if name else found
