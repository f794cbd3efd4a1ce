# Pods of deploy/k8s on this machine, as a kubelet would run them: the rendered command, variables,
# mounts, user and probes, in the image's own root directory, each on a host of its own, which is a
# network namespace (tests/chaos/places.py). Only names are replaced: those of services by addresses
# in /etc/hosts, volumes by directories.

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "chaos"), str(HERE.parent / "e2e")]

import image_root
import manifests
import policies
from cluster import BINARY, COLLATZ, _die_with_parent, children_of, wait_until
from manifests import container_of, environment_of, named, of_kind, ports_of, render
from places import Hosts

# Reads URLs, answers with status code and body each; 0: nobody answers. Runs on a host.
PROBER = """
import http.client, json, sys, urllib.request, urllib.error
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for line in sys.stdin:
    code, text = 0, ""
    try:
        with direct.open(line.strip(), timeout=3) as answer:
            code, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        code = error.code
    except (OSError, http.client.HTTPException):
        pass
    print(json.dumps([code, text]), flush=True)
"""

# Dials addresses at the same time, and says which of them answered. Refused packets are dropped, so
# it waits; a second is long on a bridge.
DIALLER = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def dial(door):
    try:
        socket.create_connection(door, timeout=2).close()
        return True
    except OSError:
        return False
doors = [tuple(d) for d in json.load(sys.stdin)]
with ThreadPoolExecutor(len(doors)) as pool:
    print(json.dumps(list(pool.map(dial, doors))))
"""


def why_not():
    """Why pods cannot be run on this machine, or nothing."""
    if manifests.why_no_kubectl():
        return manifests.why_no_kubectl()
    return f"no network namespaces: {Hosts.why_not()}" if Hosts.why_not() else ""


class Pod:
    """One container of one pod: started, probed and ended as its manifest says."""

    def __init__(self, node, name, workload, host):
        self.node, self.name, self.workload, self.host = node, name, workload, host
        self.address = node.place.address(host)
        self.directory = node.directory / name  # outlives the container, as volumes do
        self.directory.mkdir()
        self.log = self.directory / "log"
        self.process = None

    @property
    def spec(self):
        return self.workload["spec"]["template"]["spec"]

    def _mounts(self):
        kinds = {v["name"]: v for v in self.spec["volumes"]}
        out = [[str(self.node.hosts_file), "/etc/hosts", False]]
        for mount in container_of(self.workload)["volumeMounts"]:
            volume = kinds.get(mount["name"], {})
            if "secret" in volume:
                source = self.node.secret(volume["secret"])
            elif "persistentVolumeClaim" in volume:
                source = self.node.models
            else:
                source = self.directory / mount["name"]
                source.mkdir(exist_ok=True)
                os.chown(source, -1, self.spec["securityContext"]["fsGroup"])
                source.chmod(0o2775)  # as a kubelet leaves a volume
            out.append([str(source), mount["mountPath"], not mount.get("readOnly", False)])
        return out

    def command(self, program):
        """What starts a program in this container."""
        variables = dict(rest.split("=", 1) for said in manifests.words_of(
            manifests.stage("cpu"), "ENV") for rest in said.split())
        variables.update(environment_of(self.workload, self.node.objects, {
            "status.podIP": self.address, "metadata.name": self.name}))
        who = self.spec["securityContext"]
        return [sys.executable, "-B", str(HERE / "pod_entry.py"), json.dumps({
            "root": str(self.node.root), "mounts": self._mounts(), "user": who["runAsUser"],
            "group": who["fsGroup"], "environment": variables, "command": program})]

    def _enter(self):
        _die_with_parent()
        self.node.place.enter(self.host)

    def start(self):
        program = manifests.entrypoint() + container_of(self.workload)["args"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(program), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, preexec_fn=self._enter)

    def run_in(self, program):
        """Runs another program in the container, as `docker exec` does; returns its exit code."""
        return subprocess.run(self.command(program), stdin=subprocess.DEVNULL, check=False,
                              preexec_fn=self._enter, timeout=60).returncode

    @property
    def first(self):
        """The process that is number 1 in the container, which gets the signals."""
        return children_of(self.process.pid)[0]

    @property
    def pid(self):
        """The role's own process, below tini."""
        return children_of(self.first)[0]

    def probe(self, name):
        """The status code that a probe of the manifest gets."""
        asked = container_of(self.workload)[name]["httpGet"]
        port = ports_of(self.workload)[asked["port"]]
        return self.node.get(f"http://{self.address}:{port}{asked['path']}")

    def wait_for(self, name, code=200):
        """Waits for a probe, as long as its manifest does (a minute at least)."""
        said = container_of(self.workload)[name]
        patience = max(60, said.get("periodSeconds", 10) * said.get("failureThreshold", 3))

        def answered():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}: "
                                     f"{self.log.read_text()}")
            return self.probe(name) == code

        wait_until(answered, f"{self.name}: {name} {code}: {self.log.read_text()}",
                   timeout=min(patience, 180), pause=0.1)

    def terminate(self):
        """SIGTERM to number 1."""
        os.kill(self.first, 15)

    def end(self):
        """What a kubelet does to end a pod; returns the exit code and the seconds it took."""
        begun = time.monotonic()
        self.terminate()
        code = self.process.wait(timeout=self.spec["terminationGracePeriodSeconds"])
        return code, time.monotonic() - begun

    def logged(self):
        return f"--- {self.name}\n{self.log.read_text()}"

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # and with it all in its process namespace
            self.process.wait()


class Node:
    """A cluster of one folder of deploy/k8s: all its pods, not started yet. `changes` of a role's
    variables are what an overlay's ConfigMap could say too."""

    def __init__(self, directory, folder, secrets=None, changes=None):
        self.directory, self._secrets = directory, secrets or {}
        self.objects = copy.deepcopy(render(folder))
        for role, variables in (changes or {}).items():
            config = next(o for o in of_kind(self.objects, "ConfigMap")
                          if o["metadata"]["name"].startswith(f"rollcast-{role}-"))
            config["data"].update(variables)
        self.root = directory / "root"
        self.root.mkdir()
        image_root.make(self.root, BINARY)
        self.models = directory / "models"
        self.models.mkdir()
        subprocess.run(["cp", "-r", str(COLLATZ), str(self.models / "model")], check=True)
        kinds = {"scheduler": "StatefulSet", "worker": "StatefulSet", "draft-server": "Deployment"}
        workloads = {w: named(self.objects, k, "rollcast-" + w) for w, k in kinds.items()}
        count = workloads["worker"]["spec"]["replicas"]
        self.place = Hosts(count)
        self.hosts_file = directory / "hosts"
        self.hosts_file.write_text(
            "127.0.0.1 localhost\n"
            f"{self.place.address('s')} rollcast-scheduler\n"
            f"{self.place.address('d')} rollcast-draft-server\n")
        self.scheduler = Pod(self, "rollcast-scheduler-0", workloads["scheduler"], "s")
        self.draft_server = Pod(self, "rollcast-draft-server-x", workloads["draft-server"], "d")
        self.workers = [Pod(self, f"rollcast-worker-{n}", workloads["worker"], f"w{n + 1}")
                        for n in range(count)]
        self.pods = [self.scheduler, self.draft_server, *self.workers]
        for pod in self.pods:
            for _, target, _ in pod._mounts():
                where = Path(str(self.root) + target)
                if target == "/etc/hosts":
                    where.touch()
                else:
                    where.mkdir(parents=True, exist_ok=True)
        self._apply_policies()
        self._prober = self.at_controller([sys.executable, "-B", "-c", PROBER],
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _apply_policies(self):
        """In every pod's network. The controllers' host is a trainer of the same namespace, and
        Prometheus, and the node's kubelet, which plug-ins let through to what it probes."""
        here = policies.labels_of_namespace(self.objects)
        client = self.place.address("c")
        others = [(p.address, p.workload["spec"]["template"]["metadata"]["labels"], here)
                  for p in self.pods]
        others += [(client, policies.TRAINER, here), (client, {}, policies.MONITORING)]
        for pod in self.pods:
            self._run_on(pod.host, ["nft", "-f", "-"],
                         policies.rules_for(pod.workload, self.objects, others))

    def _run_on(self, host, command, said):
        """Runs a program on a host; returns its output."""
        return subprocess.run(command, input=said, stdout=subprocess.PIPE, text=True, check=True,
                              preexec_fn=lambda: self.place.enter(host), timeout=120).stdout

    def reached_from(self, host):
        """What opens a connection when that host dials every port of every pod: (pod, port)."""
        doors = [(pod.name, name, pod.address, port) for pod in self.pods if pod.host != host
                 for name, port in ports_of(pod.workload).items()]
        said = self._run_on(host, [sys.executable, "-B", "-c", DIALLER],
                            json.dumps([[address, port] for _, _, address, port in doors]))
        return {door[:2] for door, answered in zip(doors, json.loads(said)) if answered}

    def secret(self, said):
        """A directory as a kubelet makes it of a secret; an optional one may be empty."""
        where = self._secret_directory(said["secretName"])
        if not where.exists():
            files = self._secrets.get(said["secretName"])
            if files is None and not said.get("optional"):
                raise AssertionError(f"no secret {said['secretName']}: the pod would wait for it")
            self.write_secret(said["secretName"], files or {})
        return where

    def _secret_directory(self, name):
        return self.directory / "secrets" / name

    def write_secret(self, name, files):
        """Brings a secret, or what it has become, as a kubelet does: all files change at once."""
        where = self._secret_directory(name)
        data = where / f"..{time.monotonic_ns()}"
        data.mkdir(parents=True)
        for file, text in files.items():
            (data / file).write_bytes(text)
            os.chown(data / file, 0, 65532)
            (data / file).chmod(0o440)
            if not (where / file).is_symlink():
                (where / file).symlink_to(f"..data/{file}")
        (where / "..next").symlink_to(data.name)
        (where / "..next").rename(where / "..data")

    def at_controller(self, command, **options):
        """Starts a program on the host of the controllers."""
        def enter():
            _die_with_parent()
            self.place.enter("c")
        return subprocess.Popen(command, preexec_fn=enter, **options)

    def get(self, url):
        """The status code that the controllers' host gets; 0 if nobody answers."""
        return self._ask(url)[0]

    def text(self, url):
        return self._ask(url)[1]

    def _ask(self, url):
        self._prober.stdin.write(url + "\n")
        self._prober.stdin.flush()
        return json.loads(self._prober.stdout.readline())

    def start(self):
        """All at once, as `kubectl apply` does."""
        for pod in self.pods:
            pod.start()

    def wait_until_ready(self):
        for pod in self.pods:
            pod.wait_for("startupProbe")
        for pod in self.pods:
            pod.wait_for("readinessProbe")

    def logged(self):
        return "\n".join(p.logged() for p in self.pods if p.log.exists())

    def close(self):
        for pod in self.pods:
            pod.kill()
        self._prober.kill()
        self._prober.wait()
        self._prober.stdin.close()
        self._prober.stdout.close()
        self.place.close()


class PodTest(unittest.TestCase):
    """A test with pods, which are gone at its end."""

    def setUp(self):
        if why_not():
            self.skipTest(why_not())
        scratch = tempfile.TemporaryDirectory(prefix="rollcast-pods-")
        self.addCleanup(scratch.cleanup)
        self.work = Path(scratch.name)
        self.work.chmod(0o755)  # pods are not root

    def node(self, folder, secrets=None, changes=None):
        directory = self.work / folder.replace("/", "-")
        directory.mkdir()
        node = Node(directory, folder, secrets, changes)
        self.addCleanup(node.close)
        return node
