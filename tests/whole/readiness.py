"""Asks a whole daemon whether mail is flowing, as a probe would."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp

from agentd import config

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

QUICK_HEALTH = config.Health(reconnect_s=0.8, commit_s=0.3, lag_s=0.3, lag_window_s=1.0)
QUICK_LINK = config.Link(
    ping_interval_s=0.2,
    ping_timeout_s=0.2,
    connect_timeout_s=0.5,
    hello_timeout_s=0.5,
    backoff_first_s=0.05,
    backoff_max_s=0.2,
)


class Prober:
    """Asks /readyz with the token from the state folder."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def ask(self, path: str = "/readyz") -> tuple[int, Any]:
        assert self._rig.daemon is not None
        token = (self._rig.folder / "state" / "http_token").read_text().strip()
        url = self._rig.daemon.operations.status()["http_url"] + path
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.get(url) as answer,
        ):
            return answer.status, await answer.json()

    async def codes(self) -> list[str]:
        status, told = await self.ask()
        codes = [each["code"] for each in told["reasons"]]
        assert (status, told["ready"]) == ((503, False) if codes else (200, True))
        return codes

    async def until_red(self, code: str, within_s: float = 20.0) -> dict[str, Any]:
        async with asyncio.timeout(within_s):
            while code not in await self.codes():
                await asyncio.sleep(0.02)
        found = [each for each in (await self.ask())[1]["reasons"] if each["code"] == code]
        return found[0] if found else {}

    async def until_green(self, within_s: float = 20.0) -> None:
        async with asyncio.timeout(within_s):
            while await self.codes():
                await asyncio.sleep(0.02)

    async def stays_green(self, for_s: float) -> None:
        until = asyncio.get_running_loop().time() + for_s
        while asyncio.get_running_loop().time() < until:
            assert await self.codes() == []
            await asyncio.sleep(0.02)
