"""What a check says."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["ok", "warn", "fail"]

OK: State = "ok"
WARN: State = "warn"
FAIL: State = "fail"


class Finding(msgspec.Struct, frozen=True):
    """One line of the report.

    state: fail means that agentd cannot do its work, warn that something will hurt some day. about: which identity,
    server or file. remedy: what to do; empty where all is well.
    """

    state: State
    check: str
    about: str
    told: str
    remedy: str = ""


def of_problem(check: str, about: str, problem: str) -> Finding:
    """A problem of the configuration, whose remedy stands behind its last semicolon."""
    told, _, remedy = problem.rpartition("; ")
    return Finding(FAIL, check, about, told or problem, remedy if told else "mend it")
