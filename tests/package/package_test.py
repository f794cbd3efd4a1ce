# Goal: what a user installs is whole, says one version everywhere, and has types.
# Method: install the program under a new prefix and roll out with it from an empty directory;
# install the client with pip into a new virtual environment, without a network (Debian's
# python3-setuptools and python3-wheel build it), from a tree whose VERSION is the link that it is
# there, and have mypy check a program that uses it. What these need is installed by `make test`;
# without it they fail and name the package, for a test that skips itself is one that nobody runs.

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import cluster

ROOT = cluster.ROOT
VERSION = (ROOT / "VERSION").read_text().strip()
BUILD = Path(os.environ.get("ROLLCAST_BUILD", ROOT / "build" / "release"))
CMAKE = os.environ.get("CMAKE", "cmake")

USES_THE_CLIENT = """
from rollcast import Client, Prompt, Sampling, __version__

def total(endpoint: str) -> int:
    tokens = 0
    with Client(endpoint) as client:
        batch = client.submit([Prompt(token_ids=[1, 2])], group_size=2, sampling=Sampling())
        for response in batch:
            reveal_type(response.token_ids)
            tokens += len(response.token_ids)
    print(__version__)
    return tokens
"""


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, **options)
    return done.returncode, done.stdout


class Program(unittest.TestCase):
    def test_says_version_profiles_and_build(self):
        said = cluster.call("--version")
        self.assertEqual(said.code, 0, said)
        lines = said.out.splitlines()
        self.assertEqual(lines[0], f"rollcast {VERSION}")
        self.assertEqual(lines[1], "numerics profiles: cpu-f32-v1, cpu-bf16-v1, cuda-bf16-v1, "
                                   "cuda-bf16-fast-v1")
        self.assertRegex(lines[2], r"^instruction sets: (avx512|avx2|neon)")
        self.assertRegex(lines[3], r"^build: (g\+\+|clang) \d+\S*.*, commit [0-9a-z-]+$")

    def test_exports_the_same_version(self):
        with tempfile.TemporaryDirectory() as folder:
            node = cluster.Node(Path(folder) / "log", "scheduler", "--listen", "tcp://127.0.0.1:*",
                                "--control-port", 0, "--metrics-port", 0)
            try:
                _, text = cluster.http_get(f"http://127.0.0.1:{node.ports['metrics_port']}/metrics")
            finally:
                node.kill()
        self.assertIn(f'version="{VERSION}"', text)

    def test_runs_where_it_was_installed(self):
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder) / "prefix"
            code, said = run(CMAKE, "--install", BUILD, "--prefix", prefix)
            self.assertEqual(code, 0, said)
            share = prefix / "share" / "rollcast"
            for path in (prefix / "include" / "rollcast_kernels.h",
                         prefix / "share" / "doc" / "rollcast" / "LICENSE",
                         share / "dashboards" / "metrics.md"):
                self.assertTrue(path.is_file(), path)
            self.assertEqual(len(list(prefix.glob("lib*/**/librollcast_kernels.so"))), 1)
            self.assertFalse((prefix / "rollcast").exists(), "the part for Python came along")
            example = share / "examples" / "collatz"
            prompts = Path(folder) / "prompts.jsonl"
            lines = (example / "prompts.jsonl").read_text().splitlines(True)
            prompts.write_text("".join(lines[:2]))
            elsewhere = Path(folder) / "elsewhere"
            elsewhere.mkdir()
            code, said = run(prefix / "bin" / "rollcast", "run", "--model", example / "model",
                             "--prompts", prompts, "--workers", 1, "--group-size", 2,
                             "--max-new-tokens", 16, "--out", "out", cwd=elsewhere,
                             env={"PATH": "/usr/bin:/bin"})
            self.assertEqual(code, 0, said)
            responses = (elsewhere / "out" / "responses.jsonl").read_text().splitlines()
            self.assertEqual(len(responses), 4)


class Client(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        missing = [package for there, package in (
            (importlib.util.find_spec("setuptools"), "python3-setuptools"),
            (importlib.util.find_spec("wheel"), "python3-wheel"),
            (shutil.which("mypy"), "mypy")) if not there]
        assert not missing, f"not installed: {' '.join(missing)}; deploy/install_deps.sh --test"
        # A copy, because setuptools leaves its build folders beside what it builds. Links stay.
        cls.tree = cls.folder / "tree"
        (cls.tree / "clients").mkdir(parents=True)
        shutil.copy(ROOT / "VERSION", cls.tree)
        shutil.copytree(ROOT / "clients" / "python", cls.tree / "clients" / "python", symlinks=True,
                        ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        cls.link = cls.tree / "clients" / "python" / "rollcast" / "VERSION"
        assert cls.link.is_symlink(), "git has it as a link"
        cls.python = cls.folder / "venv" / "bin" / "python"
        code, said = run("/usr/bin/python3", "-m", "venv", "--system-site-packages",
                         cls.folder / "venv")
        assert code == 0, said
        code, said = run(cls.python, "-m", "pip", "install", "--no-index", "--no-deps",
                         "--no-build-isolation", "./clients/python", cwd=cls.tree)
        assert code == 0, said

    def run_there(self, *command):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return run(*command, cwd=self.folder, env=environment)

    def test_is_installed_whole_and_says_the_version(self):
        code, said = self.run_there(self.python, "-c", (
            "import importlib.metadata as m, json, pathlib, rollcast;"
            "here = pathlib.Path(rollcast.__file__).parent;"
            "print(json.dumps([rollcast.__version__, m.version('rollcast'), str(here),"
            "                  sorted(p.name for p in here.iterdir())]))"))
        self.assertEqual(code, 0, said)
        own, metadata, here, files = json.loads(said)
        self.assertEqual((own, metadata), (VERSION, VERSION))
        self.assertTrue(here.startswith(str(self.folder)), here)
        ours = {p.name for p in (ROOT / "clients" / "python" / "rollcast").iterdir()}
        self.assertEqual(ours - {"__pycache__"} - set(files), set())
        installed = Path(here) / "VERSION"
        self.assertFalse(installed.is_symlink())
        self.assertEqual(installed.read_text().strip(), VERSION)

    def test_has_types(self):
        program = self.folder / "uses_the_client.py"
        program.write_text(USES_THE_CLIENT)
        code, said = self.run_there("mypy", "--strict", "--python-executable", self.python,
                                    "--cache-dir", self.folder / "mypy", program)
        self.assertEqual(code, 0, said)
        self.assertRegex(said, r'Revealed type is "builtins\.(list|tuple)\[builtins\.int')
        program.write_text(USES_THE_CLIENT.replace("client.submit(", "client.sumbit("))
        code, said = self.run_there("mypy", "--strict", "--python-executable", self.python,
                                    "--cache-dir", self.folder / "mypy", program)
        self.assertEqual(code, 1, said)
        self.assertIn('"Client" has no attribute "sumbit"', said)


if __name__ == "__main__":
    unittest.main()
