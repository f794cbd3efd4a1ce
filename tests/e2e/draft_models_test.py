# Goal: with an MTP layer or an EAGLE-3 head that drafts, in whatever shape and however responses
# move, responses.jsonl has the bytes that it has without; what cannot draft is refused in a line.
# Method: tiny models with their own MTP layers, and one with drafts in directories; a run without
# drafts is the oracle. The worker's figures tell that something was drafted.

import json
import shutil
import unittest

from cluster import (
    COLLATZ,
    FAMILIES,
    LIMIT_S,
    ClusterTest,
    call,
    family_prompts,
    first_prompts,
    flags_of,
    ready_workers,
    wait_until,
)
from rollcast import Client
from weights_test import Words, tensors_of

DRAFTERS = FAMILIES / "drafters"
TARGET = DRAFTERS / "target"
TREE = {"speculative_num_steps": 4, "speculative_eagle_topk": 3, "speculative_num_draft_tokens": 12}
MOVING = {"workers": 2, "chunk_tokens": 16, "force_migration": True}
WAYS = [
    {"speculate": "mtp"},
    {"speculate": "mtp", **TREE},
    {"speculate": "mtp", "speculative_num_steps": 1},
    {"speculate": "mtp", **MOVING},
    {"speculate": "auto", "max_batch": 3},
]


class DraftModels(ClusterTest):
    def check(self, model, prompts, ways, **settings):
        """All ways of a run must give the bytes of the first, and draft something."""
        settings = {"model": model, "group_size": 3, "seed": 4, **settings}
        oracle, _ = self.run_batch(prompts, **settings)
        for way in ways:
            with self.subTest(model=model.name, **way):
                data, summary = self.run_batch(prompts, **settings, **way)
                self.assert_same(data, oracle, str(way))
                if way["speculate"] != "auto":  # which may find that nothing pays
                    self.assertGreater(summary["draft_tokens"], 0)
                    self.assertGreater(summary["accepted_tokens"], 0)
        return oracle

    def test_models_with_their_own_mtp_layer(self):
        for family in ("mimo", "glm4_moe", "deepseek_v3", "moonlight"):
            prompts = family_prompts(self.work / f"{family}.jsonl", family, 6)
            for numerics in ("cpu-f32-v1", "cpu-bf16-v1"):
                self.check(FAMILIES / family, prompts, WAYS, numerics=numerics)

    def test_drafts_in_directories(self):
        prompts = family_prompts(self.work / "prompts.jsonl", "qwen3", 6)
        eagle = {"speculate": "eagle3", "draft_model": DRAFTERS / "eagle3"}
        mtp = {"speculate": "mtp", "draft_model": DRAFTERS / "mtp"}
        oracle = self.check(TARGET, prompts, [
            eagle, {**eagle, **TREE}, {**eagle, **MOVING}, {**eagle, **TREE, "prefill_rows": 16},
            mtp, {**mtp, **TREE, **MOVING},
            {"speculate": "auto", "draft_model": DRAFTERS / "eagle3"},
            {"speculate": "auto", "draft_model": DRAFTERS / "mtp", "workers": 2},
        ])
        # The head's own context of 64 tokens ends no response.
        longest = max(len(r["prompt_token_ids"]) + len(r["token_ids"])
                      for r in map(json.loads, oracle.splitlines()))
        self.assertEqual(longest, 250)

    def test_an_update_of_the_draft_reaches_who_drafts_and_changes_no_byte(self):
        prompts = first_prompts(self.work / "prompts.jsonl", 24)
        settings = {"group_size": 4, "max_new_tokens": 200, "seed": 3}
        oracle, _ = self.run_batch(prompts, model=COLLATZ, speculate="off", **settings)
        scheduler = self.scheduler()
        head = COLLATZ.parent / "eagle3"
        self.worker(scheduler, name="drafts", speculate="eagle3", draft_model=head)
        self.worker(scheduler, name="plain", speculate="off")
        wait_until(lambda: len(ready_workers(scheduler.endpoint)) == 2, "both workers")

        def by_worker(version):
            """Runs the batch on both; returns what each says that it drafted."""
            data, summary = self.collect(self.submit(
                scheduler.endpoint, prompts, tokenizer=COLLATZ / "tokenizer.json", chunk_tokens=32,
                force_migration=True, **settings))
            told = b'"version":%d' % version
            self.assertEqual(data.count(told), 96)
            self.assert_same(data.replace(told, b'"version":1'), oracle, f"epoch {version}")
            workers = {w["name"]: w for w in summary["workers"]}
            self.assertGreater(workers["plain"]["tokens"], 0)
            self.assertEqual(workers["plain"]["draft_tokens"], 0)
            return workers["drafts"]

        trained = by_worker(1)
        self.assertGreater(trained["mean_acceptance_length"], 1.5, "it was trained")
        shape = tensors_of(head)["lm_head.weight"][1]
        with Client(scheduler.endpoint) as client:
            served = client.update_weights(
                {"draft.lm_head.weight": Words(shape, bytes(2 * shape[0] * shape[1]))},
                dtype="bfloat16", changed_only=True)
        self.assertEqual((served.epoch, served.workers), (2, 2))
        blind = by_worker(2)
        self.assertGreater(blind["draft_tokens"], 0)
        self.assertLess(blind["mean_acceptance_length"], trained["mean_acceptance_length"] - 0.3,
                        "its head says nothing any more")

    def refuse(self, words, model=TARGET, **settings):
        said = call("run", "--model", model, "--prompts", self.prompts, "--out", self.work / "out",
                    *flags_of(settings), timeout=LIMIT_S + 5)
        self.assertNotEqual(said.code, 0, said)
        self.assertEqual(len(said.err.strip().splitlines()), 1, said)
        for word in words:
            self.assertIn(word, said.err)

    def test_what_cannot_draft_is_refused_in_a_line(self):
        self.prompts = family_prompts(self.work / "prompts.jsonl", "qwen3", 4)
        # sglang #36528: without a path the target was loaded as its own draft.
        self.refuse(["--speculate eagle3 needs --draft-model"], speculate="eagle3")
        self.refuse(["Qwen3ForCausalLM", "not an EAGLE-3 head"], speculate="eagle3",
                    draft_model=TARGET)
        self.refuse(["Qwen3ForCausalLM", "no MTP layer"], speculate="mtp")
        self.refuse(["vocab_size is 200", "320"], COLLATZ, speculate="eagle3",
                    draft_model=DRAFTERS / "eagle3")
        self.refuse(["--draft-model is given, but --speculate is group"], speculate="group",
                    draft_model=DRAFTERS / "eagle3")
        self.refuse(["give all three, or none"], speculate="mtp", draft_model=DRAFTERS / "mtp",
                    speculative_eagle_topk=4)
        self.refuse(["no more than 3"], speculate="mtp", draft_model=DRAFTERS / "mtp",
                    speculative_num_steps=1, speculative_eagle_topk=2,
                    speculative_num_draft_tokens=8)
        broken = self.work / "broken"
        shutil.copytree(DRAFTERS / "eagle3", broken)
        config = json.loads((broken / "config.json").read_text())
        config["architectures"] = ["LlamaForCausalLMEagle"]
        (broken / "config.json").write_text(json.dumps(config))
        for kind in ("eagle3", "mtp", "auto"):
            self.refuse(["EAGLE-1 or EAGLE-2"], speculate=kind, draft_model=broken)


if __name__ == "__main__":
    unittest.main()
