"""The C interface of the kernels, without PyTorch or numpy.

Goal: what a trainer computes through librollcast_kernels.so has the engine's bits, and wrong
arguments are refused with a reason.
Method: ctypes and plain Python. Products are compared with an exact emulation of the chain of fused
multiply-adds; row operations with double precision; a whole forward pass of the tiny Qwen3, driven
from here, with the log-probabilities that a real rollout reported.
"""

import ctypes
import json
import math
import os
import random
import struct
import threading
import unittest
from fractions import Fraction

from rollcast import _kernels
from rollcast._kernels import BF16, F32, KernelError, kernels

from rollouts import TINY, bits, rollout

INSTRUCTION_SETS = ("avx512-bf16", "avx512", "avx2", "neon")


def floats(values):
    values = list(values)
    return (ctypes.c_float * len(values))(*values)


def ints(values, kind=ctypes.c_int32):
    values = list(values)
    return (kind * len(values))(*values)


def noise(rng, count, scale=1.0):
    return [struct.unpack("<f", struct.pack("<f", rng.gauss(0, scale)))[0] for _ in range(count)]


class Packed:
    """A packed matrix in 64-byte aligned memory."""

    def __init__(self, parts, k, dtype=F32, source_dtype=F32):
        """`parts`: arrays of [rows, k] weights that lie side by side."""
        item = 4 if source_dtype == F32 else 2
        self.k, self.dtype = k, dtype
        self.n = sum(ctypes.sizeof(part) // item // k for part in parts)
        size = kernels().packed_bytes(dtype, self.n, k)
        self.memory = ctypes.create_string_buffer(size + 64)
        start = ctypes.addressof(self.memory)
        self.address = start + -start % 64
        column = 0
        for part in parts:
            rows = ctypes.sizeof(part) // item // k
            kernels().call(
                "pack_weights", part, source_dtype, rows, k, column, self.address, dtype, self.n
            )
            column += rows

    def times(self, x, bias=None, residual=None):
        rows = len(x) // self.k
        y = floats(residual if residual is not None else [0] * (rows * self.n))
        kernels().call(
            "linear",
            self.address,
            self.dtype,
            self.n,
            self.k,
            x,
            rows,
            bias,
            int(residual is not None),
            y,
        )
        return y


def to_f32(exact):
    """A Fraction rounded to float32, nearest even, exactly (no subnormals here)."""
    if exact == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(exact)))
    for e in (exponent - 1, exponent, exponent + 1):
        if Fraction(2) ** e <= abs(exact) < Fraction(2) ** (e + 1):
            unit = Fraction(2) ** (e - 23)
            return float(round(exact / unit) * unit)  # round() of a Fraction is to even
    raise AssertionError(exact)


def chain(x, w):
    total = 0.0
    for a, b in zip(x, w):
        total = to_f32(Fraction(total) + Fraction(a) * Fraction(b))
    return total


class Products(unittest.TestCase):
    def setUp(self):
        rng = random.Random(1)
        self.rows, self.n, self.k = 5, 37, 19
        self.x = floats(noise(rng, self.rows * self.k))
        self.w = floats(noise(rng, self.n * self.k))

    def row(self, array, i):
        return list(array[i * self.k : (i + 1) * self.k])

    def test_a_product_is_one_ascending_chain_of_fused_multiply_adds(self):
        y = Packed([self.w], self.k).times(self.x)
        expected = [
            chain(self.row(self.x, r), self.row(self.w, c))
            for r in range(self.rows)
            for c in range(self.n)
        ]
        self.assertEqual(bits(y), bits(expected))
        # The comparison must be able to fail: the same terms in descending order.
        other = [
            chain(self.row(self.x, r)[::-1], self.row(self.w, c)[::-1])
            for r in range(self.rows)
            for c in range(self.n)
        ]
        self.assertNotEqual(bits(y), bits(other))

    def test_bias_and_residual_are_added_after_the_chain_in_this_order(self):
        rng = random.Random(2)
        bias, residual = floats(noise(rng, self.n)), noise(rng, self.rows * self.n)
        plain = Packed([self.w], self.k).times(self.x)
        y = Packed([self.w], self.k).times(self.x, bias, residual)
        expected = [
            to_f32(Fraction(to_f32(Fraction(p) + Fraction(bias[i % self.n]))) + Fraction(r))
            for i, (p, r) in enumerate(zip(plain, residual))
        ]
        self.assertEqual(bits(y), bits(expected))

    def test_bits_depend_on_no_batch_threads_fusion_or_instruction_set(self):
        rng = random.Random(3)
        rows, n, k = 1100, 70, 33  # three row blocks, three panels, an odd k
        x, w = noise(rng, rows * k), noise(rng, n * k)
        whole = Packed([floats(w)], k).times(floats(x))
        self.addCleanup(kernels().call, "kernels_set_threads", os.cpu_count() or 1)
        self.addCleanup(kernels().call, "kernels_use_instruction_set", b"")
        ran = 0
        for name in INSTRUCTION_SETS:
            try:
                kernels().call("kernels_use_instruction_set", name.encode())
            except KernelError:
                continue
            ran += 1
            self.assertEqual(kernels().instruction_set, name)
            for threads in (1, 3):
                kernels().call("kernels_set_threads", threads)
                parts = Packed([floats(w[: 20 * k]), floats(w[20 * k :])], k)
                self.assertEqual(bits(parts.times(floats(x))), bits(whole))
                for row in (5, 511, 512, 1099):
                    alone = parts.times(floats(x[row * k : (row + 1) * k]))
                    self.assertEqual(bits(alone), bits(whole[row * n : (row + 1) * n]))
        self.assertGreater(ran, 0)

    def test_bf16_weights_are_widened_and_f32_ones_rounded_once(self):
        halves = [struct.unpack("<I", struct.pack("<f", v))[0] for v in self.w]
        rounded = [(b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in halves]
        wide = floats(struct.unpack("<f", struct.pack("<I", h << 16))[0] for h in rounded)
        expected = bits(Packed([wide], self.k).times(self.x))
        self.assertEqual(
            bits(Packed([ints(rounded, ctypes.c_uint16)], self.k, BF16, BF16).times(self.x)),
            expected,
        )
        self.assertEqual(bits(Packed([self.w], self.k, BF16).times(self.x)), expected)
        self.assertNotEqual(bits(Packed([self.w], self.k).times(self.x)), expected)


class Tiny:
    """The tiny Qwen3, its forward pass spelled out over the C interface."""

    def __init__(self):
        self.config = json.loads((TINY / "config.json").read_text())
        raw = (TINY / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        self.tensors = {}
        for name, entry in json.loads(raw[8 : 8 + size]).items():
            if name != "__metadata__":
                begin, end = (8 + size + at for at in entry["data_offsets"])
                self.tensors[name] = ints(
                    struct.unpack(f"<{(end - begin) // 2}H", raw[begin:end]), ctypes.c_uint16
                )
        c = self.config
        rope = _kernels.Rope(
            c["head_dim"], c["rope_parameters"]["rope_theta"], 0, 1.0, 1.0, 4.0, 8192.0
        )
        self.cos_sin = floats([0] * (c["max_position_embeddings"] * c["head_dim"]))
        kernels().call("rope_table", ctypes.byref(rope), c["max_position_embeddings"], self.cos_sin)

    def vector(self, name):
        return floats(
            struct.unpack("<f", struct.pack("<I", h << 16))[0] for h in self.tensors[name]
        )

    def matrix(self, k, *names):
        return Packed([self.tensors[name] for name in names], k, BF16, BF16)

    def norm(self, x, name):
        hidden = self.config["hidden_size"]
        y = floats([0] * len(x))
        kernels().call(
            "rms_norm",
            x,
            self.vector(name),
            self.config["rms_norm_eps"],
            len(x) // hidden,
            hidden,
            y,
        )
        return y

    def layer(self, x, index, lengths):
        c, p = self.config, f"model.layers.{index}."
        heads, kv_heads, head_dim = (
            c["num_attention_heads"],
            c["num_key_value_heads"],
            c["head_dim"],
        )
        hidden, inner = c["hidden_size"], c["intermediate_size"]
        names = [p + f"self_attn.{part}_proj.weight" for part in "qkv"]
        qkv = self.matrix(hidden, *names).times(self.norm(x, p + "input_layernorm.weight"))
        norms = [self.vector(p + f"self_attn.{part}_norm.weight") for part in "qk"]
        sizes = ints(lengths, ctypes.c_uint32)
        how = _kernels.Attention(
            heads,
            kv_heads,
            head_dim,
            *map(ctypes.addressof, norms),
            c["rms_norm_eps"],
            ctypes.addressof(self.cos_sin),
            c["max_position_embeddings"],
            ctypes.addressof(sizes),
            len(lengths),
        )
        attended = floats([0] * (sum(lengths) * heads * head_dim))
        kernels().call("attend", ctypes.byref(how), qkv, attended)
        x = self.matrix(heads * head_dim, p + "self_attn.o_proj.weight").times(attended, residual=x)
        names = [p + f"mlp.{part}_proj.weight" for part in ("gate", "up")]
        gate_up = self.matrix(hidden, *names).times(
            self.norm(x, p + "post_attention_layernorm.weight")
        )
        gated = floats([0] * (sum(lengths) * inner))
        kernels().call("silu_mul", gate_up, sum(lengths), inner, gated)
        return self.matrix(inner, p + "mlp.down_proj.weight").times(gated, residual=x)

    def logprobs(self, texts, temperature):
        """Of every token but the first of each text."""
        c, lengths = self.config, [len(t) for t in texts]
        tokens = [t for text in texts for t in text]
        table = self.tensors["model.embed_tokens.weight"]
        x = floats([0] * (len(tokens) * c["hidden_size"]))
        kernels().call(
            "embed", table, BF16, c["vocab_size"], c["hidden_size"], ints(tokens), len(tokens), x
        )
        for index in range(c["num_hidden_layers"]):
            x = self.layer(x, index, lengths)
        logits = self.matrix(c["hidden_size"], "model.embed_tokens.weight").times(
            self.norm(x, "model.norm.weight")
        )
        out = floats([0] * len(tokens))
        following = ints(tokens[1:] + [0])
        heat = floats([temperature] * len(tokens))
        kernels().call("token_logprobs", logits, len(tokens), c["vocab_size"], heat, following, out)
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        return [out[end - n : end - 1] for end, n in zip(ends, lengths)]


class ForwardPass(unittest.TestCase):
    def test_log_probabilities_are_those_of_the_rollout(self):
        prompts = [[5, 6, 7], list(range(10, 80)), [3] * 20]
        responses = rollout(TINY, prompts, **{"max-new-tokens": 40, "temperature": 0.7})
        self.assertEqual(len(responses), 6)
        texts = [r["prompt_token_ids"] + r["token_ids"] for r in responses]
        model = Tiny()
        for r, text, values in zip(responses, texts, model.logprobs(texts, 0.7)):
            self.assertEqual(bits(values[len(r["prompt_token_ids"]) - 1 :]), bits(r["logprobs"]))
            alone = model.logprobs([text], 0.7)[0]
            self.assertEqual(bits(alone), bits(values))
        # The comparison must be able to fail: another temperature is another log-probability.
        cold = model.logprobs(texts[:1], 1.0)[0][len(prompts[0]) - 1 :]
        self.assertNotEqual(bits(cold), bits(responses[0]["logprobs"]))


class Refusals(unittest.TestCase):
    def refused(self, words, name, *arguments):
        with self.assertRaises(KernelError) as caught:
            kernels().call(name, *arguments)
        self.assertIn(words, str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    def test_what_cannot_be_computed_is_refused_with_a_reason(self):
        x, w, y = floats([1.0] * 16), floats([1.0] * 16), floats([7.0] * 16)
        packed = Packed([w], 4)
        self.refused(
            "not 64-byte aligned", "linear", packed.address + 4, F32, 4, 4, x, 4, None, 0, y
        )
        self.refused("dtype 2", "linear", packed.address, 2, 4, 4, x, 4, None, 0, y)
        self.refused("x or y is NULL", "linear", packed.address, F32, 4, 4, None, 4, None, 0, y)
        self.refused(
            "do not fit in 4 columns", "pack_weights", w, F32, 4, 4, 1, packed.address, F32, 4
        )
        self.refused("token 1 is 4: ids are 0 to 3", "embed", w, F32, 4, 4, ints([3, 4]), 2, y)
        self.refused("token 0 is -1", "token_logprobs", x, 1, 16, floats([1.0]), ints([-1]), y)
        self.refused(
            "temperature 0 is", "token_logprobs", x, 1, 16, floats([math.nan]), ints([1]), y
        )
        self.refused("eps must be above 0", "rms_norm", x, w, 0.0, 4, 4, y)
        self.refused("threads is 0", "kernels_set_threads", 0)
        self.refused("no instruction set mmx here", "kernels_use_instruction_set", b"mmx")
        self.assertEqual(list(y), [7.0] * 16)

    def test_attention_refuses_shapes_and_lengths_that_it_cannot_do(self):
        qkv, out, table = floats([1.0] * 96), floats([7.0] * 32), floats([1.0] * 32)
        for heads, kv_heads, head_dim, length, words in (
            (3, 2, 16, 1, "3 heads and 2 kv heads"),
            (2, 2, 24, 1, "head_dim is 24"),
            (2, 2, 16, 3, "sequence 0 has 3 tokens"),
            (2, 2, 16, 0, "sequence 0 has 0 tokens"),
        ):
            lengths = ints([length], ctypes.c_uint32)
            how = _kernels.Attention(
                heads,
                kv_heads,
                head_dim,
                None,
                None,
                1e-6,
                ctypes.addressof(table),
                2,
                ctypes.addressof(lengths),
                1,
            )
            self.refused(words, "attend", ctypes.byref(how), qkv, out)
        self.assertEqual(list(out), [7.0] * 32)

    def test_a_library_that_is_missing_or_none_is_named(self):
        for path in ("/nonexistent/librollcast_kernels.so", __file__):
            with self.assertRaises(KernelError) as caught:
                _kernels.Kernels(path)
            self.assertIn(path, str(caught.exception))


class Processes(unittest.TestCase):
    def test_the_profile_is_the_engines(self):
        self.assertEqual(kernels().profile, "cpu-f32-v1")
        self.assertRegex(kernels().profile_hash, "^[0-9a-f]{32}$")

    def test_a_forked_child_computes_the_same(self):
        rng = random.Random(4)
        x, w = floats(noise(rng, 400 * 64)), floats(noise(rng, 256 * 64))
        expected = bits(Packed([w], 64).times(x))
        child = os.fork()
        if child == 0:
            same = bits(Packed([w], 64).times(x)) == expected
            os._exit(0 if same else 1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)

    def test_calls_of_several_threads_do_not_disturb_each_other(self):
        rng = random.Random(5)
        w = floats(noise(rng, 64 * 64))
        inputs = [floats(noise(rng, 50 * 64)) for _ in range(4)]
        expected = [bits(Packed([w], 64).times(x)) for x in inputs]
        wrong = []

        def work(i):
            for _ in range(20):
                if bits(Packed([w], 64).times(inputs[i])) != expected[i]:
                    wrong.append(i)

        team = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for member in team:
            member.start()
        for member in team:
            member.join()
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main()
