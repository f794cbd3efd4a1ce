# What the tests of dashboards/ read: panels, rules, and the table of metrics.md.

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"

# name{label="value",...}; of a name that a rule records nothing but itself.
RECORDED = re.compile(r"\w+:\w+:\w+")
SELECTOR = re.compile(r"\b([a-z]\w+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!=|=)\s*"((?:[^"\\]|\\.)*)"')


def dashboards():
    """Every dashboard, by the name of its file."""
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard):
    """Those that ask for something."""
    return [p for p in dashboard["panels"] if p["type"] != "row"]


def queries():
    """Pairs of where and what: every query of every panel."""
    return [(f"{name}: {panel['title']} ({target['refId']})", target["expr"])
            for name, dashboard in dashboards().items() for panel in panels(dashboard)
            for target in panel["targets"]]


def runbook_queries():
    """What the runbook has in code that Prometheus can be asked."""
    code = re.findall(r"`([^`]+)`", (DASHBOARDS / "runbook.md").read_text())
    return [c for c in code if re.search(r"\brollcast_|\bup\{", c)]


def rules(file):
    """The rules of rules.yml or alerts.yml."""
    return [rule for group in yaml.safe_load((DASHBOARDS / file).read_text())["groups"]
            for rule in group["rules"]]


def expressions():
    """Pairs of where and what: every query of a panel and of a rule."""
    return queries() + [(rule.get("alert") or rule["record"], rule["expr"])
                        for file in ("rules.yml", "alerts.yml") for rule in rules(file)]


def metrics():
    """The table of metrics.md: name to (type, {label: values}); no values where any may come. A
    name with two rows has the labels of both."""
    found = {}
    row = re.compile(r"\| `(rollcast_\w+)` \| (\w+) \|[^|]*\| ?([^|]*)\| (\w+) \|")
    for match in row.finditer((DASHBOARDS / "metrics.md").read_text()):
        name, kind, cell, _ = match.groups()
        labels = found.setdefault(name, (kind, {}))[1]
        before, _, after = cell.partition(":")
        for label in re.findall("`(\\w+)`", before):
            labels[label] = set(re.findall("`(\\w+)`", after))
    return found


def metric_of(series, listed):
    """The metric that a series is of: a histogram has three."""
    base = re.sub("_(bucket|sum|count)$", "", series)
    return base if series not in listed and base in listed else series


def metrics_in(expression, listed):
    """The names of ours in a query."""
    return {metric_of(name, listed)
            for name in re.findall(r"rollcast_\w+", RECORDED.sub("", expression))}
