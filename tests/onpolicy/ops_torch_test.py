"""Each PyTorch operation alone.

Goal: the gradient of every operation is that of the mathematics, its forward agrees with ordinary
PyTorch to rounding, and what it cannot do is refused.
Method: the same formula in float64 by autograd, on random inputs; errors are relative to the
largest element. float32 sums of some hundred terms are within 2e-5.
"""

import unittest

try:
    import torch
    import torch.nn.functional as F

    from rollcast import torch_ops as ops
    from rollcast._kernels import KernelError, Rope

    import plain_qwen3
except ModuleNotFoundError as missing:
    if missing.name not in ("torch", "safetensors"):
        raise
    reason = f"torch is not installed ({missing.name}): run `make train-test`"
    raise unittest.SkipTest(reason) from None


class Gradients(unittest.TestCase):
    def setUp(self):
        self.noise = torch.Generator().manual_seed(1)

    def random(self, *shape, scale=1.0):
        return torch.randn(*shape, generator=self.noise) * scale

    def compare(self, ours, plain, *inputs):
        """Both are functions of `inputs`; compares values and all gradients."""
        a = [x.clone().requires_grad_() for x in inputs]
        b = [x.double().requires_grad_() for x in inputs]
        y, z = ours(*a), plain(*b)
        self.close(y, z, "value")
        grad = self.random(*y.shape)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # must not reach the backward
            ours_grads = torch.autograd.grad(y, a, grad)
        plain_grads = torch.autograd.grad(z, b, grad.double())
        for i, (g, h) in enumerate(zip(ours_grads, plain_grads)):
            self.close(g, h, f"gradient {i}")

    def close(self, a, b, what):
        error = ((a.double() - b).abs().max() / b.abs().max()).item()
        self.assertLess(error, 2e-5, what)

    def test_linear_with_bias_and_residual(self):
        self.compare(
            lambda x, u, v, bias, residual: ops.linear(x, [u, v], bias=bias, residual=residual),
            lambda x, u, v, bias, residual: F.linear(x, torch.cat([u, v]), bias) + residual,
            *(self.random(*s) for s in ((7, 24), (10, 24), (33, 24), (43,), (7, 43))),
        )

    def test_rms_norm(self):
        self.compare(
            lambda x, w: ops.rms_norm(x, w, 1e-6),
            lambda x, w: plain_qwen3.rms_norm(x, w, 1e-6),
            self.random(9, 80),
            self.random(80),
        )

    def test_silu_mul(self):
        self.compare(
            ops.silu_mul, lambda x: F.silu(x[:, :40]) * x[:, 40:], self.random(6, 80, scale=3)
        )

    def test_embed_with_repeated_tokens(self):
        tokens = torch.tensor([3, 0, 3, 3, 9])
        self.compare(lambda t: ops.embed(tokens, t), lambda t: t[tokens], self.random(10, 12))

    def attention(self, norms):
        heads, kv_heads, head_dim, theta = 4, 2, 16, 10000.0
        lengths = [1, 70, 33, 34, 129]
        rope = Rope(head_dim, theta, 0, 1.0, 1.0, 4.0, 8192.0)
        how = ops.AttentionShape(heads, kv_heads, head_dim, 1e-6, ops.rope_table(rope, 130))
        sequences = ops.Sequences(lengths)

        def plain(qkv, *norm):
            outs = []
            for part in qkv.split(lengths):
                q, k, v = part.view(len(part), -1, head_dim).split(
                    [heads, kv_heads, kv_heads], dim=1
                )
                if norm:
                    q, k = (
                        plain_qwen3.rms_norm(x, w, 1e-6) for x, w in ((q, norm[0]), (k, norm[1]))
                    )
                q, k = (plain_qwen3.rotate(x, theta) for x in (q, k))
                outs.append(plain_qwen3.attention(q, k, v).flatten(1))
            return torch.cat(outs)

        self.compare(
            lambda qkv, *norm: ops.attend(qkv, *(norm or (None, None)), how, sequences),
            plain,
            self.random(sum(lengths), (heads + 2 * kv_heads) * head_dim),
            *([self.random(head_dim), self.random(head_dim)] if norms else []),
        )

    def test_attention_with_norms(self):
        self.attention(True)

    def test_attention_without_norms(self):
        self.attention(False)

    def test_log_probabilities_of_the_head_in_one_part_and_in_many(self):
        tokens = torch.tensor([4, 0, 49, 7, 7])
        heat = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0])
        scale = torch.where(heat == 0, 1.0, heat).double()[:, None]
        whole = ops._LOGITS_AT_ONCE
        self.addCleanup(setattr, ops, "_LOGITS_AT_ONCE", whole)
        x, w = self.random(5, 32), self.random(50, 32)
        for elements in (whole, 100):
            ops._LOGITS_AT_ONCE = elements
            self.compare(
                lambda x, w: ops.head_logprobs(x, w, tokens, heat),
                lambda x, w: torch.log_softmax(x @ w.t() / scale, dim=1)[torch.arange(5), tokens],
                x,
                w,
            )
        ops._LOGITS_AT_ONCE = whole
        self.assertTrue(
            torch.equal(
                ops.head_logprobs(x, w, tokens, heat), ops.head_logprobs(x, w, tokens, heat)
            )
        )

    def test_weights_stored_as_bf16_get_the_gradient_of_their_rounded_values(self):
        w = self.random(20, 16)
        packed = ops.PackedMatrix(torch.bfloat16)
        x = self.random(3, 16).requires_grad_()
        master = w.clone().requires_grad_()
        y = ops.linear(x, [master], packed)
        rounded = w.bfloat16().float()
        self.assertTrue(torch.equal(y, ops.linear(x, [rounded])))
        y.sum().backward()
        self.close(x.grad, rounded.double().sum(0).expand(3, 16), "gradient of x")
        self.close(
            master.grad, x.detach().double().sum(0).expand(20, 16), "gradient of the master weights"
        )


class Packing(unittest.TestCase):
    def test_weights_are_packed_again_when_and_only_when_they_change(self):
        w = torch.nn.Parameter(torch.randn(8, 4))
        packed, x = ops.PackedMatrix(), torch.randn(2, 4)
        ops.linear(x, [w], packed)
        ops.linear(x, [w], packed)
        self.assertEqual(packed.packings, 1)
        with torch.no_grad():
            w += 1
        self.assertTrue(torch.equal(ops.linear(x, [w], packed), ops.linear(x, [w])))
        # A write that torch's version counter does not see.
        before = w._version
        w.data[3, 2] += 1
        self.assertEqual(w._version, before)
        self.assertTrue(torch.equal(ops.linear(x, [w], packed), ops.linear(x, [w])))
        self.assertEqual(packed.packings, 3)


class Refusals(unittest.TestCase):
    def test_inputs_that_would_not_have_the_engines_bits_are_refused(self):
        w = torch.randn(8, 4)
        for x in (
            torch.randn(2, 4).double(),
            torch.randn(2, 4).bfloat16(),
            torch.randn(1, 2, 4),
            torch.randn(2, 5),
        ):
            with self.assertRaises(KernelError):
                ops.linear(x, [w])
        with self.assertRaises(KernelError):
            ops.linear(torch.randn(2, 4), [w.double()])
        with self.assertRaises(KernelError):
            ops.linear(torch.randn(2, 4), [w], residual=torch.randn(2, 7))
        with self.assertRaises(KernelError):
            ops.rms_norm(torch.randn(2, 4), torch.randn(5), 1e-6)
        with self.assertRaises(KernelError):
            ops.embed(torch.tensor([8]), w)
        with self.assertRaises(KernelError):
            ops.head_logprobs(torch.randn(2, 4), w, torch.tensor([1]), torch.ones(2))


if __name__ == "__main__":
    unittest.main()
