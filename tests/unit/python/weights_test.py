# Goal: the Python client sends every byte of new weights once, with few buckets under way; whatever
# fails ends in one AbortWeights and the scheduler's line. Scores keep their bits.
# Method: the real client over loopback against the fake scheduler of fake_scheduler.py. Tensors are
# fakes with the interface of numpy and torch; where those are installed, they themselves too.

import ctypes
import os
import struct
import sys
import threading
import time
import unittest
from array import array
from types import SimpleNamespace

from rollcast import Client, RollcastError, ScoreSequence, Timeout
from rollcast import rollcast_pb2 as wire
from rollcast._weights import SLICES_MAX, bytes_of, cut, frame_of

sys.path.insert(0, os.path.dirname(__file__))
from fake_scheduler import FakeScheduler, float_of  # noqa: E402

try:
    import numpy
except ImportError:
    numpy = None
try:
    import torch
except ImportError:
    torch = None


class FakeArray:
    """The part of numpy.ndarray that the client uses, over bytes."""

    def __init__(self, data, shape, dtype="<f4", name="float32"):
        self.data, self.shape = data, shape
        self.dtype = SimpleNamespace(str=dtype, name=name)

    def reshape(self, size):
        assert size == -1
        return self

    def view(self, kind):
        assert kind == "uint8"
        return memoryview(self.data).cast("B")


class FakeTensor:
    """The part of torch.Tensor that the client uses, on memory of its own."""

    def __init__(self, data, shape, dtype, element):
        self.shape, self.dtype, self.element = shape, dtype, element
        self.memory = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)

    def detach(self):
        return self

    cpu = contiguous = detach

    def numel(self):
        return len(self.memory) // self.element

    def element_size(self):
        return self.element

    def data_ptr(self):
        return ctypes.addressof(self.memory)


class FreedTensor(FakeTensor):
    """What a sharded trainer leaves of a parameter."""

    def data_ptr(self):
        return 0


def floats(*values):
    return FakeArray(array("f", values), (len(values),))


def noise(size):
    return bytes((i * 7 + i // 251) % 256 for i in range(size))


class WeightsTest(unittest.TestCase):
    def setUp(self):
        self.scheduler = self.enterContext(FakeScheduler())

    def client(self, timeout=30):
        return self.enterContext(Client(self.scheduler.endpoint, timeout))

    def sent(self, kind):
        return [getattr(r, kind) for r in self.scheduler.requests if r.WhichOneof("body") == kind]

    def wait_for(self, condition):
        deadline = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.005)

    # -- what arrives -----------------------------------------------------------------------------

    def test_every_byte_arrives_once_whatever_the_bucket_size(self):
        tensors = {
            "half": FakeTensor(noise(2 * 33), (3, 11), "torch.float16", 2),
            "matrix": FakeArray(noise(4 * 6 * 100), (6, 100)),
            "bf16": FakeTensor(noise(2 * 501), (501,), "torch.bfloat16", 2),
            "bits": FakeArray(noise(2 * 7), (7,), "<u2", "uint16"),
            "scalar": FakeArray(noise(4), ()),
        }
        for size in [1, 4, 10, 64, 1000, 3416, 1 << 20, 1 << 30]:
            with self.subTest(bucket_bytes=size):
                served = self.client().update_weights(tensors, bucket_bytes=size, dtype="bfloat16")
                self.assertEqual(
                    self.scheduler.served,
                    {
                        "matrix": ("F32", [6, 100], noise(2400)),
                        "half": ("F16", [3, 11], noise(66)),
                        "bf16": ("BF16", [501], noise(1002)),
                        "bits": ("BF16", [7], noise(14)),
                        "scalar": ("F32", [], noise(4)),
                    },
                )
                parts = sum(len(s.data) for s in self.scheduler.slices)
                self.assertEqual(parts, 3486, "no byte comes twice")
                self.assertEqual(self.sent("commit_weights")[-1].tensors, 5)
                self.assertEqual(served.tensors, 5)
                for part in self.scheduler.slices:
                    element = 4 if part.dtype == "F32" else 2
                    self.assertEqual((part.offset % element, len(part.data) % element), (0, 0))

    def test_buckets_are_numbered_and_bounded_by_what_the_scheduler_takes(self):
        self.scheduler.bucket_bytes_max = 64
        self.client().update_weights([("w", FakeArray(noise(400), (100,)))])
        buckets = self.sent("weight_bucket")
        self.assertEqual([b.bucket for b in buckets], list(range(1, 8)))
        self.assertEqual({b.epoch for b in buckets}, {5})
        for bucket in buckets:
            self.assertLessEqual(sum(len(s.data) for s in bucket.slices), 64)

    def test_many_small_tensors_share_buckets_up_to_the_bound_of_slices(self):
        tensors = [(f"t{i}", floats(i)) for i in range(SLICES_MAX + 1)]
        self.assertEqual(self.client().update_weights(tensors).tensors, SLICES_MAX + 1)
        self.assertEqual([len(b.slices) for b in self.sent("weight_bucket")], [SLICES_MAX, 1])

    def test_an_iterable_may_reuse_its_memory(self):
        memory = array("f", [0.0] * 100)

        def gathered():
            for value in range(50):
                for i in range(100):
                    memory[i] = value
                yield f"t{value}", FakeArray(memory, (100,))

        self.client().update_weights(gathered(), bucket_bytes=1000)
        for value in range(50):
            _, _, data = self.scheduler.served[f"t{value}"]
            self.assertEqual(data, struct.pack("<f", value) * 100)

    def test_the_options_reach_the_scheduler(self):
        client = self.client()
        client.update_weights(
            {}, epoch=9, changed_only=True, flip="chunk_edge", allow_non_finite=True
        )
        (begin,) = self.sent("begin_weights")
        self.assertEqual(
            (begin.epoch, begin.changed_only, begin.flip, begin.allow_non_finite),
            (9, True, wire.WEIGHT_FLIP_CHUNK_EDGE, True),
        )
        self.assertEqual(self.sent("commit_weights")[0].epoch, 9)
        client.update_weights([("w", floats(1))])
        begin = self.sent("begin_weights")[1]
        self.assertEqual((begin.epoch, begin.changed_only, begin.flip), (0, False, 0))

    def test_the_frame_is_what_protobuf_makes_of_it(self):
        tensors = [("w", FakeArray(noise(400), (4, 25))), ("b", floats(1, 2))]
        (bucket,) = cut(tensors, 3, 1 << 20)
        envelope = wire.Envelope.FromString(frame_of(300, 1, bucket))
        expected = wire.Envelope(version=1, request_id=300)
        expected.weight_bucket.epoch, expected.weight_bucket.bucket = 3, 1
        expected.weight_bucket.slices.add(name="w", dtype="F32", shape=[4, 25], data=noise(400))
        data = struct.pack("<2f", 1, 2)
        expected.weight_bucket.slices.add(name="b", dtype="F32", shape=[2], data=data)
        self.assertEqual(envelope, expected)

    # -- the window -------------------------------------------------------------------------------

    def test_a_few_buckets_and_no_more_are_under_way(self):
        self.scheduler.buckets_held = True
        made = []

        def tensors():
            for i in range(12):
                made.append(i)
                yield f"t{i}", FakeArray(noise(64), (16,))

        client = self.client()
        thread = threading.Thread(
            target=client.update_weights, args=(tensors(),), kwargs={"bucket_bytes": 64}
        )
        thread.start()
        try:
            self.wait_for(lambda: self.scheduler.kinds().count("weight_bucket") == 4)
            time.sleep(0.1)
            self.assertEqual(self.scheduler.kinds().count("weight_bucket"), 4)
            self.assertEqual(len(made), 5, "the next waits in the hand")
        finally:
            self.scheduler.buckets_held = False
            thread.join()
        self.assertEqual(self.scheduler.kinds().count("weight_bucket"), 12)
        self.assertEqual(self.scheduler.kinds()[-1], "commit_weights")

    # -- failures ---------------------------------------------------------------------------------

    def refused(self, *args, client=None, **options):
        with self.assertRaises(RollcastError) as caught:
            (client or self.client()).update_weights(*args, **options)
        return caught.exception

    def test_a_refused_bucket_aborts_with_the_schedulers_line(self):
        self.scheduler.refused_bucket = 3
        tensors = [(f"t{i}", FakeArray(noise(64), (16,))) for i in range(100)]
        error = self.refused(tensors, bucket_bytes=64)
        self.assertEqual(str(error), "bad_checkpoint: bucket 3: NaN in it")
        self.assertEqual(self.scheduler.kinds()[-1], "abort_weights")
        self.assertEqual([a.epoch for a in self.sent("abort_weights")], [5])
        self.assertEqual(self.sent("commit_weights"), [])
        self.assertLess(len(self.sent("weight_bucket")), 10, "the rest is not sent")

    def test_a_client_goes_on_after_an_aborted_update(self):
        client = self.client()
        self.scheduler.refused_bucket = 1
        tensors = [(f"t{i}", FakeArray(noise(64), (16,))) for i in range(9)]
        self.refused(tensors, client=client, bucket_bytes=64)
        self.scheduler.refused_bucket = 0
        self.assertEqual(client.update_weights(tensors, bucket_bytes=64).tensors, 9)
        self.assertEqual(client.status().weight_version, 4)

    def test_a_refused_commit_aborts(self):
        self.scheduler.refused["commit_weights"] = wire.Error(
            code="bad_checkpoint", message="tensor w is missing"
        )
        self.assertEqual(self.refused([("b", floats(1))]).message, "tensor w is missing")
        self.assertEqual(self.scheduler.kinds()[-1], "abort_weights")

    def test_a_refused_begin_aborts_nothing_of_others(self):
        self.scheduler.refused["begin_weights"] = wire.Error(
            code="batch_conflict", message="epoch 5 is being received"
        )
        self.assertEqual(self.refused([("b", floats(1))]).code, "batch_conflict")
        self.assertEqual(self.sent("abort_weights"), [])

    def test_a_refused_abort_does_not_hide_the_reason(self):
        self.scheduler.refused_bucket = 1
        self.scheduler.refused["abort_weights"] = wire.Error(code="stale_epoch", message="too late")
        self.assertEqual(self.refused([("b", floats(1))]).code, "bad_checkpoint")

    def test_silence_aborts_in_time(self):
        client = self.client()
        for kind, options in [("weight_bucket", {}), ("commit_weights", {"timeout": 0.2})]:
            with self.subTest(kind=kind):
                self.scheduler.unheard = {kind}
                client.timeout = 0.2 if kind == "weight_bucket" else 30
                begin = time.monotonic()
                error = self.refused([("b", floats(1))], client=client, **options)
                self.assertLess(time.monotonic() - begin, 20)
                self.assertIsInstance(error, Timeout)
                self.assertIn(kind, error.message)
                self.wait_for(lambda: self.scheduler.kinds()[-1] == "abort_weights")

    def test_what_the_iterable_raises_is_raised_after_the_abort(self):
        def tensors():
            yield "t", floats(1)
            raise KeyError("gathering failed")

        with self.assertRaises(KeyError):
            self.client().update_weights(tensors())
        self.assertEqual(self.scheduler.kinds()[-1], "abort_weights")

    def test_tensors_that_cannot_be_sent_are_refused_by_name(self):
        for part, tensor in [
            ("tensor t: list is neither", [1.0]),
            ("dtype float64", FakeArray(noise(8), (1,), "<f8", "float64")),
            ("dtype float32 (>f4)", FakeArray(noise(4), (1,), ">f4")),
            ('uint16 and dtype="bfloat16"', FakeArray(noise(2), (1,), "<u2", "uint16")),
            ("shape [0, 3] has no elements", FakeArray(b"", (0, 3))),
            ("it has no memory", FreedTensor(noise(4), (1,), "torch.float32", 4)),
            ("dtype torch.int8", FakeTensor(noise(2), (2,), "torch.int8", 1)),
        ]:
            error = self.refused([("t", tensor)])
            self.assertEqual(error.code, "bad_checkpoint")
            self.assertIn(part, error.message)
            self.assertEqual(self.scheduler.kinds()[-1], "abort_weights")
        self.assertIn("tensor 7: ", self.refused([(7, floats(1))]).message)
        error = self.refused([("t", floats(1))], flip="sometimes")
        self.assertEqual(error.code, "bad_config")

    # -- the other requests -----------------------------------------------------------------------

    def test_the_answer_says_what_is_served(self):
        served = self.client().load_weights("/models/next", epoch=7)
        (load,) = self.sent("load_weights")
        self.assertEqual((load.directory, load.epoch, load.flip), ("/models/next", 7, 0))
        self.assertEqual((served.epoch, served.workers, served.pause_s), (7, 2, 0.25))
        self.assertEqual(served.content_hash, "0123456789abcdef" * 2)
        self.assertEqual(list(served.phases.items()), [("distributing", 1.5), ("flipping", 0.5)])

    def test_a_load_may_take_longer_than_a_request(self):
        client = self.client()
        client.timeout = 0.05
        self.scheduler.unheard = {"load_weights"}
        begin = time.monotonic()
        with self.assertRaises(Timeout):
            client.load_weights("/models/next", timeout=0.4)
        self.assertGreaterEqual(time.monotonic() - begin, 0.4)

    def test_rollback_pause_and_resume(self):
        client = self.client()
        self.assertEqual(client.rollback_weights().epoch, 4)
        client.pause()
        client.resume()
        client.abort_weights()
        self.assertEqual(
            self.scheduler.kinds()[1:], ["rollback_weights", "pause", "resume", "abort_weights"]
        )

    def test_status_tells_how_far_an_update_is(self):
        weights = self.client().status().weights
        self.assertEqual((weights.phase, weights.epoch, weights.next_epoch), ("distributing", 4, 5))
        self.assertEqual((weights.workers[0].worker, weights.workers[0].bytes), (9, 60))
        self.assertFalse(weights.paused or weights.workers[0].prepared)

    def test_scores_keep_their_bits(self):
        client = self.client()
        scored = client.score(
            [([1, 2, 3], 1), ScoreSequence([4, 5], prompt_tokens=2, temperature=0.5)],
            weight_version=3,
        )
        expected = array("f", [float_of(0xBF7FFFFF)] * 2)
        self.assertEqual(scored.rows[0].tobytes(), expected.tobytes())
        self.assertEqual(len(scored.rows[1]), 0)
        self.assertEqual((scored.weight_version, scored.numerics_profile), (3, "fake-f32"))
        (sent,) = self.sent("score")
        self.assertEqual([s.prompt_tokens for s in sent.sequences], [1, 2])
        self.assertEqual([s.temperature for s in sent.sequences], [1.0, 0.5])
        client.score([([1], 1)])
        self.assertFalse(self.sent("score")[1].HasField("weight_version"))
        for bad in [([1.5], 1), ([1], -1), ([2**31], 1)]:
            with self.assertRaises(RollcastError) as caught:
                client.score([([1], 1), bad])
            self.assertEqual(caught.exception.code, "bad_prompt")
            self.assertIn("sequence 1", caught.exception.message)


@unittest.skipUnless(numpy, "numpy is not installed")
class NumpyTest(unittest.TestCase):
    def test_arrays_give_their_bytes(self):
        whole = numpy.arange(24, dtype="float32").reshape(4, 6)
        for array_given, dtype in [
            (whole, "F32"),
            (whole.T, "F32"),
            (whole[::2, 1:], "F32"),
            (whole.astype("float16"), "F16"),
            (whole.astype("uint16"), "BF16"),
            (numpy.float32(3), "F32"),
            (numpy.array(3, dtype="float16"), "F16"),
        ]:
            got = bytes_of("t", array_given, "bfloat16")
            self.assertEqual((got.dtype, got.shape), (dtype, array_given.shape))
            self.assertEqual(bytes(got.data), array_given.tobytes())
        with self.assertRaises(RollcastError):
            bytes_of("t", whole.astype(">f4"))


@unittest.skipUnless(torch, "torch is not installed")
class TorchTest(unittest.TestCase):
    def test_tensors_give_their_bytes(self):
        whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
        for tensor, dtype, bits in [
            (whole, "F32", torch.int32),
            (whole.T, "F32", torch.int32),
            (whole[::2, 1:], "F32", torch.int32),
            (torch.nn.Parameter(whole.bfloat16()), "BF16", torch.int16),
            (whole.half(), "F16", torch.int16),
            (torch.tensor(3.0), "F32", torch.int32),
        ]:
            got = bytes_of("t", tensor)
            self.assertEqual((got.dtype, got.shape), (dtype, tuple(tensor.shape)))
            flat = tensor.detach().contiguous().reshape(-1).view(bits)
            self.assertEqual(
                bytes(got.data), array("i" if dtype == "F32" else "h", flat.tolist()).tobytes()
            )


if __name__ == "__main__":
    unittest.main()
