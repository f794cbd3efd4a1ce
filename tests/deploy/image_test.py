# Goal: deploy/Dockerfile builds what the tree builds, and its last stage has what the binary links
# and nothing that it does not need; no Docker engine is needed to know.
# Method: the file is read as instructions. Lists are compared with `ldd` and dpkg's own records,
# paths with what git tracks, the version with CMake's.

import fnmatch
import os
import re
import shutil
import subprocess
import unittest
from pathlib import Path

import manifests
from manifests import ROOT, copies_of, installed_packages, stage, words_of

BINARY = os.environ.get("ROLLCAST_BINARY", str(ROOT / "build" / "rollcast"))


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def needed_by(file):
    """The libraries that a file names itself, not those that these need."""
    out = run("readelf", "-d", file)
    return re.findall(r"\(NEEDED\).*\[(.*)\]", out)


def packages_of_libraries(file):
    """Debian packages of the libraries that a file names itself."""
    where = dict(re.findall(r"(\S+) => (/\S+)", run("ldd", file)))
    out = set()
    for library in needed_by(file):
        if library not in where:  # the loader itself
            continue
        real = os.path.realpath(where[library])
        for path in {real, real.removeprefix("/usr")}:
            said = subprocess.run(["dpkg", "-S", path], capture_output=True, text=True, check=False)
            if said.returncode == 0:
                out.add(said.stdout.split(":")[0])
    return out


def essential():
    """What debian:12-slim has, and everything depends on."""
    return {"libc6", "libgcc-s1"}


def dockerignored(path):
    """Whether .dockerignore keeps a path from the builder."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("**/")
        parts = Path(path).parts
        prefixes = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        if line.startswith("**/"):
            prefixes = list(parts)
        if any(fnmatch.fnmatch(p, pattern) for p in prefixes):
            return True
    return False


needs_kubectl = unittest.skipIf(manifests.why_no_kubectl(), manifests.why_no_kubectl())


class Image(unittest.TestCase):
    def test_its_packages_are_those_that_the_binary_links(self):
        wanted = packages_of_libraries(BINARY) - essential()
        if wanted & {"libasan8", "libubsan1", "libtsan2"}:
            self.skipTest("the binary is instrumented, and no image is made of such")
        found = set(installed_packages(stage("cpu"))) - {"tini"}
        self.assertEqual(wanted - found, set(), "the image lacks them: it would not start")
        # A compiler's flags decide whether libcrypto is named; a package too many is a mistake.
        self.assertEqual(found - wanted, set(), "nothing of them is linked")

    def test_its_build_takes_the_packages_of_the_tree(self):
        said = stage("build")
        self.assertIn("deploy/install_deps.sh", words_of(said, "RUN"))
        self.assertFalse([r for r in words_of(said, "RUN") if "apt-get" in r],
                         "install_deps.sh is the only list of packages")

    def test_every_path_is_there_and_reaches_the_builder(self):
        tracked = (run("git", "-C", str(ROOT), "ls-files").splitlines()
                   if (ROOT / ".git").exists() and shutil.which("git") else [])
        for said in manifests.dockerfile():
            for source, paths, _ in copies_of(said):
                for path in paths:
                    if source is not None:
                        self.assertIn(source, [s["name"] for s in manifests.dockerfile()])
                        continue
                    with self.subTest(path):
                        self.assertTrue((ROOT / path).exists())
                        self.assertFalse(dockerignored(path))
                        files = [t for t in tracked if t == path or t.startswith(path + "/")]
                        self.assertTrue(files or not tracked, "git has it not")

    def test_the_build_has_every_folder_that_cmake_enters(self):
        text = (ROOT / "CMakeLists.txt").read_text()
        entered = set(re.findall(r"add_subdirectory\((\S+)\)", text)) - {"tests", "tests/fuzz"}
        copied = {p for _, paths, _ in copies_of(stage("build")) for p in paths}
        self.assertEqual(entered - copied, set())
        binary = "/src/build/release/rollcast"
        self.assertIn(("build", [binary], "/usr/local/bin/rollcast"), copies_of(stage("cpu")))
        self.assertIn("--preset release", words_of(stage("build"), "RUN")[-1])

    def test_the_configured_tree_needs_nothing_else(self):
        """What the compiler read of the tree, from the dependencies that ninja keeps."""
        build = Path(BINARY).parent
        if not (build / ".ninja_deps").exists():
            self.skipTest(f"{build} is no build directory")
        said = run("ninja", "-C", str(build), "-t", "deps")
        copied = {p for _, paths, _ in copies_of(stage("build")) for p in paths}
        files = {os.path.normpath(build / line.strip()) for line in said.splitlines()
                 if line.startswith("    ")}
        used = {Path(f).relative_to(ROOT).parts[0] for f in files
                if f.startswith(f"{ROOT}/") and not f.startswith(f"{build}/")}
        self.assertIn("kernels", used)
        self.assertEqual(used - {Path(p).parts[0] for p in copied} - {"tests"}, set())

    def test_it_says_the_version_of_the_tree(self):
        version = (ROOT / "VERSION").read_text().strip()
        self.assertIn(f"VERSION={version}", words_of(stage("cpu"), "ARG"))
        self.assertIn(f'org.opencontainers.image.version="{version}"',
                      words_of(stage("cpu"), "LABEL")[0])

    @needs_kubectl
    def test_the_manifests_name_that_version(self):
        version = (ROOT / "VERSION").read_text().strip()
        for name in manifests.CLUSTERS:
            for workload in manifests.workloads(manifests.render(name)):
                tag = manifests.container_of(workload)["image"].split(":")[1]
                self.assertEqual(tag.removesuffix("-cuda"), version)

    def test_its_binary_says_the_revision_of_the_label(self):
        self.assertEqual(words_of(stage("build"), "ARG"), ["REVISION=unknown"])
        self.assertIn("$ENV{ROLLCAST_COMMIT}", (ROOT / "cmake" / "commit.cmake").read_text())
        said = (ROOT / "deploy" / "Dockerfile").read_text()
        before, _, after = said.partition("ENV ROLLCAST_COMMIT=${REVISION}\n")
        self.assertEqual(before.count("FROM "), 1, "in the first stage")
        self.assertTrue(after.startswith("RUN cmake"), "before it is built")

    def test_nobody_in_it_is_root(self):
        user, group = words_of(stage("cpu"), "USER")[-1].split(":")
        self.assertGreater(int(user), 0)
        self.assertGreater(int(group), 0)
        for after in [w for w, _ in stage("cpu")["said"]][::-1]:
            if after == "USER":
                break
            self.assertNotEqual(after, "RUN", "as that user it could do nothing")

    def test_tini_is_its_first_process(self):
        self.assertEqual(manifests.entrypoint(),
                         ["/usr/bin/tini", "--", "/usr/local/bin/rollcast"])
        self.assertIn("tini", installed_packages(stage("cpu")))
        self.assertEqual(words_of(stage("cpu"), "STOPSIGNAL"), ["SIGTERM"])

    @needs_kubectl
    def test_it_exposes_the_ports_of_the_manifests(self):
        exposed = {int(p) for p in words_of(stage("cpu"), "EXPOSE")[0].split()}
        used = {p for w in manifests.workloads(manifests.render("base"))
                for p in manifests.ports_of(w).values()}
        self.assertEqual(exposed, used)


if __name__ == "__main__":
    unittest.main()
