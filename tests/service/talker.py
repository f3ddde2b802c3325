"""Peers of an agent at a development hub: they talk until stdin ends, and then say what became of it.

usage: talker.py HUB AGENT. The standard library only: it runs beside the hub, with whatever Python is there. What it
prints: {said, missing, twice, out_of_order}, by the hub's own ledger.
"""

from __future__ import annotations

import itertools
import json
import select
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from typing import Any

PEERS = [f"peer-{number}" for number in range(6)]
SLOW_EVERY = 25
PAUSE_S = 0.03
SETTLE_S = 60.0


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=SETTLE_S) as answer:
        return json.load(answer)


def rows(hub: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = ask(f"{hub}/hub/v1/ledger?after={after}")
        found += page["rows"]
        after = page["next"]
    return found


def verdict(hub: str, agent: str) -> dict[str, int]:
    said: dict[str, list[str]] = defaultdict(list)
    answered: dict[str, list[str]] = defaultdict(list)
    for row in rows(hub):
        if row["sender"] in PEERS:
            said[row["conversation"]].append(row["id"])
        elif row["sender"] == agent:
            answered[row["conversation"]].append(row["reply_to"])
    times = Counter(itertools.chain.from_iterable(answered.values()))
    every = list(itertools.chain.from_iterable(said.values()))
    firsts = {each: list(dict.fromkeys(answered[each])) for each in said}
    return {
        "said": len(every),
        "missing": sum(not times[each] for each in every),
        "twice": sum(max(0, times[each] - 1) for each in every),
        "out_of_order": sum(firsts[each] != [id_ for id_ in said[each] if times[id_]] for each in said),
    }


def main(hub: str, agent: str) -> None:
    for peer in PEERS:
        ask(f"{hub}/hub/v1/agents", {"handle": peer})
    print("talking", flush=True)
    for number in itertools.count(1):
        text = f"slow {number}" if number % SLOW_EVERY == 0 else f"say {number}"
        ask(f"{hub}/hub/v1/messages", {"sender": PEERS[number % len(PEERS)], "to": agent, "texts": [text]})
        if select.select([sys.stdin], [], [], PAUSE_S)[0]:
            break
    deadline = time.monotonic() + SETTLE_S
    while (told := verdict(hub, agent))["missing"] and time.monotonic() < deadline:
        time.sleep(0.2)
    print(json.dumps(told), flush=True)


main(*sys.argv[1:])
