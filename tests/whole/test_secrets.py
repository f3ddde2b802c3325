"""A key goes into the hello frame and the Authorization header, and nowhere else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from agentd.demo.proof import Proof
from agentd.hub.faults import Action, Point, Rule


async def test_a_key_is_in_no_log_no_status_no_journal_and_no_argument_whatever_goes_wrong(tmp_path: Path) -> None:
    async with Proof(tmp_path, 2) as proof:
        text = (tmp_path / "agentd.toml").read_text()
        (tmp_path / "agentd.toml").write_text(text.replace("[agentd]\n", '[agentd]\nlog_level = "debug"\n', 1))
        keys = [(tmp_path / f"{name}.key").read_text() for name in proof.identities]
        proof.peer("peer")
        proof.start()
        await proof.until_live()
        proof.hub.faults.add(
            Rule(point=Point.REST, action=Action.STATUS, status=500, route="send", times=3),
            Rule(point=Point.REST, action=Action.DISCONNECT_AFTER, route="send", times=2),
            Rule(point=Point.REST, action=Action.NOT_JSON, route="history", times=2),
            Rule(point=Point.PUSH, action=Action.DROP, times=2),
            Rule(point=Point.PUSH, action=Action.CUT_MID_FRAME, nth=6),
        )
        for number in range(8):
            proof.hub.post("peer", proof.identities[0], f"message {number}")
        assert await proof.until_answered(30)
        proof.hub.rotate_key(proof.identities[1])
        status = await proof.status()
        async with asyncio.timeout(20):
            while status is None or [each["state"] for each in status["identities"]] != ["live", "parked"]:
                await asyncio.sleep(0.05)
                status = await proof.status()
        assert proof.daemon_pid is not None
        arguments = Path(f"/proc/{proof.daemon_pid}/cmdline").read_bytes()
        assert await proof.stop() == 0
        kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".key"]
        assert {path.name for path in kept} >= {"daemon.log", "journal.db", "agentd.toml"}
        everything = {str(path): path.read_bytes() for path in kept}
        everything |= {"status": json.dumps(status).encode(), "arguments": arguments}
        assert b"parked" in everything[str(tmp_path / "daemon.log")], "the log was looked at"
        leaks = [name for name, data in everything.items() for key in keys if key.encode() in data]
        assert leaks == []
