"""What is declared wrongly is refused with its place and a remedy; what is declared rightly matches what it says."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agentd.errors import PluginLoadError
from agentd.host.handlers import Handlers, check_hooks, code_of, place_of
from agentd.plugin import Context, Event, GroupInvite, Message, Plugin, PluginContext, Presence, Signal, Typing


def message(**changes: Any) -> Message:
    plain = {"identity": "me", "conversation": "conv_1", "seq": 1, "id": "msg_1", "sender": "bob", "text": "hello"}
    return Message(**{**plain, **changes})


async def on_message(message: Message, ctx: Context) -> None:
    """A handler as it should be."""


def declared(**filters: Any) -> Handlers:
    plugin = Plugin("p")
    plugin.on(Message, **filters)(on_message)
    return Handlers("p", plugin.declared)


def refusal(event: Any, function: Callable[..., Any], **filters: Any) -> str:
    plugin = Plugin("p")
    plugin.on(event, **filters)(function)
    with pytest.raises(PluginLoadError) as caught:
        Handlers("p", plugin.declared)
    return str(caught.value)


@pytest.mark.parametrize(
    ("filters", "wanted", "unwanted"),
    [
        ({"identity": "me"}, {}, {"identity": "you"}),
        ({"conversation": {"conv_1", "conv_2"}}, {}, {"conversation": "conv_3"}),
        ({"sender": "@bob"}, {}, {"sender": "bobby"}),
        ({"sender": "build-*"}, {"sender": "build-7"}, {"sender": "rebuild-7"}),
        ({"sender": ["ann", "b*"]}, {}, {"sender": "carl"}),
        ({"sender": "@Bob"}, {}, {"sender": "bobby"}),
        ({"sender": "Build-*"}, {"sender": "build-7"}, {"sender": "rebuild-7"}),
        ({"conversation": "conv_1"}, {}, {"conversation": "CONV_1"}),
        ({"kind": "text"}, {}, {"kind": "system"}),
        ({"text": r"^hel+o\b"}, {}, {"text": "oh hello"}),
        ({"text": re.compile("HELLO", re.IGNORECASE)}, {}, {"text": None}),
        ({"mentioned": True}, {"mentioned": True}, {"mentioned": False}),
        ({"direct": False}, {"direct": False}, {"direct": True}),
        ({"where": lambda event: event.seq > 5}, {"seq": 6}, {"seq": 5}),
        ({"sender": "bob", "text": "hello"}, {}, {"text": "bye"}),
    ],
)
def test_a_filter_passes_what_it_names_and_nothing_else(
    filters: dict[str, Any], wanted: dict[str, Any], unwanted: dict[str, Any]
) -> None:
    handlers = declared(**filters)
    assert handlers.match(message(**wanted))
    assert not handlers.match(message(**unwanted))


def test_own_words_are_shown_only_to_those_who_ask() -> None:
    assert not declared().match(message(own=True))
    assert declared(own=True).match(message(own=True))
    assert declared(own=True).match(message())


def test_handlers_match_in_the_order_of_definition_and_a_stacked_one_once() -> None:
    plugin = Plugin("p")

    @plugin.on(Message, sender="bob")
    async def second(message: Message, ctx: Context) -> None: ...

    plugin.on(Message)(on_message)
    plugin.on(Message, text="hello")(second)
    names = [handler.name.rsplit(".", 1)[-1] for handler in Handlers("p", plugin.declared).match(message())]
    assert names == ["second", "on_message"]


def test_a_base_class_gets_every_event_below_it_and_signals_match_by_their_own_fields() -> None:
    plugin = Plugin("p")

    @plugin.on(Signal)
    async def any_signal(signal: Signal, ctx: Context) -> None: ...

    @plugin.on(Presence, sender="bob")
    async def bob_only(signal: Presence, ctx: Context) -> None: ...

    handlers = Handlers("p", plugin.declared)
    assert len(handlers.match(Presence(identity="me", handle="bob", status="online"))) == 2
    assert len(handlers.match(Presence(identity="me", handle="ann", status="online"))) == 1
    assert len(handlers.match(Typing(identity="me", sender="bob", active=True))) == 1
    assert handlers.match(message()) == ()


def test_a_handler_that_takes_one_argument_is_refused_with_file_line_and_remedy() -> None:
    async def short(message: Message) -> None: ...

    line = short.__code__.co_firstlineno
    told = refusal(Message, short)
    assert told.startswith(f"{__file__}:{line}: plugin p: ")
    assert "write `async def short(event: Message, ctx: Context) -> None`" in told


def test_a_handler_annotated_for_another_event_is_refused() -> None:
    async def other(signal: Typing, ctx: Context) -> None: ...

    assert "takes Typing, but is registered for Message" in refusal(Message, other)


def test_an_annotation_of_a_base_class_or_an_unknown_name_is_fine() -> None:
    plugin = Plugin("p")

    @plugin.on(Message)
    async def base(event: Event, ctx: Context) -> None: ...

    async def unknown(event, ctx): ...

    unknown.__annotations__["event"] = "OnlyForTheChecker"
    plugin.on(Message)(unknown)
    assert len(Handlers("p", plugin.declared).match(message())) == 2


@pytest.mark.parametrize(
    ("event", "filters", "told"),
    [
        (Message, {"text": "("}, "text='(' of on_message"),
        (Message, {"text": 7}, "give a regular expression as text"),
        (Message, {"sender": 7}, "give a name, a glob, or a set of them"),
        (Message, {"mentioned": "yes"}, "give True or False"),
        (Message, {"where": 7}, "give a function of one argument"),
        (Message, {"where": lambda: True}, "give a function of one argument"),
        (Message, {"timeout_s": 0}, "give seconds above 0"),
        (Message, {"attempts": 0}, "give a number from 1 on"),
        (str, {}, "which is no event"),
    ],
)
def test_a_wrong_declaration_is_refused_with_a_remedy(event: Any, filters: dict[str, Any], told: str) -> None:
    assert told in refusal(event, on_message, **filters)


def test_a_filter_that_the_event_knows_nothing_of_is_refused() -> None:
    async def invited(invite: GroupInvite, ctx: Context) -> None: ...

    assert "GroupInvite has no text; leave it out" in refusal(GroupInvite, invited, text="hello")


def test_a_generator_is_no_handler() -> None:
    async def yielding(message: Message, ctx: Context) -> AsyncIterator[None]:
        yield

    assert "is a generator" in refusal(Message, yielding)


def test_a_middleware_that_cannot_wrap_and_a_setup_without_argument_are_refused() -> None:
    wrong = Plugin("p")
    wrong.middlewares.append(on_message)
    with pytest.raises(PluginLoadError, match="async generator of two arguments"):
        check_hooks("p", wrong)
    wrong = Plugin("p")
    wrong.setups.append(lambda: None)
    with pytest.raises(PluginLoadError, match="must take one argument"):
        check_hooks("p", wrong)


def test_def_and_async_def_are_told_apart_through_callable_objects() -> None:
    class Waiting:
        async def __call__(self, message: Message, ctx: Context) -> None: ...

    def blocking(message: Message, ctx: Context) -> None: ...

    def setup(ctx: PluginContext) -> None: ...

    plugin = Plugin("p")
    plugin.on(Message)(Waiting())
    plugin.on(Message)(blocking)
    waits, blocks = Handlers("p", plugin.declared).all
    assert (waits.threaded, blocks.threaded) == (False, True)
    assert code_of(waits.function) is Waiting.__call__.__code__
    assert place_of(setup).startswith(__file__)


def verdicts(handlers: Handlers, event: Event) -> list[tuple[str, object, object, bool | None]]:
    (handler,) = handlers.all
    return [verdict[:4] for verdict in handler.explain(event)]


def test_each_filter_tells_what_it_wants_and_what_the_event_has() -> None:
    handlers = declared(sender="@bob", text="^bye", direct=False, kind={"text", "file"})
    assert verdicts(handlers, message()) == [
        ("sender", "@bob", "bob", True),
        ("text", "^bye", "hello", False),
        ("direct", False, True, False),
        ("kind", {"text", "file"}, "text", True),
    ]
    assert verdicts(declared(), message()) == []


def test_a_filter_that_raises_is_told_and_one_behind_a_refusal_is_not_asked() -> None:
    def longer(event: Message) -> bool:
        return len(event.text) > 5  # type: ignore[arg-type]

    handlers = declared(where=longer)
    (told,) = handlers.all[0].explain(message(text=None))
    assert (told.name, told.wanted, told.passed) == ("where", longer, None)
    assert isinstance(told.error, TypeError)
    assert verdicts(handlers, message(text="longer")) == [("where", longer, None, True)]
    refused = declared(text="hello", where=longer)
    assert verdicts(refused, message(text=None)) == [("text", "hello", None, False), ("where", longer, None, None)]


def test_an_event_of_another_type_or_of_our_own_is_told_so() -> None:
    (told,) = declared(sender="bob").all[0].explain(Event(identity="me", conversation="c", seq=1, id="i", sender="bob"))
    assert told[:4] == ("event", "Message", "Event", False)
    assert verdicts(declared(sender="bob"), message(own=True)) == [
        ("own", False, True, False),
        ("sender", "bob", "bob", True),
    ]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("text", ["hello", "bye"])
@pytest.mark.parametrize("filters", [{}, {"sender": "bob"}, {"text": "bye"}, {"where": lambda event: event.seq > 1}])
def test_what_is_explained_is_what_matches(filters: dict[str, Any], text: str, own: bool) -> None:
    handlers, event = declared(**filters), message(text=text, own=own)
    explained = all(verdict.passed for verdict in handlers.all[0].explain(event))
    assert explained is bool(handlers.match(event))
