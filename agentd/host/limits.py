"""What a worker process may use, and that it does not outlive the daemon. For the worker to call on itself.

Memory is bounded by RLIMIT_DATA: what the process can write to and shares with nobody. RLIMIT_AS would count address
space that costs nothing (the arenas that the allocator reserves for each thread, mapped files), so that no number would
mean anything. The stack of a thread counts in full.

Always true: a limit that was set here cannot be raised again by the plugin, except for CPU time, which is raised at
each call.
Not here: which limits (the configuration).
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import time

_PR_SET_PDEATHSIG = 1
_MB = 1_048_576


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends. parent: its process.

    The end of the pipe tells the same to a worker that listens; this is for one that does not. `agentd dev` does it
    with its daemon.
    """
    # Where memory may not be made executable, some builds of ctypes cannot be imported.
    with contextlib.suppress(ImportError, OSError, AttributeError, MemoryError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before we could ask
        os._exit(1)


def leave_no_core() -> None:
    """What a worker has in memory is other people's mail, which a core dump would leave behind."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def limit_memory(max_mb: int) -> None:
    """From now on an allocation past this fails."""
    resource.setrlimit(resource.RLIMIT_DATA, (max_mb * _MB, max_mb * _MB))


class CpuAllowance:
    """CPU seconds that the process may burn until it next begins a call, or comes to rest. None: as many as it likes.

    The kernel counts whole seconds.
    """

    def __init__(self, max_s: float | None) -> None:
        self._max_s = max_s
        _, self._hard = resource.getrlimit(resource.RLIMIT_CPU)

    def renew(self) -> None:
        """A stretch of work begins."""
        if self._max_s is not None:
            self._limit(math.ceil(time.process_time() + self._max_s))

    def lift(self) -> None:
        """Nothing runs: what the plugin does by itself meanwhile is not measured."""
        if self._max_s is not None:
            self._limit(self._hard)

    def _limit(self, soft: int) -> None:
        if self._hard != resource.RLIM_INFINITY:
            soft = min(soft, self._hard)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, self._hard))
