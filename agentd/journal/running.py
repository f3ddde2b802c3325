"""Which events were being handled when the process died, in a small file beside the journal.

The file is mapped into memory, two words per handler call. Marking is a store, with no system call and no sync: pages
that a process wrote outlive it however it ends, and what ends the whole machine is no fault of a handler's.

Always true: a call's word is set before its handler runs and cleared after it has ended. The file is as large as it
will ever be from the start, so that a full disk cannot fault a store.
Not here: who is to blame (core/quarantine.py).
"""

from __future__ import annotations

import logging
import mmap
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

log = logging.getLogger("agentd.journal.running")

_HEAD_BYTES = 65_536
_WORD_BYTES = 8
_WORDS = 2  # the plugin's tag with the position of the first event, and the position of the last
_TAG_BITS = 16
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Unfinished(NamedTuple):
    """A turn that was under way when the process died. position, until: of its first and last record."""

    plugin: str
    position: int
    until: int


class _Head(msgspec.Struct, frozen=True):
    """What is needed to read the words: which plugin a tag stands for. boot: which run of the machine wrote them."""

    boot: str
    plugins: list[str]


class Running:
    """The marks of one process. slots: handler calls at once. Without a file they live in memory only.

    words, head: what the file holds, mapped.
    """

    def __init__(
        self,
        plugins: Sequence[str],
        slots: int,
        words: memoryview | None = None,
        head: memoryview | None = None,
    ) -> None:
        assert len(plugins) < 1 << _TAG_BITS, len(plugins)
        self._plugins = list(plugins)
        self._head = head
        self.slots = slots
        self._words: memoryview | array[int] = (
            array("Q", bytes(slots * _WORDS * _WORD_BYTES)) if words is None else words
        )
        self._free = list(range(0, slots * _WORDS, _WORDS))

    def tag(self, plugin: str) -> int:
        """What stands for a plugin among the marks; one that was not there at the start takes a free tag."""
        if plugin not in self._plugins:
            free = self._plugins.index("") if "" in self._plugins else len(self._plugins)
            self._plugins[free : free + 1] = [plugin]
            self._write_head()
        return self._plugins.index(plugin)

    def untag(self, plugin: str) -> None:
        """Nothing of this plugin runs any more, nor will: its tag is free for another."""
        self._plugins[self._plugins.index(plugin)] = ""

    def _write_head(self) -> None:
        """Say in the file what the tags stand for, before one of them is used."""
        if self._head is None:
            return
        head = msgspec.json.encode(_Head(_boot(), self._plugins))
        assert len(head) <= _HEAD_BYTES, len(head)
        self._head[: len(head)] = head
        self._head[len(head) :] = bytes(_HEAD_BYTES - len(head))

    def began(self, tag: int, position: int, until: int) -> int:
        """A turn about these records begins. Returns its slot, for `ended`."""
        slot = self._free.pop()
        self._words[slot + 1] = until
        self._words[slot] = position << _TAG_BITS | tag
        return slot

    def ended(self, slot: int) -> None:
        """The call in this slot has ended, however."""
        self._words[slot] = 0
        self._free.append(slot)

    def unfinished(self) -> list[Unfinished]:
        """The calls under way."""
        return _read(self._words, self._plugins)

    def close(self) -> None:
        """Forget all marks: the process ends in order, and what still runs is not to blame for that."""
        for slot in range(len(self._words)):
            self._words[slot] = 0


def open_running(path: Path, plugins: Sequence[str], slots: int) -> tuple[Running, list[Unfinished]]:
    """Begin a file anew. Returns it with what the process before left unfinished, if the machine has run since.

    Where the file cannot be made, the marks live in memory: no crash will be blamed on anybody.
    """
    unfinished = _left_in(path)
    try:
        whole = _mapped(path, plugins, slots)
        head, words = whole[:_HEAD_BYTES], whole[_HEAD_BYTES:].cast("Q")
        return Running(plugins, slots, words, head), unfinished
    except OSError as error:
        log.warning("%s cannot be written (%s): a plugin that kills the process will not be found out", path, error)
        return Running(plugins, slots), unfinished


def _mapped(path: Path, plugins: Sequence[str], slots: int) -> memoryview:
    fresh = path.with_name(path.name + ".new")
    head = msgspec.json.encode(_Head(_boot(), list(plugins)))
    assert len(head) <= _HEAD_BYTES, len(head)
    file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        length = _HEAD_BYTES + slots * _WORDS * _WORD_BYTES
        os.posix_fallocate(file, 0, length)
        os.pwrite(file, head, 0)
        whole = mmap.mmap(file, length)
    finally:
        os.close(file)
    fresh.replace(path)
    return memoryview(whole)


def _left_in(path: Path) -> list[Unfinished]:
    try:
        content = path.read_bytes()
        head = msgspec.json.decode(content[:_HEAD_BYTES].rstrip(b"\0"), type=_Head)
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError):
        log.warning("%s cannot be read; whatever ran when the process died is not known", path)
        return []
    if head.boot != _boot():
        return []
    words = content[_HEAD_BYTES:]
    whole = len(words) // (_WORDS * _WORD_BYTES) * _WORDS * _WORD_BYTES
    return _read(memoryview(words[:whole]).cast("Q"), head.plugins)


def _read(words: memoryview | array[int], plugins: Sequence[str]) -> list[Unfinished]:
    found = [
        (word & (1 << _TAG_BITS) - 1, word >> _TAG_BITS, until)
        for word, until in zip(words[::_WORDS], words[1::_WORDS], strict=True)
        if word
    ]
    return [Unfinished(plugins[tag], position, until) for tag, position, until in found if tag < len(plugins)]


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
