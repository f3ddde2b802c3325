"""Spans as OpenTelemetry has them.

A root span and its trace have the ids that they are given, every other span one drawn at random.

Always true: a span is a child of its trace's root whether or not that was exported yet. The provider is the process's
own, unless a plugin has set one before: so spans that plugins make go the same way.
Not here: which spans there are (following.py), the way to the collector (delivering.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry import context, trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from agentd import __version__
from agentd.config import Tracing
from agentd.tracing.following import Attributes, Kind
from agentd.tracing.joining import Joined
from agentd.tracing.naming import Name

SCOPE = "agentd"
"""Under which our own spans are told from those of plugins."""

_KINDS: dict[Kind, SpanKind] = {"inside": SpanKind.INTERNAL, "in": SpanKind.CONSUMER, "out": SpanKind.PRODUCER}
_FAILED, _UNSET = Status(StatusCode.ERROR), Status()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OtelSpans:
    """See following.Spans. processor: takes what is over. environ: says what the configuration does not."""

    def __init__(self, settings: Tracing, processor: SpanProcessor, environ: Mapping[str, str]) -> None:
        self._processor = processor
        self._provider = TracerProvider(
            sampler=_sampler(settings), resource=_resource(settings), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SCOPE, __version__)
        self._scope = InstrumentationScope(SCOPE, __version__)
        self._new_id = self._provider.id_generator.generate_span_id
        ratio = settings.sample_ratio
        if ratio is None and not environ.get("OTEL_TRACES_SAMPLER"):
            ratio = 1.0
        self._below = None if ratio is None else TraceIdRatioBased.get_bound_for_rate(ratio)
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(self._provider)

    def is_sampled(self, trace: int) -> bool:
        """See following.Spans."""
        if self._below is not None:  # as the sampler does it, at a twentieth of the price
            return trace & TraceIdRatioBased.TRACE_ID_LIMIT < self._below
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
        # Made as it is, since it is over: what a tracer does for one that is still open costs fifteen times as much.
        known = _known(of)
        span = ReadableSpan(
            name,
            context=known if root else SpanContext(of.trace, self._new_id(), is_remote=False, trace_flags=_SAMPLED),
            parent=None if root else known,
            resource=self._provider.resource,
            attributes=attributes,
            links=_links(links),
            kind=_KINDS[kind],
            status=_FAILED if failed else _UNSET,
            start_time=began,
            end_time=ended,
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(span)

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
    return SpanContext(name.trace, name.root, is_remote=False, trace_flags=_SAMPLED)


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
