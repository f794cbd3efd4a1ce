# Goal: the quick start's controller may be killed when one likes. It goes on with the batch that
# there is, has every answer once, generates nothing twice and loads no weights twice.
# Method: SIGKILL while answers of step 1 come, when it has all of them but nothing is trained yet,
# and when its weights are served but that is not written down. The oracle is a run without a kill.

import json
import os
import re
import signal
import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from cluster import COLLATZ, ClusterTest, _die_with_parent, http_get, status, wait_until

HERE = ROOT / "examples" / "quickstart"
STEPS, ANSWERS = 3, 64
# What dies in `train` has acknowledged all of the batch; the pause lets that reach the scheduler.
DIE = """
import os, signal, time
def die():
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""
IN_TRAIN = DIE + """
first = []
def train(checkpoint, samples):
    first.append(1)
    return checkpoint if len(first) == 1 else die()
controller.train = train
"""
BEFORE_IT_IS_WRITTEN = DIE + """
write = controller.Place.write
controller.Place.write = lambda at, path: die() if at.step == 2 else write(at, path)
"""


class Quickstart(ClusterTest):
    def begin(self, endpoint, out, change=""):
        """Starts the controller, changed by some lines."""
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'clients' / 'python'}:{HERE}"}
        process = subprocess.Popen(
            [sys.executable, "-B", "-c", f"import controller\n{change}\ncontroller.main()",
             "--connect", endpoint, "--checkpoint", str(COLLATZ), "--steps", str(STEPS),
             "--out", str(out)],
            env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, preexec_fn=_die_with_parent)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def end(self, process, code=0):
        said, _ = process.communicate(timeout=200)
        self.assertEqual(process.returncode, code, f"{said}\n{self.logged()}")
        return said

    def generated(self, up):
        """Tokens that became part of a response, of all batches."""
        text = http_get(up.metrics + "/metrics")[1]
        return float(re.search(r"(?m)^rollcast_generated_tokens_total\S* (\S+)$", text).group(1))

    def answers(self, out):
        """Of each step, by place."""
        steps = {}
        for path in out.glob("*.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            by_place = {(a["group"], a["index"]): (a["tokens"], a["logprobs"]) for a in lines}
            self.assertEqual((len(lines), len(by_place)), (ANSWERS, ANSWERS), path)
            steps[int(path.stem.rsplit("-", 1)[1])] = by_place
        return steps

    def test_a_kill_changes_nothing(self):
        up = self.up()
        plain = self.work / "plain"
        said = self.end(self.begin(up.endpoint, plain))
        self.assertEqual(re.findall(r"(?m)^step (\d)", said), ["0", "1", "2"])
        self.assertEqual(re.findall(r"probability: (\S+)", said), ["0.0"] * STEPS)
        oracle = self.answers(plain)
        self.assertEqual(sorted(oracle), list(range(STEPS)))
        self.assertNotEqual(oracle[0], oracle[1], "every step has a seed of its own")

        tokens = sum(len(a[0]) for step in oracle.values() for a in step.values())
        self.assertEqual(self.generated(up), tokens)
        kills = {"while answers come": "", "in train": IN_TRAIN, "at the end": BEFORE_IT_IS_WRITTEN}
        for name, change in kills.items():
            with self.subTest(name):
                out = self.work / name.replace(" ", "-")
                epoch, before = status(up.endpoint)["weight_version"], self.generated(up)
                first = self.begin(up.endpoint, out, change)
                if not change:
                    wait_until(lambda: sum(p.read_text().count("\n")
                                           for p in out.glob("*-1.jsonl")) >= 3, "step 1",
                               pause=0.001)
                    first.kill()
                self.end(first, -signal.SIGKILL)
                if not change:
                    log = next(out.glob("*-1.jsonl"))
                    taken = log.read_text().count("\n")
                    self.assertLess(taken, ANSWERS, "the kill came too late to tell anything")
                    whole = log.read_text().rsplit("\n", 1)[0] + "\n"
                    log.write_text(whole + '{"group": 7, "index')  # as a kill may leave it
                run = json.loads((out / "run.json").read_text())
                self.assertEqual((run["step"], run["epoch"]), (1, epoch + 1))
                said = self.end(self.begin(up.endpoint, out))
                self.assertEqual(re.findall(r"(?m)^step (\d)", said), ["1", "2"])
                self.assertEqual(self.answers(out), oracle)
                self.assertEqual(status(up.endpoint)["weight_version"], epoch + STEPS)
                self.assertFalse((out / "run.json").exists())
                self.assertEqual(self.generated(up) - before, tokens, "some were made twice")
                self.assertEqual(status(up.endpoint)["batches"], [], "an orphan")


if __name__ == "__main__":
    unittest.main()
