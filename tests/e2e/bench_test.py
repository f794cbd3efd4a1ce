# Goal: `rollcast bench policies` runs both policies on real processes, finds equal responses and
# prints what is promised; and refuses bad input in a line.
# Method: a few prompts, one run of each policy. How large the ratios are is not tested here: that
# takes minutes on a quiet machine.

import json
import unittest

from cluster import COLLATZ, ClusterTest, call, first_prompts


class BenchPolicies(ClusterTest):
    def bench(self, *more):
        prompts = first_prompts(self.work / "p.jsonl", 12)
        return call("bench", "policies", "--model", COLLATZ, "--prompts", prompts,
                    "--group-size", 4, "--max-new-tokens", 300, "--kv-blocks", 60, "--repeats", 1,
                    *more)

    def test_runs_both_and_prints_ratios(self):
        said = self.bench()
        self.assertEqual(said.code, 0, said)
        figures = json.loads(said.out)
        self.assertGreater(figures["makespan_ratio"], 0)
        self.assertTrue(figures["tail_ratio"] is None or figures["tail_ratio"] > 0)
        self.assertEqual(figures["responses"], 48)
        self.assertTrue(figures["identical"])
        self.assertEqual([run["policy"] for run in figures["runs"]], ["static", "context"])
        static, context = figures["runs"]
        self.assertGreater(static["preemptions"], 0, "KV is not scarce")
        self.assertEqual(context["preemptions"], 0)

    def test_refuses_what_cannot_run(self):
        for more in (["--group-size", 0], ["--repeats", 0], ["--max-new-tokens", 5000],
                     ["--out", self.work / "missing" / "out.json"]):
            with self.subTest(more=more):
                prompts = first_prompts(self.work / "p.jsonl", 2)
                said = call("bench", "policies", "--model", COLLATZ, "--prompts", prompts,
                            "--kv-blocks", 60, *more)
                self.assertEqual(said.code, 2, said)
                self.assertEqual(len(said.err.splitlines()), 1, said)


if __name__ == "__main__":
    unittest.main()
