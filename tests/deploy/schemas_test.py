# Goal: what deploy/k8s renders is what Kubernetes accepts.
# Method: the schemas that Kubernetes publishes, strictly, for the oldest and the newest version
# that we say works; PyPI's kubernetes-validate ships them. Custom resources have none there:
# manifests_test.py looks at them by hand. Without kubectl or PyPI it is skipped, and says why.

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import yaml

import manifests
from manifests import RENDERED, ROOT, container_of, named, render

VENV = Path(os.environ.get("ROLLCAST_BUILD_DIR", ROOT / "build")) / "deploy-venv"
VALIDATOR = "kubernetes-validate==1.37.0"
CUSTOM = {"PodMonitor", "ScaledObject"}


class Schemas(unittest.TestCase):
    def setUp(self):
        if manifests.why_no_kubectl():
            self.skipTest(manifests.why_no_kubectl())

    def validator(self):
        """The program of a virtual environment of our own, which PyPI fills the first time."""
        program = VENV / "bin" / "kubernetes-validate"
        if not program.exists():
            VENV.parent.mkdir(parents=True, exist_ok=True)
            made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True,
                                  text=True, check=False)
            if made.returncode == 0:
                made = subprocess.run(
                    [str(VENV / "bin" / "pip"), "install", "-q", "--retries", "1", "--timeout",
                     "20", VALIDATOR], capture_output=True, text=True, check=False)
            if made.returncode != 0:
                last = (made.stderr.strip() or made.stdout.strip()).splitlines()[-1:]
                shutil.rmtree(VENV, ignore_errors=True)
                self.skipTest(f"PyPI gives no {VALIDATOR}: {' '.join(last)}")
        return program

    def validate(self, objects, version):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all([o for o in objects if o["kind"] not in CUSTOM], file)
            file.flush()
            return subprocess.run([str(self.validator()), "--strict", "-k", version, file.name],
                                  capture_output=True, text=True, check=False)

    def test_kubernetes_accepts_them_by_its_published_schemas(self):
        for name in RENDERED:
            objects = render(name)
            for version in ("1.27.0", "1.37.0"):
                said = self.validate(objects, version)
                self.assertEqual(said.returncode, 0,
                                 f"{name}, {version}:\n{said.stdout}{said.stderr}")
        broken = yaml.safe_load(yaml.safe_dump(render("base")))
        container_of(named(broken, "StatefulSet", "rollcast-worker"))["readinesProbe"] = {}
        self.assertNotEqual(self.validate(broken, "1.37.0").returncode, 0, "it accepts anything")


if __name__ == "__main__":
    unittest.main()
