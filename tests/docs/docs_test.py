# Goal: what the documentation tells a reader to type works, as it stands there.
# Method: the fenced blocks of the documents in `RUN` are put together in order and run by one shell
# in a copy of the tree, in a network of its own, so that a block may start a cluster on the usual
# ports for those behind it. Blocks marked `sh` are commands, those marked `python` programs;
# `make` lines are run with -n. `text output` is what the block before it must print, line by line.
# docker, kind and kubectl are stand-ins (TOOLS): what they are told is noted, and a cluster on this
# machine is what is applied. Not run: `text`; nor `sh example` and `python fragment`, of which flags
# and syntax are checked. Every flag of a rollcast command in any document must exist, and every link.

import ast
import json
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
UP = "build/rollcast up --model examples/collatz/model --workers 2 &\nready\n"
# What cert-manager would have written, of a CA of this cluster alone.
CERTIFICATES = """openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca \\
  -keyout ca.key -out ca.crt 2>/dev/null
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=node -keyout tls.key -out tls.crt \\
  -CA ca.crt -CAkey ca.key 2>/dev/null
mkdir() { command mkdir "$@" && mv tls.crt tls.key ca.crt keys/; }  # where a reader has put them
"""
# What stands before the first block: a document about the client takes a cluster for granted.
RUN = {
    "README.md": "",
    "clients/python/README.md": UP,
    "dashboards/README.md": "",
    "deploy/README.md": CERTIFICATES,
    "deploy/SECURITY.md": "",
    "deploy/SIZING.md": "",
    "examples/collatz/README.md": "",
    "examples/quickstart/README.md": "",
}
MARKS = {"sh", "sh example", "python", "python fragment", "text", "text output", "json", "toml",
         "yaml"}
LIMIT_S = 500
COMMAND = re.compile(
    r"\s*(?:\$ )?(?:\S+=\S+ )*(?:\S*/)?rollcast ((?:[a-z][a-z-]*(?: |$))*)(.*)")

# Debian's packages in place of the network; `pip install` itself is as typed.
PYTHON = """#!/bin/sh
[ "$1 $2" = "-m venv" ] && shift 2 && exec /usr/bin/python3 -m venv --system-site-packages "$@"
exec /usr/bin/python3 "$@"
"""
# What stands for programs that need an engine or a Kubernetes. `create secret` keeps the files,
# which must be there; `apply -k` starts a cluster with those keys in the place of the last one; `exec`
# runs what it is given.
NOTED = '#!/bin/sh\necho "${0##*/} $*" >> "$HOME/noted"\n'
KUBECTL = """#!/bin/bash
set -eu
echo "kubectl $*" >> "$HOME/noted"
pods="$HOME/pods" secrets="$HOME/secrets"
case " $* " in
  *" create secret generic "*)
    said="$*"; said=${said#* generic }; name=${said%% *}
    mkdir -p "$secrets/$name"
    for word in "$@"; do
      case $word in --from-file=*) cp "${word#*=}" "$secrets/$name/" ;; esac
    done ;;
  *" apply -k "*)
    if [ -f "$pods" ]; then
      kill "$(cat "$pods")"
      while kill -0 "$(cat "$pods")" 2>/dev/null; do sleep 0.2; done
    fi
    keys=()
    if [ -d "$secrets/rollcast-scheduler-key" ]; then
      keys=(--curve-secret "$secrets/rollcast-scheduler-key/scheduler.secret"
            --curve-clients "$secrets/rollcast-scheduler-key/clients"
            --data-key "$secrets/rollcast-data-key/data.secret"
            --tls-cert "$secrets/rollcast-tls/tls.crt" --tls-key "$secrets/rollcast-tls/tls.key"
            --tls-ca "$secrets/rollcast-tls/ca.crt")
    fi
    build/rollcast up --model examples/collatz/model --workers 2 "${keys[@]}" >>"$HOME/log" 2>&1 &
    echo $! > "$pods"
    disown
    is_ready ;;
  *" exec "*) while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
  *" -f - "*) cat >> "$HOME/applied" ;;
esac
"""
IS_READY = """#!/bin/bash
# Waits until the scheduler of this network's usual ports has a worker that is ready.
for _ in $(seq 300); do
  if exec 3<>/dev/tcp/127.0.0.1/7452; then
    printf 'GET /readyz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3
    IFS=' ' read -r -t 4 _ code _ <&3 && [ "$code" = 200 ] && exit 0
  fi 2>/dev/null
  sleep 0.2
done
echo "no cluster after a minute" >&2
exit 1
"""
TOOLS = {"python3": PYTHON, "kubectl": KUBECTL, "is_ready": IS_READY, "docker": NOTED,
         "kind": NOTED}
# A network and process ids of its own: the usual ports are free and no cluster of the machine is
# reached, and what a script started in the background dies with it, however it ends.
ALONE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
PIP = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0",
       "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
START = """set -eu
ip link set lo up
trap 'for job in $(jobs -p); do kill -- $job 2>/dev/null || true; done; wait' EXIT
ready() { is_ready || exit 1; }  # what was started in the background answers
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
    out = [START, before]
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
        for name in ("clients", "dashboards", "deploy", "examples"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignore, symlinks=True)
        shutil.copy(ROOT / "VERSION", tree)
        (tree / "build").mkdir()
        (tree / "build" / "rollcast").symlink_to(BINARY)
        tools = folder / "tools"
        tools.mkdir()
        for name, text in TOOLS.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
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


def anchors_of(text):
    """Of the headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")
            for title in re.findall(r"(?m)^#+ (.*)", prose)}


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
        printed = dict(re.findall(r"(?ms)^### (\S+)\n(.*?)(?=^### |\Z)", said))
        for before, block in zip([None, *blocks], blocks):
            if block.mark in ("sh", "python"):
                self.assertIn(block.where, printed)
            if block.mark == "text output":
                there = [line.rstrip() for line in printed[before.where].splitlines()]
                for line in block.text.splitlines():
                    self.assertIn(line.rstrip(), there, block.where)

    def test_run_make_demo(self):
        """What its recipe does after the build, with one response a prompt."""
        recipe = subprocess.run(["make", "-n", "--no-print-directory", "demo", "GROUP_SIZE=1"],
                                cwd=ROOT, capture_output=True, text=True, check=True).stdout
        lines = recipe.replace("\\\n", " ").splitlines()
        lines = [line for line in lines
                 if not re.match(r"(deploy/install_deps\.sh|cmake|ln)\b", line)]
        self.assertEqual([line.split()[0] for line in lines], ["build/rollcast", "python3"], recipe)
        code, said = run_in_a_copy(START + "\n".join(lines))
        self.assertEqual(code, 0, said[-4000:])
        self.assertIn("200 responses", said)

    def test_the_table_of_sizes_is_what_plan_says(self):
        """Responses of full context on a device, by context, device and profile."""
        text = (ROOT / "deploy" / "SIZING.md").read_text()
        head, rows = re.search(r"(?m)^\| context \| (.*) \|\n\|[-|]+\|\n((?:\|.*\n)+)",
                               text).groups()
        devices, seen = head.split(" | "), 0

        def fit(device, context, profile):
            said = subprocess.run(
                [BINARY, "plan", "--model", ROOT / "deploy" / "sizing" / "qwen3-8b", "--gpu", device,
                 "--context", context, "--numerics", profile, "--json"],
                capture_output=True, text=True, timeout=60)
            return str(json.loads(said.stdout)["fit_full"]) if said.returncode == 0 else "none"

        for row in rows.splitlines():
            context, *cells = row.strip("| ").split(" | ")
            for device, cell in zip(devices, cells):
                both = [fit(device, context, p) for p in ("cpu-bf16-v1", "cpu-f32-v1")]
                wanted = both[0] if both == ["none", "none"] else "{} ({})".format(*both)
                self.assertEqual(cell, wanted, f"{device}, {context}")
                seen += 1
        self.assertEqual(seen, 9)

    def test_fragments_are_python(self):
        for name, text in documents():
            for block in blocks_of(text, name):
                if block.mark.startswith("python"):
                    try:
                        ast.parse(block.text)
                    except SyntaxError as error:
                        self.fail(f"{block.where}: {error}")

    def test_commands_stand_in_blocks(self):
        """Where their flags are looked at: not in lines that are only indented."""
        for name, text in documents():
            prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
            for line in re.findall(r"(?m)^(?: {4,}|\t).*", prose):
                self.assertFalse(list(commands_in(line)), f"{name}: fence this: {line}")

    def test_every_link_leads_somewhere(self):
        seen = 0
        for name, text in documents():
            prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
            for link in re.findall(r"\]\(([^)\s]+)\)", prose):
                if re.match(r"[a-z]+:", link):
                    continue
                path, _, anchor = link.partition("#")
                target = (ROOT / name).parent / path if path else ROOT / name
                self.assertTrue(target.exists(), f"{name}: {link}")
                if anchor:
                    self.assertIn(anchor, anchors_of(target.read_text()), f"{name}: {link}")
                seen += 1
        self.assertGreater(seen, 40)

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
