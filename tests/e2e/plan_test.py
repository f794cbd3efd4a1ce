# Goal: `rollcast plan` tells what a worker then really has, and refuses nonsense in one line.
# Method: a worker is started as the plan says and asked how it stands; bad input of each kind.

import json

import cluster


class Plan(cluster.ClusterTest):
    def plan(self, *arguments):
        said = cluster.call("plan", "--model", cluster.COLLATZ, "--json", *arguments)
        self.assertEqual(said.code, 0, said)
        return json.loads(said.out)

    def test_a_worker_has_what_was_planned(self):
        told = self.plan("--context", 1544, "--max-batch", 4, "--numerics", "cpu-bf16-v1")
        blocks = min(told["kv_blocks"], told["kv_blocks_used_max"])
        self.assertEqual(blocks, 4 * 49)  # 49 blocks of 32 hold 1544
        scheduler = self.scheduler()
        self.worker(scheduler, kv_blocks=blocks, max_batch=4, numerics="cpu-bf16-v1")
        cluster.wait_until(lambda: cluster.ready_workers(scheduler.endpoint), "the worker")
        has = list(cluster.ready_workers(scheduler.endpoint).values())[0]
        self.assertEqual(has["kv_blocks_total"], blocks)

    def test_config_json_alone_is_enough(self):
        bare = self.work / "bare"
        bare.mkdir()
        (bare / "config.json").write_bytes((cluster.COLLATZ / "config.json").read_bytes())
        said = cluster.call("plan", "--model", bare, "--gpu", "h200", "--json")
        self.assertEqual(said.code, 0, said)
        whole = self.plan("--gpu", "h200")
        self.assertEqual(json.loads(said.out)["parameters"], whole["parameters"])

    def test_prints_a_table_with_ports(self):
        said = cluster.call("plan", "--model", cluster.COLLATZ, "--prompts", 200, "--group-size", 8,
                            "--response-tokens", 300)
        self.assertEqual(said.code, 0, said)
        for word in ("KV of a token", "KV blocks that fit", "workers for all at once", "7450"):
            self.assertIn(word, said.out)

    def test_tells_a_number_of_workers_without_prompts(self):
        """The least that one can ask."""
        asked = ("--gpu", "h200", "--context", 32768, "--group-size", 64)
        model = cluster.ROOT / "deploy" / "sizing" / "qwen3-8b"
        said = cluster.call("plan", "--model", model, *asked)
        self.assertEqual(said.code, 0, said)
        self.assertRegex(said.out, r"(?m)^groups at once on one worker +0 *$")
        self.assertRegex(said.out, r"(?m)^workers for one group at once +8 *$")
        told = json.loads(cluster.call("plan", "--model", model, *asked, "--json").out)
        self.assertEqual((told["groups_at_once"], told["workers_for_group"]), (0, 8))
        self.assertEqual(told["at_once_full"], 9)  # 64 of them take 8 workers

    def test_refuses_in_one_line(self):
        for arguments, what in (
            (("--gpu", "abacus"), "known are h200"),
            (("--context", 10_000_000), "context is 10000000"),
            (("--numerics", "int1"), "unknown numerics profile"),
            (("--memory-gib", "some"), "some"),
            (("--model", self.work), "config.json"),
        ):
            model = () if "--model" in arguments else ("--model", cluster.COLLATZ)
            said = cluster.call("plan", *model, *arguments)
            self.assertEqual(said.code, 2, said)
            self.assertIn(what, said.err)
            self.assertEqual(len(said.err.strip().splitlines()), 1, said)
            self.assertEqual(said.out, "")


if __name__ == "__main__":
    import unittest

    unittest.main()
