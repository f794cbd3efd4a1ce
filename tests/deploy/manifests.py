# Reads what deploy/ says: manifests as kubectl renders them, the Dockerfile as instructions.

import functools
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
K8S = DEPLOY / "k8s"
OVERLAYS = sorted(p.name for p in (K8S / "overlays").iterdir())
RENDERED = ["base", "monitoring", "scaling", *(f"overlays/{name}" for name in OVERLAYS)]
CLUSTERS = ["base", *(f"overlays/{name}" for name in OVERLAYS)]  # those that have pods

# Who dials which port of whom, as deploy/SECURITY.md has it.
MAY_REACH = {
    ("scheduler", "controllers"): "controller", ("scheduler", "control"): "worker",
    ("scheduler", "weights"): "worker", ("worker", "data"): "worker",
    ("worker", "weights"): "worker", ("draft-server", "drafts"): "worker",
}


def why_no_kubectl():
    return "" if shutil.which("kubectl") else "kubectl is not installed"


@functools.cache
def _is_old():
    """Debian 12's kubectl 1.20 has kustomize 2, which knows only `bases` and
    `patchesStrategicMerge`."""
    said = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True,
                          text=True, check=True)
    return int(json.loads(said.stdout)["clientVersion"]["minor"].rstrip("+")) < 21


def _in_the_old_dialect(tree, to):
    """A copy of a tree in the words that kustomize 2 knows; the meaning is the same."""
    shutil.copytree(tree, to)
    for file in to.rglob("kustomization.yaml"):
        said = yaml.safe_load(file.read_text())
        resources = said.pop("resources", [])
        said["bases"] = [r for r in resources if (file.parent / r).is_dir()]
        said["resources"] = [r for r in resources if r not in said["bases"]]
        patches = said.pop("patches", [])
        assert all(list(p) == ["path"] for p in patches), f"{file}: only patches that are files"
        said["patchesStrategicMerge"] = [p["path"] for p in patches]
        file.write_text(yaml.safe_dump(said))


@functools.cache
def render(name, tree=K8S):
    """The objects of a folder of deploy/k8s, or of a copy, as `kubectl kustomize` makes them."""
    with tempfile.TemporaryDirectory() as scratch:
        where = tree
        if _is_old():
            where = Path(scratch) / "k8s"
            _in_the_old_dialect(tree, where)
        said = subprocess.run(["kubectl", "kustomize", str(where / name)], capture_output=True,
                              text=True, check=False)
    if said.returncode != 0:
        raise AssertionError(f"kubectl kustomize {name}: {said.stderr}")
    assert "deprecated" not in said.stderr.lower() or _is_old(), said.stderr
    return [o for o in yaml.safe_load_all(said.stdout) if o]


def of_kind(objects, *kinds):
    return [o for o in objects if o["kind"] in kinds]


def named(objects, kind, name):
    found = [o for o in of_kind(objects, kind) if o["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
    return found[0]


def workloads(objects):
    return of_kind(objects, "StatefulSet", "Deployment")


def component(o):
    return o["metadata"]["labels"]["app.kubernetes.io/component"]


def container_of(workload):
    containers = workload["spec"]["template"]["spec"]["containers"]
    assert len(containers) == 1
    return containers[0]


def ports_of(workload):
    """Port numbers of a pod by their names."""
    return {p["name"]: p["containerPort"] for p in container_of(workload)["ports"]}


def environment_of(workload, objects, fields):
    """The variables of a pod's container. `fields` gives what Kubernetes fills in, by its name
    (`status.podIP`)."""
    container = container_of(workload)
    out = {}
    for source in container.get("envFrom", []):
        assert list(source) == ["configMapRef"], source
        out.update(named(objects, "ConfigMap", source["configMapRef"]["name"])["data"])
    for variable in container.get("env", []):
        if "value" in variable:
            out[variable["name"]] = variable["value"]
            continue
        how = variable["valueFrom"]
        if "fieldRef" in how:
            out[variable["name"]] = fields[how["fieldRef"]["fieldPath"]]
        else:
            what, which = how["resourceFieldRef"]["resource"].split(".")
            out[variable["name"]] = container["resources"][what][which]
    return out


def dockerfile():
    """The stages of deploy/Dockerfile in order: name, base, and instructions as (word, rest)."""
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Dockerfile").read_text())
    text = text.replace("\\\n", " ")
    arguments, stages = {}, []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(None, 1)
        for name, value in arguments.items():
            rest = rest.replace("${" + name + "}", value)
        if word == "ARG" and "=" in rest:
            arguments.update([rest.split("=", 1)])
        if word == "FROM":
            base, _, name = rest.split()
            stages.append({"name": name, "base": base, "said": []})
        elif stages:
            stages[-1]["said"].append((word, " ".join(rest.split())))
    return stages


def stage(name):
    return next(s for s in dockerfile() if s["name"] == name)


def words_of(stage_said, word):
    return [rest for w, rest in stage_said["said"] if w == word]


def installed_packages(said):
    """What a stage's `apt-get install` names."""
    run = next(r for r in words_of(said, "RUN") if "apt-get install" in r)
    command = next(c for c in run.split("&&") if "apt-get install" in c)
    return [w for w in shlex.split(command)[2:] if not w.startswith("-")]


def copies_of(said):
    """COPY instructions: (stage or None, sources, target)."""
    out = []
    for rest in words_of(said, "COPY"):
        words = rest.split()
        source = None
        if words[0].startswith("--from="):
            source = words.pop(0).split("=", 1)[1]
        out.append((source, words[:-1], words[-1]))
    return out


def entrypoint():
    said = stage("cpu")
    return json.loads(words_of(said, "ENTRYPOINT")[-1])
