"""exec: any program is the agent. It gets a message on its stdin and answers on its stdout.

One process per turn, or resident ones that are given turn after turn; JSON lines, or plain text.

Always true: no shell, and nothing of a message on a command line. What a program asked for happens only if its turn
ends well. When a turn ends, however it does, no process of it is left; a resident one that broke off, or that speaks
out of turn, is replaced by a new one before the next.
Not here: processes and pipes (child.py).
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from agentd.plugin import Context, GiveUp, Log, Message, Plugin, PluginContext, RetryLater, portable
from agentd_exec.child import Child, TooMuchOutput

EXIT_RETRY_LATER = 75  # EX_TEMPFAIL of sysexits.h

_Word = Annotated[str, msgspec.Meta(min_length=1)]
_Bytes = Annotated[int, msgspec.Meta(ge=1)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `[plugin.NAME.config]`. The README tells what each is for."""

    command: Annotated[tuple[_Word, ...], msgspec.Meta(min_length=1)]
    format: Literal["json", "text"] = "json"
    resident: bool = False
    messages: Literal["addressed", "all"] = "addressed"
    folder: _Word | None = None
    inherit: tuple[_Word, ...] = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ")
    env: dict[_Word, str] = {}
    retry_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    output_max_bytes: _Bytes = 1_048_576
    stderr_max_bytes: _Bytes = 16_384

    def __post_init__(self) -> None:
        if self.resident and self.format == "text":
            raise ValueError('resident = true needs format = "json": plain text does not tell where an answer ends')

    @property
    def environ(self) -> dict[str, str]:
        """What the program gets to see of the environment, before it is told about its turn."""
        return {name: os.environ[name] for name in self.inherit if name in os.environ} | self.env


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be said: at least one of text and data."""

    text: str | None = None
    data: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class SaidTo(Said, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same, to somebody else."""

    to: str


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a program: exactly one of these."""

    reply: str | Said | None = None
    send: SaidTo | None = None
    retry_after_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    give_up: str | None = None
    done: Literal[True] | None = None

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a line has one of {', '.join(self.__struct_fields__)}")


class ProgramFailed(Exception):
    """The program did not handle its message: how it ended, or what was wrong with what it wrote."""


plugin = Plugin("exec", config=Settings)

_decode_line = msgspec.json.Decoder(Line).decode


class _Residents(NamedTuple):
    """Those that wait for a turn, and where they complain meanwhile."""

    waiting: list[Child]
    log: Log

    def complain(self, text: str) -> None:
        self.log.info("%s", text)


# By the settings object that setup, handlers and teardown of one plugin share: several plugins of one configuration
# may be this module.
_residents: dict[int, _Residents] = {}


@plugin.setup
def look_for_program(ctx: PluginContext[Settings]) -> None:
    """Find out now whether there is such a program."""
    settings, key = ctx.config, f"plugin.{ctx.name}.config"
    if settings.folder is not None and not Path(settings.folder).is_dir():
        raise ValueError(f"{key}.folder: there is no folder {settings.folder}; mend the path")
    program = settings.command[0]
    if "/" in program:
        found = shutil.which(Path(settings.folder or ".", program))
    else:
        found = shutil.which(program, path=settings.environ.get("PATH", os.defpath))
    if found is None:
        raise ValueError(f"{key}.command: there is no program {program} that can be run; mend the path, or chmod +x it")
    _residents[id(settings)] = _Residents([], ctx.log)


@plugin.teardown
async def end_residents(ctx: PluginContext[Settings]) -> None:
    """Nobody is left waiting."""
    residents = _residents.pop(id(ctx.config), None)
    for child in residents.waiting if residents is not None else ():
        child.end()


def is_said_to_us(message: Message) -> bool:
    """Not the platform's own announcements."""
    return message.kind != "system" and message.context.sender_kind != "system"


@plugin.on(Message, where=is_said_to_us)
async def answer(message: Message, ctx: Context[Settings]) -> None:
    """Let the program answer."""
    settings = ctx.config
    if settings.messages == "addressed" and not (message.direct or message.mentioned):
        return
    if settings.format == "text" and not message.text:
        return
    turn = _Turn(message, ctx)
    if settings.resident:
        await turn.of_resident(_residents[id(settings)])
    else:
        await turn.alone()


class _Turn:
    """One message, and the program that answers it."""

    def __init__(self, message: Message, ctx: Context[Settings]) -> None:
        self._message = message
        self._ctx = ctx
        self._settings = ctx.config
        self._last_complaint = ""
        self._fate: RetryLater | GiveUp | None = None

    async def alone(self) -> None:
        """A process of its own, which ends with the turn."""
        child = self._start(self._about_turn())
        done = False
        try:
            child.feed(self._question(), close=True)
            if self._settings.format == "text":
                await self._take_text(child)
            else:
                done = await self._take_lines(child)
        finally:
            status = child.end()
        self._conclude(0 if done else status)

    async def of_resident(self, residents: _Residents) -> None:
        """A turn of a process that goes on."""
        child = self._taken_from(residents.waiting) or self._start({})
        done, status = False, None
        try:
            child.begin(self._complain)
            child.feed(self._question(), close=False)
            done = await self._take_lines(child)
        finally:
            if done:
                child.complain = residents.complain
                residents.waiting.append(child)
            else:  # it is in the middle of who knows what
                status = child.end()
        if status == 0 and self._fate is None:
            raise ProgramFailed('it exited before it wrote {"done": true}')
        self._conclude(0 if done else status)

    def _taken_from(self, waiting: list[Child]) -> Child | None:
        while waiting:
            child = waiting.pop()
            if child.is_idle():
                return child
            self._ctx.log.warning("process %d ended or wrote out of turn; a new one takes its place", child.pid)
            child.end()
        return None

    def _start(self, about_turn: dict[str, str]) -> Child:
        settings = self._settings
        return Child(
            settings.command,
            environ=settings.environ | about_turn,
            folder=settings.folder,
            output_max_bytes=settings.output_max_bytes,
            complaints_max_bytes=settings.stderr_max_bytes,
            complain=self._complain,
        )

    def _about_turn(self) -> dict[str, str]:
        """What the platform and the daemon vouch for; a peer's words are on stdin alone."""
        message, ctx = self._message, self._ctx
        return {
            "AGENTD_ATTEMPT": str(ctx.attempt),
            "AGENTD_CONVERSATION": message.conversation,
            "AGENTD_DEADLINE_S": f"{max(0.0, ctx.deadline - time.time()):.0f}",
            "AGENTD_EVENT_ID": message.id,
            "AGENTD_IDENTITY": ctx.identity,
            "AGENTD_SENDER": message.sender,
        }

    def _question(self) -> bytes:
        if self._settings.format == "text":
            return (self._message.text or "").encode("utf-8", "replace")
        about_turn = {"attempt": self._ctx.attempt, "deadline": self._ctx.deadline}
        return msgspec.json.encode(portable(self._message) | about_turn) + b"\n"

    async def _take_text(self, child: Child) -> None:
        lines = []
        while (line := await self._line(child)) is not None:
            lines.append(line)
        text = b"\n".join(lines).decode("utf-8", "replace").strip()
        if text:
            self._ctx.reply(text)

    async def _take_lines(self, child: Child) -> bool:
        """Stage what the program says. Returns whether it said that it was done, rather than to exit."""
        while (line := await self._line(child)) is not None:
            if line.strip():
                try:
                    said = _decode_line(line)
                except (msgspec.MsgspecError, ValueError) as error:
                    raise ProgramFailed(f"it wrote a line that is none of ours: {error}") from None
                if said.done:
                    return True
                self._do(said)
        return False

    def _do(self, said: Line) -> None:
        ctx = self._ctx
        if said.retry_after_s is not None:
            self._fate = RetryLater(said.retry_after_s, "the program asked for it")
        elif said.give_up is not None:
            self._fate = GiveUp(said.give_up)
        elif said.send is not None:
            ctx.send(said.send.to, said.send.text, data=said.send.data, metadata=said.send.metadata)
        elif isinstance(said.reply, str):
            ctx.reply(said.reply)
        elif said.reply is not None:
            ctx.reply(said.reply.text, data=said.reply.data, metadata=said.reply.metadata)

    async def _line(self, child: Child) -> bytes | None:
        try:
            return await child.line()
        except TooMuchOutput:
            limit = self._settings.output_max_bytes
            raise ProgramFailed(f"it wrote more than {limit} bytes (output_max_bytes) in one turn") from None

    def _conclude(self, status: int | None) -> None:
        """The turn ended, with what it said last about its fate, or else like this. status: 0 if all went well."""
        if self._fate is not None:
            raise self._fate
        if status == 0:
            return
        last = f"; the last of its stderr: {self._last_complaint}" if self._last_complaint else ""
        if status == EXIT_RETRY_LATER:
            raise RetryLater(self._settings.retry_s, f"the program exited with {EXIT_RETRY_LATER}{last}")
        assert status is not None
        raise ProgramFailed(f"killed by signal {-status}{last}" if status < 0 else f"exit status {status}{last}")

    def _complain(self, text: str) -> None:
        self._last_complaint = text
        self._ctx.log.info("%s", text)
