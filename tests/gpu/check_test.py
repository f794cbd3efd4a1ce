# Goal: the check says what it found: 77 and why where there is no GPU, 1 and which check where one
# fails, 0 where all hold; a summary.json with every check's name, result, figure and unit each
# time; and it never takes longer than it is given.
# Method: the real program on this machine, and a pretended one that answers as it is told.

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

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
                self.wfile.write(b"rollcast_collective_members 2\\n"
                                 + f'rollcast_migrations_total{{path="nccl"}} {says["two_gpus"]}\\n'
                                 .encode())
            def log_message(self, *_): pass
        http.server.HTTPServer(("127.0.0.1", int(value("--metrics-port"))), Metrics).serve_forever()
    elif a[0] == "worker":
        import time
        time.sleep(60)
    else:
        print("scored 1 tokens: max abs difference 0, mean 0")
    """


class CheckTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name)

    def check(self, build, *flags, **says):
        done = subprocess.run([HERE / "run.sh", build, "--out", self.root / "out", *flags],
                              env=os.environ | {"SAYS": json.dumps(says)}, capture_output=True,
                              text=True, timeout=200)
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
        self.assertIn("two ranks of NCCL cannot share it", checks[TWO_GPUS]["detail"])

    def test_two_gpus_must_move_kv_by_nccl(self):
        _, checks = self.check(self.pretended(), two_gpus=7)
        self.assertEqual((checks[TWO_GPUS]["result"], checks[TWO_GPUS]["figure"]), ("pass", 7))

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
