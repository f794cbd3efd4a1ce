# Goal: the dashboards are what their sources say, a panel tells a person what it is and what to do,
# and nothing is asked for that nobody exports, or exported that nobody looks at.
# Method: the committed files, the table of metrics.md (which another test compares with the code),
# and the generator's own check.

import re
import subprocess
import sys
import unittest

from sources import (DASHBOARDS, MATCHER, SELECTOR, dashboards, expressions, metrics, metrics_in,
                     panels, queries)

# Of metrics.md, and in no panel and no rule; with the reason.
LOOKED_AT_BY_NOBODY = {}
UNITS = {"short", "none", "s", "bytes", "Bps", "percentunit"}
# Labels that a scrape adds, or an aggregation of Prometheus itself.
ADDED = {"job", "instance", "namespace", "pod", "le", "alertname", "alertstate", "statefulset"}
THEIRS = {"up", "scrape_duration_seconds", "ALERTS",
          # kube-state-metrics
          "kube_statefulset_replicas", "kube_statefulset_status_replicas_ready"}


class Dashboards(unittest.TestCase):
    def test_are_what_their_sources_say(self):
        said = subprocess.run([sys.executable, "-B", DASHBOARDS / "generate.py", "--check"],
                              capture_output=True, text=True)
        self.assertEqual(said.returncode, 0, said.stdout + said.stderr)

    def test_can_be_imported_for_any_prometheus_and_any_namespace(self):
        found = dashboards()
        self.assertEqual(set(found), {"cluster.json", "speculation.json", "sre.json",
                                      "weights.json"})
        for name, dashboard in found.items():
            with self.subTest(name):
                self.assertEqual(dashboard["uid"], "rollcast-" + name.removesuffix(".json"))
                self.assertGreaterEqual(dashboard["schemaVersion"], 39)
                self.assertTrue(dashboard["refresh"])
                variables = [v["name"] for v in dashboard["templating"]["list"]]
                self.assertEqual(variables, ["datasource", "namespace", "window"])
                for panel in panels(dashboard):
                    self.assertEqual(panel["datasource"]["uid"], "${datasource}")
        for where, query in queries():
            with self.subTest(where):
                self.assertIn('namespace=~"$namespace"', query)
                self.assertEqual(set(re.findall(r"\$(\w+)", query))
                                 - {"namespace", "window", "__rate_interval"}, set())

    def test_have_panels_that_explain_themselves(self):
        for name, dashboard in dashboards().items():
            titles = [p["title"] for p in dashboard["panels"]]
            self.assertEqual(len(titles), len(set(titles)), name)
            for panel in panels(dashboard):
                with self.subTest(f"{name}: {panel['title']}"):
                    shows, _, wrong = panel["description"].partition("**When it looks wrong:** ")
                    self.assertGreater(len(shows), 20)
                    self.assertGreater(len(wrong), 15)
                    unit = panel["fieldConfig"]["defaults"]["unit"]
                    self.assertTrue(unit in UNITS or unit.startswith("suffix: "), unit)
                    for target in panel["targets"]:
                        self.assertTrue(target["legendFormat"])

    def test_have_panels_side_by_side(self):
        for name, dashboard in dashboards().items():
            taken = set()
            for panel in dashboard["panels"]:
                at = panel["gridPos"]
                cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
                self.assertLessEqual(at["x"] + at["w"], 24, f"{name}: {panel['title']}")
                self.assertFalse(cells & taken, f"{name}: {panel['title']}")
                taken |= cells


class Metrics(unittest.TestCase):
    def test_that_are_asked_for_are_listed(self):
        listed = metrics()
        self.assertGreater(len(listed), 40)
        for where, expression in expressions():
            for name in metrics_in(expression, listed):
                self.assertIn(name, listed, where)

    def test_that_are_listed_are_asked_for(self):
        listed = metrics()
        asked = set().union(*(metrics_in(e, listed) for _, e in expressions()))
        self.assertEqual(set(listed) - asked, set(LOOKED_AT_BY_NOBODY))

    def test_have_the_labels_and_values_that_are_asked_for(self):
        listed = metrics()
        for where, expression in expressions():
            for name, inside in SELECTOR.findall(expression):
                found = metrics_in(name, listed)
                self.assertTrue(found or name in THEIRS, f"{where}: {name}")
                labels = listed[found.pop()][1] if found else {}
                for label, _, value in MATCHER.findall(inside):
                    self.assertIn(label, ADDED | set(labels), f"{where}: {name}")
                    if label in labels:
                        self.assertIn(value, labels[label], f"{where}: {name}{{{label}}}")

    def test_have_the_labels_that_legends_show(self):
        listed = metrics()
        for name, dashboard in dashboards().items():
            for panel in panels(dashboard):
                for target in panel["targets"]:
                    known = set(ADDED).union(
                        *(listed[m][1] for m in metrics_in(target["expr"], listed)))
                    shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                    self.assertLessEqual(shown, known, f"{name}: {panel['title']}")


if __name__ == "__main__":
    unittest.main()
