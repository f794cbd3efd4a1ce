# Goal: the ids of experts in responses.jsonl are a function of the same things as its tokens: not
# of workers, chunks, batch, memory, moves, drafts, or who was killed on the way; and they change
# nothing else. A model without experts refuses to give any.
# Method: tiny random models with experts; one plain run is the oracle, every other way to run it
# must give the same bytes. Shapes are counted anew from the model's config.json.

import base64
import json
import os
import random
import signal
import time
import unittest

from rollcast import Client, Prompt, RollcastError, Sampling

from cluster import (
    COLLATZ,
    FAMILIES,
    ClusterTest,
    call,
    family_prompts,
    first_prompts,
    ready_workers,
    status,
    wait_until,
)

SEED = int(os.environ.get("ROLLCAST_TEST_SEED", "20261121"))
SPARSE = ("qwen3_moe", "glm4_moe", "deepseek_v3", "moonlight", "kimi_k2")
MOVING = {"workers": 2, "chunk_tokens": 16, "force_migration": True}
WAYS = [
    MOVING,
    {"workers": 3, "threads": 2, "chunk_tokens": 7, "max_batch": 5, "prefill_rows": 16,
     "block_tokens": 32},
    {"workers": 2, "chunk_tokens": 0, "max_batch": 1, "policy": "static"},
    {"kv_blocks": 48, "chunk_tokens": 16, "kv_spill_memory_mib": 64, "kv_prices": "assumed"},
    {"kv_blocks": 48, "policy": "static"},
    {"speculate": "group", **MOVING},
]


def records_of(data):
    return [json.loads(line) for line in data.splitlines()]


def ids_of(record):
    """A record's ids as rows: position, then layer, then slot."""
    experts = record["routed_experts"]
    positions, layers, slots = experts["shape"]
    data = base64.b64decode(experts["ids"], validate=True)
    assert experts["dtype"] == "uint8" and len(data) == positions * layers * slots
    return [[data[(p * layers + layer) * slots:][:slots] for layer in range(layers)]
            for p in range(positions)]


class Experts(ClusterTest):
    def oracle(self, family, **settings):
        prompts = family_prompts(self.work / f"{family}.jsonl", family, 6)
        settings = {"model": FAMILIES / family, "group_size": 3, "seed": 4, **settings}
        return prompts, settings, self.run_batch(prompts, routed_experts=True, **settings)[0]

    def test_are_the_same_however_it_is_run(self):
        for family in SPARSE:
            for numerics in ("cpu-f32-v1", "cpu-bf16-v1"):
                prompts, settings, oracle = self.oracle(family, numerics=numerics)
                ways = list(WAYS)
                if family not in ("qwen3_moe", "kimi_k2"):  # the others have layers that draft
                    ways += [{"speculate": "mtp"}, {"speculate": "mtp", **MOVING}]
                for way in ways:
                    with self.subTest(family=family, numerics=numerics, **way):
                        data, summary = self.run_batch(
                            prompts, routed_experts=True, **{**settings, **way})
                        self.assert_same(data, oracle, str(way))
                        if way.get("force_migration"):
                            self.assertGreater(summary["migrations"], 0)
                        if way.get("speculate") == "mtp":
                            self.assertGreater(summary["accepted_tokens"], 0)

    def test_have_a_place_for_every_position_that_was_fed_and_change_nothing_else(self):
        for family in SPARSE:
            prompts, settings, oracle = self.oracle(family)
            config = json.loads((FAMILIES / family / "config.json").read_text())
            dense = config.get("first_k_dense_replace", 0) + len(config.get("mlp_only_layers", []))
            layers = config["num_hidden_layers"] - dense
            count = config.get("n_routed_experts", config.get("num_local_experts"))
            seen = set()
            for record in records_of(oracle):
                fed = len(record["prompt_token_ids"]) + len(record["token_ids"]) - 1
                self.assertEqual(record["routed_experts"]["start"], 0)
                self.assertEqual(record["routed_experts"]["shape"],
                                 [fed, layers, config["num_experts_per_tok"]])
                for position in ids_of(record):
                    for slots in position:
                        self.assertEqual(len(set(slots)), len(slots), "an expert comes once")
                        seen.update(slots)
            self.assertEqual(seen, set(range(count)), "random routers leave no expert out")
            plain, _ = self.run_batch(prompts, **settings)
            stripped = records_of(oracle)
            for record in stripped:
                del record["routed_experts"]
            self.assertEqual(stripped, records_of(plain))

    def test_from_a_position_on_are_the_end_of_all(self):
        prompts, settings, oracle = self.oracle("glm4_moe")
        whole = records_of(oracle)
        for start in (1, 17, 60, 10_000):
            data, _ = self.run_batch(prompts, routed_experts_from=start, **settings, **MOVING)
            for record, full in zip(records_of(data), whole):
                fed = full["routed_experts"]["shape"][0]
                self.assertEqual(record["routed_experts"]["start"], min(start, fed))
                self.assertEqual(ids_of(record), ids_of(full)[start:])

    def test_come_through_kills_of_workers_and_of_the_scheduler(self):
        family, rng = "deepseek_v3", random.Random(SEED)
        prompts = family_prompts(self.work / "prompts.jsonl", family, 20)
        batch = {"group_size": 16, "seed": 4, "routed_experts": True}
        oracle, _ = self.run_batch(prompts, model=FAMILIES / family, **batch)
        journal = {"journal": self.work / "journal.db"}
        node = self.scheduler(**journal)
        workers = [self.worker(node, model=FAMILIES / family, max_batch=2) for _ in range(3)]
        wait_until(lambda: len(ready_workers(node.endpoint)) == 3, "three workers")
        run = self.submit(node.endpoint, prompts, chunk_tokens=16, force_migration=True, **batch)

        def in_the_middle(share):
            def look():
                self.assertIsNone(run.poll(), f"too late: the batch is over, seed {SEED}")
                batches = (status(node.endpoint) or {}).get("batches")
                return batches and batches[0]["finished"] >= share * 320
            wait_until(look, f"{share:.0%} of the batch", pause=0.002)

        in_the_middle(0.1)
        os.kill(workers[0].pid, signal.SIGKILL)
        in_the_middle(0.2)
        node.kill()
        time.sleep(rng.choice((0.0, 0.5)))  # how long it is away is what is tested
        node = self.scheduler_again(node, **journal)
        self.assert_same(self.collect(run)[0], oracle, f"seed {SEED}")

    def test_reach_a_python_client_as_they_are_written(self):
        prompts, _, oracle = self.oracle("moonlight")
        cluster = self.up(model=FAMILIES / "moonlight", workers=2)
        wanted = [json.loads(line) for line in prompts.read_text().splitlines()]
        with Client(cluster.endpoint) as client:
            batch = client.submit(
                [Prompt(p["prompt_token_ids"], p["id"], seed=p.get("seed"),
                        sampling=Sampling(**p["sampling"])) for p in wanted],
                group_size=3, seed=4, sampling=Sampling(max_new_tokens=1), routed_experts_from=0)
            got = {(r.group, r.index): r.routed_experts for r in batch}
            for record in records_of(oracle):
                experts = got[record["group"], record["index"]]
                self.assertEqual(list(experts.shape), record["routed_experts"]["shape"])
                self.assertEqual(experts.dtype, record["routed_experts"]["dtype"])
                self.assertEqual(experts.data, base64.b64decode(record["routed_experts"]["ids"]))
            plain = client.submit([[1, 2]], sampling=Sampling(max_new_tokens=4))
            self.assertIsNone(next(plain).routed_experts)

    def test_of_a_dense_model_are_refused(self):
        prompts = first_prompts(self.work / "prompts.jsonl", 2)
        said = call("run", "--model", COLLATZ, "--prompts", prompts, "--out", self.work / "out",
                    "--routed-experts-from", 3)
        self.assertEqual(said.code, 2, said)
        self.assertEqual(len(said.err.splitlines()), 1, said)
        self.assertIn("has no experts", said.err)
        cluster = self.up(workers=1)
        with Client(cluster.endpoint) as client, self.assertRaises(RollcastError) as caught:
            client.submit([[50, 55, 58]], sampling=Sampling(max_new_tokens=4),
                          routed_experts_from=0)
        self.assertEqual(caught.exception.code, "bad_config")
        self.assertIn("the model has no experts", caught.exception.message)


if __name__ == "__main__":
    unittest.main()
