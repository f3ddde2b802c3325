"""What a caller of the control socket hears when something cannot be done: the same value on both ends."""

from __future__ import annotations

from agentd.errors import AgentdError


class ControlError(AgentdError):
    """Not done. `status`: as in HTTP. `code`: for programs. `message` and `remedy`: one sentence each, for people."""

    def __init__(self, status: int, code: str, message: str, remedy: str = "") -> None:
        self.status = status
        self.code = code
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}; {remedy}" if remedy else message)


class UnreachableError(AgentdError):
    """No daemon answers, or it stopped answering. The text names the socket and the remedy."""


class SilentError(UnreachableError):
    """A daemon is there and did not answer in time: it may yet do what it was asked for."""
