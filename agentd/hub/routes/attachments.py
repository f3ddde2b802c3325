"""Files: room for one, its bytes in and out. The addresses of the bytes need no key, and get none."""

from __future__ import annotations

from agentd.hub.accounts import Account
from agentd.hub.answers import Answer, answer, invalid, not_found
from agentd.hub.attachments import Attachment
from agentd.hub.conversations import Conversation
from agentd.hub.rest import Call, Route
from agentd.hub.service import Service
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode

_STORAGE = "/hub/storage"


def _upload(service: Service, call: Call) -> Answer:
    request = call.read(wire.UploadRequest)
    if (request.to is None) == (request.conversation_id is None):
        raise invalid("Exactly one of to and conversation_id may be given")
    target: Account | Conversation
    if request.to is not None:
        target = service.accounts.get(request.to)
    else:
        target = service.conversations.of(call.account, request.conversation_id or "")
    id_, word = service.attachments.promise(call.account, request, target, service.settings.attachment_max_bytes)
    url = f"{call.base}{_STORAGE}/{word}"
    return answer(wire.Upload(attachment_id=id_, upload_url=url, expires_in=service.attachments.life_s), 201)


def _attachment(service: Service, call: Call) -> Answer:
    attachment = service.attachments.get(call.path["id"])
    if not _may_see(service, call.account, attachment):
        raise not_found(ErrorCode.NOT_FOUND, "No such attachment")
    url = f"{call.base}{_STORAGE}/{service.attachments.word_for(attachment)}"
    return Answer(b"", 302, {"location": url})


def _may_see(service: Service, reader: Account, attachment: Attachment) -> bool:
    if reader.number in (attachment.owner, attachment.recipient):
        return True
    if attachment.conversation is None:
        return False
    return reader.number in service.conversations.by_number(attachment.conversation).present()


def _store(service: Service, call: Call) -> Answer:
    service.attachments.store(call.path["word"], call.body)
    return answer({"ok": True})


def _fetch(service: Service, call: Call) -> Answer:
    attachment = service.attachments.fetch(call.path["word"])
    assert attachment.content is not None, "an address for fetching is given out for what is stored"
    return Answer(attachment.content, content_type=attachment.content_type)


ROUTES = [
    Route("POST", "/v1/uploads", "upload", _upload),
    Route("GET", "/v1/attachments/{id}", "attachment", _attachment),
    Route("PUT", f"{_STORAGE}/{{word}}", "store", _store, keyless=True, file=True),
    Route("GET", f"{_STORAGE}/{{word}}", "fetch", _fetch, keyless=True),
]
