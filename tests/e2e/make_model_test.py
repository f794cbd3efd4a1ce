# Goal: `make-model` makes a model that `run` takes, with a text for what it says; what cannot be is
# refused in one line and leaves nothing behind; and so is a GPU that is not there.
# Method: the smallest shape with one layer, made and run; bad places and names of each kind.

import json

import cluster

SHAPE = ("--shape", "qwen3-0.6b", "--layers", 1)


class MakeModel(cluster.ClusterTest):
    def refused(self, what, *command):
        said = cluster.call(*command)
        self.assertEqual(said.code, 2, said)
        self.assertRegex(said.err, what)
        self.assertEqual(len(said.err.strip().splitlines()), 1, said)

    def test_what_it_makes_runs_and_has_texts(self):
        model = self.work / "models" / "small"
        said = cluster.call("make-model", *SHAPE, "--out", f"{model}/", "--shard-mib", 200)
        self.assertEqual(said.code, 0, said)
        self.assertEqual(sorted(p.name for p in model.parent.iterdir()), ["small"])
        self.assertTrue((model / "model-00002-of-00002.safetensors").exists())
        prompts = self.work / "prompts.jsonl"
        prompts.write_text('{"prompt": "Hé 1"}\n')
        said = cluster.call("run", "--model", model, "--prompts", prompts, "--group-size", 1,
                            "--max-new-tokens", 3, "--kv-blocks", 8, "--out", self.work / "out")
        self.assertEqual(said.code, 0, said)
        line = json.loads((self.work / "out" / "responses.jsonl").read_text())
        self.assertEqual(line["prompt_token_ids"], list("Hé 1".encode()))
        said = "".join(f"#{i}" for i in line["token_ids"] if i > 255 and i not in (151643, 151645))
        if min(line["token_ids"]) > 255:  # else a byte or two of some character
            self.assertEqual(line["text"], said)
        self.refused("is not an empty directory", "make-model", *SHAPE, "--out", model)

    def test_refuses_in_one_line_and_leaves_nothing(self):
        out = self.work / "model"
        for what, flags in (
            ("there are qwen3-0.6b, qwen3-4b", ("--shape", "gpt-5")),
            ("unknown dtype 'int4'", (*SHAPE, "--dtype", "int4")),
            ("MB free and the model takes", ("--shape", "qwen3-8b", "--layers", 40_000)),
        ):
            self.refused(what, "make-model", *flags, "--out", out)
            self.assertFalse(out.exists())
        (self.work / "file").write_text("")
        self.refused("cannot make", "make-model", *SHAPE, "--out", self.work / "file" / "model")
        (self.work / "model.partial").mkdir()
        self.refused("half a model", "make-model", *SHAPE, "--out", out)

    def test_a_device_that_is_none_is_refused_in_one_line(self):
        for device, what in (("tpu", "unknown device 'tpu'"), ("cuda:x", "unknown device 'cuda:x'"),
                             ("cuda:1000", "this build has no CUDA|no GPU: |there is no GPU 1000")):
            self.refused(what, "worker", "--model", cluster.COLLATZ, "--device", device)
            self.refused(what, "bench", "engine", "--device", device)
        self.refused("is not of device cpu", "worker", "--model", cluster.COLLATZ, "--numerics",
                     "cuda-bf16-v1")
        self.refused("cuda-bf16-fast-v1 is not exact: bench engine measures", "worker", "--model",
                     cluster.COLLATZ, "--numerics", "cuda-bf16-fast-v1", "--device", "cuda:0")
        self.refused("is not of device cuda", "worker", "--model", cluster.COLLATZ, "--numerics",
                     "cpu-f32-v1", "--device", "cuda:0")


if __name__ == "__main__":
    import unittest

    unittest.main()
