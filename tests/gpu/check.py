"""What must hold on a GPU; `run.sh` says how it is called and what its exit codes mean.

Each check has a limit of its own, and all of them end before the whole does: one that would not is
skipped, and says so. Nothing is written but in --out and in a scratch folder that is removed.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
NO_GPU = 77
# What --only takes: the first words of the checks' names.
CHECKS = ["tests", "rollouts", "figures", "sanitizer"]
# What the program says, with exit code 2, where there is none. Anything else is no reason to pass.
NO_GPU_WORDS = re.compile(r"no GPU: |there is no GPU \d|this build has no CUDA")
# A rollout that is over in seconds: its bits are held, not its speed.
SMALL_SHAPE, SMALL_LAYERS = "qwen3-0.6b", 6
# What the checks of figures ask for, as shares of what the GPU was measured to do.
DECODE_1, DECODE_64, PREFILL, PRICE = 0.75, 0.60, 0.50, 0.20
KV = ["--kv-blocks", "1024"]
ROLLOUTS = {
    "batch of 1": ["--max-batch", "1", *KV],
    "rows of 64, blocks of 64": ["--prefill-rows", "64", "--block-tokens", "64", *KV],
    "two workers, chunks, migration": ["--workers", "2", "--chunk-tokens", "24",
                                       "--force-migration", *KV],
    # Each takes its share of the memory.
    "two workers, chunks, drafts": ["--workers", "2", "--chunk-tokens", "40", "--speculate",
                                    "group", "--draft-width", "2"],
}
# Where a build folder has them; an archive has them in gpu_tests/.
TESTS = ["tests/unit/cuda/cuda_kernels_check", "tests/gpu/cuda_backend_check"]
# Of the kernels alone one of each kind, and small: a sanitizer takes a hundred times as long.
SANITIZED = {
    "cuda_backend_check": ["families/cuda_rollout.is_scored_with_its_own_bits/qwen3",
                           "families/cuda_rollout.has_the_same_bits_with_drafts/qwen3"],
    "cuda_kernels_check": ["cuda_attention.merges_splits_from_the_first",
                           "cuda_gemm.keeps_a_bad_row_to_itself",
                           "cuda_kv.packs_and_unpacks_images",
                           "cuda_rows.qkv_rope_append_has_the_cpus_bits",
                           "cuda_sampling.leaves_out_banned_tokens"],
}


class Out_of_time(Exception):
    pass


class Check:
    def __init__(self, arguments, build, scratch):
        self.program = build / "rollcast"
        self.tests = [p for name in TESTS for p in (build / "gpu_tests" / Path(name).name,
                                                    build / name) if os.access(p, os.X_OK)]
        self.scratch = scratch
        self.out = arguments.out
        self.shape = arguments.shape
        self.only = arguments.only
        self.end = time.monotonic() + arguments.seconds
        self.checks = []
        self.was_late = False  # a check was cut short by the end of the whole
        self.gpu = ""
        self.environment = dict(os.environ)
        self.nccl, nccl_folders = find_nccl(self.environment)
        folders = [str(build / "lib")] + cublaslt_folders() \
            + self.environment.get("LD_LIBRARY_PATH", "").split(":") + nccl_folders
        self.environment["LD_LIBRARY_PATH"] = ":".join(f for f in folders if f)
        self.device = arguments.device
        self.environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID" # as nvidia-smi counts them
        if self.device is not None:
            self.environment["CUDA_VISIBLE_DEVICES"] = str(self.device)

    # -- telling ------------------------------------------------------------------

    def say(self, name, result, detail="", figure=None, unit=""):
        self.checks.append({"name": name, "result": result, "figure": figure, "unit": unit,
                            "detail": detail})
        print(f"{result:4}  {name}" + (f": {detail}" if detail else ""), flush=True)

    def says(self, name, good, figure, unit, detail=""):
        self.say(name, "pass" if good else "fail", detail, figure, unit)

    # -- running ------------------------------------------------------------------

    def left(self):
        return self.end - time.monotonic()

    def run(self, command, limit):
        """Returns (exit code, stdout, stderr); raises when the whole has no time for it, or no more
        before its own limit is up."""
        whole = self.left() - 2
        if whole <= 0:
            raise Out_of_time("no time left of the whole")
        cut, limit = whole < limit, min(whole, limit)
        try:
            done = subprocess.run([str(word) for word in command], env=self.environment,
                                  capture_output=True, text=True, errors="replace",
                                  timeout=limit, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            if cut:
                raise Out_of_time(f"no time left of the whole after {limit:.0f} s of it") from None
            return -1, "", f"took longer than {limit:.0f} s"
        return done.returncode, done.stdout, done.stderr

    def look_for_gpu(self, number=0):
        """Returns whether it is "there", "none" or "broken", and the program's own word if it is
        not there. The program asks for it before it reads a model."""
        code, _, words = self.run([self.program, "bench", "engine", "--device", f"cuda:{number}",
                                   "--model", self.scratch / "none"], 60)
        line = last_line(words).removeprefix("rollcast: ")
        if code == 2 and "config.json" in line: # it goes on to the model, and fails for want of it
            return "there", ""
        if code == 2 and NO_GPU_WORDS.match(line):
            return "none", line
        return "broken", f"asking for GPU {number} ended with {code}: {line}"

    def name_of_gpu(self):
        visible = self.environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        code, words, _ = self.run(["nvidia-smi", "--query-gpu=name,compute_cap",
                                   "--format=csv,noheader", f"--id={visible or 0}"], 30) \
            if shutil.which("nvidia-smi") else (1, "", "")
        return words.splitlines()[0] if code == 0 and words else "a GPU without nvidia-smi"

    # -- checks -------------------------------------------------------------------

    def all(self):
        """Every check by name, with what it takes of the time."""
        return [("tests on the GPU", self.test_programs, 20),
                ("rollouts", self.rollouts, 30),
                ("figures", self.figures, 60),
                ("sanitizer", self.sanitizer, 30)]

    def wanted(self, name):
        return name.split()[0] in self.only

    def skip_all(self, why):
        for name, _, _ in self.all():
            self.say(name, "skip", why)

    def go(self):
        try:
            found, why = self.look_for_gpu()
            self.gpu = self.name_of_gpu() if found == "there" else ""
        except Out_of_time as late:
            found, why = "broken", str(late)
        if found == "none":
            self.skip_all(why)
            return NO_GPU
        if found == "broken":
            self.say("GPU", "fail", why)
            self.skip_all("the GPU cannot be asked for")
            return 1
        for name, check, needs in self.all():
            if not self.wanted(name):
                self.say(name, "skip", "--only leaves it out")
                continue
            if self.left() < needs:
                self.say(name, "skip", f"{self.left():.0f} s are left, it needs about {needs}")
                continue
            try:
                check()
            except Out_of_time as late:
                self.was_late = True
                self.say(name, "skip", str(late))
        results = {c["result"] for c in self.checks}
        return 1 if "fail" in results or (self.was_late and "pass" not in results) else 0

    def test_programs(self):
        if not self.tests:
            self.say("tests on the GPU", "skip", "the build has none: it has no CUDA, or they were "
                     "not built")
        for program in self.tests:
            code, words, errors = self.run([program], 90)
            failed = ", ".join(sorted(named(words, "[  FAILED  ]")))
            passed = len(named(words, "[       OK ]"))
            why = failed or (last_line(errors) if code else "" if passed else "it ran no test")
            self.says(program.name, code == 0 and passed > 0, passed, "tests passed", why)
            skipped = named(words, "[  SKIPPED ]")
            if skipped:
                self.say(f"{program.name}: skipped", "skip",
                         "; ".join(f"{test}: {why}" for test, why in sorted(skipped.items())),
                         len(skipped), "tests")

    def make_model(self, shape, layers, limit):
        place = self.scratch / f"{shape}-{layers}"
        code, _, errors = self.run([self.program, "make-model", "--shape", shape, "--layers",
                                    layers, "--out", place], limit)
        return place, "" if code == 0 else last_line(errors)

    def rollouts(self):
        model, why = self.make_model(SMALL_SHAPE, SMALL_LAYERS, 60)
        if why:
            self.say("rollouts", "fail", why)
            return
        prompts = write_prompts(self.scratch / "prompts.jsonl")
        reference = self.rollout(model, prompts, "one worker", KV)
        if reference is None:
            return
        digest = hashlib.sha256(reference.read_bytes()).hexdigest()
        self.golden(digest)
        for name, flags in ROLLOUTS.items():
            other = self.rollout(model, prompts, name, flags)
            if other is not None:
                same = other.read_bytes() == reference.read_bytes()
                self.says(f"cmp: {name}", same, int(not same), "files that differ",
                          "" if same else f"{other} differs from {reference}")
        self.two_gpus(model, prompts, reference)
        code, words, errors = self.run([self.program, "score", "--model", model, "--device",
                                        "cuda:0", "--responses", reference, *KV],
                                       60)
        difference = words.split("max abs difference ")[-1].split(",")[0] if code in (0, 1) else ""
        self.says("score", code == 0, difference or None, "largest difference",
                  "" if code == 0 else last_line(words + errors))

    def rollout(self, model, prompts, name, flags, door=None):
        """By workers of its own, or by those behind `door`."""
        where = ["--connect", door] if door else ["--model", model, "--device", "cuda:0"]
        out = self.scratch / ("out-" + name.replace(" ", "-").replace(",", ""))
        code, _, errors = self.run(
            [self.program, "run", *where, "--prompts", prompts, "--group-size", 4,
             "--max-new-tokens", 96, "--ignore-eos", "--seed", 7, "--out", out, *flags], 60)
        if code != 0:
            self.say(f"run: {name}", "fail", last_line(errors))
            return None
        if flags == KV:
            tokens = json.loads((out / "summary.json").read_text())["tokens"]
            self.says(f"run: {name}", tokens == 12 * 4 * 96, tokens, "tokens")
        return out / "responses.jsonl"

    def two_gpus(self, model, prompts, reference):
        """A worker on each of two GPUs: their KV must go by NCCL, and no bit may differ."""
        name = "cmp: two GPUs, chunks, migration by NCCL"
        found, why = self.look_for_gpu(1)
        if found == "broken":
            self.say(name, "fail", why)
            return
        if found == "none":
            self.say(name, "skip", f"{why}; " + (
                "two ranks of NCCL cannot share a GPU, so the KV of the two workers above went by "
                "ZeroMQ" if self.device is None else f"--device {self.device} hides all others"))
            return
        if not self.nccl:
            self.say(name, "skip", f"no {NCCL} in LD_LIBRARY_PATH, the loader's cache, "
                     f"{', '.join(NCCL_PLACES)} or Python's packages: all goes by ZeroMQ")
            return
        ports = free_ports(3)
        door = f"tcp://127.0.0.1:{ports[0]}"
        roles = [["scheduler", "--listen", door, "--control-port", ports[1], "--metrics-port",
                  ports[2]]]
        roles += [["worker", "--model", model, "--device", f"cuda:{gpu}", "--kv-blocks", 1024,
                   "--scheduler-port", ports[1], "--collectives", "nccl"] for gpu in (0, 1)]
        logs = [self.out / f"two-gpus-{role}.log" for role in ("scheduler", "gpu-0", "gpu-1")]
        running = []
        try:
            for role, log in zip(roles, logs):
                with open(log, "w") as words:
                    running.append(subprocess.Popen(
                        [str(word) for word in [self.program, *role]], env=self.environment,
                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words))
            formed = self.wait_for(ports[2], "rollcast_collective_members", 2, 45)
            other = self.rollout(model, prompts, name, ["--chunk-tokens", "24",
                                                        "--force-migration"],
                                 door) if formed else None
            moved = read_metric(ports[2], 'rollcast_migrations_total{path="nccl"}')
        finally:
            end_all(running, min(10, self.left() - 2))
        if other is None:
            if not formed:
                ends = "; ".join(f"{log.name}: {last_line(log.read_text(errors='replace'))}"
                                 for log in logs)
                self.say(name, "fail", f"no group of two formed with {self.nccl}; {ends}")
            return
        same = other.read_bytes() == reference.read_bytes()
        self.says(name, same and moved > 0, moved, "responses moved by NCCL",
                  f"{other} differs from {reference}" if not same
                  else "" if moved > 0 else f"all went by ZeroMQ, {self.out} has the workers' logs")

    def wait_for(self, port, metric, least, limit):
        until = time.monotonic() + limit
        while time.monotonic() < until:
            if read_metric(port, metric) >= least:
                return True
            if self.left() < 2:
                raise Out_of_time(f"no time left of the whole to wait for {metric}")
            time.sleep(0.2)
        return False

    def golden(self, digest):
        key = f"{self.gpu.split(', ')[-1]} {SMALL_SHAPE}-{SMALL_LAYERS}"
        known = json.loads((HERE / "golden.json").read_text()).get(key)
        if known is None:
            self.say("golden bits", "skip", f'none recorded; golden.json wants "{key}": "{digest}"')
        else:
            self.says("golden bits", known == digest, digest, "sha256",
                      "" if known == digest else f"recorded is {known}")

    def figures(self):
        layers = 0
        free = shutil.disk_usage(self.scratch).free
        if free < 20e9: # bytes; the shape keeps its width, which is what the shares depend on
            layers = 4
        model, why = self.make_model(self.shape, layers, 150)
        if why:
            self.say("figures", "fail", why)
            return
        out = self.scratch / "bench.json"
        code, _, errors = self.run([self.program, "bench", "engine", "--device", "cuda:0",
                                    "--model", model, "--repeats", 2, "--out", out], 210)
        shutil.rmtree(model, ignore_errors=True)
        if code != 0:
            self.say("figures", "fail", last_line(errors))
            return
        self.judge(json.loads(out.read_text()), f"{self.shape}, {layers or 'all'} layers")

    def judge(self, bench, what):
        machine, cuda = bench["machine"], bench["cuda-bf16-v1"]
        self.say("copy bandwidth", "pass", machine["name"], machine["copy_bytes_per_s"],
                 "bytes read and written/s")
        fast = machine["bf16_flops_per_s"]
        self.say("bf16 matrix rate", "pass" if fast else "skip",
                 machine.get("without_cublaslt", "cuBLASLt"), fast or None, "operations/s")
        for rows, least in ("1", DECODE_1), ("64", DECODE_64):
            share = cuda["bandwidth_share"][rows]
            self.says(f"decode, batch {rows}", share >= least, share, "share of copy bandwidth",
                      f"{cuda['decode_tokens_per_s'][rows]:.0f} tokens/s, {what}")
        share = cuda["fma_share"]["prefill"]
        if fast:
            self.says("prefill", share >= PREFILL, share, "share of matrix rate",
                      f"{cuda['prefill_tokens_per_s']:.0f} tokens/s, {what}")
        else:
            self.say("prefill", "skip", "no matrix rate to hold it against",
                     cuda["prefill_tokens_per_s"], "tokens/s")
        for rows, times in bench["products"].items():
            name = f"price of exact products, {rows} rows"
            if "price" in times:
                self.say(name, "pass", f"{times['exact_us']:.1f} us a layer", times["price"],
                         "of cuBLASLt's time")
            else:
                self.say(name, "skip", "no cuBLASLt", times["exact_us"], "us a layer")
        self.judge_price(bench, what)

    def judge_price(self, bench, what):
        """Whole steps of the exact profile against those of the one that is not."""
        price = bench.get("price")
        if price is None:
            self.say("price of exactness", "skip", "no cuBLASLt, so no profile to hold it against")
            return
        exact, fast = bench["cuda-bf16-v1"], bench["cuda-bf16-fast-v1"]
        for name, more, rate in \
                [(f"decode, batch {batch}", more, lambda b, n=batch: b["decode_tokens_per_s"][n])
                 for batch, more in price["decode"].items()] \
                + [("prefill", price["prefill"], lambda b: b["prefill_tokens_per_s"])]:
            self.says(f"price of exactness, {name}", more is not None and more <= PRICE, more,
                      "more time than the fast profile",
                      f"{rate(exact):.0f} against {rate(fast):.0f} tokens/s, {what}")

    def sanitizer(self):
        tool = shutil.which("compute-sanitizer")
        if tool is None or not self.tests:
            self.say("sanitizer", "skip", "no compute-sanitizer in the PATH" if tool is None
                     else "the build has no tests")
            return
        for program in sorted(self.tests):
            for kind in "memcheck", "racecheck", "initcheck":
                self.sanitize(tool, kind, program)

    def sanitize(self, tool, kind, program):
        tests = SANITIZED[program.name]
        code, words, errors = self.run([tool, "--tool", kind, "--error-exitcode", 9, program,
                                        "--gtest_filter=" + ":".join(tests)], 60)
        missing = set(tests) - set(named(words, "[       OK ]"))
        why = last_line(words + errors) if code else \
            f"not run, or skipped: {', '.join(sorted(missing))}" if missing else ""
        self.says(f"compute-sanitizer {kind}, {program.name}", not why, code, "exit code", why)


# -- small things -------------------------------------------------------------------


def named(words, mark):
    """Tests that a program of GoogleTest gives that mark, each with the line before it: that of a
    skipped one is its reason."""
    out, before = {}, ""
    for line in words.splitlines():
        rest = line.removeprefix(mark)
        if rest != line and " test" not in rest: # the counts at the end
            out.setdefault(rest.split(" (")[0].split(", where")[0].strip(), before)
        before = line.strip() or before
    return out


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def end_all(processes, limit):
    """Asks them to end, kills those that have not after so many seconds together, and reaps all;
    one that a kill does not end within a second is left to the system."""
    until = time.monotonic() + limit
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def read_metric(port, series):
    """Its value; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(series + " "):
                    return float(line.split()[-1])
    except OSError:
        pass
    return 0.0


NCCL = "libnccl.so.2"
NCCL_PLACES = ["/usr/local/cuda*/lib64", "/usr/local/nccl*/lib"]


def python_roots():
    return sys.path + glob.glob("/opt/*/.venv/lib/python3*/site-packages")


def find_nccl(environment):
    """Where the library is, "" if nowhere, and the folders that the loader must be told of."""
    for folder in environment.get("LD_LIBRARY_PATH", "").split(":"):
        if folder and os.path.exists(f"{folder}/{NCCL}"):
            return f"{folder}/{NCCL}", []
    path = environment.get("PATH", "") + ":/sbin:/usr/sbin"
    ldconfig = shutil.which("ldconfig", path=path)
    if ldconfig:
        known = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, errors="replace")
        for line in known.stdout.splitlines():
            name, _, place = line.strip().partition(" => ")
            if name.split(" ")[0] == NCCL:
                return place, []
    places = NCCL_PLACES + [f"{root}/nvidia/nccl/lib" for root in python_roots()]
    for folder in (f for place in places for f in sorted(glob.glob(place))):
        if os.path.exists(f"{folder}/{NCCL}"):
            return f"{folder}/{NCCL}", [folder]
    return "", []


def cublaslt_folders():
    """Where the maker's library may be: the yardstick of products, no part of the program."""
    places = ["/usr/local/cuda*/lib64"]
    for root in python_roots():
        places += [f"{root}/nvidia/cu1*/lib", f"{root}/nvidia/cublas/lib"]
    found = [f for place in places for f in sorted(glob.glob(place))
             if glob.glob(f"{f}/libcublasLt.so.1[23]")]
    return found[:1]


def write_prompts(path):
    draw = random.Random(5)
    with open(path, "w") as out:
        for i in range(12):
            ids = [draw.randrange(1000, 100000) for _ in range(1 + (i * 61) % 700)]
            out.write(json.dumps({"prompt_token_ids": ids}) + "\n")
    return path


def open_build(given, scratch):
    """The folder with the program in it."""
    if given.is_file() and tarfile.is_tarfile(given):
        with tarfile.open(given) as archive:
            archive.extractall(scratch / "build")
        given = scratch / "build" / "rollcast-gpu"
    if not os.access(given / "rollcast", os.X_OK):
        return None
    return given


def table(checks):
    width = max(len(c["name"]) for c in checks)
    print()
    for c in checks:
        figure = c["figure"]
        shown = f"{figure:.4g}" if isinstance(figure, float) else "" if figure is None else figure
        print(f"{c['name']:{width}}  {c['result']:4}  {str(shown)[:24]} {c['unit']}".rstrip())


def checks_of(names):
    names = names.split(",")
    unknown = ", ".join(name for name in names if name not in CHECKS)
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {unknown}; there are {', '.join(CHECKS)}")
    return names


def main():
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh")
    parser.add_argument("build", type=Path, help="build folder, or archive of bundle.sh")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="of summary.json")
    parser.add_argument("--device", type=int, help="number of the GPU; without it the first")
    parser.add_argument("--seconds", type=float, default=480, help="for all of it")
    parser.add_argument("--only", type=checks_of, default=CHECKS, metavar="NAME[,NAME]",
                        help=f"of {', '.join(CHECKS)}; without it all")
    parser.add_argument("--shape", default="qwen3-8b", help="of the figures' model")
    arguments = parser.parse_args()
    began = time.monotonic()
    # Memory if there is enough of it: a model of 16 GB is read several times.
    roomy = os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 40e9
    with tempfile.TemporaryDirectory(prefix="rollcast-gpu-", dir="/dev/shm" if roomy else None) \
            as folder:
        build = open_build(arguments.build.absolute(), Path(folder))
        if build is None:
            print(f"tests/gpu/run.sh: {arguments.build} is neither a build folder with rollcast in "
                  "it nor an archive of tests/gpu/bundle.sh", file=sys.stderr)
            return 2
        arguments.out.mkdir(parents=True, exist_ok=True)
        check = Check(arguments, build, Path(folder))
        code = check.go()
        table(check.checks)
        summary = {"gpu": check.gpu, "seconds": round(time.monotonic() - began, 1),
                   "exit_code": code, "checks": check.checks}
        (arguments.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        counts = {r: sum(c["result"] == r for c in check.checks) for r in ("pass", "fail", "skip")}
        print(f"\n{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped in "
              f"{summary['seconds']} s; {arguments.out / 'summary.json'}")
        if code == NO_GPU:
            print(f"nothing was checked, there is no GPU: {check.checks[0]['detail']} (exit 77)")
        return code


if __name__ == "__main__":
    sys.exit(main())
