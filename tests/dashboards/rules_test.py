# Goal: the rules are what Prometheus takes, every alert has been seen to fire and to be quiet, and
# whoever is called finds in the runbook what to do.
# Method: promtool on the files and on the scenarios of alerts.test.yml; then who has a scenario and
# a section, and who does not.

import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml

from sources import DASHBOARDS, ROOT, dashboards, panels, rules

SCENARIOS = ROOT / "tests" / "dashboards" / "alerts.test.yml"
OTHER = "On Kubernetes"  # the section that is about no alert
PARTS = ["Means", "Look at", "Do", "Over when"]


def promtool(*arguments):
    said = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    return said.returncode, said.stdout + said.stderr


def anchor_of(title):
    """As GitHub and Grafana make them."""
    return re.sub(r"[^\w-]", "", title.lower().replace(" ", "-"))


def all_sections():
    """The runbook's sections, by title."""
    pieces = re.split(r"^## (.*)\n", (DASHBOARDS / "runbook.md").read_text(), flags=re.M)[1:]
    return dict(zip(pieces[::2], pieces[1::2]))


def sections():
    """Those that are about an alert."""
    return {title: text for title, text in all_sections().items() if title != OTHER}


class Rules(unittest.TestCase):
    def test_are_what_prometheus_takes(self):
        for file in ("rules.yml", "alerts.yml"):
            code, said = promtool("check", "rules", "--lint=all", "--lint-fatal", DASHBOARDS / file)
            self.assertEqual(code, 0, said)

    def test_do_in_every_scenario_what_they_must(self):
        code, said = promtool("test", "rules", SCENARIOS)
        self.assertEqual(code, 0, said)

    def test_have_a_scenario_that_fires_and_one_that_does_not(self):
        fires, quiet = {}, {}
        for test in yaml.safe_load(SCENARIOS.read_text())["tests"]:
            alert = test["name"].split(":")[0]
            own = [t for t in test["alert_rule_test"] if t["alertname"] == alert]
            self.assertTrue(own, test["name"])
            self.assertTrue(test["input_series"], test["name"])
            into = fires if any(t["exp_alerts"] for t in own) else quiet
            into.setdefault(alert, test["name"])
        alerts = {rule["alert"] for rule in rules("alerts.yml")}
        self.assertEqual(set(fires), alerts)
        self.assertEqual(set(quiet), alerts)

    def test_that_are_recorded_are_used(self):
        """Or shown, or written of in the runbook."""
        text = "".join((DASHBOARDS / f).read_text() for f in ("alerts.yml", "runbook.md"))
        for rule in rules("rules.yml"):
            self.assertIn(rule["record"], text)


class Readme(unittest.TestCase):
    def test_has_a_configuration_that_prometheus_takes(self):
        """With the rules where they are here."""
        text = (DASHBOARDS / "README.md").read_text()
        config = next(b for b in re.findall(r"```yaml\n(.*?)```", text, re.S) if "scrape_" in b)
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "prometheus.yml"
            file.write_text(config.replace("/etc/rollcast/dashboards", str(DASHBOARDS)))
            code, said = promtool("check", "config", file)
        self.assertEqual(code, 0, said)
        self.assertIn("2 rule files", said)
        for job in (c["job_name"] for c in yaml.safe_load(config)["scrape_configs"]):
            self.assertRegex(job, "^rollcast-(scheduler|worker|draft-server)$")

    def test_makes_prometheus_rules_of_kubernetes(self):
        """By the README's own loop, into a file."""
        text = (DASHBOARDS / "README.md").read_text()
        loop = re.search(r"^for rules in .*?^done", text, re.S | re.M)[0]
        said = subprocess.run(["bash", "-ec", loop], cwd=ROOT, capture_output=True, text=True)
        made = {rule["metadata"]["name"]: rule["spec"]
                for rule in yaml.safe_load_all(said.stdout) if rule}
        self.assertEqual(made, {
            "rollcast-" + name: yaml.safe_load((DASHBOARDS / f"{name}.yml").read_text())
            for name in ("rules", "alerts")})

    def test_makes_a_configmap_of_the_dashboards_that_may_be_made_again(self):
        """By the README's own command, up to where it would be sent."""
        if not shutil.which("kubectl"):
            self.skipTest("kubectl is not installed")
        text = (DASHBOARDS / "README.md").read_text().replace("\\\n", " ")
        line = re.search(r"^kubectl -n monitoring create configmap .*", text, re.M)[0]
        make, _, send = line.partition(" | ")
        self.assertEqual(send, "kubectl apply --server-side -f -")
        said = subprocess.run(["bash", "-ec", make], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(said.returncode, 0, said.stderr)
        self.assertEqual({name: json.loads(file) for name, file
                          in yaml.safe_load(said.stdout)["data"].items()}, dashboards())


class Kubernetes(unittest.TestCase):
    def test_compacts_the_journal_that_the_scheduler_has(self):
        """With the scheduler's user, which the namespace's rules want, and its file."""
        stateful = yaml.safe_load((ROOT / "deploy/k8s/base/scheduler.yaml").read_text())
        theirs = stateful["spec"]["template"]["spec"]
        text = all_sections()[OTHER]
        mine = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1])["spec"]
        claim = (stateful["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] + "-"
                 + stateful["metadata"]["name"] + "-0")
        self.assertEqual(mine["volumes"][0]["persistentVolumeClaim"], {"claimName": claim})
        self.assertIn(f"patch pvc {claim} ", text)
        for name, value in mine["securityContext"].items():
            self.assertEqual(value, theirs["securityContext"][name])
        container, scheduler = mine["containers"][0], theirs["containers"][0]
        self.assertEqual(container["securityContext"], scheduler["securityContext"])
        self.assertIn(container["volumeMounts"][0], scheduler["volumeMounts"])
        self.assertIn("--target=" + scheduler["name"], text)
        version = (ROOT / "VERSION").read_text().strip()
        self.assertEqual(container["image"], f"rollcast:{version}")
        config = (ROOT / "deploy/k8s/base/kustomization.yaml").read_text()
        self.assertIn("ROLLCAST_JOURNAL=" + container["args"][-1], config)
        self.assertIn("--journal " + container["args"][-1], text)


class Alerts(unittest.TestCase):
    def test_say_how_bad_what_and_what_to_do(self):
        for rule in rules("alerts.yml"):
            with self.subTest(rule["alert"]):
                self.assertIn(rule["labels"]["severity"], ("critical", "warning"))
                said = rule["annotations"]
                self.assertEqual(set(said), {"summary", "description", "runbook_url"})
                self.assertLess(len(said["summary"]), 70)
                self.assertRegex(said["description"], r"\d")
                self.assertEqual(said["runbook_url"],
                                 "dashboards/runbook.md#" + anchor_of(rule["alert"]))

    def test_have_a_section_of_the_runbook_and_each_section_an_alert(self):
        self.assertEqual(list(sections()), [rule["alert"] for rule in rules("alerts.yml")])
        for title, text in sections().items():
            self.assertEqual(re.findall(r"^\*\*([^*]+)\.\*\*", text, re.M), PARTS, title)

    def test_are_explained_by_panels_that_exist(self):
        titles = [p["title"] for d in dashboards().values() for p in panels(d)]
        for title, text in sections().items():
            prose = " ".join(re.sub(r"`[^`]*`|\*\*", "", text).split())
            for named in re.findall(r"\*([^*]+)\*", prose):
                self.assertTrue(any(t.startswith(named) for t in titles), f"{title}: {named}")

    def test_and_panels_name_flags_that_exist(self):
        known = {flag for path in (ROOT / "cli").glob("*.cpp")
                 for flag in re.findall(r'"(--[a-z-]+)"', path.read_text())}
        for path in (DASHBOARDS / "runbook.md", *DASHBOARDS.glob("*.json")):
            # Of a line for kubectl what it runs in a pod.
            text = re.sub(r"(?m)^kubectl ((?! -- ).)*", "", path.read_text())
            named = {flag for code in re.findall(r"`([^`]+)`", text)
                     if not code.startswith("kubectl")
                     for flag in re.findall(r"--[a-z][a-z-]+[a-z](?![*a-z-])", code)}
            self.assertLessEqual(named, known, path.name)

    def test_give_a_worker_the_time_to_load_that_its_probe_gives_it(self):
        """It does not answer before, and is not ready."""
        worker = yaml.safe_load((ROOT / "deploy/k8s/base/worker.yaml").read_text())
        probe = worker["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
        patience = probe["periodSeconds"] * probe["failureThreshold"]
        waits = {r["alert"]: r.get("for", "0m") for r in rules("alerts.yml")}
        self.assertGreater(60 * int(waits["RollcastTargetDown"].removesuffix("m")), patience)
        self.assertGreaterEqual(60 * int(waits["RollcastFleetTooSmall"].removesuffix("m")), patience)
        self.assertIn(f'statefulset="{worker["metadata"]["name"]}"',
                      (DASHBOARDS / "alerts.yml").read_text())

    def test_say_how_long_workers_wait_for_a_scheduler(self):
        """What they do by default, and what they are told on Kubernetes."""
        code = (ROOT / "cli" / "commands.hpp").read_text()
        default = re.search(r"give_up_s = (\d+);", code)[1]
        config = (ROOT / "deploy/k8s/base/kustomization.yaml").read_text()
        self.assertIn("ROLLCAST_GIVE_UP_S=3600\n", config, "an hour")
        said = next(r for r in rules("alerts.yml") if r["alert"] == "RollcastSchedulerDown")
        self.assertIn(f"--give-up-s ({default} s, on Kubernetes an hour)",
                      said["annotations"]["description"])
        section = " ".join(sections()["RollcastSchedulerDown"].split())
        self.assertIn(f"{default} s unless you have set it, an hour on Kubernetes", section)

    def test_that_panels_name_exist(self):
        alerts = {rule["alert"] for rule in rules("alerts.yml")}
        for path in DASHBOARDS.glob("*.json"):
            for named in re.findall(r"\bRollcast[A-Z]\w+", path.read_text()):
                self.assertIn(named, alerts, path.name)


if __name__ == "__main__":
    unittest.main()
