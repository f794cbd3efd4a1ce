"""Goal: the example's checker believes right answers only, and its prompts can be made again.

Method: hand-made answers of each kind, through the functions and through the command line.
"""

import io
import json
import pathlib
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout

import check
import collatz
import make_prompts

SIX = " 3, 10 -> 5 16, 8 4 2 1"  # 6 3 10 5 16 8 4 2 1


def response(text=None, group=0, start="6", reason="stop", ids=None):
    line = {"group": group, "id": "a", "finish_reason": reason}
    line["prompt_token_ids"] = list(f"{start}:".encode())
    line["token_ids"] = ids if ids is not None else list(text.encode()) + [256]
    if text is not None:
        line["text"] = text
    return line


class Judge(unittest.TestCase):
    def test_a_trajectory_in_any_separators_is_correct(self):
        self.assertEqual(collatz.judge(6, SIX, True), (True, 8, 8))
        self.assertEqual(collatz.judge(6, " 3 10 5 16 8 4 2 1", True), (True, 8, 8))
        self.assertEqual(collatz.judge(1, "", True)[0], False)

    def test_what_is_not_the_trajectory_is_not_correct(self):
        for text in (
            " 3 10 5 16 8 4 2",  # does not reach 1
            " 3 10 5 16 8 4 2 1 4",  # goes on after 1
            " 3 10 5 16 8 4 2 1 ",  # a space too many
            " 3 10 5 16 8 4 2 1.",  # junk
            "3 10 5 16 8 4 2 1",  # starts without a separator
            " 03 10 5 16 8 4 2 1",  # not how a number is written
            " 3 10 5 16 8 4 2 \u0661",  # a digit, but not ours
            "",
        ):
            self.assertFalse(collatz.judge(6, text, True)[0], repr(text))

    def test_a_wrong_step_is_one_wrong_step_when_the_rest_follows_from_it(self):
        self.assertEqual(collatz.judge(6, " 3 12 6 3 10 5 16 8 4 2 1", True), (False, 11, 10))

    def test_steps_after_1_are_wrong(self):
        self.assertEqual(collatz.judge(4, " 2 1 4 2 1", True), (False, 5, 4))

    def test_a_cut_answer_is_not_correct_and_its_last_number_is_not_judged(self):
        self.assertEqual(collatz.judge(6, " 3 10 5 1", False), (False, 3, 3))
        self.assertEqual(collatz.judge(6, SIX, False), (False, 7, 7))

    def test_endless_digits_are_a_wrong_step_and_no_crash(self):
        self.assertEqual(collatz.judge(6, " 3 " + "1" * 10_000 + " 4", True), (False, 3, 1))


class Check(unittest.TestCase):
    def run_check(self, lines, *more):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "responses.jsonl"
            texts = (x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines)
            path.write_text("".join(texts))
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = check.main([str(path), *more])
            return code, out.getvalue(), err.getvalue()

    def figures(self, lines):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "figures.json"
            code, _, err = self.run_check(lines, "--json", str(path))
            self.assertEqual((code, err), (0, ""))
            return json.loads(path.read_text())

    def test_counts_what_it_reads(self):
        got = self.figures([
            response(SIX),
            response(" 3 10 5 16 8 4 2 2"),
            response(" 2 1", group=1, start="4"),
            response(" 2 10", group=1, start="4", reason="length"),
        ])
        self.assertEqual(got["responses"], 4)
        self.assertEqual(got["groups"], 2)
        self.assertEqual(got["correct"], 2)
        self.assertEqual(got["correct_share"], 0.5)
        self.assertEqual(got["steps"], 8 + 8 + 2 + 1)
        self.assertAlmostEqual(got["correct_step_share"], 18 / 19)
        self.assertEqual(got["max_length"], len(SIX) + 1)
        self.assertEqual(got["finish_reasons"], {"length": 1, "stop": 3})

    def test_token_ids_are_enough(self):
        ids = list(SIX.encode()) + [256]
        self.assertEqual(self.figures([response(ids=ids)])["correct"], 1)
        self.assertEqual(self.figures([response(ids=ids[:3] + [300] + ids[3:])])["correct"], 0)

    def test_text_may_show_the_end_token(self):
        self.assertEqual(self.figures([response(SIX + "<|endoftext|>")])["correct"], 1)

    def test_variance_is_shared_out_between_and_within(self):
        def sized(group, n):
            return response(ids=[32] * n, group=group)

        share = "within_group_variance_share"
        apart = [sized(0, 10), sized(0, 10), sized(1, 30), sized(1, 30)]
        self.assertEqual(self.figures(apart)[share], 0.0)
        alike = [sized(0, 10), sized(0, 30), sized(1, 10), sized(1, 30)]
        self.assertEqual(self.figures(alike)[share], 1.0)
        mixed = [sized(0, 10), sized(0, 20), sized(1, 30), sized(1, 40)]
        self.assertAlmostEqual(self.figures(mixed)[share], 0.2)
        self.assertIsNone(self.figures([sized(0, 10), sized(1, 30)])[share])

    def test_bad_input_is_one_line_and_exit_2(self):
        good = response(SIX)
        for lines, said in (
            ([], "no responses"),
            ([good, "{\n"], ":2: not a response"),
            ([good, "[]\n"], ":2: not a response"),
            ([{"group": 0}], "'finish_reason' is missing"),
            ([response(SIX, start="x")], "not a number and a colon"),
            ([response(SIX, start="0")], "not a number and a colon"),
        ):
            code, out, err = self.run_check(lines)
            self.assertEqual((code, out, err.count("\n")), (2, "", 1), err)
            self.assertIn(said, err)
        err = io.StringIO()
        with redirect_stderr(err):
            self.assertEqual(check.main(["/nowhere/responses.jsonl"]), 2)
        self.assertIn("No such file", err.getvalue())


class Prompts(unittest.TestCase):
    def test_committed_prompts_are_what_the_maker_makes(self):
        committed = (make_prompts.HERE / "prompts.jsonl").read_text()
        self.assertEqual(committed, "".join(line + "\n" for line in make_prompts.lines()))

    def test_prompts_are_distinct_and_not_held_out(self):
        heldout = json.loads((make_prompts.HERE / "model" / "heldout.json").read_text())
        starts = [int(json.loads(line)["id"]) for line in make_prompts.lines()]
        self.assertEqual(len(set(starts)), 200)
        self.assertFalse(set(starts) & set(heldout))
        self.assertTrue(all(2 <= n <= 4999 for n in starts))

    def test_the_generator_is_the_published_one(self):
        rng = make_prompts.SplitMix64(1234567)
        wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
        self.assertEqual([rng.next() for _ in wanted], wanted)


if __name__ == "__main__":
    unittest.main()
