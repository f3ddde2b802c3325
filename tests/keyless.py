"""A platform that knows no keys, on the hub: what is sent twice is stored twice, and what is in doubt is looked up.

Run as a program it is agentd with this platform in AgentChat's place.
"""

from __future__ import annotations

import uuid

import msgspec

from agentd.core.events import Message, Position, Send
from agentd.errors import WireViolation
from agentd.wire.agentchat import AgentChat
from agentd.wire.platform import Request, Response, Sighting

PAGE = 3
"""Small, so that a look takes several pages."""


class Keyless(AgentChat):
    """AgentChat without what makes a repeat safe."""

    deduplicates_sends = False

    def __init__(self, identity, url, key, handle="", *, version="") -> None:
        super().__init__(identity, url, key, handle, version=version)
        self.lookup = History(self)

    def send_request(self, send: Send) -> Request:
        # The hub would know the key again, which such a platform does not.
        return super().send_request(msgspec.structs.replace(send, client_msg_id=uuid.uuid4().hex))


class History:
    """Looks for a send among the messages behind the place where it left."""

    def __init__(self, platform: AgentChat) -> None:
        self._platform = platform

    def request(self, send: Send, after: Position) -> Request | None:
        return self._platform.history_request(after.conversation, after.seq, PAGE)

    def read(self, response: Response, send: Send, after: Position) -> Sighting:
        page = self._platform.read_history(response)
        if page.malformed is not None:
            raise WireViolation(page.malformed.what)
        seen = [event for event in page.events if event.own and says(event, send)]
        if not page.events:
            return Sighting(seen)
        return Sighting(seen, Position(after.conversation, after.epoch, page.events[-1].seq))


def says(event: Message, send: Send) -> bool:
    content = send.content
    said = (event.text, event.data, event.attachment_id, event.metadata)
    return said == (content.text, content.data, content.attachment_id, content.metadata)


if __name__ == "__main__":
    from agentd import identities
    from agentd.cli import main

    identities.AgentChat = Keyless
    main()
