"""The daemon's own command in a process that kills itself at one point: CRASH_AT="<nth> <point>".

The point is named in the file CRASH_REACHED just before the SIGKILL, as proof that it was this and nothing else.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
from collections.abc import Iterator
from typing import Any

from agentd.cli import main
from tests.crash.points import COPYING, POINTS, UPKEEP
from tests.crash.take_over_points import PREDECESSOR, SUCCESSOR


def arm(name: str, nth: int, reached: str) -> None:
    point = {**POINTS, **UPKEEP, **COPYING, **PREDECESSOR, **SUCCESSOR}[name]
    module, _, path = point.where.partition(":")
    *owners, attribute = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original = getattr(owner, attribute)
    met = 0

    def strike(arguments: list[Any]) -> None:
        nonlocal met
        if not point.holds(arguments):
            return
        met += 1
        if met == nth:
            file = os.open(reached, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(file, name.encode() + b"\n")
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        arguments = [list(each) if isinstance(each, Iterator) else each for each in args]
        if not point.after:
            strike(arguments)
        result = original(*arguments, **kwargs)
        if point.after:
            strike(arguments)
        return result

    @functools.wraps(original)
    async def wrapped_coroutine(*args: Any, **kwargs: Any) -> Any:
        if not point.after:
            strike(list(args))
        result = await original(*args, **kwargs)
        if point.after:
            strike(list(args))
        return result

    setattr(owner, attribute, wrapped_coroutine if inspect.iscoroutinefunction(original) else wrapped)


if __name__ == "__main__":
    nth, _, name = os.environ["CRASH_AT"].partition(" ")
    arm(name, int(nth), os.environ["CRASH_REACHED"])
    main()
