"""Alerts and the dashboard ask only for what there is: metrics, labels, and values of those that have a fixed set."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.core.breaker import Standing
from agentd.core.events import OPEN_STATES, SETTLED_STATES
from agentd.core.health import STATES
from agentd.metrics import ALL, Histogram, Metric

DOCS = Path(__file__).parent.parent / "docs"
ALERTS = DOCS / "prometheus" / "alerts.yml"
DASHBOARD = DOCS / "grafana" / "agentd.json"

FROM_PROMETHEUS = {"instance", "job"}
VALUES = {
    ("agentd_identity_state", "state"): set(STATES),
    ("agentd_outbox_sends", "state"): {*OPEN_STATES, *SETTLED_STATES},
    ("agentd_sends_total", "state"): {"unknown", *SETTLED_STATES},
    ("agentd_breaker_standing", "standing"): {standing.value for standing in Standing},
    ("agentd_gaps_total", "outcome"): {"filled", "absent", "mixed", "reset"},
}


def alerts() -> list[tuple[str, str]]:
    """(name, expression) of every alert, in the order of the file."""
    return re.findall(r"- alert: (\w+)\n\s+expr: (.+)\n", ALERTS.read_text())


def panels() -> Iterator[dict[str, Any]]:
    yield from json.loads(DASHBOARD.read_text())["panels"]


def asked() -> list[str]:
    expressions = [expression for _, expression in alerts()]
    expressions += [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
            assert found is not None
            expressions.append(f"sum by ({found[2]}) ({found[1]})")
    return expressions


def metric_of(name: str) -> Metric | None:
    """The metric that a series of this name belongs to."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    if base != name:
        return ALL[base] if isinstance(ALL.get(base), Histogram) else None
    return None if isinstance(ALL.get(name), Histogram) else ALL.get(name)


@pytest.mark.parametrize("expression", asked())
def test_an_expression_asks_for_metrics_and_labels_that_exist(expression: str) -> None:
    names = re.findall(r"\b(?:agentd|process)_\w+", re.sub(r"\{[^}]*\}", "", expression))
    assert names or expression.startswith("up{"), "asks for nothing of ours"
    known: set[str] = set(FROM_PROMETHEUS)
    for name in names:
        metric = metric_of(name)
        assert metric is not None, f"{name} does not exist"
        known |= set(metric.labels) | ({"le"} if isinstance(metric, Histogram) else set())
    for name, selectors in re.findall(r"\b((?:agentd|process)_\w+)\{([^}]*)\}", expression):
        metric = metric_of(name)
        assert metric is not None
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selectors):
            assert label in {*metric.labels, *FROM_PROMETHEUS}, f"{name} has no label {label}"
            if (name, label) in VALUES:
                assert set(value.split("|")) <= VALUES[name, label], f"{label} of {name} is never {operator} {value}"
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {each.strip() for each in labels.split(",")} <= known, labels


@pytest.mark.parametrize("name", [name for name, _ in alerts()])
def test_an_alert_tells_what_it_means_and_what_to_do_with_labels_that_it_has(name: str) -> None:
    text = ALERTS.read_text().split(f"- alert: {name}\n")[1].split("\n\n")[0]
    for field in ("severity: ", "summary: ", "description: "):
        assert field in text, field
    expression = dict(alerts())[name]
    metrics = [
        metric_of(each) for each in re.findall(r"\b(?:agentd|process)_\w+", re.sub(r"\{[^}]*\}", "", expression))
    ]
    labels = {label for metric in metrics if metric is not None for label in metric.labels} | FROM_PROMETHEUS
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels


def test_the_verbs_that_alerts_name_exist() -> None:
    from agentd.cli import cli

    named = set(re.findall(r"[Ss]ee agentd (\w+)|with agentd (\w+)", ALERTS.read_text()))
    verbs = {verb for pair in named for verb in pair if verb}
    assert verbs
    assert verbs <= set(cli.commands)


def test_panels_have_a_number_of_their_own_and_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    numbers = [panel["id"] for panel in panels()]
    assert len(numbers) == len(set(numbers))
    for panel in panels():
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert taken.setdefault((x, y), panel["title"]) == panel["title"], (panel["title"], taken[x, y])


def test_a_panel_tells_its_series_apart_by_labels_that_they_have() -> None:
    for panel in panels():
        for target in panel.get("targets", ()):
            metrics = [metric_of(each) for each in re.findall(r"\b(?:agentd|process)_\w+", target["expr"])]
            labels = {label for metric in metrics if metric is not None for label in metric.labels} | FROM_PROMETHEUS
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, panel["title"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_alerts() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout
