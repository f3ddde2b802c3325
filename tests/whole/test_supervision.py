"""One identity's trouble stays its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agentd import supervisor
from agentd.intake import Intake
from agentd.wire.agentchat import AgentChat

if TYPE_CHECKING:
    from tests.whole.conftest import Rig


async def begin(rig: Rig, *names: str) -> None:
    for name in names:
        rig.identity(name)
    rig.hub.create_agent("peer")
    await rig.start()


def status(rig: Rig, name: str) -> dict[str, object]:
    return next(each for each in rig.status() if each["name"] == name)


async def test_a_broken_invariant_ends_one_identity_which_starts_anew_from_the_disk(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(rig, "unlucky", "lucky")
    decode = AgentChat.decode

    def breaks_once(self: AgentChat, frame: bytes) -> object:
        if self.identity == "unlucky" and b"trip over this" in frame:
            monkeypatch.setattr(AgentChat, "decode", decode)
            raise AssertionError("an invariant broke")
        return decode(self, frame)

    rig.hub.post("peer", "unlucky", "before")
    await rig.until_handled(1)
    monkeypatch.setattr(AgentChat, "decode", breaks_once)
    rig.hub.post("peer", "unlucky", "trip over this", "after")
    rig.hub.post("peer", "lucky", "not concerned")
    await rig.until_handled(4)
    await rig.until(lambda: rig.states() == ["live", "live"])
    await rig.assert_accounted()
    assert status(rig, "unlucky")["restarts"] == 1
    assert (status(rig, "lucky")["restarts"], status(rig, "lucky")["reconnects"]) == (0, 0)


async def test_an_identity_that_cannot_even_read_where_it_stands_ends_nobody_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Intake.load

    async def breaks_once(self: Intake) -> None:
        if self.identity == "unlucky":
            monkeypatch.setattr(Intake, "load", load)
            raise AssertionError("an invariant broke")
        await load(self)

    monkeypatch.setattr(Intake, "load", breaks_once)
    await begin(rig, "unlucky", "lucky")
    assert status(rig, "unlucky")["restarts"] == 1
    assert status(rig, "lucky")["restarts"] == 0


async def test_an_identity_that_keeps_breaking_is_started_anew_however_often_it_has_been(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(rig, "unlucky")
    assert rig.daemon is not None
    unlucky = rig.daemon._supervisors["unlucky"]
    assert unlucky._life is not None
    monkeypatch.setattr(supervisor, "_RESTART_FIRST_S", 1e-320)
    unlucky.restarts = 2_000
    unlucky._life._fail(AssertionError("an invariant broke"))
    await rig.until(lambda: unlucky.restarts == 2_001 and rig.states() == ["live"])


async def test_two_identities_with_one_account_do_not_both_answer(rig: Rig) -> None:
    rig.identity("first")
    rig.keys["second"] = rig.keys["first"]
    rig.hub.create_agent("peer")
    await rig.start(live=False)
    await rig.until(lambda: sorted(rig.states()) == ["live", "parked"])
    parked = next(each for each in rig.status() if each["state"] == "parked")
    assert "SAME_ACCOUNT" in str(parked["state_reason"])
    rig.hub.post("peer", "first", "who answers?")
    await rig.until(lambda: len([row for row in rig.hub.ledger() if row.sender == "first"]) == 1)


async def test_a_key_of_another_account_does_not_mix_its_mail_into_this_identitys(rig: Rig) -> None:
    await begin(rig, "agent")
    await rig.stop()
    rig.keys["agent"] = rig.hub.create_agent("somebody-else")
    await rig.start(live=False)
    await rig.until(lambda: rig.states() == ["parked"])
    assert "OTHER_ACCOUNT" in str(rig.status()[0]["state_reason"])


async def test_a_parked_identity_that_is_given_the_key_of_another_account_stays_parked(rig: Rig) -> None:
    await begin(rig, "agent")
    rig.hub.rotate_key("agent")
    await rig.until(lambda: rig.states() == ["parked"])
    rig.keys["agent"] = rig.hub.create_agent("somebody-else")
    await rig.until(lambda: "OTHER_ACCOUNT" in str(rig.status()[0]["state_reason"]))
    assert rig.states() == ["parked"]


async def test_many_identities_dial_no_faster_than_the_throttle_allows(rig: Rig) -> None:
    names = [f"agent-{number}" for number in range(30)]
    for name in names:
        rig.identity(name)
    began = asyncio.get_running_loop().time()
    await rig.start()
    spread = 29 / rig.settings.link.dials_per_s
    assert asyncio.get_running_loop().time() - began >= spread, "the last of thirty dials waits for its turn"
    assert rig.hub.connections() == 30
