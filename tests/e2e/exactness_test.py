# Goal: responses.jsonl is a function of weights, prompts, sampling, seed and profile alone; not of
# workers, threads, chunks, batch, rows, blocks, policy, memory, moves or instruction set.
# Method: one plain run is the oracle of each model and profile; every other way to run it must give
# the same bytes. `rollcast score` recomputes the log-probabilities and must find no difference, and
# must find the one bit that a test turns.

import json
import math
import re
import struct
import unittest

from cluster import (
    COLLATZ,
    FAMILIES,
    VOCABULARY,
    ClusterTest,
    call,
    family_prompts,
    first_prompts,
)

PROFILES = ("cpu-f32-v1", "cpu-bf16-v1")

# One setting changed at a time, against the oracle's defaults.
SINGLE = [
    {"workers": 2},
    {"workers": 3},
    {"threads": 2},
    {"chunk_tokens": 16, "workers": 2},
    {"chunk_tokens": 100, "workers": 2},
    {"chunk_tokens": 0, "workers": 2},
    {"max_batch": 1},
    {"max_batch": 7},
    {"max_batch": 64},
    {"prefill_rows": 16, "max_batch": 16},
    {"prefill_rows": 64},
    {"prefill_rows": 512},
    {"block_tokens": 32},
    {"block_tokens": 64},
    {"policy": "static", "workers": 2},
    {"policy": "context", "workers": 2},
    {"kv_blocks": 48, "workers": 2, "chunk_tokens": 16},
    {"kv_blocks": 48, "policy": "static"},
]
# Everything changed at once.
MIXED = [
    {"workers": 3, "threads": 2, "chunk_tokens": 16, "max_batch": 7, "prefill_rows": 64,
     "block_tokens": 32, "policy": "context"},
    {"workers": 2, "chunk_tokens": 100, "max_batch": 64, "prefill_rows": 16, "kv_blocks": 80,
     "policy": "context"},
    {"workers": 2, "threads": 2, "chunk_tokens": 0, "max_batch": 3, "prefill_rows": 512,
     "block_tokens": 64, "policy": "static"},
]
# Too few blocks, so KV leaves them: into memory, onto disk, or first one and then the other.
# Measured, computing this model's few tokens again is sometimes cheaper than a pull.
ASSUMED = {"kv_blocks": 48, "chunk_tokens": 16, "kv_prices": "assumed"}
SPILLING = [
    {**ASSUMED, "workers": 2, "kv_spill_memory_mib": 64},
    {**ASSUMED, "kv_spill_disk_mib": 64},
    {**ASSUMED, "kv_spill_memory_mib": 1, "kv_spill_disk_mib": 64},
]
# Drafts, alone and with everything that could get in their way.
SPECULATING = [
    {"speculate": "self"},
    {"speculate": "group"},
    {"speculate": "auto"},
    {"speculate": "group", "workers": 2, "chunk_tokens": 16, "force_migration": True},
    {"speculate": "group", "max_batch": 1},
    {"speculate": "group", "max_batch": 7, "prefill_rows": 16, "threads": 2},
    {"speculate": "group", "kv_blocks": 48, "chunk_tokens": 16, "kv_spill_memory_mib": 64},
    {"speculate": "group", "kv_blocks": 48, "policy": "static"},
    {"speculate": "auto", "workers": 3, "chunk_tokens": 100, "block_tokens": 64},
    {"speculate": "group", "workers": 2},
    {"speculate": "group", "workers": 2, "draft_server": "none"},
    {"speculate": "group", "draft_width": 4},
    {"speculate": "auto", "draft_width": 2, "workers": 2, "chunk_tokens": 16,
     "force_migration": True},
    {"speculate": "group", "draft_width": 8, "kv_blocks": 48, "policy": "static"},
]
MOVING = {"workers": 2, "chunk_tokens": 16, "force_migration": True}


def other_instruction_sets():
    """The instruction sets of this machine, as the program itself lists them in its refusal."""
    said = call(
        "score", "--model", COLLATZ, "--responses", "/dev/null", "--instruction-set", "none"
    )
    return [name for name in re.split(r"[ ,\n]+", said.err.rsplit(":", 1)[-1]) if name]


class Exactness(ClusterTest):
    def check(self, prompts, settings, ways):
        """Runs the oracle and each way; returns the oracle's bytes."""
        oracle, _ = self.run_batch(prompts, workers=1, threads=1, **settings)
        for way in ways:
            with self.subTest(**way):
                got, summary = self.run_batch(prompts, **{"threads": 1, **settings, **way})
                self.assert_same(got, oracle, str(way))
                if way.get("force_migration"):
                    self.assertGreater(summary["migrations"], 0)
                    self.assertGreater(summary["migrated_bytes"], 0)
                if way.get("force_migration") or way in SPILLING:
                    # KV that was refused would be computed again, and nobody would see it.
                    self.assertEqual(summary["recomputed_tokens"], 0)
        return oracle

    def collatz(self):
        return {"model": COLLATZ, "group_size": 4, "max_new_tokens": 300, "seed": 7}

    def score(self, data, model=COLLATZ, *more):
        path = self.work / "scored.jsonl"
        path.write_bytes(data)
        return call("score", "--model", model, "--responses", path, "--threads", 2, *more)

    def test_the_example_gives_the_same_bytes_however_it_is_run(self):
        prompts = first_prompts(self.work / "prompts.jsonl", 24)
        oracle = self.check(prompts, self.collatz(), SINGLE + MIXED + [MOVING])
        self.assertEqual(len(oracle.splitlines()), 96)
        lengths = {len(json.loads(line)["token_ids"]) for line in oracle.splitlines()}
        self.assertGreater(len(lengths), 10, "all alike: this would prove little")
        said = self.score(oracle)
        self.assertEqual(said.code, 0, said)
        self.assertIn("max abs difference 0,", said.out)

    def test_kv_that_leaves_its_blocks_comes_back_the_same(self):
        prompts = first_prompts(self.work / "prompts.jsonl", 24)
        for profile in PROFILES:
            settings = {**self.collatz(), "numerics": profile}
            oracle = self.check(prompts, settings, SPILLING)
            without = {key: value for key, value in SPILLING[1].items() if "spill" not in key}
            got, summary = self.run_batch(prompts, **{**settings, **without})
            self.assert_same(got, oracle, "no spill space")
            self.assertGreater(summary["recomputed_tokens"], 0, "nothing had to leave its blocks")

    def test_drafts_change_no_byte(self):
        prompts = first_prompts(self.work / "prompts.jsonl", 16)
        samplings = [{}, {"temperature": 0}, {"temperature": 0.8, "top_p": 0.9},
                     {"top_k": 5, "min_p": 0.02}]
        for profile in PROFILES:
            for sampling in samplings:
                settings = {**self.collatz(), "numerics": profile, **sampling}
                ways = SPECULATING if sampling == {} else SPECULATING[1:3]
                with self.subTest(profile=profile, **sampling):
                    self.check(prompts, settings, ways)
        _, summary = self.run_batch(prompts, **self.collatz(), **SPECULATING[1])
        self.assertGreater(summary["accepted_tokens"], 100)
        self.assertGreater(summary["draft_tokens"], summary["accepted_tokens"])
        self.assertGreater(summary["mean_acceptance_length"], 1)
        self.assertEqual(summary["speculate"], "group")

    def test_the_bf16_profile_gives_its_own_bytes_however_it_is_run(self):
        prompts = first_prompts(self.work / "prompts.jsonl", 12)
        settings = {**self.collatz(), "numerics": "cpu-bf16-v1"}
        oracle = self.check(prompts, settings, MIXED + [MOVING, {"max_batch": 1}])
        said = self.score(oracle)
        self.assertEqual(said.code, 0, said)
        self.assertIn("max abs difference 0,", said.out)
        f32, _ = self.run_batch(prompts, **{**settings, "numerics": "cpu-f32-v1"})
        self.assertNotEqual(oracle, f32, "the profiles are not told apart")

    def test_every_instruction_set_gives_the_same_bytes(self):
        sets = other_instruction_sets()
        if len(sets) < 2:
            self.skipTest(f"this machine has only {sets}")
        prompts = first_prompts(self.work / "prompts.jsonl", 6)
        for profile in PROFILES:
            self.check(prompts, {**self.collatz(), "numerics": profile},
                       [{"instruction_set": name} for name in sets])

    def test_each_family_gives_the_same_bytes_however_it_is_run(self):
        for family in VOCABULARY:
            model = FAMILIES / family
            prompts = family_prompts(self.work / f"{family}.jsonl", family, 6)
            for profile in PROFILES:
                settings = {"model": model, "group_size": 2, "numerics": profile}
                with self.subTest(family=family, profile=profile):
                    more = SINGLE + MIXED if profile == "cpu-f32-v1" else MIXED
                    ways = more + [MOVING, {"speculate": "group", **MOVING}]
                    oracle = self.check(prompts, settings, ways)
                    records = [json.loads(line) for line in oracle.splitlines()]
                    self.assertEqual(max(len(r["prompt_token_ids"]) + len(r["token_ids"])
                                         for r in records), 250)
                    said = self.score(oracle, model)
                    self.assertEqual(said.code, 0, said)
                    self.assertIn("max abs difference 0,", said.out)

    def test_score_finds_one_bit_and_another_profile(self):
        prompts = first_prompts(self.work / "prompts.jsonl", 3)
        data, _ = self.run_batch(prompts, **self.collatz())
        self.assertEqual(self.score(data).code, 0)
        lines = data.decode().splitlines()
        record = json.loads(lines[5])
        old = record["logprobs"][17]
        bits = struct.unpack("<I", struct.pack("<f", old))[0] ^ 1
        record["logprobs"][17] = struct.unpack("<f", struct.pack("<I", bits))[0]
        self.assertTrue(math.isfinite(record["logprobs"][17]) and record["logprobs"][17] != old)
        lines[5] = json.dumps(record)
        said = self.score(("\n".join(lines) + "\n").encode())
        self.assertEqual(said.code, 1, said)
        self.assertNotIn("max abs difference 0,", said.out)
        self.assertEqual(self.score(data, COLLATZ, "--numerics", "cpu-bf16-v1").code, 1)

    def test_another_seed_gives_other_tokens(self):
        prompts = first_prompts(self.work / "prompts.jsonl", 3)
        one, _ = self.run_batch(prompts, **self.collatz())
        two, _ = self.run_batch(prompts, **{**self.collatz(), "seed": 8})
        tokens = [[json.loads(line)["token_ids"] for line in d.splitlines()] for d in (one, two)]
        self.assertNotEqual(tokens[0], tokens[1])


if __name__ == "__main__":
    unittest.main()
