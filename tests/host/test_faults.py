"""Errors that cross between processes keep what decides over them, and what people read."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from agentd.errors import CredentialsRefused, GiveUp, NotConnected, NotSent, Refused, RetryLater, Unavailable
from agentd.host.faults import made_again, taken_apart
from agentd.host.turns import DeadlinePassed


def crossed(error: BaseException) -> Any:
    try:
        raise error
    except BaseException as raised:
        return made_again(taken_apart(raised))


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (RetryLater(3, "busy", whole_plugin=True), {"after_s": 3.0, "reason": "busy", "whole_plugin": True}),
        (GiveUp("never"), {"reason": "never"}),
        (NotSent("refused", "403"), {"state": "refused"}),
        (Unavailable("down", 2.5, "req_1"), {"retry_after_s": 2.5, "request_id": "req_1"}),
        (NotConnected("parked"), {"retry_after_s": None, "request_id": None}),
        (Unavailable("down"), {"retry_after_s": None, "request_id": None}),
        (
            Refused(404, "NOT_FOUND", "no such", {"group_id": "g"}, "req_2"),
            {"status": 404, "code": "NOT_FOUND", "message": "no such", "details": {"group_id": "g"}},
        ),
        (DeadlinePassed("handle", 2.5), {"overrun": None}),
        (ValueError("no"), {}),
        (KeyboardInterrupt(), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_keeps_its_class_name_its_text_and_its_fields(error: BaseException, fields: dict[str, Any]) -> None:
    again = crossed(error)
    assert (type(again).__name__, str(again)) == (type(error).__name__, str(error))
    assert {name: getattr(again, name) for name in fields} == fields
    assert type(again) is type(error) or not fields


def test_a_subclass_of_a_fate_is_that_fate_under_its_own_name() -> None:
    class Sleepy(RetryLater):
        pass

    again = crossed(Sleepy(7))
    assert isinstance(again, RetryLater)
    assert (type(again).__name__, again.after_s) == ("Sleepy", 7.0)


def test_a_refused_key_is_a_refusal_like_any_other_over_there() -> None:
    again = crossed(CredentialsRefused(401, "UNAUTHORIZED"))
    assert isinstance(again, Refused)
    assert (type(again).__name__, again.status) == ("CredentialsRefused", 401)


def test_a_fate_that_makes_no_sense_is_none() -> None:
    broken: Any = RetryLater()
    broken.after_s = "tomorrow"
    assert not isinstance(crossed(broken), RetryLater)


def test_the_traceback_of_the_other_process_is_shown_with_the_error() -> None:
    shown = "".join(traceback.format_exception(crossed(LookupError("inside"))))
    assert 'test_faults.py", line' in shown
    assert "raise error" in shown
    assert shown.rstrip().endswith("LookupError: inside")


def test_what_is_endless_is_cut_and_what_is_no_text_is_written_out() -> None:
    fault = taken_apart(ValueError("x" * 1_000_000))
    assert len(fault.text) + len(fault.trace) < 50_000
    assert taken_apart(ValueError("\udc80")).text == "\\udc80"
