"""Checkpoints of pickles become safetensors.

Goal: the same names, types and bits, of one file and of shards; what is no table of tensors is
refused in one line, no code in it runs, and nothing is left behind.
Method: the tiny EAGLE-3 head, saved as it is often published, converted and loaded as a draft.
"""

import json
import pickle
import shutil
import tempfile
import unittest
from pathlib import Path

try:
    import safetensors  # noqa: F401
    import torch
except ModuleNotFoundError as missing:
    if missing.name not in ("torch", "safetensors"):
        raise
    reason = f"torch is not installed ({missing.name}): run `make train-test`"
    raise unittest.SkipTest(reason) from None

from safetensors.torch import load_file

from rollcast import convert
from rollcast.drafts import load_draft
from rollouts import ROOT

HEAD = ROOT / "tests" / "fixtures" / "models" / "drafters" / "eagle3"
RAN = []


class Mine:
    """A pickle that would run code."""

    def __reduce__(self):
        return (RAN.append, (1,))


class Convert(unittest.TestCase):
    def setUp(self):
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        shutil.copy(HEAD / "config.json", self.directory)
        self.tensors = load_file(HEAD / "model.safetensors")

    def assert_converted(self):
        self.assertEqual(convert.main([str(self.directory)]), 0)
        found = load_file(self.directory / "model.safetensors")
        self.assertEqual(found.keys(), self.tensors.keys())
        for name, tensor in self.tensors.items():
            self.assertEqual(found[name].dtype, tensor.dtype, name)
            self.assertTrue(torch.equal(found[name], tensor), name)
        self.assertEqual(load_draft(self.directory).kind, "eagle3")
        self.assertFalse(list(self.directory.glob("*.part")))

    def refused(self):
        with self.assertRaises(convert.ConvertError) as refusal:
            convert.convert(self.directory)
        self.assertFalse(list(self.directory.glob("*.safetensors")))
        self.assertFalse(list(self.directory.glob("*.part")))
        self.assertNotIn("\n", str(refusal.exception))
        return str(refusal.exception)

    def test_one_file_keeps_every_bit(self):
        self.tensors["fc.weight"] = self.tensors["fc.weight"].t().contiguous().t()  # a view
        torch.save(self.tensors, self.directory / "pytorch_model.bin")
        self.assert_converted()

    def test_shards_are_found_by_their_index(self):
        names = sorted(self.tensors)
        index = {}
        for shard in range(2):
            file = f"pytorch_model-0000{shard + 1}-of-00002.bin"
            index.update((name, file) for name in names[shard::2])
            torch.save({n: self.tensors[n] for n in names[shard::2]}, self.directory / file)
        (self.directory / "pytorch_model.bin.index.json").write_text(
            json.dumps({"weight_map": index})
        )
        self.assert_converted()

    def test_what_is_no_table_of_tensors_is_refused_and_runs_no_code(self):
        self.assertIn("pytorch_model.bin: not there", self.refused())
        at = self.directory / "pytorch_model.bin"
        at.write_bytes(pickle.dumps({"fc.weight": Mine()}))
        self.assertIn("not a file of tensors", self.refused())
        self.assertEqual(RAN, [])
        at.write_bytes(b"")
        self.assertIn("not a file of tensors", self.refused())
        torch.save([1, 2], at)
        self.assertIn("not a table of tensors", self.refused())

    def test_a_checkpoint_that_is_there_is_not_replaced(self):
        shutil.copy(HEAD / "model.safetensors", self.directory)
        torch.save({}, self.directory / "pytorch_model.bin")
        self.assertEqual(convert.main([str(self.directory)]), 2)
        found = load_file(self.directory / "model.safetensors")
        self.assertEqual(found.keys(), self.tensors.keys())


if __name__ == "__main__":
    unittest.main()
