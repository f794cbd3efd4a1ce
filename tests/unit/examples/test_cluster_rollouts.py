"""Goal: the example's rollouts are of the weights published last and of no others, in order of the
prompts, and a worker is killed only when there is one to kill.

Method: a fake scheduler, whose responses are all made by weight version 4.
"""

import os
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from fake_scheduler import FakeScheduler  # noqa: E402

from cluster_rollouts import Cluster, ClusterRollouts, Stop  # noqa: E402


class Rollouts(unittest.TestCase):
    def setUp(self):
        self.scheduler = self.enterContext(FakeScheduler())
        self.scheduler.order = lambda numbers: numbers[::-1]
        self.rollouts = self.enterContext(ClusterRollouts(self.scheduler.endpoint, chunk_tokens=64))

    def test_responses_come_by_prompt_with_their_prompts(self):
        self.rollouts.version = 4
        responses = self.rollouts.generate([27, 97], 3, seed=5, max_new_tokens=9)
        places = [(r.group, r.index) for r in responses]
        self.assertEqual(places, [(g, i) for g in range(2) for i in range(3)])
        self.assertEqual(bytes(responses[5].prompt_token_ids), b"97:")
        (batch,) = self.scheduler.batches.values()
        sent = batch.submitted
        self.assertEqual((sent.seed, sent.chunk_tokens, sent.sampling.max_new_tokens), (5, 64, 9))
        self.assertEqual(sent.required_weight_version, 4)

    def test_what_was_published_last_is_asked_for_and_nothing_else_is_taken(self):
        self.assertEqual(self.rollouts.publish({}).epoch, 5)
        with self.assertRaises(Stop) as caught:
            self.rollouts.generate([27], 2, seed=5, max_new_tokens=9)
        (batch,) = self.scheduler.batches.values()
        self.assertEqual(batch.submitted.required_weight_version, 5)
        self.assertEqual(caught.exception.args[0], 1)
        self.assertIn("weight versions 4 [0, 3) made its 3 tokens, 5 was", caught.exception.args[1])

    def test_no_process_is_killed_when_no_worker_tells_its_own(self):
        self.rollouts.version = 4
        with self.assertRaises(Stop) as caught:
            self.rollouts.generate([27], 4, seed=5, max_new_tokens=9, kill_worker=True)
        self.assertIn("at 1 of 4 responses", caught.exception.args[1])

    def test_a_cluster_that_does_not_come_up_is_one_line(self):
        with self.assertRaises(Stop) as caught:
            Cluster("/bin/false", "model", 2, "off", os.devnull)
        self.assertEqual(
            caught.exception.args, (2, f"/bin/false up did not come up, see {os.devnull}")
        )


if __name__ == "__main__":
    unittest.main()
