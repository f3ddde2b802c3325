"""What plugin authors are promised, and what is described behind it, agree word for word."""

from __future__ import annotations

import inspect
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from agentd import apis, plugin
from agentd.errors import Refused, Unavailable
from agentd.host.api import SURFACES, Method
from agentd.wire.agentchat import AgentChat
from agentd.wire.agentchat.calls import AgentChatCalls
from agentd.wire.platform import Call, Say

AGENTCHAT = SURFACES["agentchat"]
METHODS = [method for group in AGENTCHAT.groups.values() for method in group.values()]
CALLS = AgentChatCalls(AgentChat("me", "https://chat.example", lambda: "unused", "me"))


def described(method: Method) -> Any:
    group, _, name = method.name.partition(".")
    return getattr(type(getattr(CALLS, group)), name)


def promise(method: Method) -> Any:
    group, _, name = method.name.partition(".")
    return getattr(get_type_hints(apis.AgentChatApi)[group], name)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_each_call_is_described_with_the_arguments_and_the_answer_that_are_promised(method: Method) -> None:
    ours = inspect.signature(described(method), eval_str=True)
    promised = list(inspect.signature(promise(method), eval_str=True).parameters.values())
    assert list(ours.parameters.values())[: len(promised)] == promised
    assert list(ours.parameters)[len(promised) :] == (["offset", "limit"] if method.paged else [])
    returns = get_type_hints(described(method))["return"]
    if returns is Say:
        assert method.returns is bool
    else:
        assert (get_origin(returns), get_args(returns)) == (Call, (method.returns,))


def test_nothing_is_described_that_is_not_promised() -> None:
    for group, methods in AGENTCHAT.groups.items():
        ours = {name for name in vars(type(getattr(CALLS, group))) if not name.startswith("_")}
        assert ours == set(methods)


def test_whatever_is_marked_as_carried_out_once_is_a_call() -> None:
    assert {method.name for method in METHODS if method.once} == apis.ONCE


def test_a_call_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no call 'contacts.lst'; did you mean contacts.list\?"):
        AGENTCHAT.method("contacts.lst")


def test_the_errors_of_calls_can_be_caught_with_what_a_plugin_imports() -> None:
    assert (plugin.Refused, plugin.Unavailable) == (Refused, Unavailable)
