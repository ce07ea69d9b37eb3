"""ops/: the alert rules and the dashboard speak of metrics that there are, by labels that they have.

Rules are parsed by promql-parser, whose grammar is that of Prometheus; `promtool`, where it is
installed, checks them and evaluates them over time (prometheus.test.yml).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from strongroom.observe.metrics import ANOMALIES, METRICS, OF_ALL, OF_SOURCES, PREFIX, WORDS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "ops/prometheus/strongroom.rules.yml"
BOARD = ROOT / "ops/grafana/strongroom.json"
LABELS = {PREFIX + one.name: {*one.labels, "instance", "job"} for one in METRICS}
VALUES = {
    "reason": {*ANOMALIES.values()},
    "verdict": {*WORDS},
    "result": {"taken", "failed"},
    "kind": {*OF_SOURCES, *OF_ALL, "source", "new", "stored"},
}
RULE_LIST = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]


def selectors(node: Any) -> Iterator[promql.VectorSelector]:
    """Every selector below an expression."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "param"):
        part = getattr(node, name, None)
        if part is not None:
            yield from selectors(part)
    for each in getattr(node, "args", None) or ():
        yield from selectors(each)


def check(expression: str) -> set[str]:
    """The metrics of an expression; each must exist, with the labels that are asked of it."""
    found = set()
    for one in selectors(promql.parse(expression)):
        assert one.name in LABELS, f"{one.name}: {expression}"
        found.add(one.name)
        for matcher in one.matchers.matchers:
            assert matcher.name in LABELS[one.name], expression
            if matcher.name in VALUES and matcher.op == promql.MatchOp.Equal:
                assert matcher.value in VALUES[matcher.name], expression
    assert found == set(re.findall(r"strongroom_\w+", expression)), "a selector was not looked at"
    return found


@pytest.mark.parametrize("rule", RULE_LIST, ids=lambda rule: rule["alert"])
def test_rules_speak_of_what_is_told(rule: dict[str, Any]) -> None:
    metrics = check(rule["expr"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    page, _, place = rule["annotations"]["runbook"].partition("#")
    text = (ROOT / page).read_text()
    heads = [
        re.sub(r"[^a-z0-9 -]", "", line.lower()) for line in re.findall(r"^#+ (.*)$", text, re.M)
    ]
    assert not place or place in [head.replace(" ", "-") for head in heads]
    if place:
        assert rule["alert"] in text
    for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
        assert any(label in LABELS[name] for name in metrics)


def test_the_four_of_the_seed_and_the_rest_have_an_alert() -> None:
    names = [rule["alert"] for rule in RULE_LIST]
    assert len(names) == len(set(names))
    told = " ".join(rule["expr"] for rule in RULE_LIST)
    for reason in ANOMALIES.values():
        assert f'reason="{reason}"' in told or reason in ("late", "missed")  # those go by time()
    for kind in (*OF_SOURCES, *OF_ALL):
        assert f'kind="{kind}"' in told or kind in ("space", "key-age", "wal-stale")


def test_what_grows_with_time_is_judged_by_time() -> None:
    """An age is as old as the last job: a rule on it alone is quiet when nothing runs any more."""
    for rule in RULE_LIST:
        for name in ("rpo_seconds", "wal_archive_lag_seconds", "backup_overdue"):
            assert PREFIX + name not in re.findall(r"strongroom_\w+", rule["expr"]), rule["alert"]


def test_promtool() -> None:
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    promtool = shutil.which("promtool", path=path)
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus); the rules are not evaluated")
    for words in (
        ["check", "rules", str(RULES)],
        ["test", "rules", str(Path(__file__).with_name("prometheus.test.yml"))],
    ):
        done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# -- dashboard ---------------------------------------------------------------------------------


def test_dashboard() -> None:
    board = json.loads(BOARD.read_text())
    assert board["uid"]
    assert board["schemaVersion"] >= 39
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    metric, label = re.fullmatch(
        r"label_values\((\w+), (\w+)\)", variables["source"]["query"]["query"]
    ).groups()  # type: ignore[union-attr]
    assert label in LABELS[metric]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    shown = set()
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(refs) == len(set(refs))
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            shown |= check(target["expr"].replace("$source", "x"))
            for used in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert any(used in LABELS[name] for name in check(target["expr"]))
    # what is left out of the dashboard is left out on purpose
    left = {name.removeprefix(PREFIX) for name in set(LABELS) - shown}
    assert left == {
        "build_info", "backups", "rpo_seconds", "backup_last_success_timestamp_seconds",
        "backup_overdue", "wal_archive_lag_seconds", "drill_last_success_timestamp_seconds",
        "drill_last_rto_seconds", "drill_target_seconds", "key_age_target_seconds",
    }  # fmt: skip
