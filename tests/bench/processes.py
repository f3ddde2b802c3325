"""Other programs of this machine: started on a core of their own, watched from outside, stopped in order.

Always true: every program that was started has ended when its `with` block has. What is said of a process comes from
the kernel, so that measuring costs it nothing.
Not here: which programs there are (far_end.py, clients.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

ROOT = Path(__file__).parents[2]

_STOP_TIMEOUT_S = 30.0
_CPU_CLOCK_OF_PROCESS = 2
"""Linux numbers a process's CPU clock by its pid: all threads, in ns, where /proc/PID/stat counts ticks of 10 ms."""


class Failed(Exception):
    """A program ended, or did not do what was asked of it."""


def cores() -> tuple[int | None, int | None]:
    """A core for the client and one for the far end and us; None for both where there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else (None, None)


class Program:
    """One running program. started_s: the monotonic clock just before it was executed."""

    def __init__(self, command: Sequence[str], core: int | None, log: Path, *, piped: bool = False) -> None:
        self._log = log
        pipe = subprocess.PIPE if piped else None
        with log.open("ab") as output:
            self.started_s = time.monotonic()
            self._process = subprocess.Popen(
                command,
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or output,
                stderr=output,
                cwd=ROOT,
                env=_environ(),
            )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})

    @property
    def stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        return time.clock_gettime((~self._process.pid << 3) | _CPU_CLOCK_OF_PROCESS)

    def rss_kib(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def require_running(self) -> None:
        if self._process.poll() is not None:
            raise Failed(f"{self._process.args} ended with {self._process.returncode}:\n{self._end_of_log()}")

    def stop(self) -> None:
        """SIGTERM, and wait for the end. Raises Failed if it takes too long, or ends with anything but 0."""
        self.require_running()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self._process.args} did not stop:\n{self._end_of_log()}") from None
        if code != 0:
            raise Failed(f"{self._process.args} ended with {code}:\n{self._end_of_log()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _end_of_log(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
