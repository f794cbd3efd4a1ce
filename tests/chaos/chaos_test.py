# Goal: batches survive what happens to clusters, with the bytes of a quiet run and each response
# once; and the harness that says so would notice if they did not.
# Method: a few seeds of chaos.py, on loopback and on hosts; and its parts with results that are
# wrong on purpose, and with sockets of their own.

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from types import SimpleNamespace

import chaos
from bounds import Bounds, judge
from faults import KINDS
from fleet import Fleet, may_end_so
from one_run import Setup
from oracle import Contents, Verdict, check_deliveries, check_run_file
from places import Hosts
from relay import DOWN, UP, Relay
from soak import REMEMBERED, Soak, held_by, kinds_for, memory_of, parse

from cluster import INSTRUMENTED, ROOT

SEED = int(os.environ.get("ROLLCAST_TEST_SEED", "20261121"))
RUNS = 3  # of each place


class UnderFire(unittest.TestCase):
    def campaign(self, place):
        with tempfile.TemporaryDirectory() as out:
            code = chaos.main(["--runs", str(RUNS), "--seed", str(SEED), "--places", place,
                               "--out", f"{out}/chaos"])
            summary = Path(out) / "chaos" / "summary.json"
            said = json.loads(summary.read_text())
            logs = [f.read_text() for f in summary.parent.glob("seed-*/*.log")] if code else []
            self.assertEqual(code, 0, "\n".join([json.dumps(said, indent=1), *logs]))
            self.assertEqual(said["runs"], RUNS)
            self.assertGreaterEqual(said["faults"], 3 * RUNS)
            self.assertEqual(said["mismatched"] + said["lost"] + said["duplicated"], 0)

    def test_on_loopback(self):
        self.campaign("loopback")

    def test_on_hosts(self):
        why = Hosts.why_not()
        if why:
            self.skipTest(f"no network namespaces here: {why}")
        self.campaign("hosts")


def result(index, tokens=(5, 6), version=1, sequence=None):
    return {"what": "delivery", "batch": "b", "group": 0, "index": index,
            "sequence": index + 1 if sequence is None else sequence, "token_ids": list(tokens),
            "logprobs": "0000c0bf000000be", "finish_reason": "stop", "numerics_profile": "p",
            "weight_versions": [[version, 0, len(tokens)]]}


def pretend_oracle(responses=3):
    """An oracle that was not computed: tokens 5 and 6, or 7 and 8 with new weights."""
    def line(index, tokens):
        return {"group": 0, "index": index, "prompt_token_ids": [1], "token_ids": tokens,
                "logprobs": [-1.5, -0.125], "finish_reason": "stop", "numerics_profile": "p",
                "weight_versions": [{"version": 1, "start": 0, "end": 2}]}
    lines = {"old": [line(i, [5, 6]) for i in range(responses)],
             "new": [line(i, [7, 8]) for i in range(responses)]}
    said = ("0000c0bf000000be", "stop", "p")
    return SimpleNamespace(
        responses=responses,
        lines={c: [json.dumps(x).encode() + b"\n" for x in of] for c, of in lines.items()},
        by_place={c: {(0, i): (of[i]["token_ids"], *said) for i in range(responses)}
                  for c, of in lines.items()})


class Judge(unittest.TestCase):
    def judge(self, log, offered=(), numbered=True):
        verdict = Verdict()
        check_deliveries(verdict, pretend_oracle(), "b", log, Contents(offered), numbered)
        return verdict

    def test_is_content_with_what_is_right(self):
        self.assertTrue(self.judge([result(i) for i in range(3)]).good)
        mixed = [result(0), result(1, (7, 8), 2), result(2, (7, 8), 2)]
        self.assertTrue(self.judge(mixed, ["new"]).good)

    def test_counts_what_is_lost_twice_or_different(self):
        three = [result(i) for i in range(3)]
        self.assertEqual(self.judge(three[:2]).lost, 1)
        self.assertEqual(self.judge([*three, result(1, sequence=4)]).duplicated, 1)
        self.assertEqual(self.judge([*three[:2], result(2, (5, 7))]).mismatched, 1)
        wrong_bit = {**result(2), "logprobs": "0100c0bf000000be"}
        self.assertEqual(self.judge([*three[:2], wrong_bit]).mismatched, 1)

    def test_knows_which_weights_a_version_may_have(self):
        new = [result(i, (7, 8), 2) for i in range(2)]
        self.assertEqual(self.judge([*new, result(2)]).mismatched, 2, "nobody published these")
        self.assertEqual(self.judge([*new, result(2, version=2)], ["new"]).mismatched, 1)
        self.assertEqual(self.judge([result(0, (7, 8)), result(1), result(2)],
                                    ["new"]).mismatched, 1, "version 1 is the first")
        gap = {**result(2), "weight_versions": [[1, 0, 1]]}
        self.assertEqual(self.judge([result(0), result(1), gap]).mismatched, 1)

    def test_wants_numbers_that_go_on_if_there_is_a_journal(self):
        log = [result(0), result(1, sequence=3), result(2, sequence=4)]
        self.assertFalse(self.judge(log).good)
        self.assertTrue(self.judge(log, numbered=False).good)

    def test_compares_the_file_of_run_byte_by_byte(self):
        oracle = pretend_oracle()
        for change, good in (
            (lambda s: s, True),
            (lambda s: s.replace(b"0.125", b"0.126", 1), False),
            (lambda s: s[: s.rfind(b"{")], False),
            (lambda s: s + s.splitlines()[0] + b"\n", False),
            (lambda s: s.splitlines()[0] + b"\n" + s[: s.rstrip().rfind(b"\n") + 1], False),
            (lambda s: b"".join(reversed(s.splitlines(keepends=True))), False),
            (lambda s: s.rstrip(), False),
            (lambda s: s.replace(b"\n", b"\r\n", 1), False),
            (lambda s: s.replace(b"-0.125", b"-0.1250", 1), False),
            (lambda s: s.replace(b'"prompt_token_ids": [1]', b'"prompt_token_ids": [2]', 1), False),
        ):
            verdict = Verdict()
            data = change(b"".join(oracle.lines["old"]))
            check_run_file(verdict, oracle, data, Contents([]))
            self.assertEqual(verdict.good, good, data)

    def test_compares_all_but_the_versions_where_weights_changed(self):
        oracle = pretend_oracle()
        first, *others = oracle.lines["new"]
        second = b"".join(line.replace(b'"version": 1', b'"version": 2') for line in others)
        mixed = oracle.lines["old"][0] + second
        for data, offered, good in (
            (mixed, ["new"], True),
            (mixed, [], False),
            (first + second, ["new"], False),  # version 1 is the first
            (mixed.replace(b'"end": 2', b'"end": 1'), ["new"], False),
            (mixed.replace(b"-0.125", b"-0.1250"), ["new"], False),
            (mixed.replace(b", 8]", b", 9]", 1), ["new"], False),
        ):
            verdict = Verdict()
            check_run_file(verdict, oracle, data, Contents(offered))
            self.assertEqual(verdict.good, good, data)


class Ends(unittest.TestCase):
    def test_of_the_starved_are_no_crashes_but_only_some(self):
        for code in (2, 4, -signal.SIGABRT, -signal.SIGKILL):
            self.assertTrue(may_end_so(code, 5.0, 4.0), code)
            self.assertFalse(may_end_so(code, 5.0, 6.0), "it is not starved any more")
            self.assertFalse(may_end_so(code, 0.0, 4.0), "it never was")
        crash = () if INSTRUMENTED else (1,)
        for code in (0, *crash, 3, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGTERM):
            self.assertFalse(may_end_so(code, float("inf"), 4.0), code)


class Struck(unittest.TestCase):
    def fleet(self):
        fleet = Fleet(None, Path("unused"), {"workers": 1, "journal": None})
        process = subprocess.Popen(["sleep", "60"])
        fleet.processes["w1"] = process
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return fleet, process

    def test_by_a_fault_is_no_crash_however_late_it_is_seen_and_down_is_not_struck(self):
        fleet, process = self.fleet()
        self.assertTrue(fleet.strike("w1"))
        process.wait()
        self.assertFalse(fleet.strike("w1"))
        fleet.supervise()
        self.assertEqual(fleet.crashes, [])
        fleet, process = self.fleet()
        process.kill()
        process.wait()
        fleet.supervise()
        self.assertEqual(fleet.crashes, ["w1 ended by itself: -9"])

    def test_no_trouble_of_the_network_counts_where_nobody_is(self):
        fleet, process = self.fleet()
        began, healed = [], []
        place = SimpleNamespace(partition=began.append, heal=healed.append)
        run = SimpleNamespace(fleet=fleet, place=place, later=lambda _, what: what())
        begin = KINDS["partition_worker"].begin
        self.assertTrue(begin(run, name="w1", seconds=1))
        self.assertFalse(begin(run, name="w2", seconds=1))
        process.kill()
        process.wait()
        self.assertFalse(begin(run, name="w1", seconds=1))
        self.assertEqual((began, healed), (["w1"], ["w1"]))


class Frozen(unittest.TestCase):
    def state(self, process):
        return Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    def test_until_the_last_fault_that_froze_it_is_over(self):
        fleet = Fleet(None, Path("unused"), {"workers": 1, "journal": None})
        self.assertFalse(fleet.freeze("w1"), "it is down")
        process = subprocess.Popen(["sleep", "60"])
        fleet.processes["w1"] = process
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        for begin, stopped in ((True, True), (True, True), (False, True), (False, False)):
            (fleet.freeze if begin else fleet.thaw)("w1")
            deadline = time.monotonic() + 10
            while (self.state(process) == "T") != stopped and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.05)  # a signal that should not have come is there by now
            self.assertEqual(self.state(process) == "T", stopped)


class Schedules(unittest.TestCase):
    def options(self, **changes):
        return SimpleNamespace(**{"places": ["loopback", "hosts"], "kinds": [], "faults": 3,
                                  "journal": True, "mounts": True, **changes})

    def test_are_the_same_for_the_same_seed(self):
        for seed in range(50):
            self.assertEqual(Setup.drawn(seed, self.options()), Setup.drawn(seed, self.options()))

    def test_have_faults_enough_and_reach_every_kind(self):
        kinds = set()
        for seed in range(600):
            faults = Setup.drawn(seed, self.options())["faults"]
            self.assertGreaterEqual(len(faults), 3)
            kinds |= {f["kind"] for f in faults}
        self.assertLessEqual(set(KINDS) - {"clock_jump"}, kinds)

    def test_ask_nothing_impossible_of_a_scheduler_without_a_journal(self):
        for seed in range(600):
            kinds = {f["kind"] for f in Setup.drawn(seed, self.options(journal=False))["faults"]}
            self.assertFalse("kill_scheduler" in kinds and "kill_controller" in kinds)
            self.assertNotIn("disk_full", kinds)


MIB = 1 << 20


class Soaked(unittest.TestCase):
    """The judgement of a soak, on measurements that are made up."""

    def series(self, memory=lambda share: 100.0, files=lambda share: 40, count=60, every=10.0):
        """One process: MiB and descriptors as functions of the share of its life."""
        shares = [n / (count - 1) for n in range(count)]
        return [(n * every, int(memory(x) * MIB), files(x), int(memory(x) * MIB))
                for n, x in enumerate(shares)]

    def broken(self, series, rates=(50.0,) * 30, bounds=Bounds()):
        return judge({("s", 7): series}, list(rates), bounds).broken

    def assert_broken(self, lines, *parts):
        self.assertEqual(len(lines), 1, lines)
        for part in parts:
            self.assertIn(part, lines[0])

    def test_is_good_when_all_stays_where_it_was(self):
        rng = random.Random(SEED)
        self.assertEqual(self.broken(self.series()), [])
        noisy = self.series(lambda share: 100 + rng.uniform(-0.5, 0.5),
                            lambda share: 40 + rng.choice((0, 0, 0, 9)))
        self.assertEqual(self.broken(noisy, [50 + rng.uniform(-2, 2) for _ in range(40)]), [])

    def test_lets_a_process_warm_up(self):
        warming = self.series(lambda share: 100 if share > 0.33 else 50,
                              lambda share: 40 if share > 0.33 else 20)
        self.assertEqual(self.broken(warming, [80.0] * 10 + [50.0] * 20), [])
        slow = self.series(lambda share: 100 if share > 0.4 else 50, every=8.5)  # 200 of 500 s
        self.assert_broken(self.broken(slow), "memory grew")
        self.assertEqual(self.broken(slow, bounds=Bounds(warm_up_s=210)), [])

    def test_finds_memory_that_grows(self):
        self.assert_broken(self.broken(self.series(lambda share: 300 + 15 * share)), "s 7",
                           "memory grew", "less than 2 %")
        small = self.series(lambda share: 500 + 10 * share)  # 1.2 % of it after the warm-up
        self.assertEqual(self.broken(small), [])
        self.assert_broken(self.broken(small, bounds=Bounds(growth_percent=1.0)), "less than 1 %")
        tiny = self.series(lambda share: 20 + 1.2 * share)
        self.assertEqual(self.broken(tiny), [], "1 MiB is free")
        self.assert_broken(self.broken(tiny, bounds=Bounds(growth_bytes=MIB // 2)), "memory grew")

    def test_tells_what_comes_and_goes_from_what_grows(self):
        for seed in range(20):
            rng = random.Random(seed)
            noisy = [rng.uniform(0, 4) for _ in range(190)]
            for more in (0, 6):
                lines = self.broken(self.series(
                    lambda share: 60 + more * share + noisy[int(189 * share)], count=190))
                self.assertEqual(len(lines), 1 if more else 0, f"seed {seed}: {lines}")

    def test_finds_memory_that_leaps_at_the_end(self):
        for late in (lambda share: 300 * (share > 0.87),
                     lambda share: 1000 * max(0.0, share - 0.7) ** 2 / 0.09):
            self.assert_broken(self.broken(self.series(lambda share: 30 + late(share))),
                               "above its begin")

    def test_finds_descriptors_that_are_left_open(self):
        self.assertEqual(self.broken(self.series(files=lambda share: 40 + 2 * (share > 0.9))), [])
        leak = self.series(files=lambda share: 40 + int(8 * share))
        self.assert_broken(self.broken(leak), "s 7", "descriptors")
        self.assertEqual(self.broken(leak, bounds=Bounds(descriptors=8)), [])

    def test_finds_throughput_that_falls(self):
        falling = [50.0 - 0.5 * n for n in range(30)]
        self.assert_broken(self.broken(self.series(), falling), "throughput fell")
        self.assertEqual(self.broken(self.series(), falling, Bounds(throughput=0.5)), [])

    def test_says_whom_it_judged_and_is_not_good_when_it_judged_nothing(self):
        leak = self.series(lambda share: 100 + 50 * share, count=20)
        samples = {("s", 7): self.series(), ("w1", 8): leak}
        said = judge(samples, [50.0] * 30, Bounds())
        self.assertEqual([(r["role"], r["pid"]) for r in said.rows], [("s", 7)])
        self.assertEqual(said.unjudged, ["w1 8: 190 s with 20 samples"])
        self.assertEqual(said.broken, [])
        self.assert_broken(judge(samples, [50.0] * 30, Bounds(span_s=100, warm_up_s=0)).broken,
                           "w1 8")
        self.assert_broken(self.broken(leak), "none was judged")
        self.assert_broken(self.broken(self.series(), [50.0] * 8), "8 rounds")

    def test_counts_pools_as_mapped_and_all_else_as_present(self):
        mapping = ("{0}-{0} rw-p 0 00:00 0\nSize: {1} kB\nRss: {2} kB\nAnonHugePages: {3} kB\n"
                   "VmFlags: rd wr {4}\n")
        self.assertEqual(memory_of("".join([
            mapping.format("1", 4096, 1956, 0, "dd"),
            mapping.format("2", 4096, 4096, 4096, "dd hg"),
            mapping.format("3", 2048, 600, 0, "hg"),
            mapping.format("4", 1 << 30, 400, 0, "dd nh"),
            mapping.format("5", 8192, 12, 0, "ac"),
        ]).splitlines()), (8192 << 10, 1012 << 10))
        held, descriptors, rest = held_by(os.getpid())
        self.assertGreater(rest, MIB)
        self.assertGreaterEqual(held, rest)
        self.assertGreater(descriptors, 2)

    def test_takes_no_sample_of_who_was_killed_meanwhile(self):
        soak = Soak.__new__(Soak)
        soak.samples = {}
        lives = []
        soak.fleet = SimpleNamespace(workers=[], pid=lambda _: os.getpid(),
                                     is_up=lambda name: name == "s" and lives.pop(0))
        for lives[:], samples in (([True, False], 0), ([True, True], 1)):
            soak._sample_at = 0.0
            soak._sample()
            self.assertEqual(len(soak.samples), samples)

    def test_finds_what_grows_beside_pools_that_shrink(self):
        steady = self.series(lambda share: 100.0)
        self.assertEqual(self.broken(steady), [])
        grows = [(*s[:3], (50 + 5 * n / 59) * MIB) for n, s in enumerate(steady)]
        self.assert_broken(self.broken(grows), "without pools by 3.3 MiB")

    def test_fills_what_a_scheduler_remembers_when_it_may_have_lost_it(self):
        # A fleet that only counts: the journal keeps batches for the next scheduler.
        for journal, wanted in (("disk", ["fill", "new", "old", "new", "new", "old", "new"]),
                                (None, ["fill", "fill"])):
            done = []
            soak = Soak.__new__(Soak)
            soak.setup, soak._settled = {"journal": journal}, None
            soak._fill_memory_of_batches = lambda: done.append("fill")
            soak._update = lambda content: done.append(content) or True
            for pid in (1, 1, 2):
                soak.fleet = SimpleNamespace(pid=lambda _, pid=pid: pid)
                soak._settle()
            self.assertEqual(done, wanted)
            soak._update = lambda _: False
            soak.fleet = SimpleNamespace(pid=lambda _: 3)
            soak._settle()
            self.assertEqual(soak._settled, 2 if journal else 3)

    def test_knows_how_many_batches_a_scheduler_remembers(self):
        book = (ROOT / "cluster/batch/batch_book.hpp").read_text()
        self.assertIn(f"kept_batches = {REMEMBERED:,}".replace(",", "'"), book)

    def test_has_weights_clocks_and_disks_among_its_faults(self):
        setup = Setup(place="loopback", workers=2, journal="disk", speculate="off",
                      chunk_tokens=64, lost_after_ms=800)
        options = parse(["--throughput-min", "0.8", "--minutes", "2"])
        self.assertEqual((options.bounds.throughput, options.minutes), (0.8, 2.0))
        options.mounts = True
        kinds = set(kinds_for(setup, options))
        self.assertEqual(set(KINDS) - kinds - {"clock_jump"}, {"packet_loss", "link_down"})
        setup.adapt(kinds)
        self.assertEqual(setup["journal"], "tmpfs")
        setup["journal"] = ""
        self.assertFalse({"weights", "cut_weights", "disk_full"} & set(kinds_for(setup, options)))


class Relayed(unittest.TestCase):
    def setUp(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.server.close)
        self.relay = Relay()
        self.addCleanup(self.relay.close)
        with socket.create_server(("127.0.0.1", 0)) as free:
            here = free.getsockname()
        self.relay.add("x", here, self.server.getsockname())
        self.near = socket.create_connection(here, 5)
        self.far, _ = self.server.accept()
        for end in (self.near, self.far):
            end.settimeout(5)
            self.addCleanup(end.close)

    def assert_silent(self, end):
        end.settimeout(0.2)
        with self.assertRaises(TimeoutError):
            end.recv(1)
        end.settimeout(5)

    def test_holds_one_way_and_loses_nothing(self):
        self.relay.hold("x", (UP,))
        time.sleep(0.05)  # the order is given to another thread
        self.near.sendall(b"up")
        self.far.sendall(b"down")
        self.assertEqual(self.near.recv(9), b"down")
        self.assert_silent(self.far)
        self.relay.let_go("x")
        self.assertEqual(self.far.recv(9), b"up")

    def test_acts_at_the_very_byte(self):
        for cut in (False, True):
            with self.subTest(cut=cut):
                acted = []
                self.relay.arm("x", DOWN, 3, lambda: acted.append(True), cut)
                time.sleep(0.05)
                self.far.sendall(b"abcdef")
                got = b""
                try:
                    while len(got) < 6 and (more := self.near.recv(9)):
                        got += more
                except ConnectionResetError:
                    pass
                self.assertEqual(acted, [True])
                # A reset may overtake bytes, but none behind it comes.
                self.assertTrue(b"abc".startswith(got) if cut else got == b"abcdef", got)

    def test_counts_the_connections_that_it_resets(self):
        self.near.sendall(b"x")
        self.far.recv(1)  # it is served
        self.assertEqual(self.relay.cut("x"), 1)
        with self.assertRaises(ConnectionResetError):
            self.near.recv(1)

    def test_is_late_by_what_it_was_told(self):
        self.relay.slow("x", 0.2)
        time.sleep(0.05)
        begun = time.monotonic()
        self.near.sendall(b"x")
        self.far.recv(1)
        self.assertGreaterEqual(time.monotonic() - begun, 0.19)


# Says whether the neighbour's port answers, from a host of the given name.
DIAL = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.5)"


@unittest.skipIf(Hosts.why_not(), "no network namespaces here")
class Separate(unittest.TestCase):
    def setUp(self):
        self.hosts = Hosts(2)
        self.addCleanup(self.hosts.close)

    def listen(self, name):
        server = subprocess.Popen(
            [sys.executable, "-c", "import socket,sys,time\nfor p in (7460,7455):"
             " globals()[f's{p}']=socket.create_server((sys.argv[1],p))\n"
             "print('up',flush=True); time.sleep(60)", self.hosts.address(name)],
            stdout=subprocess.PIPE, text=True, preexec_fn=lambda: self.hosts.enter(name))
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        server.stdout.readline()

    def reaches(self, name, other, port=7460):
        return subprocess.run(
            [sys.executable, "-c", DIAL, self.hosts.address(other), str(port)], check=False,
            capture_output=True, preexec_fn=lambda: self.hosts.enter(name)).returncode == 0

    def reaches_soon(self, name, other):
        """The kernel asks for the address of a host that was away a second later again."""
        return any(self.reaches(name, other) for _ in range(10))

    def test_by_partition_port_and_cable_until_healed(self):
        for name in ("w1", "w2"):
            self.listen(name)
        self.assertTrue(self.reaches_soon("w1", "w2"))
        for trouble, still in (
            (lambda: self.hosts.partition("w2"), False),
            (lambda: self.hosts.link_down("w2"), False),
            (lambda: self.hosts.block_one_way("w2", 7460, False), True),
            (lambda: self.hosts.block_one_way("w2", 7460, True), True),
        ):
            trouble()
            self.assertFalse(self.reaches("w1", "w2"))
            self.assertEqual(self.reaches("w1", "w2", 7455), still, "the other port")
            self.assertEqual(self.reaches("w2", "w1"), still, "the other way")
            self.hosts.heal("w2")
            self.assertTrue(self.reaches_soon("w1", "w2"))

    def test_by_a_share_of_the_packets(self):
        self.listen("w2")
        self.hosts.lose("w2", 99)
        self.assertIn(False, [self.reaches("w1", "w2") for _ in range(3)])
        self.hosts.heal("w2")
        self.assertTrue(self.reaches_soon("w1", "w2"))


if __name__ == "__main__":
    unittest.main()
