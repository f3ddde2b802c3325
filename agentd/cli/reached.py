"""Which bounds of the configuration a running daemon has reached, in words.

Always true: each line names the setting, and what happens meanwhile.
Not here: asking the daemon, printing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_OF_IDENTITY = {
    "outbox_full": "the outbox is full (sending.outbox_max), and turns that send wait; see: agentd outbox ls",
    "held_full": "more came behind a gap than is held (intake.held_max); it will be fetched; see: agentd gaps",
    "questions_full": "more repeats have come than are looked up at once (intake.questions_max); they will come again",
}


def reached(status: Mapping[str, Any]) -> Iterator[str]:
    """A line for each bound that is reached at this moment, from the daemon's status."""
    for identity in status["identities"]:
        for field, words in _OF_IDENTITY.items():
            if identity.get(field):
                yield f"{identity['name']}: {words}"
        if stopped := identity.get("targets_stopped"):
            yield f"{identity['name']}: {stopped} targets wait for a decision; see: agentd outbox ls --only unknown"
    for plugin in status["plugins"]:
        if plugin.get("state_full"):
            bytes_, most = plugin["state_bytes"], plugin["state_max_bytes"]
            yield f"plugin {plugin['name']}: its state has no room (state_max_mb): {bytes_:,} of {most:,} bytes"
    yield from _of_journal(status.get("journal", {}))


def _of_journal(journal: Mapping[str, Any]) -> Iterator[str]:
    if journal.get("at_limit"):
        yield "journal: it is as large as journal.max_mb allows; new messages stay with the server"
    elif journal.get("full"):
        yield "journal: its disk has no room; new messages stay with the server"
    elif journal.get("behind"):
        yield "journal: more commits wait than journal.waiting_max; new messages stay with the server"
