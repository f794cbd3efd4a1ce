"""Qwen3 in ordinary PyTorch, in any dtype and with any product: the oracle of the gradients."""

import torch


def rms_norm(x, w, eps):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * w


def rotate(x, theta):
    """x [rows, heads, head_dim] of one sequence."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(len(x), dtype=torch.float64)[:, None] * frequency
    cos, sin = torch.cos(angle).to(x.dtype)[:, None], torch.sin(angle).to(x.dtype)[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(q, k, v):
    """Causal, of one sequence; q [rows, heads, head_dim], k and v [rows, kv_heads, head_dim]."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    later = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(later, float("-inf")), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def logprobs(config, tensors, text, prompt_tokens, temperature, matmul=torch.matmul):
    """Of the tokens of one text after its prompt; `tensors` by Hugging Face name."""
    heads, kv_heads, head_dim = (
        config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    eps = config["rms_norm_eps"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    embedding = tensors["model.embed_tokens.weight"]
    x = embedding[torch.tensor(text[:-1])]
    for i in range(config["num_hidden_layers"]):
        w = {
            name.split(".", 3)[3]: t
            for name, t in tensors.items()
            if name.startswith(f"model.layers.{i}.")
        }
        normed = rms_norm(x, w["input_layernorm.weight"], eps)
        q, k, v = (
            matmul(normed, w[f"self_attn.{p}_proj.weight"].t()).view(len(x), -1, head_dim)
            for p in "qkv"
        )
        q = rotate(rms_norm(q, w["self_attn.q_norm.weight"], eps), theta)
        k = rotate(rms_norm(k, w["self_attn.k_norm.weight"], eps), theta)
        attended = attention(q, k, v).reshape(len(x), heads * head_dim)
        x = x + matmul(attended, w["self_attn.o_proj.weight"].t())
        normed = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        gate, up = (matmul(normed, w[f"mlp.{p}_proj.weight"].t()) for p in ("gate", "up"))
        x = x + matmul(torch.nn.functional.silu(gate) * up, w["mlp.down_proj.weight"].t())
    x = rms_norm(x, tensors["model.norm.weight"], eps)[prompt_tokens - 1 :]
    logits = matmul(x, tensors.get("lm_head.weight", embedding).t())
    following = torch.tensor(text[prompt_tokens:])
    return torch.log_softmax(logits / temperature, dim=-1)[torch.arange(len(x)), following]
