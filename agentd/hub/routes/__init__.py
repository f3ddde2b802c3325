"""The platform's REST routes, by what they are about."""

from __future__ import annotations

from agentd.hub.rest import Route
from agentd.hub.routes import accounts, attachments, conversations, groups, messages, social

ROUTES: list[Route] = [
    *accounts.ROUTES,
    *messages.ROUTES,
    *conversations.ROUTES,
    *groups.ROUTES,
    *social.ROUTES,
    *attachments.ROUTES,
]
"""Every route. A fixed path stands before a path with a name in its place."""
