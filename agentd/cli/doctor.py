"""What `agentd doctor` shows.

Always true: with `as_json`, stdout holds JSON and nothing else; a failure is told by the exit code too.
Not here: the checks (agentd.doctor).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from agentd.cli.printing import echo_json
from agentd.doctor import FAIL, OK, WARN, examine
from agentd.logs import printable, redacted

_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}
_WIDTH = 4


def doctor(config: Path | None, environ: Mapping[str, str], *, as_json: bool) -> bool:
    """Run the checks and show them. False if any failed."""
    findings = examine(config, environ)
    failed = sum(each.state == FAIL for each in findings)
    warned = sum(each.state == WARN for each in findings)
    if as_json:
        rows = [{name: redacted(text) for name, text in msgspec.structs.asdict(each).items()} for each in findings]
        echo_json({"ok": not failed, "failed": failed, "warned": warned, "findings": rows})
        return not failed
    for each in findings:
        state = click.style(f"{each.state:<{_WIDTH}}", fg=_COLOURS[each.state])
        place = f"{each.check} {each.about}".strip()
        click.echo(f"{state}  {printable(redacted(f'{place}: {each.told}'))}")
        if each.remedy:
            click.echo(f"{'':<{_WIDTH}}  -> {printable(redacted(each.remedy))}")
    click.echo(
        f"\n{len(findings)} checks: {failed} failed, {warned} to look at" if failed or warned else "\nall is well"
    )
    return not failed
