# The image's root directory without a Docker engine: the files of the packages that
# deploy/Dockerfile installs, and of all that these depend on, as dpkg knows them on this machine;
# and what the file copies. What is not in the lists is not there.

import os
import re
import shutil
import subprocess
from pathlib import Path

from manifests import ROOT, copies_of, installed_packages, stage

# Of debian:12-slim, what a process needs; bash for the health check.
BASE = ["bash", "libc6", "libgcc-s1"]


def _records():
    """What dpkg has installed here: package to what it depends on, as dpkg writes it."""
    form = "${Package}\t${db:Status-Status}\t${Depends}, ${Pre-Depends}\n"
    said = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, text=True,
                          check=True)
    lines = (line.split("\t") for line in said.stdout.splitlines())
    return {name: depends for name, status, depends in lines if status == "installed"}


def closure(packages):
    """Those packages and all that they depend on. Fails with the name of one that is not here."""
    records, todo, done = _records(), list(packages), set()
    while todo:
        package = todo.pop()
        if package in done:
            continue
        if package not in records:
            raise AssertionError(f"{package} is in the image and not installed here")
        done.add(package)
        for choice in records[package].split(","):
            names = [re.split(r"[ (:]", c.strip())[0] for c in choice.split("|")]
            todo += [n for n in names if n in records][:1]  # no record: a virtual package
    return done


def make(root, binary):
    """Fills an empty directory."""
    said = stage("cpu")
    (root / "usr").mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):  # Debian's merged directories
        (root / "usr" / name).mkdir()
        (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "etc", "proc", "tmp", "var/lib"):
        (root / name).mkdir(parents=True)
    for package in sorted(closure(BASE + installed_packages(said))):
        listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=True)
        for path in map(Path, listed.stdout.splitlines()):
            if path.is_file() and not str(path).startswith(("/usr/share", "/etc", "/var")):
                _copy(path, root / str(path).lstrip("/"))
    for source, paths, target in copies_of(said):
        for path in paths:
            _copy(Path(binary) if source else ROOT / path, root / target.lstrip("/"))


def _copy(path, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to)
    elif path.is_symlink():
        if not os.path.lexists(to):
            to.symlink_to(os.readlink(path))
    elif not os.path.lexists(to):
        shutil.copy2(path, to)
