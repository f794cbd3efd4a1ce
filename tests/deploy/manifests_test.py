# Goal: what deploy/k8s renders agrees with itself and with the binary: every
# name that is referred to exists, every option is one, every port is open to those who need it.
# Method: `kubectl kustomize` of every folder, compared with `rollcast ROLE --help` and metrics.md;
# promtool for what scaling asks. schemas_test.py has Kubernetes' own rules.

import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml

import manifests
from manifests import (CLUSTERS, MAY_REACH, RENDERED, ROOT, component, container_of,
                       environment_of, named, of_kind, ports_of, render, workloads)

BINARY = os.environ.get("ROLLCAST_BINARY", str(ROOT / "build" / "rollcast"))
FIELDS = {"status.podIP": "10.0.0.1", "metadata.name": "rollcast-worker-0"}
# A scheduler is ready when a worker is, and a worker when it is registered (README.md, "Probes").
READY_BY_OTHERS = {"scheduler", "worker"}


def options_of(role):
    """The variables that a role knows, from its --help."""
    said = subprocess.run([BINARY, role, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"\(Env:(\w+)\)", said.stdout))


def matches(selector, labels):
    return all(labels.get(k) == v for k, v in selector.items())


def pod_labels(workload):
    return workload["spec"]["template"]["metadata"]["labels"]


def seconds(value):
    return float(value) / 1000


class Manifests(unittest.TestCase):
    def setUp(self):
        if manifests.why_no_kubectl():
            self.skipTest(manifests.why_no_kubectl())
        self.where = ""

    def _formatMessage(self, msg, standardMsg):
        return f"{self.where}: {super()._formatMessage(msg, standardMsg)}"

    def each(self, names=tuple(CLUSTERS)):
        for name in names:
            self.where = name
            yield name, render(name)

    def each_workload(self):
        for name, objects in self.each():
            for workload in workloads(objects):
                self.where = f"{name}, {workload['metadata']['name']}"
                yield objects, workload

    def environment(self, workload, objects):
        return environment_of(workload, objects, FIELDS)

    def test_a_selector_finds_its_pods_and_no_others(self):
        for objects, workload in self.each_workload():
            wanted = workload["spec"]["selector"]["matchLabels"]
            found = [w for w in workloads(objects) if matches(wanted, pod_labels(w))]
            self.assertEqual(found, [workload])
            for constraint in workload["spec"]["template"]["spec"].get(
                    "topologySpreadConstraints", []):
                self.assertTrue(matches(constraint["labelSelector"]["matchLabels"],
                                        pod_labels(workload)))

    def test_everything_that_is_named_exists(self):
        for objects, workload in self.each_workload():
            spec = workload["spec"]["template"]["spec"]
            named(objects, "ServiceAccount", spec["serviceAccountName"])
            named(objects, "PriorityClass", spec["priorityClassName"])
            if workload["kind"] == "StatefulSet":
                named(objects, "Service", workload["spec"]["serviceName"])
            volumes = {v["name"] for v in spec["volumes"]}
            claims = {c["metadata"]["name"]
                      for c in workload["spec"].get("volumeClaimTemplates", [])}
            mounts = {m["name"] for m in container_of(workload)["volumeMounts"]}
            self.assertEqual(mounts, volumes | claims, "mounted and there")
            for source in container_of(workload)["envFrom"]:
                named(objects, "ConfigMap", source["configMapRef"]["name"])
            for kind in {o["kind"] for o in objects}:
                names = [o["metadata"]["name"] for o in of_kind(objects, kind)]
                self.assertEqual(len(names), len(set(names)), kind)

    def test_all_is_in_one_namespace_that_allows_no_privilege(self):
        for _, objects in self.each():
            space = named(objects, "Namespace", "rollcast")
            self.assertEqual(
                space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted")
            for o in objects:
                if o["kind"] not in ("Namespace", "PriorityClass"):
                    self.assertEqual(o["metadata"]["namespace"], "rollcast", o["kind"])

    # -- pods --------------------------------------------------------------------------------------

    def test_a_pod_has_no_power_that_it_does_not_need(self):
        for _, workload in self.each_workload():
            spec = workload["spec"]["template"]["spec"]
            self.assertIs(spec["automountServiceAccountToken"], False)
            self.assertIs(spec["securityContext"]["runAsNonRoot"], True)
            user = manifests.words_of(manifests.stage("cpu"), "USER")[-1]
            said = spec["securityContext"]
            self.assertEqual(f"{said['runAsUser']}:{said['runAsGroup']}", user, "the image's user")
            self.assertEqual(said["seccompProfile"]["type"], "RuntimeDefault")
            self.assertEqual(container_of(workload)["securityContext"], {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]}})
            for volume in spec["volumes"]:
                if "secret" in volume:
                    self.assertEqual(volume["secret"]["defaultMode"], 0o440)
                    self.assertEqual(said["fsGroup"], said["runAsGroup"], "who may read it")

    def test_kubernetes_adds_no_variable_that_is_an_option(self):
        """A service `rollcast-scheduler` would give every pod ROLLCAST_SCHEDULER_PORT."""
        for _, workload in self.each_workload():
            self.assertIs(workload["spec"]["template"]["spec"]["enableServiceLinks"], False)

    def test_every_variable_is_an_option_of_its_role(self):
        for objects, workload in self.each_workload():
            role = container_of(workload)["args"]
            self.assertEqual(role, [component(workload)])
            given = self.environment(workload, objects)
            self.assertEqual(set(given) - options_of(role[0]), set())

    def test_every_port_that_is_configured_is_declared(self):
        keys = {"ROLLCAST_CONTROL_PORT": "control", "ROLLCAST_WEIGHTS_PORT": "weights",
                "ROLLCAST_METRICS_PORT": "metrics", "ROLLCAST_DATA_PORT": "data"}
        listens = {"scheduler": "controllers", "draft-server": "drafts"}
        for objects, workload in self.each_workload():
            given = self.environment(workload, objects)
            configured = {keys[k]: int(v) for k, v in given.items() if k in keys}
            if "ROLLCAST_LISTEN" in given:
                configured[listens[component(workload)]] = int(
                    given["ROLLCAST_LISTEN"].rsplit(":", 1)[1])
            self.assertEqual(configured, ports_of(workload))

    def test_every_service_offers_ports_of_its_pods(self):
        for _, objects in self.each():
            for service in of_kind(objects, "Service"):
                self.assertEqual(service["spec"]["clusterIP"], "None")
                owner, = [w for w in workloads(objects)
                          if matches(service["spec"]["selector"], pod_labels(w))]
                for port in service["spec"]["ports"]:
                    self.assertEqual(ports_of(owner)[port["targetPort"]], port["port"])
                if component(service) == "scheduler":
                    self.assertIs(service["spec"]["publishNotReadyAddresses"], True,
                                  "workers must find a scheduler that has none")

    def test_what_is_dialled_is_a_service_with_that_port(self):
        for objects, workload in self.each_workload():
            given = self.environment(workload, objects)
            dialled = []
            if "ROLLCAST_SCHEDULER_HOST" in given:
                dialled.append((given["ROLLCAST_SCHEDULER_HOST"],
                                int(given["ROLLCAST_SCHEDULER_PORT"]), "control"))
            if given.get("ROLLCAST_DRAFT_SERVER"):
                host, port = given["ROLLCAST_DRAFT_SERVER"].removeprefix("tcp://").split(":")
                dialled.append((host, int(port), "drafts"))
            for host, port, name in dialled:
                ports = named(objects, "Service", host)["spec"]["ports"]
                self.assertIn((name, port), [(p["name"], p["port"]) for p in ports])

    def test_every_file_that_is_named_lies_in_a_mount(self):
        for objects, workload in self.each_workload():
            mounts = {m["mountPath"]: m for m in container_of(workload)["volumeMounts"]}
            for name, value in self.environment(workload, objects).items():
                if not value.startswith("/") or value.startswith("/usr/share/rollcast/"):
                    continue
                found = [m for path, m in mounts.items() if value == path
                         or value.startswith(path + "/")]
                self.assertEqual(len(found), 1, f"{name}={value}")
                written = name in ("ROLLCAST_JOURNAL", "ROLLCAST_KV_SPILL_DIR")
                self.assertEqual(found[0].get("readOnly", False), not written, name)

    def test_the_probes_are_three_and_ask_the_metrics_port(self):
        for _, workload in self.each_workload():
            container = container_of(workload)
            paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz",
                     "readinessProbe": "/readyz"}
            for probe, path in paths.items():
                self.assertEqual(container[probe]["httpGet"], {"path": path, "port": "metrics"})
            live = container["livenessProbe"]
            self.assertGreaterEqual(live["periodSeconds"] * live["failureThreshold"], 30)
            start = container["startupProbe"]
            self.assertGreaterEqual(start["periodSeconds"] * start["failureThreshold"], 30)

    def test_a_pod_whose_readiness_needs_others_is_replaced_when_it_is_not_ready(self):
        """OrderedReady waits for a pod that is not ready before it replaces it, for ever if that
        one waits for the update of others."""
        for _, workload in self.each_workload():
            if component(workload) in READY_BY_OTHERS:
                self.assertEqual(workload["kind"], "StatefulSet")
                self.assertEqual(workload["spec"].get("podManagementPolicy"), "Parallel")

    def test_the_grace_is_longer_than_the_drain(self):
        for objects, workload in self.each_workload():
            given = self.environment(workload, objects)
            drain = seconds(given.get("ROLLCAST_DRAIN_MS", "0"))
            step = float(given.get("ROLLCAST_STUCK_AFTER_S", "0"))
            grace = workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            self.assertGreaterEqual(grace, drain + step + 5)

    def test_a_worker_is_guaranteed_what_it_has(self):
        for _, objects in self.each():
            asked = container_of(named(objects, "StatefulSet", "rollcast-worker"))["resources"]
            for what in ("cpu", "memory"):
                self.assertIn(what, asked["requests"])
                self.assertIn(what, asked["limits"])
            self.assertRegex(asked["limits"]["cpu"], r"^\d+$", "threads are whole")

    def test_the_spill_fits_where_it_is_kept(self):
        for _, objects in self.each():
            worker = named(objects, "StatefulSet", "rollcast-worker")
            given = self.environment(worker, objects)
            volumes = worker["spec"]["template"]["spec"]["volumes"]
            scratch, = [v["emptyDir"] for v in volumes if v["name"] == "scratch"]
            room = int(scratch["sizeLimit"].removesuffix("Gi")) * 1024
            spilled = int(given.get("ROLLCAST_KV_SPILL_DISK_MIB", "0"))
            self.assertLess(spilled, room)
            if spilled:
                asked = container_of(worker)["resources"]["requests"]["ephemeral-storage"]
                self.assertEqual(asked, scratch["sizeLimit"], "a node that has room for it")
            memory = int(re.match(r"\d+", container_of(worker)["resources"]["limits"]["memory"])[0])
            self.assertLess(int(given.get("ROLLCAST_KV_SPILL_MEMORY_MIB", "0")), memory * 1024 / 2)

    # -- who may reach whom ------------------------------------------------------------------------

    def test_every_port_is_open_to_those_who_need_it_and_nobody_else(self):
        for _, objects in self.each():
            policies = of_kind(objects, "NetworkPolicy")
            everyone = [p for p in policies if not p["spec"].get("ingress")]
            for workload in workloads(objects):
                mine = [p for p in policies if matches(p["spec"]["podSelector"]["matchLabels"],
                                                       pod_labels(workload))]
                self.assertTrue([p for p in everyone if p in mine], "the rest is not refused")
                allowed = {}
                for policy in mine:
                    self.assertEqual(policy["spec"]["policyTypes"], ["Ingress"])
                    for rule in policy["spec"].get("ingress", []):
                        self.assertTrue(rule.get("ports") and rule.get("from"), "all or everyone")
                        for port in rule["ports"]:
                            allowed.setdefault(port["port"], []).extend(rule["from"])
                self.assertEqual(set(allowed), set(ports_of(workload)))
                for port, peers in allowed.items():
                    self.check_peers(component(workload), port, peers)

    def check_peers(self, whose, port, peers):
        for peer in peers:
            labels = peer.get("podSelector", {}).get("matchLabels", {})
            if port == "metrics":
                self.assertEqual(peer, {"namespaceSelector": {"matchLabels": {
                    "kubernetes.io/metadata.name": "monitoring"}}})
            elif MAY_REACH[whose, port] == "controller":
                self.assertEqual(labels, {"rollcast-controller": "true"})
            else:
                self.assertEqual(labels["app.kubernetes.io/component"], MAY_REACH[whose, port])

    def test_a_drain_of_nodes_takes_one_worker_at_a_time(self):
        for _, objects in self.each():
            budget, = of_kind(objects, "PodDisruptionBudget")
            self.assertEqual(budget["spec"]["maxUnavailable"], 1)
            self.assertEqual(budget["spec"]["unhealthyPodEvictionPolicy"], "IfHealthyBudget",
                             "while the scheduler moves, workers that are not ready have work")
            covered = [component(w) for w in workloads(objects) if matches(
                budget["spec"]["selector"]["matchLabels"], pod_labels(w))]
            self.assertEqual(covered, ["worker"])

    # -- figures -----------------------------------------------------------------------------------

    def test_every_pod_is_scraped_at_a_port_that_it_has(self):
        monitors = of_kind(render("monitoring"), "PodMonitor")
        for objects, workload in self.each_workload():
            mine = [m for m in monitors if matches(m["spec"]["selector"]["matchLabels"],
                                                   pod_labels(workload))]
            self.assertEqual([m["metadata"]["name"] for m in mine], [workload["metadata"]["name"]])
            self.assertEqual(mine[0]["apiVersion"], "monitoring.coreos.com/v1")
            endpoint, = mine[0]["spec"]["podMetricsEndpoints"]
            self.assertIn(endpoint["port"], ports_of(workload))
            self.assertEqual(endpoint["path"], "/metrics")
            self.assertRegex(endpoint["interval"], r"^\d+s$")

    def test_scaling_asks_for_waiting_work_and_never_for_cpu(self):
        known = set(re.findall(r"`(rollcast_\w+)`",
                               (ROOT / "dashboards" / "metrics.md").read_text()))
        for name, objects in self.each(("overlays/h200", "overlays/multi-rack")):
            scaled, = of_kind(objects, "ScaledObject")
            self.assertEqual(scaled["apiVersion"], "keda.sh/v1alpha1")
            target = scaled["spec"]["scaleTargetRef"]
            worker = named(objects, target["kind"], target["name"])
            self.assertEqual(component(worker), "worker")
            low, high = scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]
            self.assertTrue(0 < low <= high, name)
            self.assertNotIn("replicas", worker["spec"], "an apply would undo what KEDA has set")
            trigger, = scaled["spec"]["triggers"]
            self.assertEqual((trigger["type"], trigger["metricType"]),
                             ("prometheus", "AverageValue"))
            self.assertEqual(trigger["metadata"]["ignoreNullValues"], "false", "no data is not 0")
            self.assertNotIn("fallback", scaled["spec"])
            used = set(re.findall(r"rollcast_\w+", trigger["metadata"]["query"]))
            self.assertIn("rollcast_requests_waiting", used)
            self.assertEqual(used - known, set())
            given = self.environment(worker, objects)
            self.assertEqual(trigger["metadata"]["threshold"], given["ROLLCAST_MAX_BATCH"],
                             "waiting responses of a worker: what one takes at once")
            self.assertIn(trigger["metadata"]["threshold"] + " * (max(kube_statefulset_replicas",
                          trigger["metadata"]["query"], "what holds the workers")
            held, = re.findall(r'kube_statefulset_replicas{namespace="(.*?)",statefulset="(.*?)"}',
                               trigger["metadata"]["query"])
            self.assertEqual(held, (worker["metadata"]["namespace"], target["name"]))

    def test_the_query_of_scaling_asks_for_what_it_says(self):
        if not shutil.which("promtool"):
            self.skipTest("promtool (Debian's package prometheus) is not installed")
        scaled, = of_kind(render("scaling"), "ScaledObject")
        query = scaled["spec"]["triggers"][0]["metadata"]["query"]
        job = '{job="rollcast/rollcast-scheduler"}'
        stages = {  # waiting, running, workers, replicas: wanted
            "quiet": (0, 0, 5, 5, 0), "more work than workers": (4000, 320, 5, 5, 4000),
            "the tail of a batch": (0, 3, 5, 5, 5 * 256), "little work": (10, 3, 5, 5, 5 * 256),
            "a tail with a pod that loads": (0, 3, 4, 5, 5 * 256),
            "work comes while a pod goes": (10, 0, 5, 4, 4 * 256),
            "a tail without kube-state-metrics": (0, 3, 5, "_", 5 * 256),
            "no worker yet": (700, 0, 0, "_", 700), "no scheduler": ("_", "_", "_", 5, None)}
        tests = []
        for what, stage in stages.items():
            waiting, running, workers, replicas, wanted = stage
            tests.append({
                "name": what, "interval": "1m", "input_series": [
                    {"series": name, "values": f"{value}x3"} for name, value in (
                        ("rollcast_requests_waiting" + job, waiting),
                        ("rollcast_requests_running" + job, running),
                        ('rollcast_workers{state="ready",' + job[1:], workers),
                        ('rollcast_workers{state="stale",' + job[1:], "_" if workers == "_" else 0),
                        ('kube_statefulset_replicas{namespace="rollcast",'
                         'statefulset="rollcast-worker"}', replicas),
                        ('kube_statefulset_replicas{namespace="other",'
                         'statefulset="rollcast-worker"}', 99),
                        ('rollcast_requests_waiting{job="rollcast/rollcast-worker"}', 9999))],
                "promql_expr_test": [{"expr": query, "eval_time": "2m", "exp_samples": (
                    [{"labels": "{}", "value": wanted}] if wanted is not None else [])}]})
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "test.yaml"
            file.write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
            said = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True,
                                  text=True, check=False)
        self.assertEqual(said.returncode, 0, said.stdout + said.stderr)

    def test_every_folder_renders(self):
        for _, objects in self.each(tuple(RENDERED)):
            self.assertTrue(objects)


if __name__ == "__main__":
    unittest.main()
