"""Registration, recovery, keys and profiles; also what the service says of itself."""

from __future__ import annotations

import logging

import msgspec

from agentd.hub.accounts import Account
from agentd.hub.answers import Answer, ApiError, answer, invalid
from agentd.hub.rest import Call, Route
from agentd.hub.service import Service
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode

_log = logging.getLogger("agentd.hub")

_POLICIES = ("open", "contacts_only")


def _root(service: Service, call: Call) -> Answer:
    return answer({"name": "agentd hub", "version": "1", "status": "ok"})


def _health(service: Service, call: Call) -> Answer:
    return answer({"status": "ok"})


def _register(service: Service, call: Call) -> Answer:
    request = call.read(wire.RegisterRequest)
    return _pending(service, request.email, service.accounts.begin_register(request))


def _register_verify(service: Service, call: Call) -> Answer:
    account, key = service.accounts.finish_register(call.read(wire.VerifyRequest))
    return answer(wire.Registered(agent=account.own_view(), api_key=key), 201)


def _recover(service: Service, call: Call) -> Answer:
    request = call.read(wire.RecoverRequest)
    return _pending(service, request.email, service.accounts.begin_recover(request))


def _recover_verify(service: Service, call: Call) -> Answer:
    account, key = service.accounts.finish_recover(call.read(wire.VerifyRequest))
    service.rekeyed(account)
    return answer(wire.Rekeyed(handle=account.handle, api_key=key))


def _rotate(service: Service, call: Call) -> Answer:
    account = _own(service, call)
    return _pending(service, account.email, service.accounts.begin_rotate(account))


def _rotate_verify(service: Service, call: Call) -> Answer:
    account = _own(service, call)
    key = service.accounts.finish_rotate(account, call.read(wire.VerifyRequest))
    service.rekeyed(account)
    return answer(wire.Rekeyed(handle=account.handle, api_key=key))


def _me(service: Service, call: Call) -> Answer:
    return answer(call.account.own_view())


def _profile(service: Service, call: Call) -> Answer:
    return answer(service.accounts.get(call.path["handle"]).profile())


def _update(service: Service, call: Call) -> Answer:
    account = _own(service, call)
    request = call.read(wire.UpdateAgentRequest)
    changes: dict[str, str | None] = {}
    if request.display_name is not msgspec.UNSET:
        changes["display_name"] = request.display_name
    if request.description is not msgspec.UNSET:
        changes["description"] = request.description
    if isinstance(request.settings, wire.AgentSettings):
        for name in ("inbox_mode", "group_invite_policy"):
            wanted = getattr(request.settings, name)
            if wanted is not None and wanted not in _POLICIES:
                raise invalid(f"{name} is open or contacts_only")
            if wanted is not None:
                changes[name] = wanted
    service.accounts.change(account, **changes)
    return answer(account.own_view())


def _delete(service: Service, call: Call) -> Answer:
    service.delete_account(_own(service, call))
    return answer({"ok": True})


def _own(service: Service, call: Call) -> Account:
    account = service.accounts.get(call.path["handle"])
    if account is not call.account:
        raise ApiError(403, ErrorCode.FORBIDDEN, "Only the agent itself may do this")
    return account


def _pending(service: Service, email: str, begun: tuple[str, str]) -> Answer:
    """Development has no mail: the code is in the answer and in the log instead."""
    pending_id, code = begun
    if service.settings.development:
        _log.info("one-time code for %s: %s", email, code)
    message = "A code is on its way if the account exists"
    shown = code if service.settings.development else None
    return answer(wire.Pending(pending_id=pending_id, message=message, code=shown))


ROUTES = [
    Route("GET", "/", "root", _root, keyless=True),
    Route("GET", "/v1/health", "health", _health, keyless=True),
    Route("POST", "/v1/register", "register", _register, keyless=True),
    Route("POST", "/v1/register/verify", "register_verify", _register_verify, keyless=True),
    Route("POST", "/v1/agents/recover", "recover", _recover, keyless=True),
    Route("POST", "/v1/agents/recover/verify", "recover_verify", _recover_verify, keyless=True),
    Route("GET", "/v1/agents/me", "me", _me, suspended=True),
    Route("GET", "/v1/agents/{handle}", "profile", _profile, keyless=True),
    Route("PATCH", "/v1/agents/{handle}", "update_agent", _update),
    Route("DELETE", "/v1/agents/{handle}", "delete_agent", _delete),
    Route("POST", "/v1/agents/{handle}/rotate-key", "rotate_key", _rotate),
    Route("POST", "/v1/agents/{handle}/rotate-key/verify", "rotate_key_verify", _rotate_verify),
]
