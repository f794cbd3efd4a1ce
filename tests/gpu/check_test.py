# Goal: the check says what it found: 77 and why where there is no GPU, 1 and which check where one
# fails, 0 where all hold; a summary.json with every check's name, result, figure and unit each
# time; and it never takes longer than it is given.
# Method: the real program on this machine, and a pretended one that answers as it is told.

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
import unittest.mock
from pathlib import Path

import check

HERE = Path(__file__).resolve().parent
TWO_GPUS = "cmp: two GPUs, chunks, migration by NCCL"
BINARY = os.environ.get("ROLLCAST_BINARY")

PRETENDED = """\
    #!/usr/bin/env python3
    import json, os, sys
    from pathlib import Path
    a, says = sys.argv[1:], json.loads(os.environ["SAYS"])
    value = lambda flag: a[a.index(flag) + 1]
    def end(line): print("rollcast: " + line, file=sys.stderr); sys.exit(2)
    if a[0] == "make-model":
        Path(value("--out")).mkdir()
    elif a[0] == "bench":
        if not Path(value("--model")).is_dir():
            if value("--device") == "cuda:0" and says.get("crash"):
                os.abort()
            if value("--device") == "cuda:1" and says.get("second"):
                end(says["second"])
            if value("--device") == "cuda:1" and not says.get("two_gpus"):
                end("there is no GPU 1: the driver shows 1, numbered from 0")
            end(says.get("no_gpu", "none/config.json: cannot open"))
        share = says.get("share", 0.9)
        Path(value("--out")).write_text(json.dumps({
            "machine": {"name": "G", "copy_bytes_per_s": 4e12, "bf16_flops_per_s": 7e14},
            "products": {"1": {"exact_us": 2.0, "cublaslt_us": 2.0, "price": 0.0},
                         "64": {"exact_us": 3.0}},
            "cuda-bf16-v1": {"prefill_tokens_per_s": 1.0, "fma_share": {"prefill": share},
                             "decode_tokens_per_s": {"1": 1.0, "64": 2.0},
                             "bandwidth_share": {"1": share, "64": share}}}
            | ({} if says.get("no_fast") else {
                "cuda-bf16-fast-v1": {"prefill_tokens_per_s": 1.1,
                                      "decode_tokens_per_s": {"1": 1.0, "64": 2.5}},
                "price": {"decode": {"1": 0.0, "64": says.get("price", 0.15)},
                          "prefill": 0.1}})))
    elif a[0] == "run":
        out = Path(value("--out"))
        out.mkdir()
        other = says.get("differs") and "--force-migration" in a
        (out / "responses.jsonl").write_text("other" if other else "same")
        (out / "summary.json").write_text(json.dumps({"tokens": 12 * 4 * 96}))
    elif a[0] == "scheduler":
        import http.server
        class Metrics(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                members = len(list(Path(__file__).parent.glob("worker-*")))
                self.wfile.write(f"rollcast_collective_members {members}\\n"
                                 f'rollcast_migrations_total{{path="nccl"}} {says["two_gpus"]}\\n'
                                 .encode())
            def log_message(self, *_): pass
        http.server.HTTPServer(("127.0.0.1", int(value("--metrics-port"))), Metrics).serve_forever()
    elif a[0] == "worker":
        import time
        print("a worker on " + value("--device"), file=sys.stderr, flush=True)
        (Path(__file__).parent / ("worker-" + value("--device"))).touch()
        time.sleep(60)
    else:
        print("scored 1 tokens: max abs difference 0, mean 0")
    """


# All that its filter names; without one that there is a test.
RAN_ALL = """
    for test in $(echo "${1:-one.test}" | sed 's/.*=//; s/:/ /g'); do
    echo "[       OK ] $test (1 ms)"
    done"""


class Checking(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name)

    def check(self, build, *flags, **says):
        nccl = self.root / "nccl"
        nccl.mkdir(exist_ok=True)
        (nccl / "libnccl.so.2").touch()
        done = subprocess.run([HERE / "run.sh", build, "--out", self.root / "out", *flags],
                              env=os.environ | {"SAYS": json.dumps(says),
                                                "LD_LIBRARY_PATH": str(nccl)},
                              capture_output=True, text=True, timeout=200)
        summary = self.root / "out" / "summary.json"
        checks = json.loads(summary.read_text())["checks"] if summary.exists() else []
        for check in checks:
            self.assertLessEqual({"name", "result", "figure", "unit"}, set(check))
            self.assertIn(check["result"], ("pass", "fail", "skip"))
        return done, {check["name"]: check for check in checks}

    def pretended(self):
        build = self.root / "build"
        build.mkdir()
        (build / "rollcast").write_text(textwrap.dedent(PRETENDED))
        (build / "rollcast").chmod(0o755)
        return build

    def sut(self, build, seconds):
        """A check of that build in this process."""
        return check.Check(argparse.Namespace(out=self.root, shape="", seconds=seconds, device=None,
                                              only=check.CHECKS), build, self.root)


class CheckTest(Checking):
    def build_whose_tests_say(self, says):
        """A pretended build with test programs that are those scripts."""
        build = self.pretended()
        (build / "gpu_tests").mkdir()
        for name, script in says.items():
            program = build / "gpu_tests" / name
            program.write_text("#!/bin/sh\n" + "".join(line.strip() + "\n"
                                                      for line in script.splitlines()))
            program.chmod(0o755)
        return build

    def sanitized(self, build):
        """Checks it with a pretended tool; returns how that was called too."""
        tools = self.root / "tools"
        tools.mkdir()
        tool = tools / "compute-sanitizer"
        tool.write_text(f'#!/bin/sh\necho "$@" >> {self.root}/sanitized\nshift 4\nexec "$@"\n')
        tool.chmod(0o755)
        with unittest.mock.patch.dict(os.environ, PATH=f"{tools}:{os.environ['PATH']}"):
            _, checks = self.check(build)
        return (self.root / "sanitized").read_text().splitlines(), checks

    def test_a_gpu_on_which_all_holds_is_0(self):
        done, checks = self.check(self.pretended())
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(checks["score"]["figure"], "0")
        self.assertEqual(checks["decode, batch 64"]["result"], "pass")
        self.assertEqual(checks["golden bits"]["result"], "skip")
        self.assertEqual(checks["tests on the GPU"]["result"], "skip")
        self.assertEqual(checks["price of exact products, 64 rows"]["result"], "skip")
        self.assertEqual(checks["price of exactness, decode, batch 64"]["figure"], 0.15)
        self.assertEqual(checks["price of exactness, prefill"]["result"], "pass")
        self.assertEqual(sum(name.startswith("cmp: ") for name in checks), 5)
        for words in "there is no GPU 1: the driver shows 1", "two ranks of NCCL cannot share":
            self.assertIn(words, checks[TWO_GPUS]["detail"])

    def test_a_gpu_of_a_number_is_the_one_that_is_named_and_hides_the_others(self):
        tools = self.root / "tools"
        tools.mkdir()
        (tools / "nvidia-smi").write_text('#!/bin/sh\n[ "$3" = --id=3 ] && echo "GPU three, 9.0"\n')
        (tools / "nvidia-smi").chmod(0o755)
        with unittest.mock.patch.dict(os.environ, PATH=f"{tools}:{os.environ['PATH']}"):
            done, checks = self.check(self.pretended(), "--device", "3")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn('"9.0 qwen3-0.6b-6"', checks["golden bits"]["detail"])
        self.assertIn("--device 3 hides all others", checks[TWO_GPUS]["detail"])
        self.assertNotIn("share", checks[TWO_GPUS]["detail"])

    def test_a_second_gpu_that_is_no_good_is_1_and_the_reason(self):
        done, checks = self.check(self.pretended(), second="GPU 1, Old, is sm_70")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(checks[TWO_GPUS]["result"], "fail")
        self.assertIn("ended with 2: GPU 1, Old, is sm_70", checks[TWO_GPUS]["detail"])

    def test_a_program_that_crashes_is_1_and_not_77(self):
        build = self.pretended()
        for says in {"crash": True}, {"no_gpu": "the GPU cannot be asked: out of memory"}:
            done, checks = self.check(build, **says)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertEqual(checks["GPU"]["result"], "fail")
            self.assertRegex(checks["GPU"]["detail"], "ended with -6: it said nothing|"
                             "ended with 2: the GPU cannot be asked")

    def test_two_gpus_must_move_kv_by_nccl(self):
        _, checks = self.check(self.pretended(), two_gpus=7)
        self.assertEqual((checks[TWO_GPUS]["result"], checks[TWO_GPUS]["figure"]), ("pass", 7))

    def test_what_workers_on_two_gpus_say_is_kept_beside_the_results(self):
        self.check(self.pretended(), two_gpus=7)
        for gpu in 0, 1:
            said = (self.root / "out" / f"two-gpus-gpu-{gpu}.log").read_text()
            self.assertEqual(said, f"a worker on cuda:{gpu}\n")

    def test_two_gpus_without_nccl_are_a_skip_with_its_reason(self):
        os.environ["SAYS"] = json.dumps({"two_gpus": 7})
        self.addCleanup(os.environ.pop, "SAYS")
        with unittest.mock.patch.object(check, "find_nccl", return_value=("", [])):
            sut = self.sut(self.pretended(), 60)
            with contextlib.redirect_stdout(io.StringIO()):
                sut.two_gpus(None, None, None)
        self.assertEqual([c["result"] for c in sut.checks], ["skip"])
        self.assertIn("no libnccl.so.2 in LD_LIBRARY_PATH", sut.checks[0]["detail"])

    def test_nccl_is_looked_for_where_it_may_be(self):
        def library(*at):
            folder = self.root.joinpath(*at)
            folder.mkdir(parents=True)
            (folder / "libnccl.so.2").touch()
            return str(folder)
        tools = self.root / "tools"
        tools.mkdir()
        def cached(line):
            (tools / "ldconfig").write_text(f"#!/bin/sh\necho '{line}'\n")
            (tools / "ldconfig").chmod(0o755)
        environment = {"PATH": str(tools)}
        cached("libnccl.so.2.1 (libc6,x86-64) => /elsewhere/libnccl.so.2.1")
        with unittest.mock.patch.object(check, "NCCL_PLACES", [f"{self.root}/cuda*/lib64"]), \
                unittest.mock.patch.object(check, "python_roots", lambda: [f"{self.root}/python"]):
            self.assertEqual(check.find_nccl(environment), ("", []))
            python = library("python", "nvidia", "nccl", "lib")
            self.assertEqual(check.find_nccl(environment), (f"{python}/libnccl.so.2", [python]))
            cuda = library("cuda-13", "lib64")
            self.assertEqual(check.find_nccl(environment), (f"{cuda}/libnccl.so.2", [cuda]))
            cached("\tlibnccl.so.2 (libc6,x86-64) => /lib/libnccl.so.2")
            self.assertEqual(check.find_nccl(environment), ("/lib/libnccl.so.2", []))
            told = library("told")
            environment["LD_LIBRARY_PATH"] = f":/nowhere:{told}"
            self.assertEqual(check.find_nccl(environment), (f"{told}/libnccl.so.2", []))

    def test_the_sanitizer_looks_at_drafts_too(self):
        build = self.build_whose_tests_say({"cuda_kernels_check": RAN_ALL,
                                            "cuda_backend_check": RAN_ALL})
        ran, checks = self.sanitized(build)
        self.assertEqual(len(ran), 6)
        for program, folder in ("backend", "backend_cuda"), ("kernels", "cuda"):
            name = f"cuda_{program}_check"
            self.assertEqual(checks[f"compute-sanitizer racecheck, {name}"]["result"], "pass")
            sources = "".join(source.read_text()
                              for source in (HERE.parent / "unit" / folder).glob("*_test.cpp"))
            line = next(line for line in ran if name in line)
            for test in check.SANITIZED[name]:
                self.assertIn(test, line)
                suite, test = test.removeprefix("families/").removesuffix("/qwen3").split(".")
                self.assertRegex(sources, rf"TEST(_F|_P|)\({suite}, {test}\)")
        self.assertIn("has_the_same_bits_with_drafts",
                      "".join(check.SANITIZED["cuda_backend_check"]))

    def test_a_sanitizer_whose_tests_are_not_there_is_1(self):
        build = self.build_whose_tests_say({"cuda_kernels_check": RAN_ALL,
                                     "cuda_backend_check": 'echo "[       OK ] other.test (1 ms)"'})
        _, checks = self.sanitized(build)
        failed = checks["compute-sanitizer initcheck, cuda_backend_check"]
        self.assertEqual(failed["result"], "fail")
        self.assertIn("not run, or skipped: families/cuda_rollout.has_the_same", failed["detail"])
        sound = checks["compute-sanitizer initcheck, cuda_kernels_check"]
        self.assertEqual(sound["result"], "pass")

    def test_tests_on_the_gpu_that_skip_are_listed_and_a_program_without_any_is_1(self):
        done, checks = self.check(self.build_whose_tests_say({
            "cuda_kernels_check": "echo '[==========] 0 tests from 0 test suites ran.'",
            "cuda_backend_check": """cat <<'end'
            [       OK ] cuda_device.one (3 ms)
            [ RUN      ] nccl.a_group_of_one
            one_rank_test.cpp:40: Skipped
            no libnccl.so.2 in the loader's path

            [  SKIPPED ] nccl.a_group_of_one (0 ms)
            [  PASSED  ] 1 test.
            [  SKIPPED ] 1 test, listed below:
            [  SKIPPED ] nccl.a_group_of_one
            end"""}))
        self.assertEqual(done.returncode, 1)
        self.assertEqual((checks["cuda_kernels_check"]["result"],
                          checks["cuda_kernels_check"]["detail"]), ("fail", "it ran no test"))
        self.assertEqual((checks["cuda_backend_check"]["result"],
                          checks["cuda_backend_check"]["figure"]), ("pass", 1))
        skipped = checks["cuda_backend_check: skipped"]
        self.assertEqual((skipped["result"], skipped["figure"], skipped["detail"]),
                         ("skip", 1, "nccl.a_group_of_one: no libnccl.so.2 in the loader's path"))

    def test_two_gpus_that_move_nothing_by_nccl_are_1(self):
        done, checks = self.check(self.pretended(), two_gpus="0")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(checks[TWO_GPUS]["result"], "fail")

    def test_bits_that_differ_are_1_and_named(self):
        done, checks = self.check(self.pretended(), differs=True)
        self.assertEqual(done.returncode, 1)
        self.assertEqual([name for name, check in checks.items() if check["result"] == "fail"],
                         ["cmp: two workers, chunks, migration"])

    def test_figures_that_are_too_low_are_1(self):
        done, checks = self.check(self.pretended(), share=0.65)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(checks["decode, batch 1"]["result"], "fail")
        self.assertEqual(checks["decode, batch 64"]["result"], "pass")

    def test_a_price_that_is_too_high_is_1(self):
        done, checks = self.check(self.pretended(), price=0.25)
        self.assertEqual(done.returncode, 1)
        self.assertEqual([name for name, check in checks.items() if check["result"] == "fail"],
                         ["price of exactness, decode, batch 64"])
        self.assertIn("2 against 2 tokens/s, qwen3-8b",
                      checks["price of exactness, decode, batch 64"]["detail"])

    def test_without_the_makers_library_there_is_no_price(self):
        done, checks = self.check(self.pretended(), no_fast=True)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(checks["price of exactness"]["result"], "skip")

    def test_time_that_is_up_is_a_skip(self):
        done, checks = self.check(self.pretended(), "--seconds", "50")
        self.assertEqual(checks["figures"]["result"], "skip")
        self.assertIn("it needs about", checks["figures"]["detail"])

    def test_time_that_is_up_inside_a_check_is_a_skip_and_its_own_limit_a_failure(self):
        sleeps = self.build_whose_tests_say({"cuda_kernels_check": "exec sleep 30"})
        os.environ["SAYS"] = "{}"
        self.addCleanup(os.environ.pop, "SAYS")
        sut = self.sut(sleeps, 10)
        with contextlib.redirect_stdout(io.StringIO()), \
                unittest.mock.patch.object(sut, "all", lambda: [("tests", sut.test_programs, 1)]):
            self.assertEqual(sut.go(), 1, "nothing passed: it may hang")
        self.assertEqual([(c["name"], c["result"]) for c in sut.checks], [("tests", "skip")])
        sut = self.sut(sleeps, 10)
        with contextlib.redirect_stdout(io.StringIO()), \
                unittest.mock.patch.object(sut, "all", lambda: [
                    ("figures", lambda: sut.say("figures", "pass"), 1),
                    ("tests", sut.test_programs, 1)]):
            self.assertEqual(sut.go(), 0, sut.checks)
        self.assertIn("no time left of the whole after", sut.checks[-1]["detail"])
        self.assertGreater(sut.left(), 0)
        self.assertEqual(self.sut(sleeps, 60).run(["sleep", 30], 0.1),
                         (-1, "", "took longer than 0 s"))

    def test_without_time_to_ask_for_the_gpu_it_is_1(self):
        done, checks = self.check(self.pretended(), "--seconds", "1")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(checks["GPU"]["detail"], "no time left of the whole")

    def test_a_group_that_has_no_time_to_form_is_a_skip(self):
        with self.assertRaises(check.Out_of_time):
            self.sut(self.pretended(), 2.2).wait_for(check.free_ports(1)[0], "members", 2, 45)

    def test_processes_that_do_not_end_are_killed_and_reaped_in_time(self):
        deaf = [subprocess.Popen(["sh", "-c", "trap '' TERM; echo; while :; do sleep 0.1; done"],
                                 stdout=subprocess.PIPE) for _ in range(3)]
        for process in deaf:
            process.stdout.readline() # it ignores the signal from here on
            self.addCleanup(process.stdout.close)
            self.addCleanup(process.kill)
        began = time.monotonic()
        check.end_all(deaf, 0.5)
        self.assertLess(time.monotonic() - began, 10)
        self.assertEqual([process.returncode for process in deaf], [-9] * 3)

    def test_only_what_is_asked_for_is_checked(self):
        done, checks = self.check(self.pretended(), "--only", "tests,figures")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(checks["rollouts"]["detail"], "--only leaves it out")
        self.assertEqual(checks["sanitizer"]["detail"], "--only leaves it out")
        self.assertEqual(checks["decode, batch 1"]["result"], "pass")
        self.assertEqual(checks["tests on the GPU"]["result"], "skip")
        done, _ = self.check(self.root / "build", "--only", "sanitiser")
        self.assertEqual(done.returncode, 2)
        self.assertIn("there is no sanitiser; there are tests, rollouts,", done.stderr)

    def test_no_gpu_is_77_and_the_reason(self):
        why = "no GPU: the driver says nothing; use --device cpu"
        done, checks = self.check(self.pretended(), no_gpu=why)
        self.assertEqual(done.returncode, 77)
        self.assertEqual({check["result"] for check in checks.values()}, {"skip"})
        self.assertEqual({check["detail"] for check in checks.values()}, {why})
        self.assertIn(f"nothing was checked, there is no GPU: {why}", done.stdout)

    def test_no_build_is_2(self):
        done, _ = self.check(self.root / "nowhere")
        self.assertEqual(done.returncode, 2)
        self.assertIn("neither a build folder", done.stderr)


class ProgramTest(Checking):
    @unittest.skipUnless(BINARY, "ROLLCAST_BINARY names no program")
    def test_the_program_of_this_build_says_why_there_is_no_gpu(self):
        build = self.root / "build"
        build.mkdir()
        (build / "rollcast").symlink_to(BINARY)
        done, checks = self.check(build, "--seconds", "60")
        if done.returncode != 77:
            self.skipTest("this machine has a GPU: run tests/gpu/run.sh")
        for check in checks.values():
            self.assertRegex(check["detail"], "no GPU: the driver|this build has no CUDA")


if __name__ == "__main__":
    sys.exit(unittest.main())
