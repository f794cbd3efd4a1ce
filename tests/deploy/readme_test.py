# Goal: what deploy/README.md tells a reader to type is true.
# Method: its commands are read as words. Files, folders, objects, containers, secrets and options
# that they name must exist; its overlay is rendered. Nothing is sent to a Kubernetes; tests/docs runs
# the commands in a shell.

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml

import manifests
from manifests import K8S, ROOT, container_of, render, workloads

BINARY = os.environ.get("ROLLCAST_BINARY", str(ROOT / "build" / "rollcast"))
TEXT = (ROOT / "deploy" / "README.md").read_text()


def commands():
    """Lines of the blocks of commands, joined where they go on, as words."""
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", TEXT)
    text = "".join(block for language, block in blocks if language == "sh")
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line.removesuffix("&")) for line in lines if line]


def of(program):
    return [words[1:] for words in commands() if words[0] == program]


class Readme(unittest.TestCase):
    def setUp(self):
        if manifests.why_no_kubectl():
            self.skipTest(manifests.why_no_kubectl())
        self.objects = render("base")
        self.pods = {f"{w['kind'].lower()}/{w['metadata']['name']}": w
                     for w in workloads(self.objects)}

    def test_its_commands_are_found(self):
        self.assertGreater(len(commands()), 15)
        self.assertTrue({"docker", "kind", "kubectl", "build/rollcast", "echo", "mkdir"}
                        >= {words[0] for words in commands()})

    def test_what_kubectl_is_told_exists(self):
        for words in of("kubectl"):
            with self.subTest(" ".join(words)):
                text = " ".join(words)
                for path in re.findall(r" -[kf] (\S+)", text):
                    self.assertTrue((ROOT / path).exists())
                for name in re.findall(r"(?:statefulset|deployment)/[\w-]+", text):
                    self.assertIn(name, self.pods)
                for container, image in re.findall(r" (\w+)=rollcast:(\S+)", text):
                    owner = self.pods[re.search(r"statefulset/[\w-]+", text)[0]]
                    self.assertEqual(container_of(owner)["name"], container, image)
                for pod in re.findall(r"(rollcast-[a-z]+)-0\b", text):
                    self.assertIn(f"statefulset/{pod}", self.pods)
                if "port-forward" in words:
                    port = int(words[-1].split(":")[1])
                    owner = self.pods["statefulset/rollcast-scheduler"]
                    self.assertIn(port, manifests.ports_of(owner).values())
                own = words[:words.index("--")] if "--" in words else words
                said = subprocess.run(["kubectl", *own, "--help"], capture_output=True, text=True,
                                      check=False)
                self.assertEqual(said.returncode, 0, said.stderr)

    def test_the_secrets_that_it_makes_are_those_that_are_used(self):
        made = {}
        for words in of("kubectl"):
            if "secret" in words:
                made[words[words.index("generic") + 1]] = {
                    Path(w.split("=", 1)[1]).name for w in words if w.startswith("--from-file=")}
        used = {}
        for workload in workloads(self.objects):
            spec = workload["spec"]["template"]["spec"]
            names = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
            given = manifests.environment_of(workload, self.objects, {
                "status.podIP": "", "metadata.name": ""})
            for mount in container_of(workload)["volumeMounts"]:
                if mount["name"] in names:
                    used.setdefault(names[mount["name"]], set()).update(
                        Path(v).name for v in given.values()
                        if str(Path(v).parent) == mount["mountPath"])
        self.assertEqual(made, used)

    def test_an_upgrade_replaces_every_pod_whatever_its_readiness(self):
        """In the upgrade and on the way back."""
        _, section = TEXT.split("### Upgrade without losing a batch")
        section, _ = section.split("\n### ", 1)
        for changed in re.findall(r"set image statefulset/([\w-]+)", section):
            role = changed.removeprefix("rollcast-")
            self.assertRegex(section, rf"delete pod (-l \S+/component={role}\b|{changed}-0\b)")
        back = re.search(r"(?m)^- \*\*Back\*\*.*", section)[0]
        self.assertRegex(back, "pods of both deleted again")

    def test_it_says_how_long_a_worker_waits_for_a_scheduler(self):
        """As the ConfigMap has it."""
        worker = self.pods["statefulset/rollcast-worker"]
        given = manifests.environment_of(worker, self.objects, {"status.podIP": "",
                                                                "metadata.name": ""})
        said = {"a minute": 60, "an hour": 3600}
        prose = " ".join(TEXT.split())
        times = re.findall(r"(?:no scheduler for|`ROLLCAST_GIVE_UP_S`,) (an? \w+)", prose)
        self.assertEqual(len(times), 2, times)
        for time in times:
            self.assertEqual(said[time], int(given["ROLLCAST_GIVE_UP_S"]))
        for file in (K8S / "base").glob("*.yaml"):
            comments = " ".join(re.findall(r"#(.*)", file.read_text()))
            self.assertNotRegex(comments, r"minute without a scheduler", file.name)

    def test_its_own_commands_have_these_options(self):
        inner = [words[words.index("--") + 2:] for words in of("kubectl") if "--" in words]
        for words in [*of("build/rollcast"), *inner]:
            with self.subTest(" ".join(words)):
                said = subprocess.run([BINARY, *words[:2 if words[0] == "keys" else 1], "--help"],
                                      capture_output=True, text=True, check=True).stdout
                for option in (w for w in words if w.startswith("--")):
                    self.assertRegex(said, rf"{option}\b")
                for path in (w for w in words if w.startswith("examples/")):
                    self.assertTrue((ROOT / path).exists())
        prose = re.sub(r"(?ms)^```.*?^```", "", TEXT)
        variables = set(re.findall(r"`(ROLLCAST_\w+)`", prose)) - {"ROLLCAST_SCHEDULER_PORT",
                                                                  "ROLLCAST_COMMIT"}  # a build's
        known = subprocess.run([BINARY, "worker", "--help"], capture_output=True, text=True,
                               check=True).stdout
        for variable in variables:
            self.assertIn(f"(Env:{variable})", known)

    def test_its_images_are_those_of_the_manifests(self):
        """Whoever applies an overlay has been told how its image is built."""
        tags = {}
        for built in of("docker"):
            self.assertTrue((ROOT / built[built.index("-f") + 1]).exists())
            target = built[built.index("--target") + 1]
            manifests.stage(target)
            tags[built[built.index("-t") + 1]] = target
        used = {container_of(w)["image"] for name in manifests.CLUSTERS
                for w in workloads(render(name))}
        self.assertEqual(set(tags), used)
        for tag, target in tags.items():
            self.assertEqual(tag.endswith("-cuda"), target == "cuda")

    def test_its_overlay_renders_over_ours(self):
        mine, = re.findall(r"(?ms)^```yaml\n(.*?)^```", TEXT)
        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch) / "k8s"
            shutil.copytree(K8S, tree)
            (tree / "overlays" / "mine").mkdir()
            (tree / "overlays" / "mine" / "kustomization.yaml").write_text(mine)
            objects = render("overlays/mine", tree)
        wanted = yaml.safe_load(mine)
        image = f"{wanted['images'][0]['newName']}:{wanted['images'][0]['newTag']}"
        for workload in workloads(objects):
            self.assertEqual(container_of(workload)["image"], image)
        worker = manifests.named(objects, "StatefulSet", "rollcast-worker")
        given = manifests.environment_of(worker, objects, {"status.podIP": "", "metadata.name": ""})
        self.assertEqual(given["ROLLCAST_NUMERICS"], "cpu-bf16-v1")

    def test_its_ports_are_those_of_the_manifests(self):
        rows = re.findall(r"(?m)^\| (\d+) \| `(\w+)` \| ([\w ,]+) \|", TEXT)
        every = {manifests.component(w).replace("-", " "): w for w in workloads(self.objects)}
        said = {(who, name, int(port)) for port, name, whose in rows
                for who in (every if whose.strip() == "all" else whose.strip().split(", "))}
        there = {(who, name, port) for who, w in every.items()
                 for name, port in manifests.ports_of(w).items()}
        self.assertEqual(said, there)


if __name__ == "__main__":
    unittest.main()
