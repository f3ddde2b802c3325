"""What a turn stages: keys that a repeat repeats, contents that nothing changes, and nothing after its end."""

import asyncio
import time
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core.events import Context as EventContext
from agentd.core.events import Message, Presence
from agentd.host.api import no_api
from agentd.host.context import TurnContext, cause_key
from agentd.host.state import PluginState


class Home:
    """A plugin as far as a turn knows it, with nothing stored."""

    name = "greeter"
    config = None
    serves = frozenset({"me", "work"})
    backlogs: ClassVar[dict[tuple[str, str], int]] = {("me", "@bob"): 5_001, ("me", "grp_1"): 7}

    def __init__(self) -> None:
        self.backlog_of = lambda identity, target: self.backlogs.get((identity, target))
        self.api_of = no_api
        self.state = PluginState(self.name, self.read)
        self.loop = asyncio.new_event_loop()
        self.loop.close()

    async def read(self, plugin: str, conversation: int, key: str) -> bytes | None:
        return None


def message(**changes: Any) -> Message:
    plain = {"identity": "me", "conversation": "conv_1", "seq": 1, "id": "msg_1", "sender": "bob", "text": "hello"}
    made = {**plain, **changes}
    answer_to = (
        made["conversation"] if not made.get("direct", True) else "" if made.get("own") else f"@{made['sender']}"
    )
    return Message(answer_to=answer_to, **made)


def turn(event: Any = None, attempt: int = 1) -> TurnContext[Any]:
    return TurnContext(Home(), event or message(), 7, attempt)


def test_a_repeated_turn_gives_each_send_the_key_it_had() -> None:
    first, again = turn(), turn(attempt=2)
    keys = [first.reply("one"), first.send("@ann", "two")]
    assert [again.reply("other words"), again.send("@ann", "2")] == keys
    assert len(set(keys)) == 2


@given(st.lists(st.tuples(*[st.text(max_size=5)] * 4, st.integers(1, 3)), min_size=2, max_size=2, unique=True))
def test_different_causes_never_share_a_key(causes: list[tuple[str, str, str, str, int]]) -> None:
    keys = set()
    for identity, conversation, event_id, plugin, epoch in causes:
        event = message(identity=identity, conversation=conversation, id=event_id, epoch=epoch)
        keys.add(cause_key(plugin, event))
    assert len(keys) == 2


@given(st.text(max_size=300), st.text(max_size=300))
def test_a_key_fits_the_platform_whatever_the_names_are(identity: str, plugin: str) -> None:
    key = cause_key(plugin, message(identity=identity))
    assert 8 <= len(key) <= 100
    assert key.isascii()
    assert key.replace("-", "").isalnum()


def test_a_key_is_the_same_in_every_version_of_agentd() -> None:
    assert cause_key("greeter", message()) == "agentd-7a56aead8c7ee9bd626e302ca093e720"


def test_a_signal_has_a_key_of_its_own_each_time() -> None:
    signal = Presence(identity="me", handle="bob", status="online")
    assert cause_key("p", signal) != cause_key("p", signal)


def test_a_direct_message_is_answered_to_its_sender_and_a_group_to_the_group() -> None:
    direct, group = turn(), turn(message(conversation="grp_1", direct=False))
    direct.reply("hi")
    group.reply("hi")
    assert direct.sends is not None
    assert group.sends is not None
    assert direct.sends[0].target == "@bob"
    assert group.sends[0].target == "grp_1"


def test_a_reply_names_its_message_unless_told_otherwise() -> None:
    ctx = turn()
    ctx.reply("a", metadata={"mood": "fine"})
    ctx.reply("b", metadata={"reply_to": "msg_0"})
    assert ctx.sends is not None
    assert [send.content.metadata for send in ctx.sends] == [
        {"reply_to": "msg_1", "mood": "fine", "agentd_hops": 1},
        {"reply_to": "msg_0", "agentd_hops": 1},
    ]


def test_an_answer_tells_how_many_answers_led_to_it_whatever_the_peer_claims() -> None:
    for claimed, told in ((4, 5), (0, 1), (-7, 1), ("9", 1), (True, 1)):
        ctx = turn(message(metadata={"agentd_hops": claimed}))
        ctx.send("@ann", "x")
        assert ctx.sends is not None
        assert ctx.sends[0].content.metadata == {"agentd_hops": told}


def test_a_send_names_the_agent_that_caused_it_and_nobody_else() -> None:
    def cause(kind: str | None, **changes: Any) -> tuple[str, str]:
        ctx = turn(message(context=EventContext(sender_kind=kind), **changes))
        ctx.send("@ann", "x")
        assert ctx.sends is not None
        return ctx.sends[0].caused_in, ctx.sends[0].caused_by

    assert cause("agent") == ("conv_1", "bob")
    assert cause("system") == cause(None) == cause("agent", own=True) == ("", "")


def test_a_replay_has_keys_of_its_own_and_its_repeat_has_the_same() -> None:
    def key(again: str) -> str:
        return TurnContext(Home(), message(), 7, 1, again=again).send("@ann", "x")

    assert key("") == turn().send("@ann", "x")
    assert key("replay 1") == key("replay 1")
    assert len({key(""), key("replay 1"), key("replay 2")}) == 3


def test_an_outcome_is_a_word_with_data_and_there_are_few() -> None:
    ctx = turn()
    ctx.outcome("answered", {"tokens": 7})
    ctx.outcome("escalated")
    assert ctx.outcomes == [("answered", b'{"tokens":7}'), ("escalated", None)]
    for wrong in ("", "x" * 65, "two\nlines"):
        with pytest.raises(ValueError, match="give a word"):
            ctx.outcome(wrong)
    with pytest.raises(RuntimeError, match="16 outcomes"):
        for _ in range(16):
            ctx.outcome("more")


def test_what_was_staged_does_not_change_with_what_the_author_holds() -> None:
    ctx = turn()
    data = {"list": [1]}
    ctx.reply(data=data)
    data["list"].append(2)
    assert ctx.sends is not None
    assert ctx.sends[0].content.data == {"list": [1]}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, ValueError),
        ({"text": "\ud800"}, ValueError),
        ({"data": {"x": object()}}, TypeError),
        ({"data": [1]}, (TypeError, ValueError)),
    ],
)
def test_what_cannot_be_said_fails_in_the_authors_line(arguments: dict[str, Any], error: Any) -> None:
    ctx = turn()
    with pytest.raises(error):
        ctx.reply(**arguments)
    assert not ctx.sends


@pytest.mark.parametrize("target", ["", "@", "two words", "line\nbreak", None])
def test_a_target_that_nobody_can_have_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match="is no target"):
        turn().send(target, "hello")


def test_another_identity_may_speak_under_keys_that_stay_unique_and_the_same() -> None:
    first, again = turn(), turn(attempt=2)
    keys = [first.send("@ann", "a"), first.send("@ann", "a", identity="work"), first.send("@ann", "b", identity="me")]
    assert [again.send("@ann", "a"), again.send("@ann", "a", identity="work"), again.send("@ann", "b")] == keys
    assert len(set(keys)) == 3
    assert first.sends is not None
    assert [send.identity for send in first.sends] == ["me", "work", "me"]


def test_an_identity_that_does_not_have_the_plugin_cannot_be_spoken_for() -> None:
    ctx = turn()
    with pytest.raises(ValueError, match=r"greeter does not serve 'boss'; add it to plugins in \[identity\.boss\]"):
        ctx.send("@ann", "hello", identity="boss")
    assert not ctx.sends


def test_nobody_answers_a_signal_or_its_own_direct_words() -> None:
    with pytest.raises(TypeError, match=r"use ctx\.send"):
        turn(Presence(identity="me", handle="bob", status="online")).reply("hi")
    with pytest.raises(ValueError, match="said it itself"):
        turn(message(own=True)).reply("hi")


def test_a_message_is_worth_sending_for_as_long_as_it_is_told() -> None:
    ctx = turn()
    began = time.time()
    ctx.reply("now or never", expires_s=5)
    ctx.send("@ann", "whenever")
    assert ctx.sends is not None
    assert began + 5 <= (ctx.sends[0].expires_at or 0.0) <= time.time() + 5
    assert ctx.sends[1].expires_at is None
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"expires_s is .*; give the seconds"):
            ctx.send("@ann", "never", expires_s=wrong)


def test_a_turn_knows_the_backlog_of_whom_it_would_answer() -> None:
    assert turn().peer_backlog == 5_001
    assert turn(message(conversation="grp_1", direct=False)).peer_backlog == 7
    assert turn(message(sender="ann")).peer_backlog is None
    assert TurnContext(Home(), Presence(identity="me", handle="bob", status="online"), None, 1).peer_backlog is None


def test_a_turn_that_has_ended_stages_nothing() -> None:
    ctx = turn()
    state = ctx.state
    ctx.end()
    with pytest.raises(RuntimeError, match="has ended"):
        ctx.reply("late")
    with pytest.raises(RuntimeError, match="has ended"):
        state.put("late", 1)
    assert not ctx.sends
    assert not ctx.puts


def test_a_signal_has_no_state_of_a_conversation() -> None:
    ctx = TurnContext(Home(), Presence(identity="me", handle="bob", status="online"), None, 1)
    with pytest.raises(RuntimeError, match="plugin_state"):
        _ = ctx.state
    ctx.plugin_state.put("seen", 1)
    assert ctx.puts == {(0, "seen"): b"1"}


async def test_waiting_on_the_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="write await"):
        turn().wait(Never())


class Never:
    """Awaited by nobody."""

    def __await__(self) -> Any:
        raise AssertionError("was awaited")
