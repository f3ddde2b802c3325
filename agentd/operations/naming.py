"""Which conversation a person means: by the platform's id, or by the handle of the peer.

A handle is known from what was sent to it lately. Where nothing was, only the id tells.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentd.control.refusal import ControlError
from agentd.journal.storage import Conversation
from agentd.operations.parts import Parts


async def find_conversation(parts: Parts, names: Sequence[str], named: str) -> Conversation:
    """The one conversation of these identities. Raises ControlError if there is none, or several."""
    found = [each for name in names if (each := await _of(parts, name, named)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        holders = ", ".join(each.identity for each in found)
        raise ControlError(
            400,
            "WHICH_IDENTITY",
            f"several identities are in conversation {named!r}",
            f"name one with --as: {holders}",
        )
    if named.startswith("@"):
        raise ControlError(
            404,
            "UNKNOWN_CONVERSATION",
            f"nothing was sent to {named} lately, which would tell the conversation",
            "name its id; see: agentd tail",
        )
    raise ControlError(
        404, "UNKNOWN_CONVERSATION", f"nothing is recorded of conversation {named!r}", "see: agentd tail"
    )


async def _of(parts: Parts, identity: str, named: str) -> Conversation | None:
    id_ = await parts.journal.conversation_with(identity, named) if named.startswith("@") else named
    return None if id_ is None else await parts.journal.conversation_find(identity, id_)
