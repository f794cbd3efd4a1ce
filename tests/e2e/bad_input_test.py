# Goal: whatever is wrong with what a user gives, the answer is one line on stderr that names it
# and exit code 2, or 3 when a cluster cannot be reached; never a crash, a trace or a hang.
# Method: a table of commands, each with the words that its line must have. Bad checkpoints are made
# from a good one by one change each. A full disk is /dev/full and, where it may be mounted, a small
# tmpfs; what the scheduler has forgotten must then be in a file.

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import unittest


from cluster import (
    COLLATZ,
    FAMILIES,
    LIMIT_S,
    ClusterTest,
    Outcome,
    call,
    first_prompts,
    flags_of,
    ready_workers,
    start,
    wait_until,
    write_lines,
)

QWEN3 = FAMILIES / "qwen3"


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_safetensors(path, header, body):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


class BadInput(ClusterTest):
    def setUp(self):
        super().setUp()
        self.good = write_lines(self.work / "good.jsonl", [{"prompt_token_ids": [1, 2, 3]}])
        self.text = write_lines(self.work / "text.jsonl", [{"prompt": "27:"}])

    def assert_refused(self, said, words, code=2):
        """One line, the right code, in time, with these words."""
        lines = said.err.splitlines()
        self.assertEqual(said.code, code, said)
        self.assertEqual(len(lines), 1, said)
        self.assertTrue(lines[0].startswith("rollcast: "), said)
        self.assertLess(said.seconds, LIMIT_S, said)
        for word in (words,) if isinstance(words, str) else words:
            self.assertIn(word, lines[0])

    def refuse(self, words, *arguments, code=2, **options):
        self.assert_refused(call(*arguments, timeout=LIMIT_S + 5, **options), words, code)

    def refuse_run(self, words, model=QWEN3, prompts=None, code=2, out=None, **settings):
        self.refuse(words, "run", "--model", model, "--prompts", prompts or self.good, "--out",
                    out or self.work / "out", *flags_of({"max_new_tokens": 5, **settings}),
                    code=code)

    def model(self, config=None, header=None, cut=None, body=None):
        """A copy of the good checkpoint with one thing changed."""
        folder = self.work / f"model-{len(list(self.work.iterdir()))}"
        shutil.copytree(QWEN3, folder)
        if config is not None:
            text = json.loads((folder / "config.json").read_text())
            config(text)
            (folder / "config.json").write_text(json.dumps(text))
        weights = folder / "model.safetensors"
        if header is not None or body is not None:
            tensors, data = read_safetensors(weights)
            if header is not None:
                header(tensors)
            write_safetensors(weights, tensors, data if body is None else body(data))
        if cut is not None:
            weights.write_bytes(weights.read_bytes()[:cut])
        return folder

    def test_flags(self):
        for words, flags in (
            ("--no-such-flag", {"no_such_flag": True}),
            ("--policy", {"policy": "fair"}),
            ("cpu-f64-v9", {"numerics": "cpu-f64-v9"}),
            ("mmx", {"instruction_set": "mmx"}),
            ("temperature", {"temperature": -1}),
            ("temperature", {"temperature": "nan"}),
            ("temperature", {"temperature": "inf"}),
            ("--temperature", {"temperature": "warm"}),
            ("top_p", {"top_p": 0}),
            ("top_p", {"top_p": 2}),
            ("min_p", {"min_p": -0.5}),
            ("max_new_tokens 0", {"max_new_tokens": 0}),
            ("--max-new-tokens", {"max_new_tokens": -1}),
            ("--group-size", {"group_size": -1}),
            ("--group-size", {"group_size": 1.5}),
            ("group_size", {"group_size": 0}),
            ("--workers", {"workers": 0}),
            ("--max-batch", {"max_batch": 0}),
            ("block-tokens is 17", {"block_tokens": 17}),
            (("stop_token_ids", "-4"), {"stop_token_ids": -4}),
            (("--seed", "-1"), {"seed": -1}),
            ("--seed", {"seed": 2**64}),
        ):
            with self.subTest(**flags):
                self.refuse_run(words, **flags)
        for words, arguments in (
            ("subcommand", []),
            ("'fly'", ["fly"]),
            ("no-model", ["run", "--model", self.work / "no-model", "--prompts",
                          self.text, "--out", self.work / "o"]),
            ("--prompts", ["run", "--model", QWEN3, "--out", self.work]),
            ("--connect", ["run", "--prompts", self.good, "--out", self.work / "o"]),
            ("--model", ["up"]),
            ("absent.toml", ["scheduler", "--config", self.work / "absent.toml"]),
            ("tcp://", ["status", "--connect", "nonsense"]),
            ("no such file", ["journal", "inspect", "--journal", self.work / "absent"]),
            ("no journal", ["journal", "compact", "--journal", self.text]),
            ("--journal", ["journal", "compact"]),
        ):
            with self.subTest(arguments=arguments):
                self.refuse(words, *arguments)

    def test_config_files(self):
        config = self.work / "c.toml"

        def tokens(*more, environment=None):
            out = self.work / f"out-{len(list(self.work.iterdir()))}"
            said = call("run", "--model", QWEN3, "--prompts", self.good, "--out", out, "--config",
                        config, "--ignore-eos", *more, env=environment)
            self.assertEqual(said.code, 0, said)
            return len(json.loads(self.responses(out).splitlines()[0])["token_ids"])

        for text in ("max-new-tokens = 3\n", "[run]\nmax-new-tokens = 3\n",
                     "[worker]\nthreads = 9\nno-such = 1\n[run]\nmax-new-tokens = 3\n"):
            with self.subTest(text=text):
                config.write_text(text)
                self.assertEqual(tokens(), 3)
                self.assertEqual(tokens("--max-new-tokens", 4), 4, "the command line wins")
                variables = {**os.environ, "ROLLCAST_MAX_NEW_TOKENS": "5"}
                self.assertEqual(tokens(environment=variables), 3, "a variable does not")
        for words, text in (("max-tokens", "max-tokens = 3\n"), ("[ran]", "[ran]\nseed = 1\n"),
                            ("c.toml", "\x00\x01 nonsense\n"), ("c.toml", "[broken\n"),
                            ("--group-size", "group-size = -3\n")):
            with self.subTest(text=text):
                config.write_text(text)
                self.refuse_run(words, config=config)

    def test_a_directory_that_another_run_writes_to(self):
        out = self.work / "shared"
        out.mkdir()
        with open(out / "responses.partial.jsonl", "a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self.refuse_run("another run", out=out)

    def test_responses_that_cannot_be_scored(self):
        record = {"group": 0, "index": 0, "prompt_token_ids": [1], "token_ids": [2],
                  "logprobs": [-1.0], "temperature": 1.0}
        for words, change in (("nothing to score", {"token_ids": [], "logprobs": []}),
                              (("index", "-1"), {"index": -1}),
                              ("temperature", {"temperature": -1}),
                              ("2 logprobs", {"logprobs": [-1.0, -1.0]})):
            with self.subTest(**change):
                path = write_lines(self.work / "r.jsonl", [{**record, **change}])
                self.refuse(words, "score", "--model", QWEN3, "--responses", path)

    def test_checkpoints(self):
        size = (QWEN3 / "model.safetensors").stat().st_size
        norm = "model.norm.weight"

        def reshape(h):
            h[norm]["shape"] = [h[norm]["shape"][0] // 2, 2]

        def extra(h):
            end = max(t["data_offsets"][1] for n, t in h.items() if n != "__metadata__")
            h["model.layers.0.self_attn.q_proj.extra"] = {
                "dtype": "BF16", "shape": [64], "data_offsets": [end, end + 128]}

        def set_key(key, value):
            return lambda c: c.update({key: value})

        def spiral(c):
            c["rope_parameters"].update(rope_type="spiral", factor=2.0)

        # The last tensor of the file: without its bytes there is no gap.
        without_norm = self.model(header=lambda h: h.pop(norm), body=lambda b: b[:-128])
        cases = [
            ("absent", self.work / "absent"),
            ("config.json", self.work),
            ("gemma", self.model(set_key("architectures", ["GemmaForCausalLM"]))),
            ("spiral", self.model(spiral)),
            ("hidden_size", self.model(set_key("hidden_size", -64))),
            ("rms_norm_eps", self.model(set_key("rms_norm_eps", "small"))),
            ("num_hidden_layers", self.model(set_key("num_hidden_layers", 10**9))),
            (norm, without_norm),
            ("q_proj.extra", self.model(header=extra, body=lambda b: b + bytes(128))),
            (norm, self.model(header=reshape)),
            (norm, self.model(header=lambda h: h[norm].update(dtype="F8_E5M2"))),
            (norm, self.model(header=lambda h: h[norm].update(data_offsets=[0, 1 << 60]))),
            ("must be finite", self.model(body=lambda b: b[:-2] + b"\xc0\x7f")),
        ]
        cases += [("model.safetensors", self.model(cut=n))
                  for n in (0, 7, 8, 100, size // 2, size - 1)]
        nan = self.model()
        text = (nan / "config.json").read_text()
        (nan / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06',
                                                      '"rms_norm_eps": NaN'))
        self.assertIn("NaN", (nan / "config.json").read_text())
        cases.append(("config.json", nan))
        cases.append(("rms_norm_eps", self.model(set_key("rms_norm_eps", 0))))
        for words, folder in cases:
            with self.subTest(words=words, model=folder.name):
                said = call("run", "--model", folder, "--prompts", self.good, "--out",
                            self.work / "out", "--max-new-tokens", 5, timeout=LIMIT_S + 5)
                self.assert_refused(said, [])
                self.assertIn(words.lower(), said.err.lower())
        for command in ("up", "score"):
            more = ["--responses", "/dev/null"] if command == "score" else []
            self.refuse("absent", command, "--model", self.work / "absent", *more)
        self.refuse(norm, "worker", "--model", without_norm)

    def test_tokenizers(self):
        prompts = write_lines(self.work / "text.jsonl", [{"prompt": "27:"}])
        for text in ("", "{", "[]", '{"model": {"type": "Unigram"}}', '{"model": 3}', "\xff\xfe"):
            with self.subTest(text=text):
                folder = self.model()
                (folder / "tokenizer.json").write_text(text)
                self.refuse_run("tokenizer", model=folder, prompts=prompts)
        self.refuse_run("tokenizer.json", prompts=prompts)

    def test_prompt_files(self):
        self.refuse_run("absent.jsonl", prompts=self.work / "absent.jsonl")
        self.refuse_run("directory", prompts=self.work)
        empty = self.work / "empty.jsonl"
        empty.write_text("\n")
        self.refuse_run("no prompt", prompts=empty)
        ids = {"prompt_token_ids": [1, 2]}
        for words, line in (
            ("parse", '{"prompt_token_ids": [1,'),
            ("object", "[1]"),
            ("prompt_tokens", {"prompt_tokens": [1]}),
            ("temprature", {**ids, "sampling": {"temprature": 1}}),
            ("empty", {"prompt_token_ids": []}),
            ("-1", {"prompt_token_ids": [-1]}),
            ("1.5", {"prompt_token_ids": [1.5]}),
            ("4294967297", {"prompt_token_ids": [4294967297]}),
            ("either", {**ids, "prompt": "a"}),
            ("group_size", {**ids, "group_size": 0}),
            ("group_size", {**ids, "group_size": -1}),
            ("group_size", {**ids, "group_size": 1.5}),
            ("seed", {**ids, "seed": -5}),
            ("temperature", {**ids, "sampling": {"temperature": -0.1}}),
            ("temperature", {**ids, "sampling": {"temperature": "hot"}}),
            ("temperature", {**ids, "sampling": {"temperature": 1e300}}),
            ("top_p", {**ids, "sampling": {"top_p": 0}}),
            ("top_p", {**ids, "sampling": {"top_p": 2}}),
            ("max_new_tokens", {**ids, "sampling": {"max_new_tokens": 0}}),
            ("sampling", {**ids, "sampling": 3}),
            ("ignore_eos", {**ids, "sampling": {"ignore_eos": "yes"}}),
        ):
            with self.subTest(line=line):
                bad = self.work / "bad.jsonl"
                text = line if isinstance(line, str) else json.dumps(line)
                bad.write_text(json.dumps(ids) + "\n\n" + text + "\n")
                self.refuse_run((words, "bad.jsonl:3"), prompts=bad)
        for words, line in (  # only the cluster knows these limits
            (("group 1", "200"), {"prompt_token_ids": [200]}),
            (("group 1", "300", "256"), {"prompt_token_ids": [1] * 300}),
            (("group 1", "256"), {"prompt_token_ids": [1] * 256}),
        ):
            with self.subTest(words=words):
                self.refuse_run(words, prompts=write_lines(self.work / "b.jsonl", [ids, line]))

    def test_too_few_kv_blocks_for_one_response(self):
        self.refuse_run("KV", kv_blocks=2, max_new_tokens=100)

    def test_spill_space_that_is_not_there(self):
        for change, words in (({"kv_spill_disk_mib": 64, "kv_spill_dir": "/nonexistent"},
                               ("/nonexistent", "--kv-spill-dir")),
                              ({"kv_spill_disk_mib": 4000000000}, ("--kv-spill-disk-mib",)),
                              ({"kv_spill_memory_mib": 4000000000},
                               ("--kv-spill-memory-mib",))):
            with self.subTest(**change):
                self.refuse(words, "worker", "--model", QWEN3, *flags_of(change),
                            "--scheduler-port", 1)

    def test_ports_in_use(self):
        scheduler = self.scheduler()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            free = {"listen": "tcp://127.0.0.1:*", "control_port": 0, "metrics_port": 0}
            for change in ({"listen": f"tcp://127.0.0.1:{port}"}, {"control_port": port},
                           {"metrics_port": port}):
                flags = flags_of({**free, **change})
                with self.subTest(role="scheduler", **change):
                    self.refuse((str(port), "in use"), "scheduler", *flags)
                with self.subTest(role="up", **change):
                    self.refuse((str(port), "in use"), "up", "--model", QWEN3, *flags)
            for flag in ("--metrics-port", "--data-port"):
                with self.subTest(role="worker", flag=flag):
                    self.refuse((str(port), "in use"), "worker", "--model", QWEN3, flag, port,
                                "--scheduler-port", scheduler.ports["control_port"])

    def test_endpoints_that_are_no_scheduler(self):
        # All at once, because each takes as long as the client is patient.
        http = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
        doors = {name: socket.create_server(("127.0.0.1", 0)) for name in ("hole", "tcp", "http")}
        for door in doors.values():
            self.addCleanup(door.close)

        def answer(door, what):
            while True:
                try:
                    peer, _ = door.accept()
                    peer.sendall(what)
                    peer.close()
                except OSError:
                    return

        for name, what in (("tcp", b"\x00" * 100), ("http", http)):
            threading.Thread(target=answer, args=(doors[name], what), daemon=True).start()
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            free = closed.getsockname()[1]
        ports = {name: door.getsockname()[1] for name, door in doors.items()}
        ports.update(closed=free)
        begun = time.monotonic()
        started = {}
        for name, number in ports.items():
            where = f"tcp://127.0.0.1:{number}"
            started["status", name] = start("status", "--connect", where)
            started["run", name] = start("run", "--connect", where, "--prompts", self.good, "--out",
                                         self.work / f"out-{name}", "--max-new-tokens", 5)
        for (command, name), process in started.items():
            with self.subTest(command=command, endpoint=name):
                self.assert_refused(Outcome(process, begun, LIMIT_S + 5), str(ports[name]))

    def test_out_that_cannot_be_written(self):
        file = self.work / "file"
        file.write_text("")
        self.refuse_run("file", out=file)
        self.refuse_run("file", out=file / "below")
        self.refuse_run("/proc", out="/proc/rollcast")

    def full(self, out, endpoint, key):
        prompts = write_lines(self.work / "ids.jsonl",
                              [{"prompt_token_ids": [50, 55, 58]}] * 20)
        return call("run", "--connect", endpoint, "--prompts", prompts, "--out", out, "--batch-key",
                    key, "--group-size", 4, "--max-new-tokens", 300)

    def complete(self, out):
        """How many whole responses lie in the partial file."""
        lines = (out / "responses.partial.jsonl").read_bytes().split(b"\n")
        return len([json.loads(line) for line in lines[:-1]])

    def test_a_full_disk_loses_nothing_that_the_scheduler_has_forgotten(self):
        scheduler = self.scheduler()
        self.worker(scheduler)
        wait_until(lambda: ready_workers(scheduler.endpoint), "the worker")
        plain = self.work / "plain"
        self.assertEqual(self.full(plain, scheduler.endpoint, "plain").code, 0)
        wanted = self.responses(plain)

        with self.subTest("no room for the first response"):
            out = self.work / "full"
            out.mkdir()
            (out / "responses.partial.jsonl").symlink_to("/dev/full")
            self.assert_refused_late(self.full(out, scheduler.endpoint, "a"), "No space left")
            # Nothing was acknowledged, so the batch can still be had in full.
            again = self.work / "again"
            self.assertEqual(self.full(again, scheduler.endpoint, "a").code, 0)
            self.assert_same(self.responses(again), wanted, "collected again")
        with self.subTest("no room for the sorted file"):
            out = self.work / "late"
            out.mkdir()
            (out / "responses.jsonl.tmp").symlink_to("/dev/full")
            self.assert_refused_late(self.full(out, scheduler.endpoint, "b"),
                                     ("No space left", "all 80 responses are in"))
            self.assertEqual(self.complete(out), 80)
            self.assertFalse((out / "responses.jsonl").exists())
        with self.subTest("a small file system"):
            self.check_small_disk(scheduler.endpoint, wanted)

    def assert_refused_late(self, said, words):
        """Like `assert_refused`, after lines of progress."""
        said.err = said.err.splitlines()[-1] if said.err else ""
        self.assert_refused(said, words)

    def check_small_disk(self, endpoint, wanted):
        disk = self.work / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk],
                                 capture_output=True)
        if mounted.returncode != 0:
            self.skipTest(f"no tmpfs may be mounted: {mounted.stderr.decode().strip()}")
        try:
            self.assert_refused_late(self.full(disk, endpoint, "c"), "No space left")
            kept = self.complete(disk)
            self.assertGreater(kept, 0)
            self.assertLess(kept, 80)
            # With room again, the same command finishes what the first began.
            subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
            said = self.full(disk, endpoint, "c")
            self.assertEqual(said.code, 0, said)
            self.assert_same(self.responses(disk), wanted, "after making room")
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_a_cluster_takes_no_worker_with_other_weights_or_profile(self):
        scheduler = self.scheduler()
        self.worker(scheduler, QWEN3)
        wait_until(lambda: ready_workers(scheduler.endpoint), "the first worker")
        other = self.model(body=lambda b: bytes([b[0] ^ 1]) + b[1:])
        port = scheduler.ports["control_port"]
        for words, model, flags in (
            ("weights", other, []),
            ("numerics profile", QWEN3, ["--numerics", "cpu-bf16-v1"]),
            ("weights", FAMILIES / "llama", []),
        ):
            with self.subTest(model=model.name, flags=flags):
                said = call("worker", "--model", model, "--scheduler-port", port, *flags,
                            timeout=LIMIT_S + 5)
                self.assert_refused(said, words)
        self.assertEqual(len(ready_workers(scheduler.endpoint)), 1)

    @unittest.skipIf(os.geteuid() == 0, "root may read everything")
    def test_files_without_permission(self):
        self.good.chmod(0)
        self.refuse_run("Permission denied")


if __name__ == "__main__":
    unittest.main()
