# Goal: what the documentation tells a reader to type works, as it stands there.
# Method: the fenced blocks of the documents in `RUN` are put together in order and run by one shell
# in a copy of the tree, in a network of its own, so that a block may start a cluster on the usual
# ports for those behind it. Blocks marked `sh` are commands, those marked `python` programs;
# `make` lines are run with -n. Not run: `text`; nor `sh example` and `python fragment`, of
# which flags and syntax are checked. Every flag of a rollcast command in any document must exist.

import ast
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("ROLLCAST_BINARY", str(ROOT / "build" / "rollcast"))
UP = "build/rollcast up --model examples/collatz/model --workers 2 &\n"
# What stands before the first block: a document about the client takes a cluster for granted.
RUN = {
    "README.md": "",
    "clients/python/README.md": UP,
    "deploy/SIZING.md": "",
    "examples/collatz/README.md": "",
    "examples/quickstart/README.md": "",
}
MARKS = {"sh", "sh example", "python", "python fragment", "text", "json", "toml", "yaml"}
LIMIT_S = 500
COMMAND = re.compile(
    r"\s*(?:\$ )?(?:\S+=\S+ )*(?:\S*/)?rollcast ((?:[a-z][a-z-]*(?: |$))*)(.*)")

# Debian's packages in place of the network; `pip install` itself is as typed.
PYTHON = """#!/bin/sh
[ "$1 $2" = "-m venv" ] && shift 2 && exec /usr/bin/python3 -m venv --system-site-packages "$@"
exec /usr/bin/python3 "$@"
"""
# A network and process ids of its own: the usual ports are free and no cluster of the machine is
# reached, and what a script started in the background dies with it, however it ends.
ALONE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
PIP = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0",
       "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
START = """set -eu
ip link set lo up
trap 'for job in $(jobs -p); do kill -- $job 2>/dev/null || true; done; wait' EXIT
ready() {{  # a cluster that was started in the background answers
  for _ in $(seq 100); do build/rollcast status >/dev/null 2>&1 && return; sleep 0.2; done
  echo "no cluster after 20 s" >&2; exit 1
}}
"""


class Block:
    def __init__(self, document, line, mark, text):
        self.where, self.mark, self.text = f"{document}:{line}", mark, text


def blocks_of(text, document):
    """The fenced blocks of a document, in order."""
    found, begin = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            continue
        if begin is None:
            begin = (number, line[3:].strip())
        else:
            lines = text.splitlines()[begin[0]:number - 1]
            found.append(Block(document, begin[0], begin[1], "\n".join(lines) + "\n"))
            begin = None
    if begin is not None:
        raise AssertionError(f"{document}:{begin[0]}: this block has no end")
    return found


def script_of(blocks, before):
    """One shell script of all blocks that are run."""
    out = [START.format(), before, "ready\n" if before else ""]
    for block in blocks:
        out.append(f"echo '### {block.where}'\n")
        if block.mark == "sh":
            out.append(re.sub(r"^make ", f"make -n -C {shlex.quote(str(ROOT))} ", block.text,
                              flags=re.M))
            if re.search(r"&\s*(#.*)?$", block.text, flags=re.M):
                out.append("ready\n")
        elif block.mark == "python":
            out.append(f".venv/bin/python - <<'END OF BLOCK'\n{block.text}END OF BLOCK\n")
    return "".join(out)


def why_not_alone():
    """Why a script cannot be run alone, or nothing."""
    if not shutil.which("unshare") or not shutil.which("ip", path="/usr/sbin:/usr/bin:/sbin:/bin"):
        return "no unshare or no ip here"
    said = subprocess.run([*ALONE, "true"], capture_output=True, text=True, check=False)
    return f"no network namespaces here: {said.stderr.strip()}" if said.returncode else ""


def run_in_a_copy(script, limit_s=LIMIT_S):
    """Runs a script in a directory that looks like the tree after a build; returns its exit code
    (124: it took too long) and what it said."""
    if why_not_alone():
        raise unittest.SkipTest(why_not_alone())
    folder = Path(tempfile.mkdtemp(prefix="rollcast-docs-"))
    try:
        tree = folder / "tree"
        ignore = shutil.ignore_patterns("build", ".git", "__pycache__", "*.egg-info")
        for name in ("clients", "deploy", "examples"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignore, symlinks=True)
        shutil.copy(ROOT / "VERSION", tree)
        (tree / "build").mkdir()
        (tree / "build" / "rollcast").symlink_to(BINARY)
        tools = folder / "tools"
        tools.mkdir()
        (tools / "python3").write_text(PYTHON)
        (tools / "python3").chmod(0o755)
        (tools / "rollcast").symlink_to(BINARY)
        environment = {k: v for k, v in os.environ.items()
                       if not k.startswith(("ROLLCAST_", "PYTHON"))}
        environment.update(PIP, PATH=f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin", HOME=str(folder))
        done = subprocess.run([*ALONE, "bash", "-c", script], cwd=tree, env=environment, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=limit_s)
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
        return 124, f"{said}\nnot over after {limit_s} s"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commands_of_processes():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            pass


def documents():
    skipped = {"build", ".git", "node_modules"}
    for path in sorted(ROOT.rglob("*.md")):
        if not skipped & set(path.relative_to(ROOT).parts):
            yield str(path.relative_to(ROOT)), path.read_text()


_help = {}


def help_of(words):
    """The help of a command, which must exist."""
    if words not in _help:
        said = subprocess.run([BINARY, *words, "--help"], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=60)
        _help[words] = said.stdout if said.returncode == 0 else None
    return _help[words]


def commands_in(text):
    """(words, flags) of each rollcast command in shell text or in a piece of prose in backticks."""
    text = re.sub(r"\\\n", " ", text)
    for line in re.split(r"[\n;|&]+", text):
        line = re.sub(r"\s#.*", "", line)
        match = COMMAND.match(line)
        if match:
            yield match.group(1).split(), re.findall(r"(?<!\S)--[a-z][a-z-]*", match.group(2))


def unknown_in(text):
    """What is wrong with the rollcast commands in a text, as lines."""
    for words, flags in commands_in(text):
        top = words[:1]
        if not top:
            top, words = [], []
        nested = top and top[0] in ("bench", "keys", "journal")
        command = tuple(words[:2] if nested else top)
        known = help_of(command)
        if known is None:
            yield f"there is no command 'rollcast {' '.join(command)}'"
            continue
        for flag in flags:
            if not re.search(re.escape(flag) + r"(?![a-z-])", known):
                yield f"'rollcast {' '.join(command)}' has no {flag}"


class Docs(unittest.TestCase):
    def run_document(self, name):
        blocks = blocks_of((ROOT / name).read_text(), name)
        for block in blocks:
            self.assertIn(block.mark, MARKS, f"{block.where}: say what this block is")
        code, said = run_in_a_copy(script_of(blocks, RUN[name]))
        self.assertEqual(code, 0, f"the last block named failed\n{said[-4000:]}")
        for block in blocks:
            if block.mark in ("sh", "python"):
                self.assertIn(f"### {block.where}", said)

    def test_fragments_are_python(self):
        for name, text in documents():
            for block in blocks_of(text, name):
                if block.mark.startswith("python"):
                    try:
                        ast.parse(block.text)
                    except SyntaxError as error:
                        self.fail(f"{block.where}: {error}")

    def test_every_flag_exists(self):
        seen = 0
        for name, text in documents():
            pieces = [(b.where, b.text) for b in blocks_of(text, name)]
            prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
            pieces += [(name, piece) for piece in re.findall(r"`(rollcast [^`]*)`", prose)]
            for where, piece in pieces:
                for wrong in unknown_in(piece):
                    self.fail(f"{where}: {wrong}: {piece.strip()[:200]}")
                seen += sum(1 for _ in commands_in(piece))
        self.assertGreater(seen, 40)

    def test_the_readme_names_every_command(self):
        table = re.findall(r"^\| (`rollcast .*?`) \|", (ROOT / "README.md").read_text(), re.M)
        named = {w for row in table for w in re.findall(r"`(?:rollcast )?([a-z-]+)", row)}
        listed = re.findall(r"^  ([a-z][a-z-]+)  +\S", help_of(()).split("Subcommands:")[1], re.M)
        self.assertEqual(set(listed) - named, set())

    def test_what_is_wrong_is_found(self):
        self.assertEqual(list(unknown_in("build/rollcast run --prompts x --no-such-flag 3")),
                         ["'rollcast run' has no --no-such-flag"])
        self.assertEqual(list(unknown_in("rollcast fly --to x")),
                         ["there is no command 'rollcast fly'"])
        self.assertEqual(list(unknown_in("rollcast bench engine \\\n  --repeats 1 --wings")),
                         ["'rollcast bench engine' has no --wings"])
        bad = blocks_of("```sh\ntrue\nbuild/rollcast status --no-such-flag\n```\n", "x.md")
        code, said = run_in_a_copy(script_of(bad, ""))
        self.assertNotEqual(code, 0, said)
        self.assertIn("--no-such-flag", said)

    def test_what_takes_too_long_is_ended_with_all_that_it_started(self):
        number = f"98{os.getpid()}"  # in seconds, to be known by it
        begun = time.monotonic()
        code, said = run_in_a_copy(f"echo begun\nsleep {number} &\nsleep {number}\n", limit_s=2)
        self.assertEqual(code, 124, said)
        self.assertIn("begun", said)
        self.assertLess(time.monotonic() - begun, 60)
        self.assertFalse([p for p in commands_of_processes() if number in p])


def _add(name):
    def test(self):
        self.run_document(name)
    setattr(Docs, "test_run_" + re.sub(r"\W+", "_", name).lower(), test)


for _name in RUN:
    _add(_name)

if __name__ == "__main__":
    unittest.main()
