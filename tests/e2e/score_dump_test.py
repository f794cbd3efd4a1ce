# Goal: `score --dump` and `compare` find the first thing that two models compute differently, say
# nothing differs when nothing does, and refuse bad input in one line.
# Method: one small run is scored with dumps under other threads, rows and blocks, by a model of
# which one weight was changed, and by the other numerics profile; dumps are cut and mixed up.

import json
import shutil
import struct
import unittest

from cluster import FAMILIES, ClusterTest, call, write_lines

QWEN3 = FAMILIES / "qwen3"


def change_weight(model, tensor, element):
    """Makes one bf16 element of a checkpoint 3."""
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    at = 8 + size + header[tensor]["data_offsets"][0] + 2 * element
    data[at : at + 2] = struct.pack("<H", 0x4040)
    file.write_bytes(data)


class ScoreDump(ClusterTest):
    def setUp(self):
        super().setUp()
        prompts = [{"prompt_token_ids": [1, 2, 3, 4, 5]}, {"prompt_token_ids": [7, 8]}]
        file = write_lines(self.work / "prompts.jsonl", prompts)
        said = call("run", "--model", QWEN3, "--prompts", file, "--out", self.work / "out",
                    "--group-size", 2, "--max-new-tokens", 20)
        self.assertEqual(said.code, 0, said)
        self.responses = self.work / "out" / "responses.jsonl"

    def dump(self, name, *flags, model=QWEN3, code=0):
        said = call("score", "--model", model, "--responses", self.responses, "--dump",
                    self.work / name, *flags)
        self.assertEqual(said.code, code, said)
        return self.work / name

    def compare(self, a, b, code):
        said = call("compare", self.work / a, self.work / b)
        self.assertEqual(said.code, code, said)
        return said.out if code < 2 else self.refused(said, ())

    def refused(self, said, words):
        self.assertEqual(said.code, 2, said)
        self.assertEqual(len(said.err.splitlines()), 1, said)
        for word in words:
            self.assertIn(word, said.err)
        return said.err

    def test_dumps_are_equal_whatever_the_threads_rows_and_blocks(self):
        for profile in ("cpu-f32-v1", "cpu-bf16-v1"):
            code = 0 if profile == "cpu-f32-v1" else 1  # the run's own profile scores alike
            a = self.dump("a" + profile, "--threads", 1, "--dump-values", "--numerics", profile,
                          code=code)
            b = self.dump("b" + profile, "--threads", 3, "--prefill-rows", 5, "--max-batch", 3,
                          "--block-tokens", 16, "--dump-values", "--numerics", profile, code=code)
            said = self.compare(a.name, b.name, 0)
            self.assertRegex(said, r"^equal: \d+ rows of 4 sequences\n$")
            for file in a.iterdir():
                self.assertEqual(file.read_bytes(), (b / file.name).read_bytes(), file.name)
        said = self.compare("acpu-f32-v1", "acpu-bf16-v1", 1)
        self.assertIn("note: numerics profile: cpu-f32-v1 and cpu-bf16-v1", said)

    def test_a_changed_weight_is_named_where_it_first_matters(self):
        model = self.work / "model"
        shutil.copytree(QWEN3, model)
        change_weight(model, "model.layers.1.mlp.down_proj.weight", 11 * 48 + 5)
        self.dump("a", "--dump-values")
        self.dump("b", "--dump-values", model=model, code=1)
        said = self.compare("a", "b", 1)
        self.assertIn("first difference: sequence 0 (group 0 index 0), layer 1, down, row 0, "
                      "element 11 of 64: ", said)
        self.assertIn("; 24 of 24 rows of this operation differ", said)
        self.dump("c", model=model, code=1)
        said = self.compare("a", "c", 1)
        self.assertIn("layer 1, down, row 0; 24 of 24", said)
        self.assertIn("dump both with --dump-values", said)

    def test_bad_input_is_refused_in_one_line(self):
        a = self.dump("a")
        score = ("score", "--model", QWEN3, "--responses", self.responses)
        self.refused(call(*score, "--dump", a), ["is not empty"])
        self.refused(call(*score, "--dump-values"), ["--dump"])
        self.refused(call(*score, "--dump", self.work / "large", "--dump-values",
                          "--dump-bytes-max", 100_000), ["the dump would have ", "100000"])
        self.assertFalse((self.work / "large").exists())
        self.dump("rows", "--dump-values", "--dump-rows", 2, "--dump-bytes-max", 100_000)
        self.refused(call("compare", a), ["b is required"])
        self.assertIn("holds no dump.json", self.compare("a", "out", 2))
        shutil.copytree(a, self.work / "cut")
        file = self.work / "cut" / "000002.hashes"
        file.write_bytes(file.read_bytes()[:-1])
        self.assertIn("000002.hashes", self.compare("a", "cut", 2))
        lines = self.responses.read_text().splitlines(keepends=True)
        self.responses.write_text("".join(lines[:3]))
        self.dump("fewer")
        self.assertIn("the number of sequences is 4 in ", self.compare("a", "fewer", 2))


if __name__ == "__main__":
    unittest.main()
